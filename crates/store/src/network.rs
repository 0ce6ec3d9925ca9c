//! How the nodes of a group talk: a [`Transport`] carries opaque messages, this module gives them
//! meaning.
//!
//! A transport need not know what it carries. It delivers a message to [`crate::Store::receive`] of
//! the node named, or a snapshot to [`crate::Store::receive_snapshot`], and brings back the answer.
//! Who may send at all is the transport's to check.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::consensus::{LogId, Raft, RaftSnapshot, SnapshotMeta, Types, Vote};
use crate::log::frame;
use crate::snapshots::SnapshotFile;

/// How long an answer to entries may take. Openraft would give up after one heartbeat interval; but a
/// follower whose disk is slow for a moment is not gone, and asking again would only add to its load.
const APPEND_ANSWER_MIN: Duration = Duration::from_secs(1);

/// A member of the group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    pub id: u64,
    /// Where the transport finds it; empty in a group of one.
    pub address: String,
}

/// Which message it is; the name is stable and may be used in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Append,
    Vote,
    PreVote,
    TransferLeader,
}

impl MessageKind {
    pub const ALL: [Self; 4] = [Self::Append, Self::Vote, Self::PreVote, Self::TransferLeader];

    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::TransferLeader => "transfer-leader",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A snapshot on its way to a peer: `header`, then what `file` reads.
#[derive(Clone, Debug)]
pub struct OutgoingSnapshot {
    pub header: Vec<u8>,
    pub file: SnapshotFile,
}

/// The message did not arrive, or its answer did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// Carries messages between the nodes of a group.
///
/// A message that is lost, late or delivered twice does no harm.
pub trait Transport: Send + Sync + 'static {
    fn send(
        &self,
        to: &Peer,
        kind: MessageKind,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>>;

    fn send_snapshot(
        &self,
        to: &Peer,
        snapshot: OutgoingSnapshot,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>>;
}

/// The transport of a group of one: reaches nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(
        &self,
        to: &Peer,
        _: MessageKind,
        _: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let reason = format!("this node has no transport to reach node {}", to.id);
        futures::future::ready(Err(TransportError(reason))).boxed()
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        _: OutgoingSnapshot,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        self.send(to, MessageKind::Append, Vec::new(), timeout)
    }
}

/// A message that this node cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the message cannot be understood: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the message's entries are damaged, or another version's")]
    Damaged,
    #[error("the store is stopped: {0}")]
    Stopped(String),
    #[error("the snapshot cannot be received: {0}")]
    Snapshot(std::io::Error),
}

fn stopped(problem: impl fmt::Display) -> ReceiveError {
    ReceiveError::Stopped(problem.to_string())
}

/// Answers one message from a peer.
pub(crate) async fn receive(raft: &Raft, kind: MessageKind, message: &[u8]) -> Result<Vec<u8>, ReceiveError> {
    match kind {
        MessageKind::Append => {
            let request = decode_append(message)?;
            Ok(serde_json::to_vec(
                &raft.append_entries(request).await.map_err(stopped)?,
            )?)
        }
        MessageKind::Vote => {
            let request: VoteRequest<Types> = serde_json::from_slice(message)?;
            Ok(serde_json::to_vec(&raft.vote(request).await.map_err(stopped)?)?)
        }
        MessageKind::PreVote => {
            let request: VoteRequest<Types> = serde_json::from_slice(message)?;
            Ok(serde_json::to_vec(
                &raft.pre_vote(request).await.map_err(stopped)?,
            )?)
        }
        MessageKind::TransferLeader => {
            let request: TransferLeaderRequest<Types> = serde_json::from_slice(message)?;
            Ok(serde_json::to_vec(
                &raft.handle_transfer_leader(request).await.map_err(stopped)?,
            )?)
        }
    }
}

/// What an append message says of its entries. The message is the length of this as JSON (u32, little-endian), this,
/// and the entries as they are in the log's files: neither side has to put commands into JSON or look for their ends.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    previous: Option<LogId>,
    committed: Option<LogId>,
}

fn encode_append(request: &AppendEntriesRequest<Types>) -> Result<Vec<u8>, serde_json::Error> {
    let head = serde_json::to_vec(&AppendHead {
        vote: request.vote,
        previous: request.prev_log_id,
        committed: request.leader_commit,
    })?;
    let entries: usize = request.entries.iter().map(frame::entry_bytes).sum();
    let mut message = Vec::with_capacity(4 + head.len() + entries);
    message.extend((head.len() as u32).to_le_bytes());
    message.extend(head);
    for entry in &request.entries {
        frame::encode_entry(&mut message, 0, entry);
    }
    Ok(message)
}

fn decode_append(message: &[u8]) -> Result<AppendEntriesRequest<Types>, ReceiveError> {
    let (length, rest) = message.split_first_chunk().ok_or(ReceiveError::Damaged)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (head, entries) = rest.split_at_checked(length).ok_or(ReceiveError::Damaged)?;
    let head: AppendHead = serde_json::from_slice(head)?;
    let (entries, rest) = frame::decode_entries(entries)?;
    if !rest.is_empty() {
        return Err(ReceiveError::Damaged);
    }
    Ok(AppendEntriesRequest {
        vote: head.vote,
        prev_log_id: head.previous,
        entries,
        leader_commit: head.committed,
    })
}

