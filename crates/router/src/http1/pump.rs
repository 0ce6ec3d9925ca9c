//! Moves a body from one connection to another.

use super::Framing;
use crate::buffer::Buffer;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Debug)]
pub enum PumpError {
    /// The source broke, ended too early, or sent nonsense.
    Source,
    Sink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Framing and all, as it came.
    AsIs,
    /// A body that ends with its connection, for a client that keeps its own.
    IntoChunks,
    /// Chunks, for a client that does not know them.
    OutOfChunks,
}

/// The state of one body on its way. Neither end belongs to it, so that one task can drive the two
/// directions of a connection in turn.
#[derive(Debug)]
pub struct Pump {
    pub framing: Framing,
    mode: Mode,
    /// Bytes at the front of the source's buffer that may be written.
    ready: usize,
    encoded: Option<Buffer>,
    has_written_end: bool,
    /// Bytes handed on so far.
    pub moved: u64,
    /// Set when there is no point in going on; the pump then counts as over.
    pub is_given_up: bool,
    /// What it waited for last.
    pub waits_for_source: bool,
}

impl Pump {
    pub fn new(framing: Framing, mode: Mode) -> Pump {
        let encoded = (mode != Mode::AsIs).then(Buffer::take);
        Pump {
            framing,
            mode,
            ready: 0,
            encoded,
            has_written_end: mode != Mode::IntoChunks,
            moved: 0,
            is_given_up: false,
            waits_for_source: false,
        }
    }

    /// All of the body has arrived and been handed on.
    pub fn is_complete(&self) -> bool {
        self.framing.is_done()
            && self.ready == 0
            && self.has_written_end
            && self.encoded.as_ref().is_none_or(Buffer::is_empty)
    }

    pub fn is_over(&self) -> bool {
        self.is_given_up || self.is_complete()
    }

    /// Appends what `from` holds of the body to `out`, which is written before anything else.
    pub fn prefetch(&mut self, from: &mut Buffer, out: &mut Buffer) -> Result<(), PumpError> {
        if !self.framing.is_done() && !from.is_empty() {
            self.decode(from)?;
        }
        if let Some(encoded) = &mut self.encoded {
            out.put(encoded.filled());
            self.moved += encoded.len() as u64;
            encoded.clear();
        }
        out.put(&from.filled()[..self.ready]);
        self.moved += self.ready as u64;
        from.consume(self.ready);
        self.ready = 0;
        Ok(())
    }

    fn decode(&mut self, from: &mut Buffer) -> Result<(), PumpError> {
        match (&mut self.encoded, self.mode) {
            (Some(encoded), Mode::IntoChunks) => {
                encoded.put_hex(from.len() as u64);
                encoded.put_str("\r\n");
                encoded.put(from.filled());
                encoded.put_str("\r\n");
                from.clear();
            }
            (Some(encoded), _) => {
                let used = self
                    .framing
                    .advance_with(from.filled(), |content| encoded.put(content))
                    .map_err(|_| PumpError::Source)?;
                from.consume(used);
            }
            (None, _) => {
                self.ready = self
                    .framing
                    .advance(from.filled())
                    .map_err(|_| PumpError::Source)?
            }
        }
        Ok(())
    }

    /// Goes on until the body is complete or one side has to be waited for.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        from: &mut Buffer,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), PumpError>> {
        loop {
            self.waits_for_source = false;
            let pending = match &mut self.encoded {
                Some(encoded) => encoded.filled(),
                None => &from.filled()[..self.ready],
            };
            if !pending.is_empty() {
                let count = match ready!(Pin::new(&mut *sink).poll_write(cx, pending)) {
                    Ok(count) if count > 0 => count,
                    _ => return Poll::Ready(Err(PumpError::Sink)),
                };
                self.moved += count as u64;
                match &mut self.encoded {
                    Some(encoded) => encoded.consume(count),
                    None => {
                        from.consume(count);
                        self.ready -= count;
                    }
                }
                continue;
            }
            if self.framing.is_done() {
                if !self.has_written_end {
                    self.has_written_end = true;
                    self.encoded
                        .as_mut()
                        .expect("this mode has it")
                        .put_str("0\r\n\r\n");
                    continue;
                }
                ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(|_| PumpError::Sink)?;
                return Poll::Ready(Ok(()));
            }
            if from.is_empty() {
                self.waits_for_source = true;
                match from.poll_fill_body(cx, source) {
                    Poll::Ready(Ok(0)) if self.framing.ends_well() => {
                        self.framing = Framing::Done;
                        continue;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(PumpError::Source)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        // Nobody else sees to it that what TLS holds back goes out.
                        if let Poll::Ready(result) = Pin::new(&mut *sink).poll_flush(cx) {
                            result.map_err(|_: io::Error| PumpError::Sink)?;
                        }
                        return Poll::Pending;
                    }
                }
            }
            self.decode(from)?;
        }
    }
}
