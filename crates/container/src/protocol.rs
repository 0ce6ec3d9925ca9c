//! What the daemon and a shim say to each other, on the control socket, on the starter's socket
//! and on the socket of an `exec`.
//!
//! A frame is one byte of kind, four bytes of length (big endian), then the body. A [`Request`]
//! is answered by one [`Reply`], in order. After an attach, output frames come in between, and the
//! last frame is always [`Frame::Exit`].

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::record::ExitRecord;
use crate::spec::{ExecSpec, WindowSize};

/// Longer frames are refused: nobody may make the shim hold more than this.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// How much of a stream goes into one frame.
pub const CHUNK_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Request(Request),
    Stdin(Vec<u8>),
    /// No more standard input: closes the pipe, or types ctrl-D on a terminal.
    CloseStdin,
    Resize(WindowSize),
    Reply(Reply),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(ExitRecord),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// On the starter's socket only: the network is there, go.
    Start,
    /// On an exec's socket only, the first frame.
    Exec(Box<ExecSpec>),
    State,
    /// To the main process.
    Signal(i32),
    /// The stop signal, and SIGKILL to everything after the grace.
    Stop {
        grace_ms: u64,
    },
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Answered by [`Frame::Exit`] when it ends.
    Wait,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// On the starter's socket: pid of the container's first process, as the host sees it.
    Created {
        pid: u32,
    },
    /// On the starter's socket and an exec's.
    Started,
    /// On the starter's socket: it starts as soon as somebody attaches.
    WaitingForAttach,
    /// It did not start; the exit record says the same.
    Failed(ExitRecord),
    State(State),
    Done,
    Refused {
        error: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    pub pid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Made, waits for `start`.
    Created,
    WaitingForAttach,
    Running,
    Stopping,
    /// Gone; the last output is being handed over.
    Ended,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    #[error("unknown kind of frame: {0:#x}")]
    UnknownKind(u8),
    #[error("a frame's body is not what its kind says")]
    Body(#[from] serde_json::Error),
    #[error("a window size has four bytes")]
    WindowSize,
}

pub const HEAD_BYTES: usize = 5;

impl Frame {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Request(request) => put_json(0x01, request, out),
            Frame::Stdin(bytes) => put(0x02, bytes, out),
            Frame::CloseStdin => put(0x03, &[], out),
            Frame::Resize(size) => {
                let [c0, c1] = size.columns.to_be_bytes();
                let [r0, r1] = size.rows.to_be_bytes();
                put(0x04, &[c0, c1, r0, r1], out)
            }
            Frame::Reply(reply) => put_json(0x81, reply, out),
            Frame::Stdout(bytes) => put(0x82, bytes, out),
            Frame::Stderr(bytes) => put(0x83, bytes, out),
            Frame::Exit(record) => put_json(0x84, record, out),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Kind and length of the body.
    pub fn decode_head(head: [u8; HEAD_BYTES]) -> Result<(u8, usize), FrameError> {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > BODY_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        Ok((head[0], length))
    }

    pub fn decode_body(kind: u8, body: &[u8]) -> Result<Frame, FrameError> {
        Ok(match kind {
            0x01 => Frame::Request(json(body)?),
            0x02 => Frame::Stdin(body.to_vec()),
            0x03 => Frame::CloseStdin,
            0x04 => {
                let [c0, c1, r0, r1] = *body else {
                    return Err(FrameError::WindowSize);
                };
                let (columns, rows) = (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([r0, r1]));
                Frame::Resize(WindowSize { columns, rows })
            }
            0x81 => Frame::Reply(json(body)?),
            0x82 => Frame::Stdout(body.to_vec()),
            0x83 => Frame::Stderr(body.to_vec()),
            0x84 => Frame::Exit(json(body)?),
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }

    /// Takes the first whole frame off the front of `buffer`, if there is one.
    pub fn take(buffer: &mut Vec<u8>) -> Result<Option<Frame>, FrameError> {
        let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let (kind, length) = Frame::decode_head(*head)?;
        if buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        let frame = Frame::decode_body(kind, &buffer[HEAD_BYTES..HEAD_BYTES + length])?;
        buffer.drain(..HEAD_BYTES + length);
        Ok(Some(frame))
    }
}

fn put(kind: u8, body: &[u8], out: &mut Vec<u8>) {
    assert!(body.len() <= BODY_BYTES_MAX, "callers cut streams into chunks");
    out.push(kind);
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
}

fn put_json(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    let body = serde_json::to_vec(body).expect("plain data has a JSON form");
    put(kind, &body, out);
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_however_they_are_cut() {
        let frames = [
            Frame::Request(Request::Stop { grace_ms: 10_000 }),
            Frame::Stdin(b"hello".to_vec()),
            Frame::CloseStdin,
            Frame::Resize(WindowSize {
                columns: 80,
                rows: 24,
            }),
            Frame::Reply(Reply::Created { pid: 7 }),
            Frame::Stdout(vec![0, 255]),
            Frame::Stderr(Vec::new()),
            Frame::Exit(ExitRecord::not_started("no")),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let (mut buffer, mut read) = (Vec::new(), Vec::new());
        for byte in bytes {
            buffer.push(byte);
            read.extend(Frame::take(&mut buffer).unwrap());
        }
        assert_eq!(read, frames);
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_at_its_head() {
        let mut buffer = vec![0x02, 0xff, 0, 0, 0];
        assert!(matches!(Frame::take(&mut buffer), Err(FrameError::TooLong(_))));
    }
}
