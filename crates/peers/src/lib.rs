//! The hosts of a cluster among themselves.
//!
//! Each host has one port for the others, with TLS that asks both sides for a certificate of the
//! cluster. By it come the store's messages, and requests to what listens on this host only:
//!
//! ```text
//!  store ── PeerTransport ──┐                        ┌──▶ store
//!  controller ─ Forwarding ─┼── mutual TLS ──▶ port ─┼──▶ controller (of the leader)
//!  controller ─ Peers ──────┘                        └──▶ host API, builder
//!                       flynn-host join ──▶ /join ──────▶ controller
//! ```
//!
//! What a reader would get wrong: a certificate is not enough. Whose it is has to be a member by the
//! cluster's state, at that moment. And the APIs behind the port ask for their keys all the same.
//!
//! It does not decide who is a member or a voter; the controller does, where it leads.

mod dial;
mod forward;
mod identity;
mod join;
mod membership;
mod network;
mod pool;
mod port;
mod raft;

pub use dial::Addresses;
pub use forward::Forwarding;
pub use identity::Identity;
pub use join::{Join, Token, join, token_hash};
pub use membership::Membership;
pub use network::{Config, Network, Wire, client_of};
pub use raft::PeerTransport;
