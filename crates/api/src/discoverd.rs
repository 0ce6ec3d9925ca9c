//! What discoverd's HTTP API sends and takes, with the original's names.

use serde::{Deserialize, Serialize};
use types::{AppId, Instance, LeaderType, ServiceChange, ServiceMeta};

/// `PUT /services/:service`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceConfig {
    #[serde(default)]
    pub leader_type: LeaderType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Up,
    Update,
    Down,
    Leader,
    /// Everything that there was at the beginning has been sent.
    Current,
    ServiceMeta,
}

/// One event of `GET /services/:service` and of the streams of instances and leaders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Event {
    pub service: String,
    pub kind: EventKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_meta: Option<ServiceMeta>,
}

/// The header of every answer: grows with every change of the registry.
pub const INDEX_HEADER: &str = "Discoverd-Index";

/// `POST /internal/services/:service` of the controller: a registry passes a change on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceUpdate {
    /// The app whose job asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    pub change: ServiceChange,
}
