//! What controller and hosts tell each other: which jobs a host is to run, and how they fare.
//!
//! [`HostJob`] and [`ActiveJob`] are the original's host API (port 1113). The rest is new: a host
//! follows a stream of [`Assignment`]s and answers with [`JobReport`]s. Both sides may be restarted
//! at any moment and say everything again, so all of it is idempotent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use types::{
    AppId, Exit, HealthCheck, HostId, JobId, Resources, Timestamp, Tty, VolumeId, VolumeState, VolumeType,
};

/// A job as a host runs it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostJob {
    /// `HOST-UUID`.
    pub id: String,
    /// Layers of the root file system, bottom first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mountspecs: Vec<Mountspec>,
    /// `flynn-controller.app`, `.app_name`, `.release`, `.type` and `.formation`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub partition: String,
    #[serde(default)]
    pub config: ContainerConfig,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
}

impl HostJob {
    pub const APP: &str = "flynn-controller.app";
    pub const APP_NAME: &str = "flynn-controller.app_name";
    pub const RELEASE: &str = "flynn-controller.release";
    pub const TYPE: &str = "flynn-controller.type";
    pub const FORMATION: &str = "flynn-controller.formation";

    pub fn job_id(&self) -> Option<JobId> {
        self.id
            .parse::<types::JobRef>()
            .ok()
            .map(|reference| reference.job)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Mountspec {
    /// `erofs` for this platform's layers.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The layer's digest.
    #[serde(default)]
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    #[serde(default)]
    pub size: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ContainerConfig {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<types::Mount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeBinding>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_log: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux_capabilities: Option<Vec<String>>,
    /// Additions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty_size: Option<Tty>,
    /// The process starts only when somebody has attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_attach: bool,
    /// Seconds between SIGTERM and SIGKILL.
    #[serde(default)]
    pub stop_timeout: u32,
    /// Further groups of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    /// The polite signal, such as `SIGQUIT`; SIGTERM where it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// What the image says to run to know whether the job is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<types::ImageHealthcheck>,
}

/// A volume in a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VolumeBinding {
    /// Where it is in the job.
    pub target: String,
    pub volume: VolumeId,
    pub writeable: bool,
    pub delete_on_stop: bool,
    /// Addition: it may have to be made. One that is not new and not there must not be replaced by an
    /// empty one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_new: bool,
}

/// `GET /storage/volumes`: a volume as its host has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VolumeInfo {
    pub id: VolumeId,
    #[serde(rename = "type")]
    pub kind: VolumeType,
    /// Whose it is: `flynn-controller.app`, `.app_name`, `.type` and `.path`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    pub created_at: Timestamp,
}

/// One message of `GET /storage/volumes` as a stream.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VolumeEvent {
    /// `create` or `destroy`.
    #[serde(rename = "type")]
    pub kind: String,
    pub volume: VolumeInfo,
}

/// What a host has to do about a volume, by its state: make it, or remove it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostVolume {
    pub id: VolumeId,
    pub state: VolumeState,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    pub created_at: Timestamp,
}

impl HostVolume {
    pub const PATH: &str = "flynn-controller.path";
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostPort {
    #[serde(default)]
    pub port: u16,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proto: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<HostService>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostService {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
}

/// `ActiveJob.status` on the wire: an integer, 0 left out.
pub mod status {
    pub const STARTING: u8 = 0;
    pub const RUNNING: u8 = 1;
    pub const DONE: u8 = 2;
    pub const CRASHED: u8 = 3;
    pub const FAILED: u8 = 4;
}

/// A job of a host with what became of it: `GET /host/jobs`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ActiveJob {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<HostJob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force_stop: bool,
    #[serde(default, skip_serializing_if = "is_starting")]
    pub status: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One event of `GET /host/jobs` and `GET /host/jobs/:id` as streams.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostEvent {
    /// `create`, `start`, `stop`, `error` or `cleanup`.
    pub event: String,
    /// `HOST-UUID`.
    pub job_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<ActiveJob>,
}

/// `POST /host/resource-check`: whether these ports of the host itself are free.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceCheck {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
}

/// `GET /host/status`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostStatus {
    pub id: HostId,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    pub pid: u32,
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discoverd: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<serde_json::Value>,
    pub version: String,
    #[serde(default)]
    pub flags: Vec<String>,
}

