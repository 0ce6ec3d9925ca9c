//! Commands: what can be asked of the state, and what it answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use types::{
    App, AppId, Artifact, ArtifactId, Certificate, Deployment, DeploymentId, DeploymentStatus,
    DomainMigration, DomainMigrationId, Exit, Host, HostId, HostState, Job, JobId, Processes, Provider,
    Release, ReleaseId, Resource, ResourceId, Route, RouteId, ScaleRequestId, StopReason, Strategy, Tags,
    Timestamp, TlsCert,
};

/// A change with the time at which it was proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub at: Timestamp,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one, a new job, is the common one, and none lives longer than its proposal"
)]
pub enum Change {
    /// With the route that every app gets, if it gets one.
    CreateApp {
        app: App,
        route: Option<Route>,
    },
    /// What is absent stays.
    UpdateApp {
        app: AppId,
        #[serde(default)]
        meta: Option<BTreeMap<String, String>>,
        #[serde(default)]
        strategy: Option<Strategy>,
        #[serde(default)]
        deploy_timeout: Option<i32>,
    },
    /// Frees the name and stops the jobs; [`Change::FinishAppDeletion`] removes the rest.
    DeleteApp {
        app: AppId,
    },
    FinishAppDeletion {
        app: AppId,
    },
    /// Why a deletion does not get on; it is tried again.
    FailAppDeletion {
        app: AppId,
        error: String,
    },

    /// Gives the artifact that is there already when the uri is known.
    CreateArtifact {
        artifact: Artifact,
    },
    CreateRelease {
        release: Release,
    },
    SetAppRelease {
        app: AppId,
        release: ReleaseId,
    },
    DeleteRelease {
        app: AppId,
        release: ReleaseId,
    },

    /// Deletes releases that the app's metadata want no longer kept.
    CollectReleases {
        app: AppId,
    },
    /// Removes the platform's own artifacts that nothing needs and nobody asked for since.
    CollectArtifacts {
        before: Timestamp,
    },

    /// A user's change of a formation, followed by a scale request.
    Scale {
        request: ScaleRequestId,
        app: AppId,
        release: ReleaseId,
        #[serde(default)]
        processes: Option<Processes>,
        #[serde(default)]
        tags: Option<Tags>,
    },
    /// A deployment's change of a formation.
    SetFormation {
        app: AppId,
        release: ReleaseId,
        processes: Processes,
        tags: Tags,
    },
    DeleteFormation {
        app: AppId,
        release: ReleaseId,
    },
    CompleteScaleRequest {
        request: ScaleRequestId,
    },
    CancelScaleRequest {
        request: ScaleRequestId,
    },

    /// `old_release`, `processes`, `tags` and `status` are filled in from the state.
    CreateDeployment {
        deployment: Deployment,
    },
    SetDeploymentStatus {
        deployment: DeploymentId,
        status: DeploymentStatus,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error: String,
    },

    /// A user scaled the app meanwhile: what an unfinished deployment ends with, either way.
    RetargetDeployment {
        deployment: DeploymentId,
        processes: Processes,
    },

    CreateJob {
        job: Job,
    },
    Job {
        job: JobId,
        change: JobChange,
    },

    CreateRoute {
        route: Route,
        #[serde(default)]
        certificate: Option<Certificate>,
    },
    UpdateRoute {
        route: Route,
        #[serde(default)]
        certificate: Option<Certificate>,
    },
    DeleteRoute {
        app: AppId,
        route: RouteId,
    },

    CreateProvider {
        provider: Provider,
    },
    /// Creates it, or replaces what is known of it. Its provider has made it already.
    PutResource {
        resource: Resource,
    },
    AddResourceApp {
        resource: ResourceId,
        app: AppId,
    },
    RemoveResourceApp {
        resource: ResourceId,
        app: AppId,
    },
    /// Its provider has removed it already.
    DeleteResource {
        resource: ResourceId,
    },

