//! Request and answer shapes of the controller's API that differ from the rows kept in the store.
//!
//! Names and optional fields are the original's (its inventory, section 2.1); additions are marked.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use types::{
    App, AppId, Artifact, ArtifactId, CertificateId, Deployment, DeploymentId, Exit, Formation, HostId,
    JobId, JobState, Mount, ProcessType, Processes, Release, ReleaseId, Resources, Route, RouteKind,
    ScaleRequest, Strategy, Tags, Timestamp,
};

/// `POST /apps`. Everything may be left out; an empty name is replaced by a random one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewApp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AppId>,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub meta: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_timeout: Option<i32>,
}

/// `POST /apps/:app` and `POST /apps/:app/meta`; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppUpdate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_timeout: Option<i32>,
}

/// `POST /artifacts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewArtifact {
    #[serde(rename = "type", default)]
    pub kind: types::ArtifactType,
    #[serde(default)]
    pub uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<types::ImageManifest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layer_url_template: String,
}

/// `POST /releases`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewRelease {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Vec<ArtifactId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<BTreeMap<String, ProcessType>>,
}

/// A body that names one release: `PUT /apps/:app/release`, `POST /apps/:app/deploy`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReleaseRef {
    pub id: ReleaseId,
}

/// `PUT /apps/:app/formations/:release`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FormationUpdate {
    #[serde(default)]
    pub processes: Option<Processes>,
    #[serde(default)]
    pub tags: Option<Tags>,
}

/// `PUT /apps/:app/scale/:release`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewScaleRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_processes: Option<Processes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tags: Option<Tags>,
}

/// A release as it is answered: its first image is in `artifact`, too, where clients from before a
/// release had several look for it.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReleaseView {
    #[serde(flatten)]
    pub release: Arc<Release>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactId>,
}

impl From<Arc<Release>> for ReleaseView {
    fn from(release: Arc<Release>) -> Self {
        ReleaseView {
            artifact: release.artifacts.first().copied(),
            release,
        }
    }
}

/// A formation with all that it refers to, as the formations stream sends it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ExpandedFormation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<Arc<App>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseView>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Arc<Artifact>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub processes: Processes,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_scale_request: Option<Arc<ScaleRequest>>,
}

impl ExpandedFormation {
    pub fn of(
        app: Arc<App>,
        release: Arc<Release>,
        artifacts: Vec<Arc<Artifact>>,
        formation: &Formation,
        pending_scale_request: Option<Arc<ScaleRequest>>,
    ) -> Self {
        ExpandedFormation {
            app: Some(app),
            release: Some(release.into()),
            artifacts,
            processes: formation.processes.clone(),
            tags: formation.tags.clone(),
            updated_at: Some(formation.updated_at),
            deleted: false,
            pending_scale_request,
        }
    }
}

/// A job as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Job {
    /// `HOST-UUID`; absent until the job is placed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub uuid: JobId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Empty for one-off jobs, which clients show as `run`.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub process_type: String,
    pub state: JobState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<types::VolumeId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i32>,
    /// Addition: how it ended, told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Addition: why it is not running yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Job {
    /// The wire form of a stored job; `args` are those of its process type or its own.
    pub fn of(job: &types::Job, args: Vec<String>) -> Self {
        let host_error = match &job.exit {
            Some(exit @ (Exit::NotStarted(_) | Exit::Lost(_) | Exit::OutOfMemory)) => Some(exit.to_string()),
            _ => None,
        };
        Job {
            id: job
                .host
                .as_ref()
                .map(|_| job.reference().to_string())
                .unwrap_or_default(),
            uuid: job.id,
            host_id: job.host.clone(),
            app: Some(job.app),
            release: job.release,
            process_type: job.process_type.clone(),
            state: job.state,
            args,
            volumes: job.volumes.clone(),
            meta: job.meta.clone(),
            exit_status: job.exit.as_ref().map(Exit::status),
            host_error,
            run_at: job.run_at,
            restarts: (job.restarts > 0).then_some(job.restarts as i32),
            exit: job.exit.clone(),
            waiting: job.waiting.clone(),
            created_at: job.created_at,
            updated_at: job.updated_at,
        }
    }

    /// What `flynn` calls the job: its whole id where it has one.
    pub fn display_id(&self) -> String {
        if self.id.is_empty() {
            self.uuid.to_string()
        } else {
            self.id.clone()
        }
    }
}

/// `PUT /volumes/:volume`: a volume to be made on a host, or the metadata of one that is there. Its
/// state is the host's to say.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewVolume {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_stop: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    #[serde(rename = "type", default)]
    pub kind: types::VolumeType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_type: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// `POST /apps/:app/jobs`: a one-off job.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewJob {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub release_env: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tty_columns: u16,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tty_lines: u16,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_log: bool,
    #[serde(default)]
    pub resources: Resources,
    /// A volume at `/data` that goes when the job ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data: bool,
    /// The process type whose volumes the job is to have.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mounts_from: String,
    /// Devices of the host that the original gave to jobs (`zfs`, `kvm`, `loop`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Addition, for the platform's own jobs: which type the job is shown as (`slugbuilder`).
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub process_type: String,
    /// Addition, for the platform's own jobs (internal key only): directories of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Addition, for the platform's own jobs: run on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Addition, for the platform's own jobs (internal key only): `build`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub profile: String,
}

/// `POST /apps/:app/jobs/:job/exec` (addition): a further process in a running job, by attach.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewExec {
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tty_columns: u16,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tty_lines: u16,
}

/// The data of a deployment's events.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeploymentEvent {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_state: Option<JobState>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// The data of `app_release` events.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppRelease {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_release: Option<ReleaseView>,
    pub release: ReleaseView,
}

/// What the deletion of an app took with it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppDeletion {
    pub app: String,
    #[serde(default)]
    pub deleted_routes: Vec<RouteView>,
    #[serde(default)]
    pub deleted_resources: Vec<Arc<types::Resource>>,
    #[serde(default)]
    pub deleted_releases: Vec<ReleaseView>,
}

/// The data of `app_deletion` events.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AppDeletionEvent {
    pub app_deletion: Option<AppDeletion>,
    #[serde(default)]
    pub error: String,
}

/// What the deletion of a release took with it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReleaseDeletion {
    pub app: String,
    pub release: String,
    #[serde(default)]
    pub remaining_apps: Vec<String>,
    #[serde(default)]
    pub deleted_files: Vec<String>,
}

/// The data of `release_deletion` events.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReleaseDeletionEvent {
    pub release_deletion: Option<ReleaseDeletion>,
    #[serde(default)]
    pub error: String,
}

/// A certificate as it travels within a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CertificateView {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<CertificateId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cert: String,
    /// Never sent back by the controller... unless the original's clients ask for the route itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// A route with its certificate, as answers carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RouteView {
    #[serde(flatten)]
    pub route: Route,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateView>,
}

/// `POST /apps/:app/routes` and `PUT /apps/:app/routes/:kind/:id`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewRoute {
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<RouteKind>,
    #[serde(default)]
    pub service: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub port: u16,
    #[serde(default)]
    pub leader: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateView>,
    /// Deprecated inputs of the original, still taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tls_cert: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tls_key: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain_backends: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_keep_alives: bool,
}

/// `GET /.well-known/status` of every component.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StatusAnswer {
    pub data: Status,
}

#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Status {
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

/// A deployment as `POST /apps/:app/deploy` and the lists answer it.
pub type DeploymentView = Deployment;

fn is_zero(value: &u16) -> bool {
    *value == 0
}
