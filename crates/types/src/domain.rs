use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DomainMigrationId, Timestamp};

/// A certificate with its authority, PEM, as the original passed them around.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TlsCert {
    #[serde(default)]
    pub ca_cert: String,
    #[serde(default)]
    pub cert: String,
    /// Base64 of the SHA-256 of the certificate: what clients pin.
    #[serde(default)]
    pub pin: String,
    /// Kept in the store; answers leave it empty.
    #[serde(default)]
    pub key: String,
}

impl fmt::Debug for TlsCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCert")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// The change of the cluster's domain: every name below the old one gets a sibling below the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DomainMigration {
    pub id: DomainMigrationId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_tls_cert: Option<TlsCert>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<TlsCert>,
    pub old_domain: String,
    pub domain: String,
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}
