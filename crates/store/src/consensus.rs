//! Names the types with which openraft is put together.
//!
//! The whole engine below [`crate::Store`] is built for one set of types, whatever the state
//! machine is: commands travel as their JSON text, outcomes as `dyn Any`. Openraft is a large
//! generic library; this way it is compiled once, here, and not again in every crate that names a
//! state machine. It also makes an entry that waits in memory one small, shared piece of text.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::machine::Applier;

openraft::declare_raft_types!(
    /// What openraft is told about this store.
    pub(crate) Types:
        D = Proposal,
        R = Answer,
        NodeId = u64,
        Node = openraft::BasicNode,
);

pub(crate) type Raft = openraft::Raft<Types, Applier>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type RaftSnapshot = openraft::alias::SnapshotOf<Types, crate::snapshots::SnapshotFile>;

/// A command on its way through the log, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Proposal(pub(crate) Arc<RawValue>);

impl Proposal {
    pub(crate) fn encode(command: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::value::to_raw_value(command)?.into()))
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.get().len()
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.bytes())
    }
}

/// What a command gave, for the one who proposed it.
///
/// Openraft asks that answers can be serialized but never does it itself: an answer goes from
/// `apply` to the proposer in the same process. So both directions refuse.
pub(crate) struct Answer(pub(crate) Option<Box<dyn Any + Send + Sync>>);

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("an answer does not leave its process"))
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("an answer does not leave its process"))
    }
}

pub(crate) fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id }, index)
}
