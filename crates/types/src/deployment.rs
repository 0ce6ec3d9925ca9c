use serde::{Deserialize, Serialize};

use crate::{AppId, DeploymentId, Processes, ReleaseId, Strategy, Tags, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeploymentStatus {
    Pending,
    Running,
    Complete,
    Failed,
}

impl DeploymentStatus {
    pub fn is_finished(self) -> bool {
        matches!(self, DeploymentStatus::Complete | DeploymentStatus::Failed)
    }
}

/// The change of an app from one release to another, one at a time per app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Deployment {
    pub id: DeploymentId,
    pub app: AppId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_release: Option<ReleaseId>,
    pub new_release: ReleaseId,
    pub strategy: Strategy,
    pub status: DeploymentStatus,
    /// What ran before and is to run after, by process type.
    #[serde(default, skip_serializing_if = "Processes::is_empty")]
    pub processes: Processes,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// Seconds that each job has to come up.
    pub deploy_timeout: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_batch_size: Option<u32>,
    /// Why it failed, for people. Not in the original's answers, where only the event had it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}
