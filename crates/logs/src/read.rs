//! The past: all kept lines of an app in order of time, or the newest of them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use api::logs::Message;

use crate::{
    Filter,
    source::{Assembler, Source, sources},
};

/// Gives messages to `take` until it answers `false`; the newest `lines` only, where given.
pub fn past(
    directory: &Path,
    host: &str,
    filter: &Filter,
    lines: Option<usize>,
    mut take: impl FnMut(Message) -> bool,
) {
    let sources = sources(directory, filter);
    match lines {
        Some(0) => {}
        Some(lines) => {
            for message in newest(&sources, host, filter, lines) {
                if !take(message) {
                    return;
                }
            }
        }
        None => merge(&sources, host, filter, take),
    }
}

/// The newest messages of all sources together, oldest first.
fn newest(sources: &[Source], host: &str, filter: &Filter, lines: usize) -> Vec<Message> {
    let mut all: Vec<_> = sources
        .iter()
        .flat_map(|source| tail(source, host, filter, lines))
        .collect();
    all.sort_by_key(|message| message.timestamp);
    all.split_off(all.len().saturating_sub(lines))
}

/// The last messages of one source.
fn tail(source: &Source, host: &str, filter: &Filter, lines: usize) -> VecDeque<Message> {
    let mut records = VecDeque::new();
    // Streams that are filtered out and pieces make more records than messages; where that leaves too
    // few, look twice as far back.
    let mut wanted = lines.saturating_mul(2).max(64);
    loop {
        let is_all = last_records(source, wanted, &mut records).unwrap_or(true);
        let mut assembler = Assembler::default();
        let mut messages: VecDeque<_> = records
            .iter()
            .filter_map(|line| assembler.push(line, source, host, filter))
            .collect();
        if is_all || messages.len() >= lines {
            messages.drain(..messages.len().saturating_sub(lines));
            return messages;
        }
        wanted *= 2;
    }
}

/// The last `count` lines of the current file and the rotated one; whether these are all there are.
fn last_records(source: &Source, count: usize, records: &mut VecDeque<Vec<u8>>) -> io::Result<bool> {
    records.clear();
    for path in [source.path.clone(), source.rotated()] {
        let Ok(mut file) = File::open(&path) else { continue };
        let mut end = file.seek(SeekFrom::End(0))?;
        let mut unfinished: Vec<u8> = vec![];
        while end > 0 {
            let start = end.saturating_sub(64 << 10);
            let mut block = vec![0; (end - start) as usize];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut block)?;
            block.append(&mut unfinished);
            end = start;
            // What stands before the first newline began in an earlier block.
            let first = if start == 0 {
                0
            } else {
                block
                    .iter()
                    .position(|b| *b == b'\n')
                    .map_or(block.len(), |at| at + 1)
            };
            for line in block[first..]
                .split(|b| *b == b'\n')
                .rev()
                .filter(|line| !line.is_empty())
            {
                records.push_front(line.to_vec());
            }
            unfinished = block[..first].to_vec();
            if records.len() >= count {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// One source's next message, ordered by time for the heap.
struct Next {
    message: Message,
    reader: Reader,
    at: usize,
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Next {}
impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Next {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.message.timestamp, self.at).cmp(&(other.message.timestamp, other.at))
    }
}

/// Everything in order of time, with one line of each source in memory.
fn merge(sources: &[Source], host: &str, filter: &Filter, mut take: impl FnMut(Message) -> bool) {
    let mut heap = BinaryHeap::new();
    for (at, source) in sources.iter().enumerate() {
        let mut reader = Reader::open(source);
        if let Some(message) = reader.next(source, host, filter) {
            heap.push(Reverse(Next { message, reader, at }));
        }
    }
    while let Some(Reverse(Next {
        message,
        mut reader,
        at,
    })) = heap.pop()
    {
        if !take(message) {
            return;
        }
        if let Some(message) = reader.next(&sources[at], host, filter) {
            heap.push(Reverse(Next { message, reader, at }));
        }
    }
}

/// The rotated file of a source and then the current one.
struct Reader {
    files: VecDeque<BufReader<File>>,
    assembler: Assembler,
    line: Vec<u8>,
}

impl Reader {
    fn open(source: &Source) -> Self {
        let files = [source.rotated(), source.path.clone()];
        let files = files
            .iter()
            .filter_map(|path| File::open(path).ok())
            .map(BufReader::new)
            .collect();
        Reader {
            files,
            assembler: Assembler::default(),
            line: vec![],
        }
    }

    fn next(&mut self, source: &Source, host: &str, filter: &Filter) -> Option<Message> {
        loop {
            self.line.clear();
            let file = self.files.front_mut()?;
            match file.read_until(b'\n', &mut self.line) {
                Ok(length) if length > 0 => {
                    let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
                    if let Some(message) = self.assembler.push(line, source, host, filter) {
                        return Some(message);
                    }
                }
                _ => {
                    self.files.pop_front();
                }
            }
        }
    }
}
