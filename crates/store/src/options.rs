//! What a store is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::compaction::SnapshotPolicy;
use crate::network::{NoTransport, Peer, Transport};

/// What to do when the directory is empty; otherwise the directory knows.
#[derive(Clone, Debug)]
pub enum Start {
    /// Found a group of these voters, this node among them. Every one of them may do so, with the
    /// same list; the lead may then change once while they start. Simpler is to found a group of
    /// one and let the others join.
    Found(Vec<Peer>),
    /// Wait until the leader of a group adds this node.
    Join,
}

/// How soon a silent leader is replaced. In a group of one no clock runs at all.
///
/// A follower waits `election_max` after the last sign of the leader and then, by chance, between
/// `election_min` and `election_max` before it asks for votes: by default the leader is replaced
/// 1.2 to 1.6 s after its last sign. Shorter would lose leaders on a machine that is merely busy. More signs
/// would not make it sooner, and each costs every host a wake-up: four of them have to be lost before anybody asks
/// for votes, by a connection that sends again what was lost.
#[derive(Clone, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
        }
    }
}

#[derive(Clone)]
pub struct Options {
    /// Holds everything the store keeps; made when missing, readable by its owner only.
    pub directory: PathBuf,
    pub node_id: u64,
    pub start: Start,
    pub transport: Arc<dyn Transport>,
    pub timing: Timing,
    pub snapshots: SnapshotPolicy,
    /// A log segment that has grown beyond this is followed by a new one.
    pub segment_bytes: u32,
}

impl Options {
    pub fn new(
        directory: impl Into<PathBuf>,
        node_id: u64,
        start: Start,
        transport: Arc<dyn Transport>,
    ) -> Self {
        Self {
            directory: directory.into(),
            node_id,
            start,
            transport,
            timing: Timing::default(),
            snapshots: SnapshotPolicy::default(),
            segment_bytes: crate::log::SEGMENT_BYTES,
        }
    }

    /// A group of one that nobody can reach.
    pub fn single(directory: impl Into<PathBuf>) -> Self {
        let alone = Peer {
            id: 1,
            address: String::new(),
        };
        let start = Start::Found(vec![alone.clone()]);
        Self::new(directory, alone.id, start, Arc::new(NoTransport))
    }
}
