use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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

/// Data that a service keeps about itself, changed by compare-and-set on `index`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ServiceMeta {
    pub data: serde_json::Value,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub leader_id: String,
    pub index: u64,
}
