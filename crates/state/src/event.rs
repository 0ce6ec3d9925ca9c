//! What happened, kept so that watchers who come back miss nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{
    App, AppId, Artifact, Deployment, DeploymentStatus, Job, JobState, ObjectType, Release, Route,
    ScaleRequest, Timestamp,
};

use crate::State;

/// An event with the rows that it is about; the controller writes them in the contract's form.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateEvent {
    pub id: u64,
    pub app: Option<AppId>,
    pub subject: Arc<Subject>,
    pub at: Timestamp,
}

/// An app on its way out, with what goes along.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeletedApp {
    pub app: App,
    pub routes: Vec<Arc<Route>>,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Subject {
    App {
        app: Arc<App>,
    },
    AppDeletion {
        app: Arc<DeletedApp>,
        releases: Vec<Arc<Release>>,
    },
    AppRelease {
        previous: Option<Arc<Release>>,
        release: Arc<Release>,
    },
    Artifact {
        artifact: Arc<Artifact>,
    },
    Release {
        release: Arc<Release>,
    },
    ReleaseDeletion {
        app: AppId,
        release: Arc<Release>,
    },
    ScaleRequest {
        request: Arc<ScaleRequest>,
    },
    ScaleRequestCancelation {
        request: Arc<ScaleRequest>,
    },
    Deployment {
        deployment: Arc<Deployment>,
        status: DeploymentStatus,
        error: String,
    },
    /// A job of a release that is being deployed moved on.
    DeploymentJob {
        deployment: Arc<Deployment>,
        job: Arc<Job>,
        state: JobState,
    },
    Job {
        job: Arc<Job>,
    },
    Route {
        route: Arc<Route>,
    },
    RouteDeletion {
        route: Arc<Route>,
    },
    Sink {
        sink: Arc<types::Sink>,
    },
    SinkDeletion {
        sink: Arc<types::Sink>,
    },
}

impl Subject {
    pub fn object_type(&self) -> ObjectType {
        match self {
            Subject::App { .. } => ObjectType::App,
            Subject::AppDeletion { .. } => ObjectType::AppDeletion,
            Subject::AppRelease { .. } => ObjectType::AppRelease,
            Subject::Artifact { .. } => ObjectType::Artifact,
            Subject::Release { .. } => ObjectType::Release,
            Subject::ReleaseDeletion { .. } => ObjectType::ReleaseDeletion,
            Subject::ScaleRequest { .. } => ObjectType::ScaleRequest,
            Subject::ScaleRequestCancelation { .. } => ObjectType::ScaleRequestCancelation,
            Subject::Deployment { .. } | Subject::DeploymentJob { .. } => ObjectType::Deployment,
            Subject::Job { .. } => ObjectType::Job,
            Subject::Route { .. } => ObjectType::Route,
            Subject::RouteDeletion { .. } => ObjectType::RouteDeletion,
            Subject::Sink { .. } => ObjectType::Sink,
            Subject::SinkDeletion { .. } => ObjectType::SinkDeletion,
        }
    }

    pub fn object_id(&self) -> String {
        match self {
            Subject::App { app } => app.id.to_string(),
            Subject::AppDeletion { app, .. } => app.app.id.to_string(),
            Subject::AppRelease { release, .. } | Subject::Release { release } => release.id.to_string(),
            Subject::Artifact { artifact } => artifact.id.to_string(),
            Subject::ReleaseDeletion { release, .. } => release.id.to_string(),
            Subject::ScaleRequest { request } | Subject::ScaleRequestCancelation { request } => {
                request.id.to_string()
            }
            Subject::Deployment { deployment, .. } | Subject::DeploymentJob { deployment, .. } => {
                deployment.id.to_string()
            }
            Subject::Job { job } => job.id.to_string(),
            Subject::Route { route } | Subject::RouteDeletion { route } => route.formatted_id(),
            Subject::Sink { sink } | Subject::SinkDeletion { sink } => sink.id.to_string(),
        }
    }
}

impl State {
    pub(crate) fn emit(&mut self, at: Timestamp, app: Option<AppId>, subject: Subject) {
        self.last_event += 1;
        self.events.push_back(StateEvent {
            id: self.last_event,
            app,
            subject: Arc::new(subject),
            at,
        });
        while self.events.len() > crate::EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// Events after `id`, oldest first.
    pub fn events_since(&self, id: u64) -> impl Iterator<Item = &StateEvent> {
        let missed = self.last_event.saturating_sub(id).min(self.events.len() as u64) as usize;
        self.events.iter().skip(self.events.len() - missed)
    }
}
