use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Resources;

/// One kind of process of a release: what it runs, listens on and may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProcessType {
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub args: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub env: BTreeMap<String, String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub ports: Vec<Port>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub volumes: Vec<VolumeRequest>,
    /// Deprecated input of the original: a volume at `/data`. Never kept: [`ProcessType::tidy_volumes`]
    /// says the same by `volumes`.
    #[serde(default, skip_serializing)]
    pub data: bool,
    /// One on every host instead of a count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub omni: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_pid_namespace: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resurrect: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux_capabilities: Option<Vec<String>>,
    /// Seconds between SIGTERM and SIGKILL; 30 where not given, as the original and Heroku have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Port {
    #[serde(default)]
    pub port: u16,
    #[serde(default)]
    pub proto: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<PortService>,
}

/// The service that a port belongs to, and how its health is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PortService {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
}

/// How often and by what a port's health is asked for. Durations are in nanoseconds on the wire,
/// as Go wrote them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HealthCheck {
    /// `tcp`, `http` or `https`.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Nanoseconds between checks; 2 s by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Failed checks in a row after which an instance is down; 2 by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub threshold: i64,
    /// Whether a job that stays down is stopped and replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kill_down: bool,
    /// Nanoseconds that a new job has to become healthy before it is killed (with `kill_down`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_timeout: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Bytes that the body of a healthy answer contains.
    #[serde(rename = "match", default, skip_serializing_if = "String::is_empty")]
    pub matches: String,
    /// The status of a healthy answer; 200 by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VolumeRequest {
    #[serde(default)]
    pub path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_stop: bool,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Go clients send `null` where they mean an empty list or map.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
