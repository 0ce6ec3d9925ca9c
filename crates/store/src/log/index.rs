//! Where in the segments each entry is, and the last entries themselves.
//!
//! Pure bookkeeping, no I/O: the log changes it when openraft appends, truncates or purges, the
//! writer when bytes have reached a file. Memory per entry on disk is four bytes; whole entries are
//! kept only for a tail of [`TAIL_BYTES_MAX`] and as long as they are not written.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::frame::entry_bytes;
use crate::consensus::{Entry, LogId, Vote};

/// How much of the end of the log stays in memory, for applying and for followers that keep up.
pub(crate) const TAIL_BYTES_MAX: usize = 2 << 20;

/// One segment file.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
    /// Index of the first entry that is, or will be, in it.
    pub(crate) first: u64,
    /// Where each entry's frame begins.
    pub(crate) offsets: Vec<u32>,
    /// Where the last written frame ends.
    pub(crate) end: u32,
}

impl Segment {
    /// Index after its last entry.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }

    /// Where the frame of entry `index` begins; the end for the entry after the last.
    pub(crate) fn offset(&self, index: u64) -> u32 {
        self.offsets
            .get((index - self.first) as usize)
            .copied()
            .unwrap_or(self.end)
    }
}

/// A run of entries that has to be read from a file.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) bytes: Range<u32>,
    pub(crate) entries: Range<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) segments: VecDeque<Segment>,
    /// The last entry that is gone for good, being in a snapshot.
    pub(crate) purged: Option<LogId>,
    /// The last entry, or `purged` when there is none.
    pub(crate) last: Option<LogId>,
    /// The first entry of each leader, oldest first.
    leaders: Vec<LogId>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// Grows with each truncation: whoever read from files meanwhile may have read other bytes.
    pub(crate) generation: u64,
    pub(crate) committed: Option<LogId>,
    pub(crate) vote: Option<Vote>,
}

pub(crate) fn next_index(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index() + 1)
}

impl Index {
    /// Index after the last entry.
    pub(crate) fn next(&self) -> u64 {
        next_index(self.last.as_ref())
    }

    /// Index after the last entry that is in a file.
    pub(crate) fn written(&self) -> u64 {
        self.segments.back().map_or(0, Segment::next)
    }

    /// Notes that an entry exists; `entry` itself is remembered by [`Index::append`].
    pub(crate) fn note(&mut self, id: LogId) {
        let is_new_leader = self
            .leaders
            .last()
            .is_none_or(|first| first.committed_leader_id() != id.committed_leader_id());
        if is_new_leader {
            self.leaders.push(id);
        }
        self.last = Some(id);
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        assert_eq!(
            entry.log_id.index(),
            self.next(),
            "entries follow each other without a hole"
        );
        self.note(entry.log_id);
        self.tail_bytes += entry_bytes(&entry);
        self.tail.push_back(entry);
    }

    /// Forgets entries that are in a file, oldest first, until the tail is small enough.
    pub(crate) fn trim_tail(&mut self) {
        let written = self.written();
        while self.tail_bytes > TAIL_BYTES_MAX
            && self
                .tail
                .front()
                .is_some_and(|entry| entry.log_id.index() < written)
        {
            let entry = self.tail.pop_front().expect("there is a front");
            self.tail_bytes -= entry_bytes(&entry);
        }
    }

    /// Forgets every entry from `next` on. The segments are the writer's to cut.
    pub(crate) fn truncate(&mut self, next: u64) {
        self.generation += 1;
        while self.tail.back().is_some_and(|entry| entry.log_id.index() >= next) {
            let entry = self.tail.pop_back().expect("there is a back");
            self.tail_bytes -= entry_bytes(&entry);
        }
        self.last = match next.checked_sub(1) {
            Some(index) if index >= next_index(self.purged.as_ref()) => self.log_id(index),
            _ => self.purged,
        };
        while self.leaders.last().is_some_and(|first| first.index() >= next) {
            self.leaders.pop();
        }
    }

