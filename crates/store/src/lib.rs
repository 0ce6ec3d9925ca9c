//! Keeps the cluster's state: replicated by Raft, in memory, every acknowledged write on disk.
//!
//! ```text
//! write(command) ──▶ openraft ──▶ log (fsync, here and on most voters) ──▶ Machine::apply ──▶ outcome
//!                                                                              │
//! read(), watch()  ◀────────────── View: the state after some entry ◀──────────┘
//! ```
//!
//! [`Store`] is generic over what the state is ([`Machine`]) and over how nodes reach each other
//! ([`Transport`]). One machine is a group of one: the same code and the same files, so growing to
//! three is adding voters.
//!
//! What is easy to get wrong: [`Store::read`] is this node's state, which may lag behind the
//! leader's; [`Store::read_linearizable`] asks. A write whose future was dropped, or that failed
//! with [`WriteError::Unknown`], may have been carried out.
//!
//! This crate does not check who may write, does not speak a network protocol, and decides nothing.

mod clock;
mod cluster;
mod compaction;
mod consensus;
mod durable;
mod engine;
mod errors;
mod log;
mod machine;
mod network;
mod options;
mod recover;
mod snapshots;
mod store;

pub use compaction::SnapshotPolicy;
pub use engine::Status;
pub use errors::{OpenError, ReadError, WriteError};
pub use machine::{Machine, View};
pub use network::{
    MessageKind, NoTransport, OutgoingSnapshot, Peer, ReceiveError, Transport, TransportError,
};
pub use options::{Options, Start, Timing};
pub use recover::{Recovered, recover};
pub use snapshots::SnapshotFile;
pub use store::{COMMAND_BYTES_MAX, Store};