    CreateDomainMigration {
        migration: DomainMigration,
    },
    FinishDomainMigration {
        migration: DomainMigrationId,
        tls_cert: TlsCert,
    },
    FailDomainMigration {
        migration: DomainMigrationId,
        error: String,
    },

    CreateSink {
        sink: types::Sink,
    },
    DeleteSink {
        sink: types::SinkId,
    },

    /// What is known of a service beside its instances; `app` is the one whose job asked for it.
    Service {
        service: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        app: Option<AppId>,
        change: types::ServiceChange,
    },

    /// Another version of what hosts keep beside the state, by who had version `after`.
    PutContent {
        name: String,
        app: AppId,
        after: u64,
        digest: types::Digest,
    },

    /// What an operator chooses for the whole cluster.
    Settings {
        change: crate::SettingsChange,
    },

    /// What the cluster's authority has made anew.
    Authority {
        change: crate::AuthorityChange,
    },

    /// How far a backup of the cluster has come.
    PutBackup {
        backup: types::ClusterBackup,
    },
    /// Rows of another cluster's state ([`crate::pieces`]), for a host that took over its files.
    Restore {
        rows: serde_json::Value,
        host: HostId,
    },

    PutHost {
        host: Host,
    },
    SetHostState {
        host: HostId,
        state: HostState,
    },
    /// Whether a host's jobs are to move elsewhere.
    SetHostDraining {
        host: HostId,
        is_draining: bool,
    },
    RemoveHost {
        host: HostId,
    },

    /// Who is a member of the cluster, and who may become one.
    Membership {
        change: crate::MembershipChange,
    },

    /// As somebody outside the scheduler writes it.
    PutVolume {
        volume: types::Volume,
    },
    DecommissionVolume {
        app: AppId,
        volume: types::VolumeId,
    },
    /// Refused while a job has it.
    DestroyVolume {
        volume: types::VolumeId,
    },
    /// What a host says of a volume.
    Volume {
        host: HostId,
        volume: types::VolumeId,
        report: types::VolumeReport,
    },

    /// All in order; what is refused is left out and the rest goes on. For plans, whose parts do not
    /// depend on each other.
    All {
        changes: Vec<Change>,
    },
}

/// How a job moves on. Each is ignored where it would move the job back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum JobChange {
    /// Pending to starting.
    Place {
        host: HostId,
        /// What it gets, all on this host.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        volumes: Vec<types::VolumeId>,
        /// The rows of those that are new.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        new_volumes: Vec<types::Volume>,
    },
    /// Why it is pending; empty for no reason.
    Wait {
        reason: String,
    },
    /// The container runs.
    Started {
        address: Option<IpAddr>,
    },
    Up {
        address: Option<IpAddr>,
        /// Its other address, if it is to be reached by that as well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ipv6: Option<Ipv6Addr>,
    },
    Unhealthy,
    Stop {
        reason: StopReason,
    },
    /// Routers have let go of it.
    Drained,
    Down {
        exit: Exit,
    },
}

/// What came of a command: the ids that it ended up with, or why it was refused.
pub type Outcome = Result<Applied, Rejection>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// For [`Change::CreateArtifact`]: the artifact that has the uri now.
    pub artifact: Option<ArtifactId>,
}

/// Why a command changed nothing; kinds as the API tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Something it refers to does not exist.
    #[error("{what} not found")]
    NotFound { what: String },
    #[error("{message}")]
    Exists { message: String },
    #[error("{message}")]
    Conflict { message: String },
    /// It was made from a value that is not the current one any more.
    #[error("{message}")]
    Stale { message: String },
    #[error("{message}")]
    Invalid { field: &'static str, message: String },
}

impl Rejection {
    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Rejection::NotFound { what: what.into() }
    }

    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Rejection::Invalid {
            field,
            message: message.into(),
        }
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Rejection::Conflict {
            message: message.into(),
        }
    }
}
