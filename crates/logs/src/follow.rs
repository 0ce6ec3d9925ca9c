//! The present: new lines as they are written.
//!
//! Files are looked at every [`INTERVAL`]. Each is read from where it was left, through rotations; a
//! writer that appears later is read from its beginning. Lines that one look finds are put in order
//! of time; a line that was written while the look went on comes with the next.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use api::logs::{MARK, Message};

use crate::{
    Filter, read,
    source::{Assembler, Source, sources},
};

const INTERVAL: Duration = Duration::from_millis(100);
/// Read from one file in one look; the rest comes with the next.
const LOOK_BYTES_MAX: u64 = 1 << 20;

/// The newest `lines` (all kept ones where not given), then what comes.
pub fn follow(
    directory: PathBuf,
    host: String,
    filter: Filter,
    lines: Option<usize>,
    mark: bool,
) -> impl futures::Stream<Item = Message> + Send {
    let (sender, receiver) = tokio::sync::mpsc::channel(256);
    tokio::spawn(async move {
        let mut tails = Tails {
            directory,
            host,
            filter,
            open: BTreeMap::new(),
        };
        let mut is_first = true;
        while !sender.is_closed() {
            let looked = tokio::task::spawn_blocking(move || {
                let messages = if is_first {
                    tails.begin(lines)
                } else {
                    tails.look()
                };
                (tails, messages)
            });
            let Ok((back, messages)) = looked.await else {
                return;
            };
            let marks = std::mem::take(&mut is_first) && mark;
            tails = back;
            for message in messages {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
            if marks && sender.send(end_of_the_past()).await.is_err() {
                return;
            }
            tokio::select! {
                _ = sender.closed() => return,
                _ = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    })
}

fn end_of_the_past() -> Message {
    Message {
        host_id: String::new(),
        job_id: String::new(),
        msg: String::new(),
        process_type: String::new(),
        source: MARK.into(),
        stream: String::new(),
        timestamp: types::Timestamp::EPOCH,
    }
}

struct Tails {
    directory: PathBuf,
    host: String,
    filter: Filter,
    open: BTreeMap<Source, Tail>,
}

struct Tail {
    file: File,
    inode: u64,
    assembler: Assembler,
    unfinished: Vec<u8>,
}

impl Tails {
    /// Notes where each file ends, then reads what is before: a line written in between is read by
    /// the next look and not twice.
    fn begin(&mut self, lines: Option<usize>) -> Vec<Message> {
        for source in sources(&self.directory, &self.filter) {
            if let Some(mut tail) = Tail::open(&source)
                && tail.file.seek(SeekFrom::End(0)).is_ok()
            {
                self.open.insert(source, tail);
            }
        }
        let began_at = daemon::now();
        let mut past = vec![];
        read::past(&self.directory, &self.host, &self.filter, lines, |message| {
            past.push(message);
            true
        });
        past.retain(|message| message.timestamp <= began_at);
        past
    }

    fn look(&mut self) -> Vec<Message> {
        let mut messages = vec![];
        for source in sources(&self.directory, &self.filter) {
            if !self.open.contains_key(&source)
                && let Some(tail) = Tail::open(&source)
            {
                self.open.insert(source.clone(), tail);
            }
            let Some(tail) = self.open.get_mut(&source) else {
                continue;
            };
            tail.read(&source, &self.host, &self.filter, &mut messages);
            let is_rotated = fs::metadata(&source.path).is_ok_and(|meta| meta.ino() != tail.inode);
            if is_rotated {
                // The old file gets no more lines once the new one is there.
                while tail.read(&source, &self.host, &self.filter, &mut messages) {}
                if let Some(fresh) = Tail::open(&source) {
                    let former = std::mem::replace(tail, fresh);
                    tail.assembler = former.assembler;
                    tail.read(&source, &self.host, &self.filter, &mut messages);
                }
            }
        }
        self.open.retain(|source, _| source.path.exists());
        messages.sort_by_key(|message| message.timestamp);
        messages
    }
}

impl Tail {
    fn open(source: &Source) -> Option<Tail> {
        let file = File::open(&source.path).ok()?;
        let inode = file.metadata().ok()?.ino();
        Some(Tail {
            file,
            inode,
            assembler: Assembler::default(),
            unfinished: vec![],
        })
    }

    /// Whether there was anything to read.
    fn read(&mut self, source: &Source, host: &str, filter: &Filter, messages: &mut Vec<Message>) -> bool {
        let Ok(length) = (&mut self.file)
            .take(LOOK_BYTES_MAX)
            .read_to_end(&mut self.unfinished)
        else {
            return false;
        };
        let end = self
            .unfinished
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let rest = self.unfinished.split_off(end);
        let lines = std::mem::replace(&mut self.unfinished, rest);
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        messages.extend(lines.filter_map(|line| self.assembler.push(line, source, host, filter)));
        length > 0
    }
}
