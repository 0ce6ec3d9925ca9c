//! The cluster's state and every way in which it can change.
//!
//! [`State`] is what the Raft group agrees on; [`State::apply`] is the only thing that changes it. It
//! is a pure function of the state and the [`Command`], run by every voter: no clock, no randomness,
//! no I/O. Whoever proposes a command stamps it with the time and makes the ids.
//!
//! A command that breaks a rule is refused with a [`Rejection`] and changes nothing. What is already
//! so is no error: agents and controllers repeat themselves after every interruption.
//!
//! Nothing here decides what *should* happen; the scheduler does, and the controller turns its plan
//! into commands.

mod apply;
mod apps;
mod authority;
mod backups;
mod collect;
mod command;
mod contents;
mod deployments;
mod domain;
mod event;
mod hosts;
mod image;
mod jobs;
mod members;
mod releases;
mod resources;
mod restore;
mod routes;
mod services;
mod settings;
mod sinks;
mod volumes;
mod voters;

use imbl::{OrdMap, OrdSet};
use types::{
    App, AppId, Artifact, ArtifactId, Certificate, CertificateId, Deployment, DeploymentId, DomainMigration,
    DomainMigrationId, Formation, Host, HostId, Job, JobId, Provider, ProviderId, Release, ReleaseId,
    Resource, ResourceId, Route, RouteId, ScaleRequest, ScaleRequestId, Table, Timestamp,
};

pub use authority::{AuthorityChange, RENEWED_BEFORE_END, Renewal};
pub use collect::{ARTIFACT_GRACE, DeletedRelease};
pub use command::{Applied, Change, Command, JobChange, Outcome, Rejection};
pub use event::{DeletedApp, StateEvent, Subject};
pub use image::ImageError;
pub use members::MembershipChange;
pub use restore::pieces;
pub use settings::SettingsChange;
pub use voters::{Voter, voters};

/// Events kept for watchers that come back; older ones are gone.
pub const EVENTS_MAX: usize = 5_000;

/// Ended jobs kept per app, release and process type: what the scheduler counts crashes by.
pub const ENDED_JOBS_MAX: usize = 10;

/// Ended jobs kept per app.
pub const ENDED_JOBS_OF_APP_MAX: usize = 100;

/// Finished deployments and scale requests kept per app.
pub const FINISHED_MAX: usize = 50;

/// Ports of TCP routes for which the user names none (the original's range).
pub const TCP_PORTS: std::ops::RangeInclusive<u16> = 3000..=3500;

/// Everything the cluster knows. Cloning it is cheap: the tables share their rows.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub apps: Table<AppId, App>,
    pub artifacts: Table<ArtifactId, Artifact>,
    pub releases: Table<ReleaseId, Release>,
    pub formations: Table<(AppId, ReleaseId), Formation>,
    pub scale_requests: Table<ScaleRequestId, ScaleRequest>,
    pub deployments: Table<DeploymentId, Deployment>,
    pub jobs: Table<JobId, Job>,
    pub routes: Table<RouteId, Route>,
    pub certificates: Table<CertificateId, Certificate>,
    pub hosts: Table<HostId, Host>,
    pub volumes: Table<types::VolumeId, types::Volume>,
    pub sinks: Table<types::SinkId, types::Sink>,
    /// What is known of services beside their instances.
    pub services: Table<String, types::ServiceRow>,
    /// Versions of what hosts keep beside the state.
    pub contents: Table<String, types::Content>,
    /// Apps whose name is free again while their jobs still end.
    pub deleted_apps: Table<AppId, DeletedApp>,
    /// Releases that go when their last job has ended.
    pub deleted_releases: Table<ReleaseId, DeletedRelease>,
    pub providers: Table<ProviderId, Provider>,
    pub resources: Table<ResourceId, Resource>,
    pub domain_migrations: Table<DomainMigrationId, DomainMigration>,
    /// When an artifact that was there already was last asked for by its uri.
    pub named_artifacts: OrdMap<ArtifactId, Timestamp>,
    pub settings: std::sync::Arc<types::Settings>,
    /// What the cluster's authority has made anew.
    pub authority: std::sync::Arc<types::Authority>,
    pub last_backup: Option<std::sync::Arc<types::ClusterBackup>>,
    pub members: Table<u64, types::Member>,
    /// By hash.
    pub tokens: Table<String, types::JoinToken>,
    /// The highest number that a member ever had.
    pub last_node: u64,
    /// The latest time that a command was stamped with.
    pub last_at: Timestamp,
    pub events: imbl::Vector<StateEvent>,
    /// The id of the newest event.
    pub last_event: u64,
    /// The index of the last command in the log: grows with every change.
    pub revision: u64,

    // Derived from the tables above, and rebuilt when a snapshot is read.
    app_names: OrdMap<String, AppId>,
    artifact_uris: OrdMap<String, ArtifactId>,
    jobs_by_app: OrdSet<(AppId, JobId)>,
}

impl State {
    pub fn app_by_name(&self, name: &str) -> Option<&std::sync::Arc<App>> {
        self.apps.get(self.app_names.get(name)?)
    }

    /// By id if it is one, else by name.
    pub fn find_app(&self, id_or_name: &str) -> Option<&std::sync::Arc<App>> {
        match id_or_name.parse::<AppId>() {
            Ok(id) => self.apps.get(&id),
            Err(_) => self.app_by_name(id_or_name),
        }
    }

    pub fn artifact_by_uri(&self, uri: &str) -> Option<&std::sync::Arc<Artifact>> {
        self.artifacts.get(self.artifact_uris.get(uri)?)
    }

    /// Jobs of one app, in no useful order.
    pub fn jobs_of(&self, app: AppId) -> impl Iterator<Item = &std::sync::Arc<Job>> {
        let first = JobId(UUID_MIN);
        let last = JobId(UUID_MAX);
        self.jobs_by_app
            .range((app, first)..=(app, last))
            .filter_map(|(_, job)| self.jobs.get(job))
    }

    pub fn formations_of(&self, app: AppId) -> impl Iterator<Item = &std::sync::Arc<Formation>> {
        let (first, last) = ((app, ReleaseId(UUID_MIN)), (app, ReleaseId(UUID_MAX)));
        self.formations
            .range(first..=last)
            .map(|(_, formation)| formation)
    }

    pub fn routes_of(&self, app: AppId) -> impl Iterator<Item = &std::sync::Arc<Route>> {
        let parent = parent_ref(app);
        self.routes
            .values()
            .filter(move |route| route.parent_ref == parent)
    }

    pub fn releases_of(&self, app: AppId) -> impl Iterator<Item = &std::sync::Arc<Release>> {
        self.releases
            .values()
            .filter(move |release| release.app_id == app)
    }

    pub fn unfinished_deployment(&self, app: AppId) -> Option<&std::sync::Arc<Deployment>> {
        self.deployments
            .values()
            .find(|deployment| deployment.app == app && !deployment.status.is_finished())
    }
}

/// What a route's `parent_ref` is for an app.
pub fn parent_ref(app: AppId) -> String {
    format!("controller/apps/{app}")
}

const UUID_MIN: types::Uuid = types::Uuid::nil();
const UUID_MAX: types::Uuid = types::Uuid::max();
