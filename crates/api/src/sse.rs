//! Server-sent events as the original wrote them: `data: JSON\n\n`, keep-alives `:\n` (one newline),
//! errors `event: error\ndata: MESSAGE\n\n`.
//!
//! The original's reader knows only the prefix `data: ` with its space, and takes a comment that is
//! followed by an empty line for an event; this module writes what it can read.

use bytes::{Buf, Bytes, BytesMut};

/// Longest event that a reader keeps in memory.
const EVENT_BYTES_MAX: usize = 16 << 20;

pub const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

pub const KEEP_ALIVE: &[u8] = b":\n";

/// One message as bytes.
pub fn message(value: &impl serde::Serialize) -> Bytes {
    let mut out = b"data: ".to_vec();
    serde_json::to_writer(&mut out, value).expect("API values always serialise");
    out.extend_from_slice(b"\n\n");
    out.into()
}

/// One error, after which the stream ends.
pub fn error(text: &str) -> Bytes {
    format!("event: error\ndata: {}\n\n", text.replace('\n', " ")).into()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Data(Bytes),
    Error(String),
}

/// Splits a byte stream into messages.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: BytesMut,
    /// How much of `buffer` is known to have no end of a line: a long event is looked at once, in
    /// however many pieces it comes.
    scanned: usize,
    data: Vec<u8>,
    has_data: bool,
    is_error: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next_message(&mut self) -> Result<Option<Message>, TooLong> {
        while let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.scanned + at);
            self.buffer.advance(1);
            self.scanned = 0;
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                // What an event without data was about must not colour the next one.
                let is_error = std::mem::take(&mut self.is_error);
                if !std::mem::take(&mut self.has_data) {
                    continue;
                }
                let data = std::mem::take(&mut self.data);
                return Ok(Some(if is_error {
                    Message::Error(String::from_utf8_lossy(&data).into_owned())
                } else {
                    Message::Data(data.into())
                }));
            }
            if let Some(data) = line.strip_prefix(b"data:") {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data
                    .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            } else if let Some(event) = line.strip_prefix(b"event:") {
                self.is_error = event.trim_ascii() == b"error";
            }
            if self.data.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
        }
        self.scanned = self.buffer.len();
        if self.buffer.len() > EVENT_BYTES_MAX {
            Err(TooLong)
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_errors_and_keep_alives_are_told_apart() {
        let mut parser = Parser::default();
        for byte in b":\ndata: {\"a\":1}\n\n:\n:\nevent: error\ndata: gone\n\ndata: x" {
            parser.push(&[*byte]);
        }
        assert_eq!(
            parser.next_message().unwrap(),
            Some(Message::Data(Bytes::from_static(b"{\"a\":1}")))
        );
        assert_eq!(
            parser.next_message().unwrap(),
            Some(Message::Error("gone".into()))
        );
        assert_eq!(parser.next_message().unwrap(), None);
    }

    #[test]
    fn an_error_without_words_leaves_the_next_event_alone() {
        let mut parser = Parser::default();
        parser.push(b"event: error\n\ndata: 1\n\n");
        assert_eq!(
            parser.next_message().unwrap(),
            Some(Message::Data(Bytes::from_static(b"1")))
        );
    }
}
