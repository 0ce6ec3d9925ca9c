//! Reads what one sink has not been sent yet, from where it was left, through rotations.
//!
//! Nothing is remembered beyond a place in each log: what is not sent stays in the files, so a receiver
//! that is slow or gone costs no memory. A record is sent when it has its end, and what has been read of
//! an unfinished one is read again.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use serde::Deserialize;
use types::{Timestamp, sink_template::TemplateJob};

use super::{
    framing::{About, Framer, Header},
    listing::{Key, Listing, Log, numbered},
    position::{Cursors, Position, head_of},
};

/// Read from one log before the next has its turn. The longest record is much shorter.
const TURN_BYTES: usize = 128 << 10;
/// Messages that are sent together, and with them what one sink has in memory.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// More files of one log than any rotation leaves.
const FILES_MAX: u32 = 64;

pub struct Backlog {
    host: String,
    framer: Framer,
    /// Logs that began after the sink did are to be sent from their first line.
    sink_created_at: Timestamp,
    tails: BTreeMap<Key, Tail>,
    /// Whose turn was last.
    last: Option<Key>,
    block: Vec<u8>,
}

/// Messages and how far they bring each log.
#[derive(Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub positions: Vec<(Key, Position)>,
    pub lines: u64,
    pub lines_lost: u64,
}

struct Tail {
    file: File,
    position: Position,
    header: Header,
    /// At the end of the file, of a record that has no end yet.
    unfinished: u64,
}

/// Lines that are gone before they were read.
#[derive(Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    Lines(u64),
    Unknown,
}

/// What the agent writes beside a job's log.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Sidecar {
    process_type: String,
    partition: String,
    metadata: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
    created_at: Option<Timestamp>,
}

impl Backlog {
    pub fn new(host: String, framer: Framer, sink_created_at: Timestamp) -> Backlog {
        Backlog {
            host,
            framer,
            sink_created_at,
            tails: BTreeMap::new(),
            last: None,
            block: vec![0; TURN_BYTES],
        }
    }

    /// Forgets what was read and not taken: reading goes on after what is in `Cursors`.
    pub fn rewind(&mut self) {
        self.tails.clear();
    }

    /// Bytes at the ends of files that are no records, and perhaps never will be.
    pub fn unfinished_bytes(&self) -> u64 {
        self.tails.values().map(|tail| tail.unfinished).sum()
    }

    /// The next messages of as many logs as fit. Empty: everything that is in the listing was read.
    pub fn batch(&mut self, listing: &Listing, taken: &Cursors) -> Batch {
        self.tails.retain(|key, _| listing.contains_key(key));
        let mut batch = Batch::default();
        // Round by round, so that one chatty job does not keep the others waiting.
        let after = self.last.clone();
        let first: Vec<&Key> = listing
            .keys()
            .filter(|key| after.as_ref().is_some_and(|last| *key > last))
            .collect();
        let rest = listing
            .keys()
            .filter(|key| after.as_ref().is_none_or(|last| *key <= last));
        for key in first.into_iter().chain(rest) {
            let log = &listing[key];
            if let Err(error) = self.turn(key, log, taken, &mut batch) {
                tracing::warn!(log = %log.path.display(), %error, "cannot read a log for a sink");
            }
            self.last = Some(key.clone());
            if batch.bytes.len() >= BATCH_BYTES_MAX {
                break;
            }
        }
        batch
    }

