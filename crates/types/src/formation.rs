use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ReleaseId, ScaleRequestId, Timestamp};

/// Wanted jobs by process type; per host for omni types.
pub type Processes = BTreeMap<String, u32>;

/// Host tags that each process type asks for.
pub type Tags = BTreeMap<String, BTreeMap<String, String>>;

/// How many jobs of each type of one release are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Formation {
    pub app: AppId,
    pub release: ReleaseId,
    #[serde(default)]
    pub processes: Processes,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRequestState {
    Pending,
    Cancelled,
    Complete,
}

/// A user's wish to change a formation, which is complete when the jobs have followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ScaleRequest {
    pub id: ScaleRequestId,
    pub app: AppId,
    pub release: ReleaseId,
    pub state: ScaleRequestState,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub old_processes: Processes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_processes: Option<Processes>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub old_tags: Tags,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tags: Option<Tags>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
