use serde::{Deserialize, Serialize};

use crate::{BackupId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackupStatus {
    #[default]
    Running,
    Complete,
    Error,
}

/// One run of `GET /backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClusterBackup {
    pub id: BackupId,
    pub status: BackupStatus,
    /// Of the whole file, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha512: String,
    /// In bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
