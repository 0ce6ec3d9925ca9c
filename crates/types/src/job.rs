//! A job: one process in one container, from the wish for it to its end.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    AppId, ArtifactId, HostId, JobId, JobRef, ReleaseId, Resources, Timestamp, VolumeId, VolumeRequest,
};

/// Where a job is in its life. It only ever moves down this list.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Wanted, and not placed on a host (yet).
    Pending,
    /// Placed; the host is starting it, or it is not healthy yet.
    Starting,
    /// Running, and healthy where it has a check.
    Up,
    /// To be stopped: takes no new requests, is drained, then signalled.
    Stopping,
    Down,
}

impl JobState {
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Pending => "pending",
            JobState::Starting => "starting",
            JobState::Up => "up",
            JobState::Stopping => "stopping",
            JobState::Down => "down",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The process ended by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// The kernel ended it, as its memory limit was reached.
    OutOfMemory,
    /// It never ran: why, in words for its owner.
    NotStarted(String),
    /// Its host or its shim went away, so nobody saw the end.
    Lost(String),
}

impl Exit {
    /// The status that a shell would give.
    pub fn status(&self) -> i32 {
        match self {
            Exit::Code(code) => *code,
            Exit::Signal(signal) => 128 + signal,
            Exit::OutOfMemory => 137,
            Exit::NotStarted(_) => 126,
            Exit::Lost(_) => 255,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with status {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::OutOfMemory => f.write_str("killed: out of memory"),
            Exit::NotStarted(why) => write!(f, "could not start: {why}"),
            Exit::Lost(why) => write!(f, "lost: {why}"),
        }
    }
}

/// Why a job was told to stop; what ends without one crashed or finished by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Surplus: scaled down, or replaced by another release.
    Unwanted,
    /// A user killed it: if its formation wants it, another is started at once.
    Killed,
    /// It did not become healthy in its time.
    Unhealthy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Tty {
    pub columns: u16,
    pub lines: u16,
}

/// A directory of the host that the platform itself gives to a job (build work, caches).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Mount {
    /// Absolute path on the host.
    pub location: String,
    /// Absolute path in the container.
    pub target: String,
    #[serde(default)]
    pub writeable: bool,
}

/// What a job that belongs to no formation runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OneOff {
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether the release's environment is given as well.
    #[serde(default)]
    pub release_env: bool,
    /// Images to run instead of the release's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// Somebody will attach: input is open and the start waits for them.
    #[serde(default)]
    pub attached: bool,
    #[serde(default)]
    pub disable_log: bool,
    #[serde(default)]
    pub resources: Resources,
    /// Volumes of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRequest>,
    /// The process type whose volumes it borrows, while none of that type's jobs has them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volumes_from: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// `build` loosens what package builds need; set by the platform only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub profile: String,
}

/// One process in one container, wanted, running or ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Job {
    pub id: JobId,
    pub app: AppId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// The process type; empty for one-off jobs that have none.
    pub process_type: String,
    pub state: JobState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_off: Option<OneOff>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Attached when it was placed, in the order of their paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeId>,
    /// Not to be started before this: the back-off after crashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// Crashes of this place in the formation since it last ran for long.
    #[serde(default)]
    pub restarts: u32,
    /// Why a pending job waits, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Set once routers have let go of a stopping job: from then on its host may signal it.
    #[serde(default)]
    pub is_drained: bool,
    /// Where it listens, once it has an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its other address, while all that it listens on can be reached by that as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Whether its last health checks failed, while it is up.
    #[serde(default)]
    pub is_unhealthy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it became up, which back-off and deployments count from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl Job {
    pub fn reference(&self) -> JobRef {
        JobRef {
            host: self.host.clone(),
            job: self.id,
        }
    }

    /// Whether it counts towards what its formation wants.
    pub fn is_active(&self) -> bool {
        matches!(self.state, JobState::Pending | JobState::Starting | JobState::Up)
    }

    /// Whether it ended without having been told to: by a crash, by finishing, or with its host.
    pub fn ended_by_itself(&self) -> bool {
        self.state == JobState::Down && self.stop_reason.is_none()
    }
}
