//! What happened, kept so that watchers who come back miss nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{
    App, AppId, Artifact, Deployment, DeploymentStatus, DomainMigration, Job, JobState, ObjectType, Provider,
    Release, ReleaseId, Resource, Route, ScaleRequest, Timestamp,
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
    /// What its providers have taken back so far.
    #[serde(default)]
    pub resources: Vec<Arc<Resource>>,
    /// Why the deletion did not get on when it was last tried.
    #[serde(default)]
    pub error: String,
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
        /// Not empty where the deletion could not be finished and is tried again.
        #[serde(default)]
        error: String,
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
        #[serde(default)]
        deleted_files: Vec<String>,
    },
    AppGarbageCollection {
        app: AppId,
        deleted_releases: Vec<ReleaseId>,
    },
    Provider {
        provider: Arc<Provider>,
    },
    Resource {
        resource: Arc<Resource>,
    },
    ResourceDeletion {
        resource: Arc<Resource>,
    },
    ResourceAppDeletion {
        resource: Arc<Resource>,
    },
    DomainMigration {
        migration: Arc<DomainMigration>,
        error: String,
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
    ClusterBackup {
        backup: Arc<types::ClusterBackup>,
    },
    Volume {
        volume: Arc<types::Volume>,
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
            Subject::AppGarbageCollection { .. } => ObjectType::AppGarbageCollection,
            Subject::Provider { .. } => ObjectType::Provider,
            Subject::Resource { .. } => ObjectType::Resource,
            Subject::ResourceDeletion { .. } => ObjectType::ResourceDeletion,
            Subject::ResourceAppDeletion { .. } => ObjectType::ResourceAppDeletion,
            Subject::DomainMigration { .. } => ObjectType::DomainMigration,
            Subject::ScaleRequest { .. } => ObjectType::ScaleRequest,
            Subject::ScaleRequestCancelation { .. } => ObjectType::ScaleRequestCancelation,
            Subject::Deployment { .. } | Subject::DeploymentJob { .. } => ObjectType::Deployment,
            Subject::Job { .. } => ObjectType::Job,
            Subject::Route { .. } => ObjectType::Route,
            Subject::RouteDeletion { .. } => ObjectType::RouteDeletion,
            Subject::ClusterBackup { .. } => ObjectType::ClusterBackup,
            Subject::Volume { .. } => ObjectType::Volume,
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
            Subject::AppGarbageCollection { app, .. } => app.to_string(),
            Subject::Provider { provider } => provider.id.to_string(),
            Subject::Resource { resource }
            | Subject::ResourceDeletion { resource }
            | Subject::ResourceAppDeletion { resource } => resource.id.to_string(),
            Subject::DomainMigration { migration, .. } => migration.id.to_string(),
            Subject::ClusterBackup { backup } => backup.id.to_string(),
            Subject::ScaleRequest { request } | Subject::ScaleRequestCancelation { request } => {
                request.id.to_string()
            }
            Subject::Deployment { deployment, .. } | Subject::DeploymentJob { deployment, .. } => {
                deployment.id.to_string()
            }
            Subject::Job { job } => job.id.to_string(),
            Subject::Volume { volume } => volume.id.to_string(),
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
        // By index: an iterator would walk over all that it skips, for every stream at every change.
        (self.events.len() - missed..self.events.len()).filter_map(|index| self.events.get(index))
    }
}
