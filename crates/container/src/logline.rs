//! One line of a job's log, in the CRI's format.
//!
//! ```text
//! 2026-11-23T08:19:38.123456789Z stdout F a whole line
//! 2026-11-23T08:19:38.123456790Z stdout P the first part of a very long line, without its end
//! ```
//!
//! The fraction always has nine digits, so that lines of one second sort as text. The text is
//! bytes, not UTF-8: an app may write what it likes, except that a line cannot hold a `\n`.

use jiff::Timestamp;

/// A longer line is cut into parts of this size.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The extended attribute in which a log file has the number of its first line, in decimal. Lines are
/// counted from 1 over all files of a job, those that were removed included.
pub const FIRST_LINE: &str = "user.flynn.first_line";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    pub time: Timestamp,
    pub stream: Stream,
    /// The line goes on in the next one of the same stream.
    pub is_partial: bool,
    pub text: &'a [u8],
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Formats times; the text of a second is made once.
#[derive(Default)]
pub struct Formatter {
    second: i64,
    prefix: String,
}

impl Formatter {
    /// Appends the line with its end to `out`.
    pub fn append(&mut self, line: &LogLine<'_>, out: &mut Vec<u8>) {
        let (second, nanosecond) = (line.time.as_second(), line.time.subsec_nanosecond());
        if self.prefix.is_empty() || second != self.second {
            let whole = Timestamp::from_second(second)
                .unwrap_or(Timestamp::UNIX_EPOCH)
                .to_string();
            self.prefix = whole.trim_end_matches('Z').to_owned();
            self.second = second;
        }
        out.extend_from_slice(self.prefix.as_bytes());
        out.push(b'.');
        let mut digits = [b'0'; 9];
        let mut rest = nanosecond.unsigned_abs();
        for digit in digits.iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
        out.extend_from_slice(b"Z ");
        out.extend_from_slice(line.stream.name().as_bytes());
        out.extend_from_slice(if line.is_partial { b" P " } else { b" F " });
        out.extend_from_slice(line.text);
        out.push(b'\n');
    }
}

/// Reads one line, with or without its end. None: it is not one.
pub fn parse(line: &[u8]) -> Option<LogLine<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let is_partial = match fields.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(LogLine {
        time,
        stream,
        is_partial,
        text: fields.next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let time = Timestamp::new(1_795_421_978, 1_200).unwrap();
        let line = LogLine {
            time,
            stream: Stream::Stderr,
            is_partial: true,
            text: b"two  spaces \xff",
        };
        let mut out = Vec::new();
        let mut formatter = Formatter::default();
        formatter.append(&line, &mut out);
        assert_eq!(out, b"2026-11-23T08:19:38.000001200Z stderr P two  spaces \xff\n");
        assert_eq!(parse(&out), Some(line));
    }

    #[test]
    fn an_empty_line_is_a_line() {
        let parsed = parse(b"2026-11-23T08:19:38.000000000Z stdout F \n").unwrap();
        assert_eq!((parsed.text, parsed.is_partial), (&b""[..], false));
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for bad in [
            &b""[..],
            b"hello",
            b"2026-11-23T08:19:38Z stdin F x",
            b"2026-11-23T08:19:38Z stdout X x",
            b"now stdout F x",
        ] {
            assert_eq!(parse(bad), None);
        }
    }
}
