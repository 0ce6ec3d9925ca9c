//! Sparse files as GNU tar packs them into archives of the POSIX kind: what a file has, and where, is said by extensions
//! (versions 0.0 and 0.1), or at the beginning of its content (1.0). The older kind has a type of its own, which the
//! library of archives understands.
//!
//! The forms are those of the manual of GNU tar, "Storing Sparse Files".

use std::io::{self, Read};

use super::archive::{Refusal, refuse};

/// Pieces of one file; a file of 4 GiB that has every other block has half a million.
const PIECES_MAX: usize = 1 << 20;
/// Archives are made of blocks, and so is the map at the beginning of a content.
const BLOCK_BYTES: usize = 512;

/// What extensions say about a file.
#[derive(Debug, Default)]
pub struct Sparse {
    pub name: Option<Vec<u8>>,
    bytes: Option<u64>,
    has_map_in_content: bool,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl Sparse {
    /// Takes note of an extension `GNU.sparse.KEY`.
    pub fn note(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.bytes = Some(number(value)?),
            b"major" => self.has_map_in_content = number(value)? >= 1,
            b"offset" | b"numbytes" => self.push(number(value)?)?,
            b"map" => {
                for text in value.split(|byte| *byte == b',') {
                    self.push(number(text)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), Refusal> {
        if self.numbers.len() >= 2 * PIECES_MAX {
            return refuse(format!("it has a sparse file of more than {PIECES_MAX} pieces"));
        }
        self.numbers.push(number);
        Ok(())
    }

    /// The length of the file, if it is a sparse one.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// The file with its holes, from a content of so many bytes.
    pub fn filled<R: Read>(mut self, mut content: R, content_bytes: u64) -> Result<Filled<R>, Refusal> {
        let bytes = self.bytes.unwrap_or(0);
        let map_bytes = match self.has_map_in_content {
            true => self.read_map(&mut content)?,
            false => 0,
        };
        let (mut end, mut packed_bytes) = (0, map_bytes);
        let mut pieces = Vec::with_capacity(self.numbers.len() / 2);
        for piece in self.numbers.chunks(2) {
            let [offset, length] = *piece else {
                return damaged();
            };
            if offset < end || offset.checked_add(length).is_none_or(|end| end > bytes) {
                return damaged();
            }
            end = offset + length;
            packed_bytes += length;
            pieces.push((offset, end));
        }
        if packed_bytes != content_bytes {
            return damaged();
        }
        Ok(Filled {
            content,
            pieces: pieces.into_iter().peekable(),
            at: 0,
            bytes,
        })
    }

    /// How many pieces there are and then these, each number in a line; how many bytes that took.
    fn read_map(&mut self, content: &mut impl Read) -> Result<u64, Refusal> {
        let (mut count, mut line, mut read) = (None, Vec::new(), 0);
        self.numbers.clear();
        loop {
            let mut block = [0; BLOCK_BYTES];
            content.read_exact(&mut block)?;
            read += BLOCK_BYTES as u64;
            for byte in block {
                if byte != b'\n' {
                    if line.len() > 20 {
                        return damaged();
                    }
                    line.push(byte);
                    continue;
                }
                let found = number(&line)?;
                line.clear();
                match count {
                    None => count = Some(found),
                    Some(_) => self.push(found)?,
                }
                if count.is_some_and(|count| self.numbers.len() as u64 / 2 >= count) {
                    return Ok(read);
                }
            }
        }
    }
}

fn number(text: &[u8]) -> Result<u64, Refusal> {
    let text = std::str::from_utf8(text).ok();
    match text.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(number),
        None => damaged(),
    }
}

fn damaged<T>() -> Result<T, Refusal> {
    refuse("it has a sparse file whose map does not fit what it holds")
}

/// Reads a file with its holes.
pub struct Filled<R> {
    content: R,
    /// Beginnings and ends.
    pieces: std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    at: u64,
    bytes: u64,
}

impl<R: Read> Read for Filled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.next_if(|(_, end)| *end <= self.at).is_some() {}
        let (is_hole, until) = match self.pieces.peek() {
            Some((begin, end)) if *begin <= self.at => (false, *end),
            Some((begin, _)) => (true, *begin),
            None => (true, self.bytes),
        };
        let most = buffer
            .len()
            .min(usize::try_from(until - self.at).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        let count = match is_hole {
            true => {
                buffer.fill(0);
                most
            }
            false => self.content.read(buffer)?,
        };
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}
