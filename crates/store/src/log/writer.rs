//! The one thread that changes log files.
//!
//! It takes jobs in order, so votes, appends and truncations reach the disk in the order in which
//! openraft gave them. Group commit needs no timer: while one sync runs, appends queue up, and the
//! next sync covers all of them.
//!
//! After the first failed write or sync it does nothing more but fail: what the kernel kept of a
//! failed sync is unknown, so going on could acknowledge what is not there. A restart reads the
//! files back and knows.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, OnceLock};

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::frame::{self, Kind, SegmentHeader};
use super::index::{Segment, next_index};
use super::recovery::segment_path;
use super::{SharedIndex, VoteFile};
use crate::consensus::{Entry, LogId, Types, Vote};
use crate::durable::{self, Unfinished};

/// A segment that has grown beyond this is followed by a new one.
pub(crate) const SEGMENT_BYTES: u32 = 8 << 20;

/// One sync covers at most this much, so that the first in the queue does not wait for the last.
const BATCH_BYTES_MAX: usize = 4 << 20;

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

pub(crate) enum Job {
    Append(Vec<Entry>, IOFlushed<Types>),
    Vote(Vote, Done),
    /// Remove the entries after this one.
    Truncate(Option<LogId>, Done),
    /// Remove segments that hold nothing behind this entry.
    Purge(LogId),
    /// The log is empty and goes on after this entry, which a snapshot holds.
    Restart(LogId, Done),
    /// Note what is committed, sync, stop.
    Close,
}

pub(crate) struct Writer {
    pub(crate) directory: PathBuf,
    pub(crate) vote_file: VoteFile,
    pub(crate) index: SharedIndex,
    /// Why nothing can be written any more.
    pub(crate) failure: Arc<OnceLock<String>>,
    pub(crate) segment_bytes: u32,
    buffer: Vec<u8>,
    /// The last entry in the files. The index may be ahead: it knows what waits, too.
    last: Option<LogId>,
    /// The last committed entry that the current segment says is committed.
    marked: Option<LogId>,
}

impl Writer {
    pub(crate) fn new(
        directory: PathBuf,
        vote_file: VoteFile,
        index: SharedIndex,
        failure: Arc<OnceLock<String>>,
        segment_bytes: u32,
    ) -> Self {
        let last = index.lock().last;
        Self {
            directory,
            vote_file,
            index,
            failure,
            segment_bytes,
            buffer: Vec::new(),
            last,
            marked: None,
        }
    }

