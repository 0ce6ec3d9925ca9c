//! Bytes in both directions until both are through: WebSockets, attached terminals, TCP routes.

use super::Framing;
use super::pump::{Mode, Pump};
use crate::buffer::Buffer;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// Returns the bytes that went to the client. An end in one direction is passed on and leaves the
/// other one open; an error ends both.
pub async fn tunnel<C, B>(
    client: &mut C,
    from_client: &mut Buffer,
    backend: &mut B,
    from_backend: &mut Buffer,
) -> u64
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Direction::new();
    let mut down = Direction::new();
    poll_fn(|cx| {
        let is_broken =
            up.poll(cx, client, from_client, backend) || down.poll(cx, backend, from_backend, client);
        if is_broken || (up.is_closed && down.is_closed) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    down.pump.moved
}

struct Direction {
    pump: Pump,
    has_ended: bool,
    is_closed: bool,
}

impl Direction {
    fn new() -> Direction {
        Direction {
            pump: Pump::new(Framing::UntilClose, Mode::AsIs),
            has_ended: false,
            is_closed: false,
        }
    }

    /// Whether it broke.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        from: &mut Buffer,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> bool {
        if !self.has_ended {
            match self.pump.poll(cx, source, from, sink) {
                Poll::Ready(Ok(())) => self.has_ended = true,
                Poll::Ready(Err(_)) => return true,
                Poll::Pending => return false,
            }
        }
        if !self.is_closed
            && let Poll::Ready(result) = Pin::new(sink).poll_shutdown(cx)
        {
            self.is_closed = true;
            return result.is_err();
        }
        false
    }
}
