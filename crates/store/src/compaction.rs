//! Keeps the log short: writes a snapshot when the log has grown, then lets go of the entries
//! before it.
//!
//! The snapshot is written here, from the state as it was after some batch, while applying goes on;
//! openraft is told when the file is complete. So a full disk costs a warning and another attempt
//! later, and not the node (openraft stops when it asked for a snapshot and got an error).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::consensus::Raft;
use crate::log::Log;
use crate::machine::{SharedApplied, blocking};
use crate::snapshots::Snapshots;

/// When to write a snapshot, and how much log to keep for followers that were away for a moment.
#[derive(Clone, Debug)]
pub struct SnapshotPolicy {
    /// A snapshot is due after so many entries …
    pub entries: u64,
    /// … or so many bytes of log, whichever comes first.
    pub log_bytes: u64,
    /// Of the entries in the snapshot at most so many stay in the log …
    pub entries_kept: u64,
    /// … and at most about so many bytes. Whole segments go, so up to one segment more stays.
    pub log_bytes_kept: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            entries: 20_000,
            log_bytes: 32 << 20,
            entries_kept: 5_000,
            log_bytes_kept: 8 << 20,
        }
    }
}

/// How long openraft may take to notice a finished snapshot; it is a message between tasks.
const NOTICE_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Compaction {
    pub(crate) raft: Raft,
    pub(crate) log: Log,
    pub(crate) applied: SharedApplied,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) policy: SnapshotPolicy,
}

impl Compaction {
    /// Works until the store is gone.
    pub(crate) async fn run(&self, mut progress: watch::Receiver<u64>) {
        let mut not_before = 0;
        while progress.changed().await.is_ok() {
            let next = *progress.borrow_and_update();
            if next < not_before || !self.is_due(next) {
                continue;
            }
            if let Err(problem) = self.compact().await {
                warn!(
                    problem,
                    "could not write a snapshot; the log grows until it works"
                );
                not_before = next + self.policy.entries / 8 + 1;
            }
        }
    }

    fn is_due(&self, next: u64) -> bool {
        let covered = self.covered();
        next >= covered + self.policy.entries || self.log.bytes_from(covered) >= self.policy.log_bytes
    }

    /// Index after the last entry in the current snapshot.
    fn covered(&self) -> u64 {
        self.snapshots
            .current()
            .and_then(|snapshot| snapshot.meta.last_log_id)
            .map_or(0, |id| id.index() + 1)
    }

    /// Writes a snapshot of what is applied now, and shortens the log.
    pub(crate) async fn compact(&self) -> Result<(), String> {
        let applied = self.applied.get();
        let Some(last) = applied.meta.last_log_id else {
            return Ok(());
        };
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.write(&applied.meta, |out| applied.state.write_snapshot(out)))
            .await
            .map_err(|problem| problem.to_string())?;
        self.raft
            .trigger()
            .snapshot()
            .await
            .map_err(|problem| problem.to_string())?;
        self.raft
            .wait(Some(NOTICE_MAX))
            .metrics(
                |metrics| metrics.snapshot >= Some(last),
                "the new snapshot is noticed",
            )
            .await
            .map_err(|problem| problem.to_string())?;
        let keep = self.log.first_to_keep(
            last.index() + 1,
            self.policy.entries_kept,
            self.policy.log_bytes_kept,
        );
        if let Some(upto) = keep
            .checked_sub(1)
            .filter(|upto| Some(*upto) > self.log.purged().map(|id| id.index()))
        {
            self.raft
                .trigger()
                .purge_log(upto)
                .await
                .map_err(|problem| problem.to_string())?;
        }
        Ok(())
    }
}
