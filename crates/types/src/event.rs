use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AppId, Timestamp};

/// What an event is about; the contract's names.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ObjectType {
    App,
    AppDeletion,
    AppRelease,
    Deployment,
    Job,
    ScaleRequest,
    ScaleRequestCancelation,
    Release,
    ReleaseDeletion,
    Artifact,
    Provider,
    Resource,
    ResourceDeletion,
    ResourceAppDeletion,
    Key,
    KeyDeletion,
    Route,
    RouteDeletion,
    DomainMigration,
    ClusterBackup,
    AppGarbageCollection,
    Sink,
    SinkDeletion,
    Volume,
    Scale,
}

impl ObjectType {
    pub fn parse(name: &str) -> Option<ObjectType> {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
    }
}

/// Something that happened, with an id that only grows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Event {
    pub id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    pub object_type: ObjectType,
    pub object_id: String,
    /// The object as it was after the change, shared by all who watch.
    pub data: Arc<serde_json::Value>,
    pub created_at: Timestamp,
}
