//! Byte buffers that are used again.
//!
//! Each thread keeps some empty ones, so that taking a buffer costs no allocation and an idle
//! connection needs none: it gives its buffer back before it waits.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Holds a usual head with a usual first piece of body.
pub const SMALL_BYTES: usize = 16 * 1024;
/// For bodies that keep coming: fewer system calls.
const LARGE_BYTES: usize = 64 * 1024;
/// Spare buffers per thread: about what as many busy connections need. Allocating this size over and
/// over makes the allocator return memory to the kernel and take it back.
const SPARE_MAX: usize = 512;
/// What stays of them in quiet times.
const SPARE_QUIET: usize = 16;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { buffers: Vec::new(), fewest: 0 }) };
}

struct Spare {
    buffers: Vec<Vec<u8>>,
    /// Since the last [`trim`]: so many were not needed.
    fewest: usize,
}

/// Frees what was not needed since the last call; whether it is down to what stays in quiet times. For the
/// thread's tick.
pub fn trim() -> bool {
    SPARE.with_borrow_mut(|spare| {
        let unused = spare.fewest.saturating_sub(SPARE_QUIET);
        let keep = spare.buffers.len().saturating_sub(unused);
        spare.buffers.truncate(keep);
        spare.fewest = keep;
        keep <= SPARE_QUIET
    })
}

/// Bytes that were read and not yet consumed.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub fn take() -> Buffer {
        let spare = SPARE.with_borrow_mut(|spare| {
            let bytes = spare.buffers.pop();
            spare.fewest = spare.fewest.min(spare.buffers.len());
            bytes
        });
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(SMALL_BYTES));
        Buffer { bytes, start: 0 }
    }

    /// Takes up no memory until something is read into it, or written.
    pub const fn empty() -> Buffer {
        Buffer {
            bytes: Vec::new(),
            start: 0,
        }
    }

    fn give_back(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        self.start = 0;
        if bytes.capacity() != SMALL_BYTES {
            return;
        }
        bytes.clear();
        // At the end of a thread its store may be gone already; then the buffer just goes too.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.buffers.len() < SPARE_MAX {
                spare.buffers.push(bytes);
            }
        });
    }

    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.bytes.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Appends. Grows if it has to.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn put_str(&mut self, text: &str) {
        self.put(text.as_bytes());
    }

    pub fn put_number(&mut self, number: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }

    pub fn put_hex(&mut self, number: u64) {
        use std::io::Write;
        write!(self.bytes, "{number:x}").expect("a vector takes everything");
    }

    /// Space left without growing.
    pub fn room(&self) -> usize {
        if self.bytes.capacity() == 0 {
            SMALL_BYTES
        } else {
            self.bytes.capacity() - self.len()
        }
    }

    pub fn grow_to(&mut self, capacity: usize) {
        self.compact();
        self.bytes.reserve(capacity.saturating_sub(self.bytes.len()));
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Reads what there is into the free space; 0 is the end of the stream.
    ///
    /// There must be free space ([`Buffer::room`]), or no memory yet. While there is nothing to read
    /// an empty buffer has no memory.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() == 0 {
            *self = Buffer::take();
        } else if self.bytes.capacity() == self.bytes.len() {
            self.compact();
        }
        debug_assert!(self.bytes.capacity() > self.bytes.len());
        let result = poll_read_buf(Pin::new(source), cx, &mut self.bytes);
        if result.is_pending() && self.is_empty() {
            self.give_back();
        }
        result
    }

    /// As [`Buffer::poll_fill`], and takes a larger buffer when the source fills this one.
    pub fn poll_fill_body(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.poll_fill(cx, source))?;
        if self.bytes.len() == self.bytes.capacity() && self.bytes.capacity() < LARGE_BYTES {
            self.grow_to(LARGE_BYTES);
        }
        Poll::Ready(Ok(count))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            self.give_back();
        }
    }
}
