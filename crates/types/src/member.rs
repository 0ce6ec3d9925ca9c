use serde::{Deserialize, Serialize};

use crate::{HostId, Timestamp};

/// A host as a member of the cluster: who may be a voter of its state, and where others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Member {
    /// Its number among the nodes of the state; never given twice.
    pub node: u64,
    pub host: HostId,
    /// `IP:PORT` of its port for other hosts.
    pub addr: String,
    /// The addresses of its jobs, `100.100.4.0/22`.
    pub subnet: String,
    #[serde(default)]
    pub vote: Vote,
    pub joined_at: Timestamp,
}

/// Whether a member is to be a voter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// As many as are good for the size of the cluster.
    #[default]
    Auto,
    /// An operator wants it to be one.
    Promoted,
    /// An operator wants it not to be one.
    Demoted,
}

/// What lets one host join. The secret itself is in nobody's keeping but the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JoinToken {
    /// SHA-256 of the secret, in hex.
    pub hash: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
}

/// Who used a token. The same joiner may ask again: the answer may have been lost on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TokenUse {
    pub host: HostId,
    /// What the joiner made up before it asked.
    pub joiner: String,
}
