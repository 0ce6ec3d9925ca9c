use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{HostId, Timestamp};

/// What the cluster believes of a host. `Silent` keeps its first time: a second report of the same
/// absence must not restart the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    Up,
    Silent { since: Timestamp },
}

/// A machine that runs jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Host {
    pub id: HostId,
    /// Where its host API answers, `IP:PORT`.
    pub addr: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether its jobs are moved elsewhere and none are started on it, as an operator asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_draining: bool,
    pub state: HostState,
    pub memory_bytes: i64,
    pub cpu_milli: i64,
    /// The address that jobs reach this host's name server and router by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The addresses of its jobs, such as `100.100.4.0/22`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Where other hosts reach it with what their jobs send; a host that is alone has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// Of its tunnel, base64. With one it takes encrypted traffic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Its number among the members of the cluster's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// `IP:PORT` of its port for other hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_addr: Option<String>,
    /// By which the outside reaches its router, where that is another address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<IpAddr>,
    pub version: String,
    pub created_at: Timestamp,
    /// When the host's daemon last started: jobs that it does not know after that are lost.
    pub started_at: Timestamp,
}
