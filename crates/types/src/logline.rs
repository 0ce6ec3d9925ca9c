//! The form in which output is kept: `TIME STREAM TAG TEXT\n`, the container runtime interface's.
//!
//! `TIME` is RFC 3339, `STREAM` is `stdout`, `stderr` or `init` (the platform's own words about the
//! job), `TAG` is `F` for a whole line and `P` for a piece that the next record goes on with. Text is
//! bytes: apps print what they like.

use crate::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Stdout,
    Stderr,
    Init,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Init => "init",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: Timestamp,
    pub stream: Stream,
    /// Whether the line goes on in the next record of this stream.
    pub is_partial: bool,
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads one record, without its newline. `None` for what is not one, such as a torn write.
    pub fn parse(line: &'a [u8]) -> Option<Record<'a>> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            b"init" => Stream::Init,
            _ => return None,
        };
        let is_partial = match parts.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Record {
            time,
            stream,
            is_partial,
            text: parts.next().unwrap_or_default(),
        })
    }

    /// Appends the record with its newline.
    pub fn write(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        let tag = if self.is_partial { 'P' } else { 'F' };
        write!(out, "{} {} {tag} ", self.time, self.stream.as_str()).expect("a Vec takes everything");
        out.extend_from_slice(self.text);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record {
            time: Timestamp::from_micros(1_800_000_000_123_456),
            stream: Stream::Stderr,
            is_partial: true,
            text: b"a b  c",
        };
        let mut line = Vec::new();
        record.write(&mut line);
        assert_eq!(Record::parse(line.strip_suffix(b"\n").unwrap()), Some(record));
    }

    #[test]
    fn a_torn_record_is_none() {
        for torn in [
            "",
            "2026",
            "2026-11-23T05:27:59Z",
            "2026-11-23T05:27:59Z stdout",
            "x stdout F y",
        ] {
            assert_eq!(Record::parse(torn.as_bytes()), None, "{torn}");
        }
    }
}
