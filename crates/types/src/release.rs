use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ArtifactId, ProcessType, ReleaseId, Timestamp};

/// Code, configuration and process types together: immutable, and what a rollback goes back to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Release {
    pub id: ReleaseId,
    pub app_id: AppId,
    /// Images, bottom first: their layers are stacked in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub processes: BTreeMap<String, ProcessType>,
    pub created_at: Timestamp,
}