/// `POST /attach` on a host; `flags` are the bits in [`crate::attach::flag`].
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttachReq {
    #[serde(default)]
    pub job_id: String,
    #[serde(default)]
    pub flags: u8,
    #[serde(default)]
    pub height: u16,
    #[serde(default)]
    pub width: u16,
}

/// One message of `GET /internal/hosts/:host/assignments` (a server-sent event each).
///
/// After connecting, all jobs of the host are named, then `Current`: what the host runs and was not
/// named by then is surplus and is stopped. Later messages name what changed.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Assignment {
    /// This job is to run. Named again with the same content when nothing changed.
    Run { job: Box<HostJob> },
    /// This job is to end: SIGTERM now, SIGKILL after its grace. Routers have let go of it.
    Stop { job: JobId },
    /// Stays as it is until drained: an `up` job that takes no new requests. Not to be signalled yet.
    Drain { job: JobId },
    /// This volume is to be made or removed. Named again until the host has said that it is.
    Volume { volume: HostVolume },
    /// The network map: other hosts, and whom of this host's jobs theirs may reach. All of it is told
    /// before `Current`, then what changes; what was not told by then is no longer so.
    Network {
        #[serde(flatten)]
        change: NetworkChange,
    },
    /// The end of the first list.
    Current,
}

/// One change of a host's network map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkChange {
    /// Another host, or what is new of it.
    Host(NetworkHost),
    HostGone(HostId),
    /// The job at `address`, on another host, may open connections to this host's jobs of `app`.
    Admit {
        app: AppId,
        address: IpAddr,
    },
    AdmitNoLonger {
        app: AppId,
        address: IpAddr,
    },
    /// Jobs of `from` on this host may open connections to those of `to` on this host.
    Link {
        from: AppId,
        to: AppId,
    },
    Unlink {
        from: AppId,
        to: AppId,
    },
}

/// How another host's jobs are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NetworkHost {
    pub id: HostId,
    pub subnet: String,
    pub underlay: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// `PUT /internal/hosts/:host`: a host says that it is there, at least once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostReport {
    /// Where its host API answers.
    pub addr: String,
    pub tags: BTreeMap<String, String>,
    pub memory_bytes: i64,
    pub cpu_milli: i64,
    pub gateway: Option<IpAddr>,
    /// The addresses of its jobs, and how other hosts reach them: see [`types::Host`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<IpAddr>,
    pub version: String,
    pub started_at: Timestamp,
}

/// `POST /internal/hosts/:host/jobs/:job`: what became of a job. Sent again until answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobReport {
    pub state: ReportedState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its other address, once it is up, if all that it listens on can be reached by that as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// When it happened, by the host's clock.
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportedState {
    /// The container runs; not healthy yet where it has a check.
    Starting,
    Up,
    /// Up, but its last health checks failed.
    Unhealthy,
    Down {
        exit: Exit,
    },
    /// The host stopped it since it never became healthy, then it went down.
    NeverHealthy {
        why: String,
        exit: Exit,
    },
}

/// `POST /internal/routers/:router`: which table a router serves by and what it still has in flight
/// on backends that left it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RouterReport {
    pub generation: u64,
    /// Requests in flight by backend address, for backends that are no longer in the table.
    #[serde(default)]
    pub in_flight: BTreeMap<String, u64>,
}

fn is_starting(status: &u8) -> bool {
    *status == status::STARTING
}

/// What `GET /internal/services` streams, whole after every change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServicesView {
    /// The cluster's domain, then those that it had before: their names lead to the router, too.
    pub domains: Vec<String>,
    pub services: Vec<ServiceView>,
    /// Where the outside is led to.
    #[serde(default)]
    pub ingress: Vec<IngressView>,
}

/// A host that lives, and the addresses that its router is reached by from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct IngressView {
    pub host: HostId,
    pub addresses: Vec<IpAddr>,
}

/// One service with its instances, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceView {
    pub name: String,
    /// The id of the instance that leads: the oldest healthy one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    pub instances: Vec<types::Instance>,
    /// What else is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<std::sync::Arc<types::ServiceRow>>,
}
