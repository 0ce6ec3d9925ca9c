//! The messages between the controller and a router.
//!
//! The controller sends a [`Update::Snapshot`] first and then changes, each with a generation that
//! only grows; the router answers with an [`Acknowledgement`] once every one of its threads uses
//! that generation. Ids are plain strings: a router has no business knowing what they are made of.
//!
//! Private keys travel in these messages. Whoever stores one has to keep it from other users.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Update {
    Snapshot(Snapshot),
    SetRoute {
        generation: u64,
        route: Route,
    },
    RemoveRoute {
        generation: u64,
        id: String,
    },
    SetService {
        generation: u64,
        service: Service,
    },
    RemoveService {
        generation: u64,
        name: String,
    },
    SetCertificate {
        generation: u64,
        certificate: Certificate,
    },
    RemoveCertificate {
        generation: u64,
        id: String,
    },
}

impl Update {
    pub fn generation(&self) -> u64 {
        match self {
            Update::Snapshot(snapshot) => snapshot.generation,
            Update::SetRoute { generation, .. }
            | Update::RemoveRoute { generation, .. }
            | Update::SetService { generation, .. }
            | Update::RemoveService { generation, .. }
            | Update::SetCertificate { generation, .. }
            | Update::RemoveCertificate { generation, .. } => *generation,
        }
    }
}

/// All there is to know. Also what a router keeps on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub generation: u64,
    /// The cluster's domain, for the pages that the router writes itself.
    #[serde(default)]
    pub domain: String,
    /// Hex. All routers of a cluster need the same one, or a sticky session breaks when it comes
    /// in through another host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sticky_key: String,
    /// Used for names that have no certificate of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_certificate: Option<String>,
    /// The router's host is about to be switched off: who chooses between routers should take another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_draining: bool,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub services: Vec<Service>,
    #[serde(default)]
    pub certificates: Vec<Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Route {
    Http(HttpRoute),
    Tcp(TcpRoute),
}

impl Route {
    pub fn id(&self) -> &str {
        match self {
            Route::Http(route) => &route.id,
            Route::Tcp(route) => &route.id,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    pub id: String,
    /// `shop.example.com`, `*.example.com` (any depth, and `example.com` itself) or `*`.
    pub domain: String,
    /// Begins and ends with `/`.
    #[serde(default = "root")]
    pub path: String,
    /// 0 is the router's usual ports; another number is an additional listener for this route.
    #[serde(default)]
    pub port: u16,
    pub service: String,
    #[serde(default)]
    pub sticky: bool,
    #[serde(default)]
    pub leader: bool,
    #[serde(default = "yes")]
    pub drain_backends: bool,
    #[serde(default)]
    pub disable_keep_alives: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    pub id: String,
    pub port: u16,
    pub service: String,
    #[serde(default)]
    pub leader: bool,
    #[serde(default = "yes")]
    pub drain_backends: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// Whose log the access lines go to. Empty for parts of the platform that are no app.
    #[serde(default)]
    pub app_id: String,
    #[serde(default)]
    pub app_name: String,
    /// The id of one of `backends`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// How long a response may take to begin. Absent: the router's own limit. 0: as long as it
    /// likes, for builds and other long answers of the platform's own services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_timeout_ms: Option<u64>,
    #[serde(default)]
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Of the instance.
    pub id: String,
    pub addr: SocketAddr,
    #[serde(default)]
    pub job_id: String,
    /// The process type, such as `web`.
    #[serde(default)]
    pub job_type: String,
    /// An unhealthy backend takes no new request.
    #[serde(default = "yes")]
    pub healthy: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub id: String,
    /// Names that it is good for beyond those of the routes that name it.
    #[serde(default)]
    pub domains: Vec<String>,
    /// PEM, leaf first.
    pub cert: String,
    /// PEM.
    pub key: String,
}

/// Leaves the key out: certificates get logged.
impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("id", &self.id)
            .field("domains", &self.domains)
            .finish_non_exhaustive()
    }
}

/// What a router tells the controller.
///
/// A job may be stopped when every router has acknowledged a generation without it and does not
/// list its address in `in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Every thread of the router uses this generation for new requests.
    pub generation: u64,
    /// Requests still running on backends that are no longer in the table; only numbers above 0.
    #[serde(default)]
    pub in_flight: BTreeMap<SocketAddr, u64>,
}

fn yes() -> bool {
    true
}

fn root() -> String {
    "/".into()
}
