//! The attach protocol: a job's streams, signals and exit over one upgraded connection.
//!
//! After `101 Switching Protocols` (`Upgrade: flynn-attach/0`) a host first sends one state byte
//! ([`SUCCESS`], [`WAITING`] then `SUCCESS`, or an error frame); a controller leaves the `SUCCESS`
//! byte out. Then both sides send frames: `3` data (stream, u32 length, bytes; length 0 closes the
//! stream), `4` signal (u32), `5` exit (u32), `6` resize (u16 height, u16 width), `2` error (u32
//! length, text). Numbers are big-endian. (Original: `pkg/cluster/attach.go`.)

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub const PROTOCOL: &str = "flynn-attach/0";

pub const SUCCESS: u8 = 0;
pub const WAITING: u8 = 1;
const ERROR: u8 = 2;
const DATA: u8 = 3;
const SIGNAL: u8 = 4;
const EXIT: u8 = 5;
const RESIZE: u8 = 6;

/// Longest data or error text in one frame; a longer one is an attack or a mistake.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Bits of `AttachReq.flags`.
pub mod flag {
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const STDIN: u8 = 4;
    pub const LOGS: u8 = 8;
    pub const STREAM: u8 = 16;
    pub const INITLOG: u8 = 32;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdin,
    Stdout,
    Stderr,
    InitLog,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Empty data closes the stream.
    Data(Stream, Bytes),
    Signal(u32),
    Exit(u32),
    Resize {
        height: u16,
        width: u16,
    },
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame type {0} is unknown")]
    UnknownType(u8),
    #[error("stream {0} is unknown")]
    UnknownStream(u8),
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
}

impl Frame {
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Frame::Data(stream, bytes) => {
                out.put_u8(DATA);
                out.put_u8(*stream as u8);
                out.put_u32(bytes.len() as u32);
                out.put_slice(bytes);
            }
            Frame::Signal(signal) => {
                out.put_u8(SIGNAL);
                out.put_u32(*signal);
            }
            Frame::Exit(status) => {
                out.put_u8(EXIT);
                out.put_u32(*status);
            }
            Frame::Resize { height, width } => {
                out.put_u8(RESIZE);
                out.put_u16(*height);
                out.put_u16(*width);
            }
            Frame::Error(text) => {
                out.put_u8(ERROR);
                out.put_u32(text.len() as u32);
                out.put_slice(text.as_bytes());
            }
        }
    }

    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.write(&mut out);
        out.freeze()
    }

    /// Takes one frame off the front of `input`; `None` until a whole one is there.
    pub fn read(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let head = |at: usize| -> Option<u32> {
            input
                .get(at..at + 4)
                .map(|b| u32::from_be_bytes(b.try_into().expect("four bytes")))
        };
        let Some(kind) = input.first().copied() else {
            return Ok(None);
        };
        let frame = match kind {
            DATA => {
                let Some(length) = head(2).map(|n| n as usize) else {
                    return Ok(None);
                };
                if length > FRAME_BYTES_MAX {
                    return Err(FrameError::TooLong(length));
                }
                if input.len() < 6 + length {
                    return Ok(None);
                }
                let stream = match input[1] {
                    0 => Stream::Stdin,
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    3 => Stream::InitLog,
                    other => return Err(FrameError::UnknownStream(other)),
                };
                input.advance(6);
                return Ok(Some(Frame::Data(stream, input.split_to(length).freeze())));
            }
            ERROR => {
                let Some(length) = head(1).map(|n| n as usize) else {
                    return Ok(None);
                };
                if length > FRAME_BYTES_MAX {
                    return Err(FrameError::TooLong(length));
                }
                if input.len() < 5 + length {
                    return Ok(None);
                }
                input.advance(5);
                return Ok(Some(Frame::Error(
                    String::from_utf8_lossy(&input.split_to(length)).into_owned(),
                )));
            }
            SIGNAL => head(1).map(Frame::Signal),
            EXIT => head(1).map(Frame::Exit),
            RESIZE => head(1).map(|both| Frame::Resize {
                height: (both >> 16) as u16,
                width: both as u16,
            }),
            other => return Err(FrameError::UnknownType(other)),
        };
        if frame.is_some() {
            input.advance(5);
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_however_they_arrive() {
        let frames = [
            Frame::Data(Stream::Stdout, Bytes::from_static(b"hello")),
            Frame::Data(Stream::Stdin, Bytes::new()),
            Frame::Signal(15),
            Frame::Resize {
                height: 24,
                width: 80,
            },
            Frame::Error("no such job".into()),
            Frame::Exit(3),
        ];
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.write(&mut wire));
        let (mut input, mut read) = (BytesMut::new(), Vec::new());
        for byte in wire {
            input.put_u8(byte);
            while let Some(frame) = Frame::read(&mut input).unwrap() {
                read.push(frame);
            }
        }
        assert_eq!(read, frames);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &[9u8][..],
            &[3, 7, 0, 0, 0, 0],
            &[3, 1, 255, 255, 255, 255],
            &[2, 255, 255, 255, 255],
        ] {
            assert!(Frame::read(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
