//! Where a body ends. Pure: tells how many of the given bytes belong to it.

/// Sizes beyond this are nobody's honest chunk; far from overflowing.
const CHUNK_DIGITS_MAX: u8 = 15;
/// Extensions and trailers of one body. Nobody uses them to carry much.
const EXTRA_BYTES_MAX: u32 = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFraming;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Done,
    Length(u64),
    Chunked(Chunks),
    /// A response that ends when the connection does; also a tunnel.
    UntilClose,
}

impl Framing {
    pub fn length(length: u64) -> Framing {
        if length == 0 {
            Framing::Done
        } else {
            Framing::Length(length)
        }
    }

    pub fn chunked() -> Framing {
        Framing::Chunked(Chunks {
            state: State::Size,
            size: 0,
            digits: 0,
            extra: 0,
        })
    }

    pub fn is_done(&self) -> bool {
        *self == Framing::Done
    }

    /// How many of these bytes are part of the message, framing included.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, BadFraming> {
        self.advance_with(bytes, |_| {})
    }

    /// As [`Framing::advance`], and shows the content without its framing.
    pub fn advance_with(
        &mut self,
        bytes: &[u8],
        mut content: impl FnMut(&[u8]),
    ) -> Result<usize, BadFraming> {
        match self {
            Framing::Done => Ok(0),
            Framing::UntilClose => {
                content(bytes);
                Ok(bytes.len())
            }
            Framing::Length(left) => {
                let count = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                content(&bytes[..count]);
                *left -= count as u64;
                if *left == 0 {
                    *self = Framing::Done;
                }
                Ok(count)
            }
            Framing::Chunked(chunks) => {
                let count = chunks.advance(bytes, content)?;
                if chunks.state == State::End {
                    *self = Framing::Done;
                }
                Ok(count)
            }
        }
    }

    /// The stream has ended. Whether the body is whole.
    pub fn ends_well(&self) -> bool {
        matches!(self, Framing::Done | Framing::UntilClose)
    }
}

/// The state of a chunked body, RFC 9112 section 7.1, with CR LF and nothing else at line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    size: u64,
    digits: u8,
    extra: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> Result<usize, BadFraming> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::End {
            if self.state == State::Data {
                let left = bytes.len() - at;
                let count = usize::try_from(self.size).map_or(left, |size| size.min(left));
                content(&bytes[at..at + count]);
                at += count;
                self.size -= count as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), BadFraming> {
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > CHUNK_DIGITS_MAX {
                    return Err(BadFraming);
                }
                let digit = (byte as char).to_digit(16).expect("it is a hex digit");
                self.size = self.size << 4 | u64::from(digit);
                State::Size
            }
            (State::Size, b'\r') if self.digits > 0 => State::SizeLf,
            // Nothing but an extension may follow: "5 " and "5\t" are sizes to some and not to others.
            (State::Size, b';') if self.digits > 0 => State::Extension,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) if is_text(byte) => self.extra(State::Extension)?,
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 {
                    State::TrailerStart
                } else {
                    State::Data
                }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, byte) if is_token(byte) => self.extra(State::TrailerName)?,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerName, byte) if is_token(byte) => self.extra(State::TrailerName)?,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_text(byte) => self.extra(State::TrailerValue)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(BadFraming),
        };
        Ok(())
    }

    fn extra(&mut self, state: State) -> Result<State, BadFraming> {
        self.extra += 1;
        if self.extra > EXTRA_BYTES_MAX {
            Err(BadFraming)
        } else {
            Ok(state)
        }
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content, whether it ended, and what is left over, the same however it is cut.
    fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, bool, usize), BadFraming> {
        let mut framing = Framing::chunked();
        let mut content = Vec::new();
        let mut used = 0;
        for part in bytes.chunks(piece) {
            used += framing.advance_with(part, |data| content.extend_from_slice(data))?;
        }
        Ok((content, framing.is_done(), bytes.len() - used))
    }

    #[test]
    fn chunks_are_read_however_they_are_cut() {
        let whole = b"5\r\nhello\r\n6;a=\"b\"\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nGET /";
        for piece in 1..whole.len() {
            assert_eq!(
                decode(whole, piece),
                Ok((b"hello world".to_vec(), true, 5)),
                "{piece}"
            );
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for bad in [
            "\r\n",
            "g\r\n",
            "5 \r\nhello\r\n",
            " 5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\nhelloo\r\n",
            "5\r\nhello\n",
            "5;a\nb\r\nhello\r\n",
            "5;\u{1}\r\nhello\r\n",
            "ffffffffffffffff\r\n",
            "-1\r\n",
            "0\r\n X: folded\r\n\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\nX: 1\n\r\n",
            "5\rhello\r\n",
            "0\r\n\n",
            "0\r\nnocolon\r\n\r\n",
            "5;\r\r\nhello\r\n",
        ] {
            assert_eq!(decode(bad.as_bytes(), bad.len()), Err(BadFraming), "{bad:?}");
        }
    }

    #[test]
    fn endless_extensions_are_refused() {
        let mut long = b"5;".to_vec();
        long.extend(std::iter::repeat_n(b'a', 20_000));
        assert_eq!(decode(&long, 1000), Err(BadFraming));
    }

    #[test]
    fn a_length_takes_what_it_says_and_no_more() {
        let mut framing = Framing::length(5);
        assert_eq!(framing.advance(b"hel"), Ok(3));
        assert!(!framing.ends_well());
        assert_eq!(framing.advance(b"loGET"), Ok(2));
        assert!(framing.is_done());
    }
}