    /// Works until [`Job::Close`] or until nobody can send jobs any more.
    pub(crate) fn run(mut self, jobs: Receiver<Job>) {
        let mut put_back = None;
        loop {
            let job = match put_back.take() {
                Some(job) => job,
                None => match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                },
            };
            match job {
                Job::Append(entries, flushed) => put_back = self.append(entries, flushed, &jobs),
                Job::Vote(vote, done) => self.attempt(done, |writer| writer.vote_file.write(&vote)),
                Job::Truncate(last, done) => self.attempt(done, |writer| writer.truncate(last)),
                Job::Restart(at, done) => self.attempt(done, |writer| writer.restart(at)),
                Job::Purge(upto) => {
                    // What is not removed now is removed by the next purge; nothing depends on it.
                    if let Err(problem) = self.purge(upto) {
                        warn!(%problem, "could not remove old log segments");
                    }
                }
                Job::Close => {
                    if self.failure.get().is_none()
                        && let Err(problem) = self.append_batch(&[])
                    {
                        warn!(%problem, "could not note what is committed");
                    }
                    return;
                }
            }
        }
    }

    /// Writes these entries and whatever else waits, with one sync. Returns the first job that waits
    /// and is no append.
    fn append(
        &mut self,
        entries: Vec<Entry>,
        flushed: IOFlushed<Types>,
        jobs: &Receiver<Job>,
    ) -> Option<Job> {
        let mut bytes: usize = entries.iter().map(frame::entry_bytes).sum();
        let mut batch = entries;
        let mut waiting = vec![flushed];
        let mut next = None;
        while bytes < BATCH_BYTES_MAX {
            match jobs.try_recv() {
                Ok(Job::Append(entries, flushed)) => {
                    bytes += entries.iter().map(frame::entry_bytes).sum::<usize>();
                    batch.extend(entries);
                    waiting.push(flushed);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let written = match self.failed() {
            Err(failed) => Err(failed),
            Ok(()) => self.append_batch(&batch).map_err(|problem| self.fail(problem)),
        };
        match written {
            Ok(()) => waiting
                .into_iter()
                .for_each(|flushed| flushed.io_completed(Ok(()))),
            Err(problem) => {
                for flushed in waiting {
                    flushed.io_completed(Err(io::Error::new(problem.kind(), problem.to_string())));
                }
            }
        }
        next
    }

    fn attempt(&mut self, done: Done, job: impl FnOnce(&mut Self) -> io::Result<()>) {
        let result = match self.failed() {
            Ok(()) => job(self).map_err(|problem| self.fail(problem)),
            failed => failed,
        };
        // Nobody waits any more when openraft was stopped meanwhile.
        let _ = done.send(result);
    }

    fn failed(&self) -> io::Result<()> {
        self.failure
            .get()
            .map_or(Ok(()), |reason| Err(io::Error::other(reason.clone())))
    }

    fn fail(&mut self, problem: io::Error) -> io::Error {
        let reason = format!("cannot write to {}: {problem}", self.directory.display());
        error!(reason, "the store stops taking writes");
        let kind = problem.kind();
        let _ = self.failure.set(reason.clone());
        io::Error::new(kind, reason)
    }

    fn append_batch(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut rest = entries;
        loop {
            let segment = self.current_segment()?;
            let room = self.segment_bytes.saturating_sub(segment.end) as usize;
            let mut bytes = 0;
            let fitting = rest.iter().take_while(|entry| {
                let fits = bytes == 0 || bytes < room;
                bytes += frame::entry_bytes(entry);
                fits
            });
            let (now, later) = rest.split_at(fitting.count());
            self.write_to(&segment, now)?;
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
        }
    }

    /// Encodes, writes and syncs entries at the end of `segment`.
    fn write_to(&mut self, segment: &Segment, entries: &[Entry]) -> io::Result<()> {
        let synced = u64::from(segment.end);
        let committed = self.index.lock().committed;
        self.buffer.clear();
        if let Some(committed) = committed.filter(|committed| self.marked.as_ref() != Some(committed)) {
            frame::encode(&mut self.buffer, Kind::Committed, synced, &committed, b"");
        }
        let mut offsets = Vec::with_capacity(entries.len());
        for entry in entries {
            offsets.push(segment.end + self.buffer.len() as u32);
            frame::encode_entry(&mut self.buffer, synced, entry);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = segment
            .file
            .write_all_at(&self.buffer, synced)
            .and_then(|()| segment.file.sync_data());
        if let Err(problem) = written {
            // Best effort: without it the next start finds a torn tail and cuts it off itself.
            let _ = segment.file.set_len(synced);
            return Err(problem);
        }
        self.marked = committed;
        self.last = entries.last().map(|entry| entry.log_id).or(self.last);
        let mut index = self.index.lock();
        let current = index
            .segments
            .back_mut()
            .expect("the current segment is the last");
        current.offsets.extend(offsets);
        current.end += self.buffer.len() as u32;
        index.trim_tail();
        drop(index);
        if self.buffer.capacity() > BATCH_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The last segment, or a new one when there is none or it is full.
    fn current_segment(&mut self) -> io::Result<Segment> {
        let full = {
            let index = self.index.lock();
            match index.segments.back() {
                // Without the offsets, which can be many.
                Some(last) if last.end < self.segment_bytes => {
                    return Ok(Segment {
                        path: last.path.clone(),
                        file: last.file.clone(),
                        offsets: Vec::new(),
                        ..*last
                    });
                }
                Some(full) => full.sequence,
                None => 0,
            }
        };
        self.create_segment(full + 1, self.last, false)
    }

    fn create_segment(
        &mut self,
        sequence: u64,
        previous: Option<LogId>,
        is_restart: bool,
    ) -> io::Result<Segment> {
        let path = segment_path(&self.directory, sequence);
        let header = frame::encode_header(&SegmentHeader {
            sequence,
            previous,
            is_restart,
        });
        let mut unfinished = Unfinished::create(&path)?;
        unfinished.file.write_all(&header)?;
        let file = Arc::new(unfinished.finish(&path)?);
        let first = next_index(previous.as_ref());
        let segment = Segment {
            sequence,
            path,
            file,
            first,
            offsets: Vec::new(),
            end: header.len() as u32,
        };
        self.index.lock().segments.push_back(segment.clone());
        self.marked = None;
        Ok(segment)
    }

    fn truncate(&mut self, keep: Option<LogId>) -> io::Result<()> {
        let next = next_index(keep.as_ref());
        // From the end backwards, each step on disk before the next: never a hole.
        loop {
            let path = match self.index.lock().segments.back() {
                None => return Ok(()),
                Some(last) if last.first <= next => break,
                Some(last) => last.path.clone(),
            };
            fs::remove_file(&path)?;
            durable::sync_directory(&self.directory)?;
            self.index.lock().segments.pop_back();
        }
        let (file, end) = {
            let mut index = self.index.lock();
            let last = index.segments.back_mut().expect("the loop left one");
            last.end = last.offset(next);
            last.offsets.truncate((next - last.first) as usize);
            (last.file.clone(), last.end)
        };
        self.marked = None;
        self.last = keep;
        file.set_len(u64::from(end))?;
        file.sync_all()
    }

    fn purge(&mut self, upto: LogId) -> io::Result<()> {
        loop {
            let obsolete = {
                let index = self.index.lock();
                match (index.segments.front(), index.segments.get(1)) {
                    (Some(first), Some(second)) if second.first <= upto.index() + 1 => first.path.clone(),
                    _ => return Ok(()),
                }
            };
            // The oldest first, each removal on disk before the next: a gap would read as a loss.
            fs::remove_file(&obsolete)?;
            durable::sync_directory(&self.directory)?;
            self.index.lock().segments.pop_front();
        }
    }

    fn restart(&mut self, at: LogId) -> io::Result<()> {
        let obsolete: Vec<_> = {
            let index = self.index.lock();
            index
                .segments
                .iter()
                .map(|segment| (segment.sequence, segment.path.clone()))
                .collect()
        };
        let sequence = obsolete.last().map_or(1, |(sequence, _)| sequence + 1);
        self.create_segment(sequence, Some(at), true)?;
        self.last = Some(at);
        for (_, path) in &obsolete {
            fs::remove_file(path)?;
        }
        self.index.lock().segments.drain(..obsolete.len());
        durable::sync_directory(&self.directory)
    }
}
