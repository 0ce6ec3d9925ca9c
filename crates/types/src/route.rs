use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CertificateId, RouteId, Timestamp};

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    Http,
    Tcp,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteKind::Http => "http",
            RouteKind::Tcp => "tcp",
        })
    }
}

/// How requests or connections from outside come to a service.
///
/// In the store a certificate is kept apart and named by `certificate_id`; answers carry it whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Route {
    #[serde(rename = "type")]
    pub kind: RouteKind,
    pub id: RouteId,
    /// `controller/apps/APPID`.
    pub parent_ref: String,
    pub service: String,
    /// The listening port of a TCP route; a further port for HTTP ones, 0 for the usual.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub port: u16,
    #[serde(default)]
    pub leader: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_id: Option<CertificateId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain_backends: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_keep_alives: bool,
}

impl Route {
    /// `http/UUID` or `tcp/UUID`, as users see it.
    pub fn formatted_id(&self) -> String {
        format!("{}/{}", self.kind, self.id)
    }
}

/// A certificate with its private key, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Certificate {
    pub id: CertificateId,
    pub cert: String,
    pub key: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn is_zero(port: &u16) -> bool {
    *port == 0
}