    fn turn(&mut self, key: &Key, log: &Log, taken: &Cursors, batch: &mut Batch) -> io::Result<()> {
        if !self.tails.contains_key(key) {
            let begun = begin(
                log,
                taken.get(key),
                &self.host,
                &self.framer,
                self.sink_created_at,
            )?;
            let Some((tail, lost)) = begun else { return Ok(()) };
            tell_loss(&mut self.framer, &tail, lost, batch);
            self.tails.insert(key.clone(), tail);
        }
        let tail = self.tails.get_mut(key).expect("it was just put there");
        let newest = log.files.first();
        let is_all_read = newest.is_some_and(|file| {
            file.inode == tail.position.inode && file.bytes == tail.position.offset + tail.unfinished
        });
        if is_all_read {
            return Ok(());
        }
        let before = tail.position;
        let mut is_last_look = false;
        while !tail.read(&mut self.framer, &mut self.block, batch)? {
            // Whoever writes does not write to a file any more once it is not the current one: what is
            // in it after that was seen is all of it.
            let is_rotated = is_rotated(log, &tail.position);
            if !is_rotated {
                break;
            }
            if !std::mem::replace(&mut is_last_look, true) {
                continue;
            }
            let Some(lost) = tail.move_on(log)? else { break };
            is_last_look = false;
            tell_loss(&mut self.framer, tail, lost, batch);
        }
        if tail.position != before {
            batch.positions.push((key.clone(), tail.position));
        }
        Ok(())
    }
}

impl Tail {
    /// One block of whole records; whether there was anything.
    fn read(&mut self, framer: &mut Framer, block: &mut [u8], batch: &mut Batch) -> io::Result<bool> {
        let mut length = self.file.read_at(block, self.position.offset)?;
        if length == 0 && self.file.metadata()?.len() < self.position.offset {
            // Cut in place: what is in it now was written since.
            self.position.offset = 0;
            self.position.line = first_line(&self.file).unwrap_or(self.position.line);
            length = self.file.read_at(block, 0)?;
        }
        let bytes = &block[..length];
        let end = match memchr::memrchr(b'\n', bytes) {
            Some(at) => at + 1,
            // No record is that long; it is passed over.
            None if length == block.len() => length,
            None => 0,
        };
        self.unfinished = (length - end) as u64;
        if end == 0 {
            return Ok(false);
        }
        if self.position.offset == 0 {
            self.position.head = head_of(bytes);
        }
        let mut rest = &bytes[..end];
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let is_record = framer.record(&self.header, &rest[..at], self.position.line, &mut batch.bytes);
            batch.lines += u64::from(is_record);
            self.position.line += 1;
            rest = &rest[at + 1..];
        }
        self.position.offset += end as u64;
        Ok(true)
    }

    /// To the next newer file, once this one is read to its end.
    fn move_on(&mut self, log: &Log) -> io::Result<Option<Lost>> {
        let files = open_all(&log.path)?;
        let own = files.iter().position(|(_, inode)| *inode == self.position.inode);
        let next = match own {
            Some(0) => return Ok(None),
            Some(index) => files.into_iter().nth(index - 1),
            None => files.into_iter().next_back(),
        };
        let Some((file, inode)) = next else {
            return Ok(None);
        };
        let expected = self.position.line;
        let first = first_line(&file);
        let lost = match first {
            Some(first) if first > expected => Lost::Lines(first - expected),
            None if own.is_none() => Lost::Unknown,
            _ => Lost::Nothing,
        };
        self.position = Position {
            inode,
            head: 0,
            offset: 0,
            line: first.unwrap_or(expected),
        };
        self.file = file;
        self.unfinished = 0;
        Ok(Some(lost))
    }
}

/// Opens a log where it was left, or at the oldest line that there is.
fn begin(
    log: &Log,
    taken: Option<&Position>,
    host: &str,
    framer: &Framer,
    sink_created_at: Timestamp,
) -> io::Result<Option<(Tail, Lost)>> {
    let sidecar = sidecar(log);
    let header = header(log, &sidecar, host, framer);
    let tail = |file, position| Tail {
        file,
        position,
        header,
        unfinished: 0,
    };
    let files = open_all(&log.path)?;
    if let Some(taken) = taken {
        for (file, inode) in &files {
            if *inode == taken.inode && is_same(file, taken)? {
                // After a power cut a log may end before what was taken of it: the rest never reached
                // the disk, and what is there was taken.
                let position = Position {
                    offset: taken.offset.min(file.metadata()?.len()),
                    ..*taken
                };
                return Ok(Some((tail(file.try_clone()?, position), Lost::Nothing)));
            }
        }
    }
    let Some((file, inode)) = files.into_iter().next_back() else {
        return Ok(None);
    };
    let first = first_line(&file);
    let is_younger = sidecar.created_at.is_some_and(|at| at >= sink_created_at);
    let expected = match taken {
        Some(taken) => Some(taken.line),
        // Of a log that is older than the sink, what was removed was never meant for it.
        None => is_younger.then_some(1),
    };
    let lost = match (first, expected) {
        (Some(first), Some(expected)) if first > expected => Lost::Lines(first - expected),
        (None, Some(_)) if taken.is_some() => Lost::Unknown,
        _ => Lost::Nothing,
    };
    let position = Position {
        inode,
        head: 0,
        offset: 0,
        line: first.or(expected).unwrap_or(1),
    };
    Ok(Some((tail(file, position), lost)))
}

