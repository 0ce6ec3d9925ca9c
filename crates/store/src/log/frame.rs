//! The form of a log segment on disk: one header, then frames.
//!
//! ```text
//! segment  "flynn-log 1\n"  length u32  crc u32  header as JSON   frame frame frame …
//! frame    length u32  crc u32  kind u8  0×7  synced u64  term u64  node u64  index u64   payload
//! ```
//!
//! Numbers are little-endian. `length` is that of the payload, `crc` covers everything in the frame
//! but itself. Payloads are JSON, so that neighbouring versions can read each other; the layout
//! around them has the version in the first line.
//!
//! `synced` is what tells a torn tail from a broken disk: the offset up to which this segment was
//! known to be on disk when the frame was written. Damage *behind* the `synced` of every later
//! frame was never acknowledged (the power went before the sync returned) and may be cut off;
//! damage *before* the `synced` of any later frame hit data that somebody was promised.

use std::sync::Arc;

use openraft::EntryPayload;
use serde::{Deserialize, Serialize};

use crate::consensus::{Entry, LogId, Proposal, log_id};

pub(crate) const MAGIC: &[u8] = b"flynn-log 1\n";
const MAGIC_ANY_VERSION: &[u8] = b"flynn-log ";
pub(crate) const FRAME_HEAD_BYTES: usize = 48;

/// No payload is longer: a length beyond it is damage, not an order to allocate.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// What stands at the head of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentHeader {
    /// Counts segments, without a gap.
    pub(crate) sequence: u64,
    /// The entry before the first of this segment; none for the first of all.
    pub(crate) previous: Option<LogId>,
    /// The log starts anew here, after a snapshot: what earlier segments hold is obsolete.
    #[serde(default)]
    pub(crate) is_restart: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Blank = 1,
    Command = 2,
    Membership = 3,
    /// No entry: everything up to this log id is committed.
    Committed = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Blank, Self::Command, Self::Membership, Self::Committed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A frame that has been read, its payload still as bytes.
#[derive(Debug, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) synced: u64,
    pub(crate) log_id: LogId,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn bytes(&self) -> usize {
        FRAME_HEAD_BYTES + self.payload.len()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderDamage {
    #[error("it was written by another version of this program: {0:?}")]
    OtherVersion(String),
    #[error("its header is damaged")]
    Damaged,
}

pub(crate) fn encode_header(header: &SegmentHeader) -> Vec<u8> {
    let json = serde_json::to_vec(header).expect("a segment header is plain JSON");
    let mut bytes = MAGIC.to_vec();
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(&json).to_le_bytes());
    bytes.extend(json);
    bytes
}

/// The header and where the first frame begins.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<(SegmentHeader, usize), HeaderDamage> {
    if !bytes.starts_with(MAGIC) {
        let first_line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        return Err(
            if first_line.starts_with(MAGIC_ANY_VERSION) && first_line.len() < 32 {
                HeaderDamage::OtherVersion(String::from_utf8_lossy(first_line).into_owned())
            } else {
                HeaderDamage::Damaged
            },
        );
    }
    let start = MAGIC.len() + 8;
    let length = read_u32(bytes, MAGIC.len()).ok_or(HeaderDamage::Damaged)? as usize;
    let crc = read_u32(bytes, MAGIC.len() + 4).ok_or(HeaderDamage::Damaged)?;
    let end = start.checked_add(length).ok_or(HeaderDamage::Damaged)?;
    let json = bytes.get(start..end).ok_or(HeaderDamage::Damaged)?;
    if crc32fast::hash(json) != crc {
        return Err(HeaderDamage::Damaged);
    }
    let header = serde_json::from_slice(json).map_err(|_| HeaderDamage::Damaged)?;
    Ok((header, end))
}

/// Appends one frame to `out`.
pub(crate) fn encode(out: &mut Vec<u8>, kind: Kind, synced: u64, id: &LogId, payload: &[u8]) {
    let start = out.len();
    let leader = id.committed_leader_id();
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend([kind as u8, 0, 0, 0, 0, 0, 0, 0]);
    for number in [synced, leader.term, leader.node_id, id.index()] {
        out.extend(number.to_le_bytes());
    }
    out.extend(payload);
    let crc = frame_crc(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Appends the frame of an entry to `out`.
pub(crate) fn encode_entry(out: &mut Vec<u8>, synced: u64, entry: &Entry) {
    match &entry.payload {
        EntryPayload::Blank => encode(out, Kind::Blank, synced, &entry.log_id, b""),
        EntryPayload::Normal(command) => encode(
            out,
            Kind::Command,
            synced,
            &entry.log_id,
            command.0.get().as_bytes(),
        ),
        EntryPayload::Membership(membership) => {
            let json = serde_json::to_vec(membership).expect("a membership is plain JSON");
            encode(out, Kind::Membership, synced, &entry.log_id, &json)
        }
    }
}

/// How much room an entry takes on disk, near enough to account for memory and log size.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    FRAME_HEAD_BYTES
        + match &entry.payload {
            EntryPayload::Normal(command) => command.bytes(),
            _ => 0,
        }
}

/// The frame at the start of `bytes`, if there is a whole and undamaged one.
pub(crate) fn decode(bytes: &[u8]) -> Option<Frame<'_>> {
    let length = read_u32(bytes, 0)? as usize;
    let kind = Kind::from_byte(*bytes.get(8)?)?;
    if length > PAYLOAD_BYTES_MAX || bytes[9..].get(..7)? != [0; 7] {
        return None;
    }
    let frame = bytes.get(..FRAME_HEAD_BYTES + length)?;
    if frame_crc(frame) != read_u32(frame, 4)? {
        return None;
    }
    Some(Frame {
        kind,
        synced: read_u64(frame, 16)?,
        log_id: log_id(read_u64(frame, 24)?, read_u64(frame, 32)?, read_u64(frame, 40)?),
        payload: &frame[FRAME_HEAD_BYTES..],
    })
}

/// The entries whose frames follow one another from the start of `bytes`, and what is left there: nothing, unless a frame
/// is damaged or incomplete.
pub(crate) fn decode_entries(mut bytes: &[u8]) -> Result<(Vec<Entry>, &[u8]), serde_json::Error> {
    let mut entries = Vec::new();
    while let Some(frame) = decode(bytes) {
        bytes = &bytes[frame.bytes()..];
        entries.extend(decode_entry(&frame)?);
    }
    Ok((entries, bytes))
}

/// The entry in a frame; none in a frame that only marks what is committed.
pub(crate) fn decode_entry(frame: &Frame) -> Result<Option<Entry>, serde_json::Error> {
    let payload = match frame.kind {
        Kind::Committed => return Ok(None),
        Kind::Blank => EntryPayload::Blank,
        Kind::Membership => EntryPayload::Membership(serde_json::from_slice(frame.payload)?),
        Kind::Command => {
            let raw: Box<serde_json::value::RawValue> = serde_json::from_slice(frame.payload)?;
            EntryPayload::Normal(Proposal(Arc::from(raw)))
        }
    };
    Ok(Some(Entry {
        log_id: frame.log_id,
        payload,
    }))
}

fn frame_crc(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..]);
    hasher.finalize()
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
