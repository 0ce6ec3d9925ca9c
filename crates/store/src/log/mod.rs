//! The replicated log on disk, and what this node voted.
//!
//! ```text
//! openraft ── append, truncate, purge, vote ──▶ Log ── jobs in order ──▶ writer thread ──▶ segments
//!     ▲                                          │ index (shared)            │
//!     └── entries: from the tail in memory, ◀────┘◀── offsets, callbacks ────┘
//!         or from the files
//! ```
//!
//! An entry can be read as soon as [`Log`] took it and is acknowledged when the writer has synced
//! it. [`recovery`] is what runs at the next start.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::consensus::{Entry, LogId, Types, Vote};
use crate::durable;
use index::{Index, Stretch, next_index};
use recovery::LogDamage;
use writer::{Job, Writer};

pub(crate) mod frame;
mod index;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use recovery::LogDamage as Damage;
pub(crate) use writer::SEGMENT_BYTES;

/// One message to a follower carries about this much at most.
const REPLICATE_BYTES_MAX: usize = 1 << 20;

/// The index of the log, between the log, its readers and the writer.
#[derive(Clone, Debug)]
pub(crate) struct SharedIndex(Arc<Mutex<Index>>);

impl SharedIndex {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().expect("no one panics while holding the index")
    }
}

/// The log as openraft sees it; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    index: SharedIndex,
    jobs: mpsc::Sender<Job>,
    failure: Arc<OnceLock<String>>,
}

/// The writer thread, to wait for its end.
pub(crate) struct WriterThread {
    jobs: mpsc::Sender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl WriterThread {
    /// Lets the writer finish what it was given, and waits for it.
    pub(crate) fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.jobs.send(Job::Close);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the log writer does not panic");
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Log {
    /// Reads what is in `directory` and starts the writer. Blocks; `segment_bytes` is
    /// [`SEGMENT_BYTES`] but in tests.
    pub(crate) fn open(directory: &Path, segment_bytes: u32) -> Result<(Self, WriterThread), LogDamage> {
        let io_error = |source| LogDamage::Io {
            path: directory.to_owned(),
            source,
        };
        let segments = directory.join("log");
        durable::create_directory(&segments).map_err(io_error)?;
        let vote_file = VoteFile(directory.join("vote.json"));
        let mut index = recovery::recover(&segments)?;
        index.vote = vote_file.read().map_err(|source| LogDamage::Io {
            path: vote_file.0.clone(),
            source,
        })?;
        let index = SharedIndex(Arc::new(Mutex::new(index)));
        let failure = Arc::new(OnceLock::new());
        let (jobs, receiver) = mpsc::channel();
        let writer = Writer::new(segments, vote_file, index.clone(), failure.clone(), segment_bytes);
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .spawn(move || writer.run(receiver))
            .map_err(io_error)?;
        let log = Self {
            index,
            jobs: jobs.clone(),
            failure,
        };
        Ok((
            log,
            WriterThread {
                jobs,
                thread: Some(thread),
            },
        ))
    }

    /// Why nothing can be written any more, if so.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// The last entry that is gone from the log.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.index.lock().purged
    }

    /// Bytes of log on disk from entry `start` on.
    pub(crate) fn bytes_from(&self, start: u64) -> u64 {
        self.index.lock().bytes_from(start)
    }

    /// The first entry to keep so that at most `entries_max` and about `bytes_max` stay before `end`.
    pub(crate) fn first_to_keep(&self, end: u64, entries_max: u64, bytes_max: u64) -> u64 {
        let index = self.index.lock();
        let oldest = next_index(index.purged.as_ref()).max(end.saturating_sub(entries_max));
        let total_after_end = index.bytes_from(end);
        let is_small_enough = |first: u64| index.bytes_from(first) - total_after_end <= bytes_max;
        let (mut low, mut high) = (oldest, end.max(oldest));
        while low < high {
            let middle = low + (high - low) / 2;
            if is_small_enough(middle) {
                high = middle
            } else {
                low = middle + 1
            }
        }
        low
    }

    async fn wait_for(&self, job: impl FnOnce(writer::Done) -> Job) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.send(job(done))?;
        result.await.map_err(|_| writer_gone())?
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| writer_gone())
    }

    async fn read(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        loop {
            let (stretches, tail, generation) = {
                let index = self.index.lock();
                let (stretches, tail) = index.locate(range.clone());
                (stretches, tail, index.generation)
            };
            if stretches.is_empty() {
                return Ok(tail);
            }
            let read = tokio::task::spawn_blocking(move || read_stretches(&stretches))
                .await
                .map_err(io::Error::other)?;
            // Entries that a new leader overruled may have been cut off, and others written in their
            // place, while this was reading: then look again.
            if self.index.lock().generation != generation {
                continue;
            }
            let mut entries = read?;
            entries.extend(tail);
            return Ok(entries);
        }
    }
}

