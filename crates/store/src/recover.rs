//! Makes a group of one of what a single node has, when most voters are lost for good.
//!
//! Everything in this node's log is taken over, acknowledged or not: whether an entry was acknowledged
//! is known to the voters that are gone. The others must never come back with what they have, or there
//! are two groups; who calls this has to see to that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::{BasicNode, Membership, RaftLogReader};

use crate::consensus::{SnapshotMeta, StoredMembership};
use crate::engine::{Files, open_files};
use crate::errors::OpenError;
use crate::log::SEGMENT_BYTES;
use crate::machine::{Applier, Machine, Shown, blocking};
use crate::network::Peer;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Members of the group before, this node among them.
    pub members_before: Vec<Peer>,
    pub last_log_index: Option<u64>,
}

/// Rewrites the store in `directory` so that its node is the only member. Nothing may have it open.
pub async fn recover<M: Machine>(directory: impl Into<PathBuf>, node: Peer) -> Result<Recovered, OpenError> {
    let directory = directory.into();
    let (path, id) = (directory.clone(), node.id);
    let files = tokio::task::spawn_blocking(move || open_files(path, id, SEGMENT_BYTES))
        .await
        .map_err(|panic| OpenError::Start(panic.to_string()))??;
    let Files {
        lock,
        mut log,
        writer,
        snapshots,
    } = files;
    let snapshots = std::sync::Arc::new(snapshots);
    let (machine, _views) = Shown::<M>::new();
    let (mut applier, applied, _progress) = Applier::new(Box::new(machine), snapshots.clone());
    let io_error = |source| OpenError::Io {
        directory: directory.clone(),
        source,
    };
    if let Some(current) = snapshots.current() {
        applier
            .install_snapshot(&current.meta, current.snapshot)
            .await
            .map_err(io_error)?;
    }
    loop {
        let first = applied.get().next();
        let entries = log
            .try_get_log_entries(first..first + 1024)
            .await
            .map_err(io_error)?;
        if entries.is_empty() {
            break;
        }
        let entries = entries.into_iter().map(|entry| Ok((entry, None)));
        applier
            .apply(futures::stream::iter(entries))
            .await
            .map_err(io_error)?;
    }
    let found = applied.get();
    let before = found.meta.last_membership.membership();
    let recovered = Recovered {
        members_before: before
            .nodes()
            .map(|(id, node)| Peer {
                id: *id,
                address: node.addr.clone(),
            })
            .collect(),
        last_log_index: found.meta.last_log_id.map(|id| id.index()),
    };
    let Some(last) = found.meta.last_log_id else {
        return Err(OpenError::Start("there is nothing in it".to_owned()));
    };
    let nodes = BTreeMap::from([(node.id, BasicNode::new(node.address))]);
    let alone = Membership::new(vec![BTreeSet::from([node.id])], nodes)
        .map_err(|problem| OpenError::Start(problem.to_string()))?;
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), alone),
    };
    // The snapshot first: it replaces the log, whose memberships would count otherwise.
    let state = found.state.clone();
    blocking(move || snapshots.write(&meta, |out| state.write_snapshot(out)))
        .await
        .map_err(io_error)?;
    log.purge(last).await.map_err(io_error)?;
    let closing = tokio::task::spawn_blocking(move || {
        writer.close();
        drop(lock);
    });
    closing
        .await
        .map_err(|panic| OpenError::Start(panic.to_string()))?;
    Ok(recovered)
}
