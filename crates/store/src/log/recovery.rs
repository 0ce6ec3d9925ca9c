//! Reads the segments of a log after a stop of any kind, and decides what may be trusted.
//!
//! A power cut can leave the *end of the last segment* torn: those bytes were never acknowledged and
//! are cut off. Anything else that does not read back (an earlier segment, a missing file, damage in
//! front of frames that say it was on disk before they were) is a broken disk or a foreign hand: then
//! the store refuses to open, because going on would silently drop writes that were promised.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::frame::{self, Frame, HeaderDamage, Kind};
use super::index::{Index, Segment, next_index};
use crate::consensus::LogId;
use crate::durable;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LogDamage {
    #[error("log segment {path} cannot be used: {source}")]
    Header { path: PathBuf, source: HeaderDamage },
    #[error(
        "log segment {path} is damaged at byte {offset}, where acknowledged writes are (after log index {index:?})"
    )]
    Acknowledged {
        path: PathBuf,
        offset: usize,
        index: Option<u64>,
    },
    #[error("log segment number {wanted} is missing: after it comes {path}")]
    Missing { wanted: u64, path: PathBuf },
    #[error(
        "log segment {path} does not continue the log: it follows {follows:?}, the log ends with {last:?}"
    )]
    Discontinuous {
        path: PathBuf,
        follows: Option<LogId>,
        last: Option<LogId>,
    },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Where a segment with this number lies.
pub(crate) fn segment_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{sequence:012}.log"))
}

/// Opens every segment in `directory`, cuts a torn tail, and returns what the log holds.
pub(crate) fn recover(directory: &Path) -> Result<Index, LogDamage> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| LogDamage::Io { path, source }
    };
    let paths = durable::finished_files(directory).map_err(io_error(directory))?;
    let mut found = VecDeque::new();
    for path in paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
    {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io_error(&path))?;
        let mut head = Vec::new();
        (&file)
            .take(4096)
            .read_to_end(&mut head)
            .map_err(io_error(&path))?;
        let (header, _) = frame::decode_header(&head).map_err(|source| LogDamage::Header {
            path: path.clone(),
            source,
        })?;
        if header.is_restart {
            // A crash came between making this segment and removing the obsolete ones.
            for (_, _, obsolete) in found.drain(..) {
                fs::remove_file::<&PathBuf>(&obsolete).map_err(io_error(&obsolete))?;
            }
        }
        found.push_back((header, file, path));
    }

    let mut index = Index::default();
    if let Some((first, ..)) = found.front() {
        index.purged = first.previous;
        index.last = first.previous;
    }
    let first_sequence = found.front().map_or(0, |(first, ..)| first.sequence);
    let count = found.len();
    for (position, (header, file, path)) in found.into_iter().enumerate() {
        let wanted_sequence = first_sequence + position as u64;
        if header.sequence != wanted_sequence {
            return Err(LogDamage::Missing {
                wanted: wanted_sequence,
                path,
            });
        }
        if header.previous != index.last {
            return Err(LogDamage::Discontinuous {
                path,
                follows: header.previous,
                last: index.last,
            });
        }
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let (_, start) = frame::decode_header(&bytes).map_err(|source| LogDamage::Header {
            path: path.clone(),
            source,
        })?;
        let mut segment = Segment {
            sequence: header.sequence,
            path: path.clone(),
            file: Arc::new(file),
            first: next_index(header.previous.as_ref()),
            offsets: Vec::new(),
            end: start as u32,
        };
        let read = read_frames(&bytes, start, &mut segment, &mut index);
        let is_last = position + 1 == count;
        match read {
            Ok(()) => {}
            Err(offset) if is_last && is_torn_tail(&bytes, offset) => {
                warn!(path = %path.display(), offset, bytes = bytes.len() - offset, "cut off a torn tail of the log");
                segment.file.set_len(offset as u64).map_err(io_error(&path))?;
                segment.file.sync_all().map_err(io_error(&path))?;
            }
            Err(offset) => {
                let index = index.last.map(|id| id.index());
                return Err(LogDamage::Acknowledged { path, offset, index });
            }
        }
        index.segments.push_back(segment);
    }
    Ok(index)
}

/// Reads frames up to the end, or says at which offset that stopped being possible.
fn read_frames(bytes: &[u8], start: usize, segment: &mut Segment, index: &mut Index) -> Result<(), usize> {
    let mut offset = start;
    while offset < bytes.len() {
        let frame = frame::decode(&bytes[offset..]).ok_or(offset)?;
        match frame.kind {
            Kind::Committed => index.committed = index.committed.max(Some(frame.log_id)),
            _ if frame.log_id.index() != index.next() => return Err(offset),
            _ => {
                segment.offsets.push(offset as u32);
                index.note(frame.log_id);
            }
        }
        offset += frame.bytes();
        segment.end = offset as u32;
    }
    Ok(())
}

/// Whether no later frame claims that the bytes at `offset` had reached the disk.
fn is_torn_tail(bytes: &[u8], offset: usize) -> bool {
    let vouches = |frame: Frame| frame.synced > offset as u64;
    (offset..bytes.len()).all(|at| !frame::decode(&bytes[at..]).is_some_and(vouches))
}