fn writer_gone() -> io::Error {
    io::Error::other("the log is closed")
}

fn read_stretches(stretches: &[Stretch]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for stretch in stretches {
        let mut bytes = vec![0; stretch.bytes.len()];
        stretch
            .file
            .read_exact_at(&mut bytes, u64::from(stretch.bytes.start))?;
        let (found, rest) = frame::decode_entries(&bytes).map_err(io::Error::other)?;
        if !rest.is_empty() || found.len() as u64 != stretch.entries.end - stretch.entries.start {
            let path = stretch.path.display();
            return Err(io::Error::other(format!(
                "log segment {path} reads back differently than written"
            )));
        }
        entries.extend(found);
    }
    Ok(entries)
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let end = self.index.lock().limit(start..end, REPLICATE_BYTES_MAX);
        self.read(start..end).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.index.lock().vote)
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        Ok(self.index.lock().key_log_ids(*range.start(), *range.end()))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let index = self.index.lock();
        Ok(LogState {
            last_purged_log_id: index.purged,
            last_log_id: index.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.wait_for(|done| Job::Vote(*vote, done)).await?;
        self.index.lock().vote = Some(*vote);
        Ok(())
    }

    /// Remembered now, on disk with the next append: it only spares a restarted node from waiting
    /// for a leader before it knows what it knew, so it is not worth a sync of its own.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut index = self.index.lock();
        index.committed = index.committed.max(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let index = self.index.lock();
        Ok(index.committed.min(index.last))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut index = self.index.lock();
            entries.iter().for_each(|entry| index.append(entry.clone()));
        }
        self.send(Job::Append(entries, flushed))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.index.lock().truncate(next_index(last.as_ref()));
        self.wait_for(|done| Job::Truncate(last, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let is_restart = {
            let mut index = self.index.lock();
            let is_restart = upto.index() >= index.next();
            index.purge(upto);
            is_restart
        };
        if is_restart {
            self.wait_for(|done| Job::Restart(upto, done)).await
        } else {
            self.send(Job::Purge(upto))
        }
    }
}

/// The file with this node's vote.
#[derive(Clone, Debug)]
pub(crate) struct VoteFile(PathBuf);

#[derive(Serialize, Deserialize)]
struct SealedVote {
    crc: u32,
    vote: Box<RawValue>,
}

impl VoteFile {
    fn write(&self, vote: &Vote) -> io::Result<()> {
        let vote = serde_json::value::to_raw_value(vote)?;
        let sealed = SealedVote {
            crc: crc32fast::hash(vote.get().as_bytes()),
            vote,
        };
        durable::replace(&self.0, &serde_json::to_vec(&sealed)?)
    }

    /// A vote that cannot be read must not be taken for none: the node could vote twice in a term.
    fn read(&self) -> io::Result<Option<Vote>> {
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(problem) => return Err(problem),
        };
        let sealed: SealedVote = serde_json::from_slice(&bytes)?;
        if crc32fast::hash(sealed.vote.get().as_bytes()) != sealed.crc {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the vote's checksum does not fit",
            ));
        }
        Ok(Some(serde_json::from_str(sealed.vote.get())?))
    }
}