fn tell_loss(framer: &mut Framer, tail: &Tail, lost: Lost, batch: &mut Batch) {
    let lines = match lost {
        Lost::Nothing => return,
        Lost::Lines(lines) => Some(lines),
        Lost::Unknown => None,
    };
    batch.lines_lost += lines.unwrap_or(1);
    framer.loss(&tail.header, lines, &daemon::now().to_string(), &mut batch.bytes);
}

/// Every file of a log, newest first.
///
/// Rotation may go on: names move to higher numbers only, so looking from the lowest up misses no
/// file, and sees one twice at worst.
fn open_all(path: &Path) -> io::Result<Vec<(File, u64)>> {
    let mut files: Vec<(File, u64)> = vec![];
    let mut missing = 0;
    for number in 0..FILES_MAX {
        match File::open(numbered(path, number)) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                if !files.iter().any(|(_, known)| *known == inode) {
                    files.push((file, inode));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing += 1,
            Err(error) => return Err(error),
        }
        // In the middle of a rotation one name is free.
        if missing > 2 {
            break;
        }
    }
    Ok(files)
}

fn is_rotated(log: &Log, position: &Position) -> bool {
    std::fs::symlink_metadata(&log.path).map_or(true, |meta| meta.ino() != position.inode)
}

fn is_same(file: &File, position: &Position) -> io::Result<bool> {
    if position.offset == 0 {
        return Ok(true);
    }
    let mut start = [0; 256];
    let length = file.read_at(&mut start, 0)?;
    Ok(head_of(&start[..length]) == position.head)
}

fn first_line(file: &File) -> Option<u64> {
    let mut text = [0; 20];
    let length = rustix::fs::fgetxattr(file, container::logline::FIRST_LINE, &mut text).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.parse().ok()
}

fn sidecar(log: &Log) -> Sidecar {
    let read = |path: &Path| -> Option<Sidecar> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    if let Some(sidecar) = read(&log.path.with_extension("json")) {
        return sidecar;
    }
    // The router writes about an app, whose name any of its jobs tells.
    let entries = log
        .path
        .parent()
        .and_then(|directory| std::fs::read_dir(directory).ok());
    let mut paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let of_a_job = paths
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
        .and_then(|path| read(&path))
        .unwrap_or_default();
    let is_of_the_app =
        |key: &String| [api::host::HostJob::APP, api::host::HostJob::APP_NAME].contains(&key.as_str());
    Sidecar {
        metadata: of_a_job
            .metadata
            .into_iter()
            .filter(|(key, _)| is_of_the_app(key))
            .collect(),
        ..Sidecar::default()
    }
}

fn header(log: &Log, sidecar: &Sidecar, host: &str, framer: &Framer) -> Header {
    let is_job = log.name != "router";
    let id = if is_job {
        format!("{host}-{}", log.name)
    } else {
        log.name.clone()
    };
    let process = match sidecar.process_type.as_str() {
        "" => id.clone(),
        kind => format!("{kind}.{id}"),
    };
    let app_name = sidecar.metadata.get(api::host::HostJob::APP_NAME);
    framer.header(&About {
        host,
        app_id: &log.app,
        app_name: app_name.map_or("", String::as_str),
        process: &process,
        job: TemplateJob {
            id: &id,
            partition: &sidecar.partition,
            metadata: &sidecar.metadata,
            env: &sidecar.env,
        },
    })
}
