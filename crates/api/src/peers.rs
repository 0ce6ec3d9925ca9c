//! The way from one host of the cluster to another, as components see it.
//!
//! Other hosts are reached through one port each, which asks both sides for a certificate of the
//! cluster; nothing else of a host listens outside. Components get this trait and know nothing of it.

use std::io;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use types::{Host, HostId, Member, Vote};

use crate::{Client, ClientError};

/// A connection of any kind.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Opens connections to one place.
pub trait Dial: Send + Sync + 'static {
    fn dial(&self) -> BoxFuture<'static, io::Result<Box<dyn Connection>>>;
}

/// What of a host is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its controller, which answers for itself and passes nothing on.
    Controller,
    /// Its host API.
    Host,
    /// Its builder.
    Git,
    /// Its registry.
    Images,
}

impl Part {
    pub const ALL: [Part; 4] = [Part::Controller, Part::Host, Part::Git, Part::Images];

    pub fn name(self) -> &'static str {
        match self {
            Part::Controller => "controller",
            Part::Host => "host",
            Part::Git => "git",
            Part::Images => "images",
        }
    }
}

/// Clients of parts of other hosts.
pub trait Peers: Send + Sync + 'static {
    fn client(&self, host: &Host, part: Part) -> Result<Client, ClientError>;
}

/// A request that another host's controller passed on: who gets it answers it.
pub const PASSED_ON: &str = "flynn-passed-on";

/// The time of the cluster at the one who answers, in microseconds since 1970.
pub const CLUSTER_TIME: &str = "flynn-time";

/// `POST /internal/cluster/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewToken {
    /// How long it may be used.
    pub ttl_s: u64,
}

/// A token as it is handed to the operator, once.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TokenView {
    pub token: String,
    pub expires_at: types::Timestamp,
}

/// `POST /internal/cluster/members`: a host with a token wants to become a member.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JoinRequest {
    /// What the token holds beside the pin.
    pub secret: String,
    pub host: HostId,
    /// Made up by the joiner, who says the same when it asks again.
    pub joiner: String,
    /// `IP:PORT` of its own port for other hosts.
    pub addr: String,
    pub version: String,
    /// By its clock.
    pub at: types::Timestamp,
}

/// What a new member is told; the rest are the cluster's secrets.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Joined {
    pub member: Member,
    pub members: Vec<Member>,
    pub domain: String,
    /// Addresses with their prefixes that one host of the cluster has at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating: Vec<String>,
    pub at: types::Timestamp,
}

/// `PUT /internal/cluster/members/:node`: where a member is now.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Announcement {
    pub node: u64,
    pub addr: String,
}

/// `PUT /internal/cluster/members/:host/vote`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VoteChange {
    pub vote: Vote,
}

/// `GET /internal/cluster`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClusterView {
    /// Whose view this is.
    pub node: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub last_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub members: Vec<MemberView>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating: Vec<FloatingView>,
    /// None where its files cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<AuthorityView>,
}

/// The certificates of the cluster's authority and of its domains, which are made anew by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AuthorityView {
    /// When the authority's own ends.
    pub ends_at: types::Timestamp,
    /// When the first of those ends that it made for the cluster's domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domains_end_at: Option<types::Timestamp>,
    /// When the first of all is made anew.
    pub renewal_at: types::Timestamp,
    /// Why that has not been done, where it is time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// An address that one host has at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FloatingView {
    /// With the length of its network's prefix, `192.0.2.7/24`.
    pub address: String,
    /// Nobody, while the host that leads waits until no other can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HostId>,
}

#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MemberView {
    pub member: Member,
    pub is_voter: bool,
    /// The state is sent to it.
    pub is_follower: bool,
    /// As it last said of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
}
