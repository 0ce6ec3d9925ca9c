//! Sends the response and the rest of both bodies.

use super::pump::{Pump, PumpError};
use super::waiting::has_left;
use crate::buffer::Buffer;
use crate::client::Client;
use crate::upstream::Upstream;
use crate::watch::Watch;
use crate::worker::Worker;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use tokio::io::AsyncWrite;

pub enum BodyError {
    Client,
    Backend,
}

pub struct Bodies<'w> {
    pub worker: &'w Worker,
    pub watch: &'w Watch,
}

impl Bodies<'_> {
    /// Sends `down`, the beginning of the response, and the rest of both bodies. Ends with the
    /// response.
    #[allow(clippy::too_many_arguments)]
    pub async fn run(
        &self,
        client: &mut Client,
        read: &mut Buffer,
        upstream: &mut Upstream,
        source: &mut Buffer,
        down: &Buffer,
        upload: &mut Pump,
        download: &mut Pump,
    ) -> Result<(), BodyError> {
        let stall = self.worker.config.timeouts.stall;
        let mut sent = 0;
        let mut moved = 0;
        let polled = poll_fn(|cx| {
            if !upload.is_over() {
                match upload.poll(cx, client, read, &mut upstream.stream) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(PumpError::Sink)) => upload.is_given_up = true,
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(BodyError::Client)),
                }
            }
            while sent < down.len() {
                match Pin::new(&mut *client).poll_write(cx, &down.filled()[sent..]) {
                    Poll::Ready(Ok(count)) if count > 0 => sent += count,
                    Poll::Ready(_) => return Poll::Ready(Err(BodyError::Client)),
                    Poll::Pending => break,
                }
            }
            if sent == down.len() {
                match download.poll(cx, &mut upstream.stream, source, client) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(BodyError::Backend)),
                    Poll::Ready(Err(PumpError::Sink)) => return Poll::Ready(Err(BodyError::Client)),
                    Poll::Pending => {}
                }
            }
            let waits_for_client =
                !download.waits_for_source || (!upload.is_over() && upload.waits_for_source);
            let progress = upload.moved + download.moved + sent as u64;
            if !waits_for_client {
                // A stream may be silent for as long as it likes, unless its reader goes away.
                self.watch.clear();
                if upload.is_over() && has_left(cx, client, read) {
                    return Poll::Ready(Err(BodyError::Client));
                }
            } else if progress != moved || !self.watch.is_set() {
                self.watch.set(stall);
            }
            moved = progress;
            Poll::Pending
        });
        let result = self.watch.until_up(polled).await;
        self.watch.clear();
        result.unwrap_or(Err(BodyError::Client))
    }
}
