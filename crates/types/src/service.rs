use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::AppId;

/// One place where a service answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Instance {
    /// Hex MD5 of `PROTO-ADDR` in the original; any stable text here.
    pub id: String,
    /// `IP:PORT`.
    pub addr: String,
    pub proto: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// Grows with each registration: the smallest is the oldest, which leads by default.
    #[serde(default)]
    pub index: u64,
}

impl Instance {
    /// Metadata: where it answers by IPv6, `[IP]:PORT`; missing where it does not.
    pub const IPV6: &str = "FLYNN_IPV6";
}

/// Data that a service keeps about itself, changed by compare-and-set on `index`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceMeta {
    pub data: serde_json::Value,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub leader_id: String,
    pub index: u64,
}

/// Who leads a service: its oldest instance, or the one that was named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeaderType {
    #[default]
    Oldest,
    Manual,
}

/// What is known of a service beside its instances. There is none for most services.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceRow {
    pub name: String,
    /// The app whose job made it; with the app it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    #[serde(default)]
    pub leader_type: LeaderType,
    /// The id of the instance that was made leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<ServiceMeta>,
}

/// One change of what is known of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum ServiceChange {
    Create {
        leader_type: LeaderType,
    },
    SetLeader {
        instance: String,
    },
    /// `meta.index` is the one of the value to be replaced, or 0 for the first.
    SetMeta {
        meta: ServiceMeta,
    },
    Remove,
}
