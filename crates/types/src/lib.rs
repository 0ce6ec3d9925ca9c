//! The nouns of the platform: apps, releases, jobs, deployments, routes, hosts, and the time.
//!
//! These are values without behaviour beyond parsing, printing and the rules that a single value
//! must obey by itself. They serialise with the names that the HTTP contract uses, so the same
//! struct is what the store keeps and what the API sends; where the two differ (a job, for
//! example) the wire form lives in `api`.
//!
//! No I/O, no clock and no randomness here: times and ids are made by whoever proposes a change.

mod app;
mod artifact;
mod authority;
mod backup;
mod content;
mod deployment;
mod domain;
mod event;
mod formation;
mod host;
mod id;
mod job;
pub mod logline;
mod member;
mod name;
mod process;
mod provider;
mod release;
mod resources;
mod route;
mod service;
mod settings;
mod sink;
pub mod sink_template;
mod time;
mod volume;

pub use app::{App, DEFAULT_DEPLOY_TIMEOUT_S, META_GC_RELEASES_MAX, META_LINKS, Strategy};
pub use artifact::{
    Artifact, ArtifactType, Digest, Entrypoint, ImageHealthcheck, ImageManifest, Layer, Platform, Rootfs,
};
pub use authority::Authority;
pub use backup::{BackupStatus, ClusterBackup};
pub use content::Content;
pub use deployment::{Deployment, DeploymentStatus};
pub use domain::{DomainMigration, TlsCert};
pub use event::{Event, ObjectType};
pub use formation::{Formation, Processes, ScaleRequest, ScaleRequestState, Tags};
pub use host::{Host, HostState};
pub use id::{
    AppId, ArtifactId, BackupId, CertificateId, DeploymentId, DomainMigrationId, HostId, IdError, JobId,
    JobRef, ProviderId, ReleaseId, ResourceId, RouteId, ScaleRequestId, SinkId, VolumeId,
};
pub use job::{Exit, Job, JobState, Mount, OneOff, StopReason, Tty};
pub use member::{JoinToken, Member, TokenUse, Vote};
pub use name::{NameError, check_app_name, check_env_key, check_process_type};
pub use process::{HealthCheck, Port, PortService, ProcessType, VolumeRequest};
pub use provider::{Provider, Resource};
pub use release::Release;
pub use resources::{ResourceLimit, Resources};
pub use route::{Certificate, Route, RouteKind};
pub use service::{Instance, LeaderType, ServiceChange, ServiceMeta, ServiceRow};
pub use settings::{Bucket, Settings};
pub use sink::{Sink, SinkError, SyslogFormat, SyslogSinkConfig, SyslogUrl};
pub use time::Timestamp;
pub use uuid::Uuid;
pub use volume::{DATA_PATH, VOLUMES_PER_TYPE_MAX, Volume, VolumeReport, VolumeState, VolumeType};

/// A table of rows by id that is cheap to clone, as state, snapshots and plans all hold one.
pub type Table<K, V> = imbl::OrdMap<K, std::sync::Arc<V>>;