#[derive(Serialize, Deserialize)]
struct SnapshotHeader {
    vote: Vote,
    meta: SnapshotMeta,
}

/// Installs a snapshot from the leader, whose file is complete.
pub(crate) async fn install_snapshot(
    raft: &Raft,
    header: &[u8],
    snapshot: SnapshotFile,
) -> Result<Vec<u8>, ReceiveError> {
    let SnapshotHeader { vote, meta } = serde_json::from_slice(header)?;
    let response = raft
        .install_full_snapshot(vote, RaftSnapshot { meta, snapshot })
        .await
        .map_err(stopped)?;
    Ok(serde_json::to_vec(&response)?)
}

/// Makes a [`Link`] to each peer.
#[derive(Clone)]
pub(crate) struct Links(pub(crate) Arc<dyn Transport>);

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        Link {
            peer: Peer {
                id: target,
                address: node.addr.clone(),
            },
            transport: self.0.clone(),
        }
    }
}

/// The way to one peer.
pub(crate) struct Link {
    peer: Peer,
    transport: Arc<dyn Transport>,
}

impl Link {
    async fn ask<A: DeserializeOwned>(
        &self,
        kind: MessageKind,
        message: Result<Vec<u8>, serde_json::Error>,
        option: &RPCOption,
    ) -> Result<A, RPCError<Types>> {
        let message = message.map_err(|problem| RPCError::Network(NetworkError::new(&problem)))?;
        let timeout = match kind {
            MessageKind::Append => option.hard_ttl().max(APPEND_ANSWER_MIN),
            _ => option.hard_ttl(),
        };
        let answer = tokio::time::timeout(timeout, self.transport.send(&self.peer, kind, message, timeout))
            .await
            .unwrap_or_else(|_| Err(TransportError(format!("no answer within {timeout:?}"))))
            .map_err(|problem| RPCError::Unreachable(Unreachable::new(&problem)))?;
        serde_json::from_slice(&answer).map_err(|problem| RPCError::Network(NetworkError::new(&problem)))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::Append, encode_append(&request), &option)
            .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::Vote, serde_json::to_vec(&request), &option)
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::PreVote, serde_json::to_vec(&request), &option)
            .await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(MessageKind::TransferLeader, serde_json::to_vec(&request), &option)
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let unreachable = |problem: &(dyn std::error::Error + 'static)| {
            StreamingError::Unreachable(Unreachable::from_string(problem))
        };
        let header = serde_json::to_vec(&SnapshotHeader {
            vote,
            meta: snapshot.meta,
        })
        .map_err(|problem| unreachable(&problem))?;
        let outgoing = OutgoingSnapshot {
            header,
            file: snapshot.snapshot,
        };
        let sending = self
            .transport
            .send_snapshot(&self.peer, outgoing, option.hard_ttl());
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = tokio::time::timeout(option.hard_ttl(), sending) => answer,
        };
        let answer = answer
            .map_err(|late| unreachable(&late))?
            .map_err(|problem| unreachable(&problem))?;
        serde_json::from_slice(&answer).map_err(|problem| unreachable(&problem))
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::consensus::{Entry, Proposal, log_id};

    fn request() -> AppendEntriesRequest<Types> {
        let entry = |index, payload| Entry {
            log_id: log_id(3, 1, index),
            payload,
        };
        let command = Proposal::encode(&("key", "a \"value\"")).unwrap();
        AppendEntriesRequest {
            vote: Vote::new(3, 1),
            prev_log_id: Some(log_id(2, 2, 6)),
            entries: vec![
                entry(7, EntryPayload::Blank),
                entry(8, EntryPayload::Normal(command)),
            ],
            leader_commit: Some(log_id(2, 2, 5)),
        }
    }

    #[test]
    fn entries_arrive_as_they_were_sent() {
        let sent = request();
        let found = decode_append(&encode_append(&sent).unwrap()).unwrap();
        assert_eq!(
            (found.vote, found.prev_log_id, found.leader_commit),
            (sent.vote, sent.prev_log_id, sent.leader_commit)
        );
        let text = |request: &AppendEntriesRequest<Types>| serde_json::to_string(&request.entries).unwrap();
        assert_eq!(text(&found), text(&sent));
    }

    #[test]
    fn a_message_that_is_cut_or_changed_is_refused() {
        let whole = encode_append(&request()).unwrap();
        let head = 4 + u32::from_le_bytes(whole[..4].try_into().unwrap()) as usize;
        for end in (0..whole.len()).filter(|end| *end != head && *end != head + frame::FRAME_HEAD_BYTES) {
            assert!(decode_append(&whole[..end]).is_err(), "cut at {end}");
        }
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(matches!(decode_append(&changed), Err(ReceiveError::Damaged)));
    }
}
