use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ProviderId, ResourceId, Timestamp};

/// Somebody who makes resources when asked over HTTP: `POST url` makes one, `DELETE url?id=…` removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Provider {
    pub id: ProviderId,
    /// `http`, `https` or `discoverd+http`; a host below `.discoverd` is a service of the cluster.
    pub url: String,
    pub name: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Something that a provider made, a database for example, and the apps that use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Resource {
    pub id: ResourceId,
    pub provider: ProviderId,
    /// What the provider calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub external_id: String,
    /// What the provider wants its users to know; clients put it into releases.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<AppId>,
    pub created_at: Timestamp,
}