    /// Forgets every entry up to `upto`, which may lie behind the last: then the log is empty.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while self
            .tail
            .front()
            .is_some_and(|entry| entry.log_id.index() <= upto.index())
        {
            let entry = self.tail.pop_front().expect("there is a front");
            self.tail_bytes -= entry_bytes(&entry);
        }
        if upto.index() + 1 >= self.next() {
            self.leaders.clear();
            self.last = Some(upto);
        } else {
            let first = self
                .log_id(upto.index() + 1)
                .expect("an entry follows, by the test above");
            self.leaders.retain(|id| id.index() > first.index());
            self.leaders.insert(0, first);
        }
        self.purged = Some(upto);
    }

    /// The id of an entry that exists.
    pub(crate) fn log_id(&self, index: u64) -> Option<LogId> {
        if index >= self.next() {
            return None;
        }
        let first = self.leaders.iter().rev().find(|first| first.index() <= index)?;
        Some(LogId::new(*first.committed_leader_id(), index))
    }

    /// The last entry of each leader from `first` to `last`.
    pub(crate) fn key_log_ids(&self, first: LogId, last: LogId) -> Vec<LogId> {
        let ends = self.leaders.iter().skip(1).map(|next| next.index() - 1);
        self.leaders
            .iter()
            .zip(ends.chain([last.index()]))
            .filter(|(from, end)| *end >= first.index() && from.index() <= last.index())
            .map(|(from, end)| LogId::new(*from.committed_leader_id(), end.min(last.index())))
            .collect()
    }

    /// Where to find the entries of `range` that exist: first what is in files, then the rest.
    pub(crate) fn locate(&self, range: Range<u64>) -> (Vec<Stretch>, Vec<Entry>) {
        let range = range.start.max(next_index(self.purged.as_ref()))..range.end.min(self.next());
        if range.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let tail_first = self
            .tail
            .front()
            .map_or(self.next(), |entry| entry.log_id.index());
        let mut stretches = Vec::new();
        let in_files = range.start..range.end.min(tail_first);
        for segment in &self.segments {
            let entries = in_files.start.max(segment.first)..in_files.end.min(segment.next());
            if !entries.is_empty() {
                stretches.push(Stretch {
                    file: segment.file.clone(),
                    path: segment.path.clone(),
                    bytes: segment.offset(entries.start)..segment.offset(entries.end),
                    entries,
                });
            }
        }
        let in_memory = range.start.max(tail_first)..range.end;
        let entries = if in_memory.is_empty() {
            Vec::new()
        } else {
            let from = (in_memory.start - tail_first) as usize;
            self.tail
                .range(from..from + (in_memory.end - in_memory.start) as usize)
                .cloned()
                .collect()
        };
        (stretches, entries)
    }

    /// The index after the last entry from `start` that fits into `bytes_max`; at least one.
    pub(crate) fn limit(&self, range: Range<u64>, bytes_max: usize) -> u64 {
        let tail_first = self
            .tail
            .front()
            .map_or(self.next(), |entry| entry.log_id.index());
        let mut bytes = 0;
        let mut end = range.start;
        while end < range.end.min(self.next()) {
            bytes += if end >= tail_first {
                entry_bytes(&self.tail[(end - tail_first) as usize])
            } else {
                self.frame_bytes(end)
            };
            if bytes > bytes_max && end > range.start {
                break;
            }
            end += 1;
        }
        end
    }

    /// Bytes of the frames of entries from `start` on, as far as they are in files.
    pub(crate) fn bytes_from(&self, start: u64) -> u64 {
        let bytes = |segment: &Segment| u64::from(segment.end - segment.offset(start.max(segment.first)));
        self.segments
            .iter()
            .filter(|segment| segment.next() > start)
            .map(bytes)
            .sum()
    }

    fn frame_bytes(&self, index: u64) -> usize {
        let segment = self.segments.iter().rev().find(|segment| segment.first <= index);
        segment.map_or(0, |segment| {
            (segment.offset(index + 1) - segment.offset(index)) as usize
        })
    }
}
