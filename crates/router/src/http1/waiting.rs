//! Sends a request and waits for the head of its response.

use super::head::HeadScan;
use super::pump::{Pump, PumpError};
use crate::buffer::{Buffer, SMALL_BYTES};
use crate::client::Client;
use crate::upstream::Upstream;
use crate::watch::{TimeIsUp, Watch};
use crate::worker::Worker;
use routing::Failure;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Why there is no head of a response.
pub enum NoHead {
    ClientLeft,
    Failed(Failure),
    TimedOut,
    /// The client stopped sending its body, or sent nonsense.
    ClientSlow,
    ClientBroken,
    /// What came is no response.
    Nonsense,
}

pub struct Waiting<'w> {
    pub worker: &'w Worker,
    pub watch: &'w Watch,
    /// How long the response may take once the request is sent.
    pub limit: Option<std::time::Duration>,
}

impl Waiting<'_> {
    /// Sends `out`, then what there is of the body, until a head has arrived; its length in `source`.
    #[allow(clippy::too_many_arguments)]
    pub async fn head(
        &self,
        client: &mut Client,
        read: &mut Buffer,
        upstream: &mut Upstream,
        source: &mut Buffer,
        out: &Buffer,
        sent: &mut usize,
        upload: &mut Pump,
    ) -> Result<usize, NoHead> {
        let limits = &self.worker.config.limits;
        let stall = self.worker.config.timeouts.stall;
        let mut scan = HeadScan::default();
        let mut is_answer_due = false;
        let mut moved = upload.moved;
        let mut write_failed = false;
        self.watch.set(stall);
        let polled = poll_fn(|cx| {
            while *sent < out.len() && !write_failed {
                match Pin::new(&mut upstream.stream).poll_write(cx, &out.filled()[*sent..]) {
                    Poll::Ready(Ok(count)) if count > 0 => *sent += count,
                    Poll::Ready(_) => {
                        // It may have answered before it hung up.
                        write_failed = true;
                        upload.is_given_up = true;
                    }
                    Poll::Pending => break,
                }
            }
            if *sent == out.len() && !upload.is_over() {
                match upload.poll(cx, client, read, &mut upstream.stream) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(PumpError::Sink)) => upload.is_given_up = true,
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(NoHead::ClientBroken)),
                    Poll::Pending => {}
                }
                if upload.moved != moved {
                    moved = upload.moved;
                    self.watch.set(stall);
                }
            }
            if !is_answer_due && upload.is_over() && (*sent == out.len() || write_failed) {
                is_answer_due = true;
                match self.limit {
                    Some(limit) => self.watch.set(limit),
                    None => self.watch.clear(),
                }
            }
            if let Poll::Ready(result) = poll_head(
                cx,
                upstream,
                source,
                &mut scan,
                limits,
                *sent > 0 || write_failed || out.is_empty(),
            ) {
                return Poll::Ready(result);
            }
            if upload.is_over() && has_left(cx, client, read) {
                return Poll::Ready(Err(NoHead::ClientLeft));
            }
            Poll::Pending
        });
        let result = self.watch.until_up(polled).await;
        self.watch.clear();
        match result {
            Ok(result) => result,
            Err(TimeIsUp) if !is_answer_due && upload.waits_for_source => Err(NoHead::ClientSlow),
            Err(TimeIsUp) => Err(NoHead::TimedOut),
        }
    }
}

fn poll_head(
    cx: &mut Context<'_>,
    upstream: &mut Upstream,
    source: &mut Buffer,
    scan: &mut HeadScan,
    limits: &crate::config::Limits,
    was_sent: bool,
) -> Poll<Result<usize, NoHead>> {
    loop {
        if !source.is_empty() {
            match scan.find(source.filled(), limits) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(NoHead::Nonsense)),
            }
            if source.room() == 0 {
                source.grow_to((limits.head_bytes + 1).max(SMALL_BYTES));
            }
        }
        // Before anything is sent a readable connection can only be one that was closed; reading it
        // would find that out, and so will writing.
        if !was_sent {
            return Poll::Pending;
        }
        match source.poll_fill(cx, &mut upstream.stream) {
            Poll::Ready(Ok(count)) if count > 0 => {}
            Poll::Ready(ended) => {
                let is_unheard = ended.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
                let failure = match (source.is_empty(), upstream.is_reused) {
                    (false, _) => Failure::ResponseBroken,
                    _ if is_unheard => Failure::Unheard,
                    (true, true) => Failure::ReusedConnectionClosed,
                    (true, false) => Failure::ConnectionClosed,
                };
                return Poll::Ready(Err(NoHead::Failed(failure)));
            }
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Whether the client has gone away. What it sends meanwhile is kept for the next request.
pub fn has_left(cx: &mut Context<'_>, client: &mut Client, read: &mut Buffer) -> bool {
    while read.room() > 0 {
        match read.poll_fill(cx, client) {
            Poll::Ready(Ok(count)) if count > 0 => {}
            Poll::Ready(_) => return true,
            Poll::Pending => return false,
        }
    }
    false
}
