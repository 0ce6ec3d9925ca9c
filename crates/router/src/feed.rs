//! Where tables come from: the controller's event stream, and where acknowledgements go.

use base64::Engine;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use routing::feed::{Acknowledgement, Update};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};

/// A source of updates. A snapshot has to come first.
pub trait Feed: Send + 'static {
    /// Runs until dropped. Says in `is_out_of_reach` when a try to reach the source has failed, so that
    /// nobody waits for what cannot come.
    fn run(
        self: Box<Self>,
        updates: mpsc::Sender<Update>,
        acknowledgements: watch::Receiver<Acknowledgement>,
        is_out_of_reach: watch::Sender<bool>,
    ) -> BoxFuture<'static, ()>;
}

/// `GET <controller>/internal/routing` as server-sent events, `POST <controller>/internal/routers/<id>`
/// with acknowledgements.
#[derive(Clone)]
pub struct ControllerFeed {
    /// Reached without TLS, over loopback or the cluster's own network.
    pub controller: SocketAddr,
    /// The password of HTTP Basic.
    pub key: String,
    pub router_id: String,
}

/// One event; a snapshot of a very large cluster is a few megabytes.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The controller sends a comment now and then; silence for so long is a dead connection.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// An acknowledgement is repeated after so long: a sign of life.
const REPEAT: Duration = Duration::from_secs(10);
/// Request and answer of an acknowledgement, and the head of the stream.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Feed for ControllerFeed {
    fn run(
        self: Box<Self>,
        updates: mpsc::Sender<Update>,
        acknowledgements: watch::Receiver<Acknowledgement>,
        is_out_of_reach: watch::Sender<bool>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let again = Notify::new();
            tokio::join!(
                self.listen(updates, &is_out_of_reach, &again),
                self.acknowledge(acknowledgements, &again)
            );
        })
    }
}

impl ControllerFeed {
    async fn listen(
        &self,
        updates: mpsc::Sender<Update>,
        is_out_of_reach: &watch::Sender<bool>,
        again: &Notify,
    ) {
        let mut backoff = BACKOFF_FIRST;
        while !updates.is_closed() {
            let mut has_heard = false;
            let result = self.stream(&updates, &mut has_heard, again).await;
            if has_heard {
                backoff = BACKOFF_FIRST;
            }
            if let Err(error) = result {
                tracing::debug!(error = format!("{error:#}"), "feed lost");
                is_out_of_reach.send_replace(true);
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn stream(
        &self,
        updates: &mpsc::Sender<Update>,
        has_heard: &mut bool,
        again: &Notify,
    ) -> anyhow::Result<()> {
        let request = self
            .request(http::Method::GET, "/internal/routing")
            .header("Accept", "text/event-stream")
            .header("Flynn-Router", &self.router_id);
        let response = tokio::time::timeout(ANSWER_MAX, self.send(request.body(Full::default())?)).await??;
        anyhow::ensure!(
            response.status().is_success(),
            "the controller says {}",
            response.status()
        );
        let mut body = response.into_body();
        let mut events = Events::default();
        while let Some(frame) = tokio::time::timeout(SILENCE_MAX, body.frame()).await? {
            let Ok(data) = frame?.into_data() else { continue };
            for event in events.feed(&data)? {
                let update = serde_json::from_str(&event)?;
                if updates.send(update).await.is_err() {
                    return Ok(());
                }
                if !*has_heard {
                    *has_heard = true;
                    again.notify_one();
                }
            }
        }
        Ok(())
    }

    /// Sends the newest acknowledgement until it has arrived, and again to a controller that may
    /// have lost it: whenever the stream begins anew, and now and then.
    async fn acknowledge(&self, mut acknowledgements: watch::Receiver<Acknowledgement>, again: &Notify) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            tokio::select! {
                changed = acknowledgements.changed() => if changed.is_err() {
                    return;
                },
                () = again.notified() => {}
                () = tokio::time::sleep(REPEAT) => {}
            }
            loop {
                let now = acknowledgements.borrow_and_update().clone();
                let posted = tokio::time::timeout(ANSWER_MAX, self.post(&now)).await;
                match posted.map_err(anyhow::Error::from).and_then(|result| result) {
                    Ok(()) => {
                        backoff = BACKOFF_FIRST;
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "acknowledgement not delivered")
                    }
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }

    async fn post(&self, acknowledgement: &Acknowledgement) -> anyhow::Result<()> {
        let path = format!("/internal/routers/{}", self.router_id);
        let body = Full::new(Bytes::from(serde_json::to_vec(acknowledgement)?));
        let request = self
            .request(http::Method::POST, &path)
            .header("Content-Type", "application/json");
        let response = self.send(request.body(body)?).await?;
        anyhow::ensure!(
            response.status().is_success(),
            "the controller says {}",
            response.status()
        );
        Ok(())
    }

    fn request(&self, method: http::Method, path: &str) -> http::request::Builder {
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!(":{}", self.key));
        http::Request::builder()
            .method(method)
            .uri(path)
            .header("Host", self.controller.to_string())
            .header("Authorization", format!("Basic {credentials}"))
    }

    async fn send(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let stream = TcpStream::connect(self.controller).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the response's body.
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }
}

/// Cuts a stream of server-sent events into the data of each.
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
    data: String,
}

impl Events {
    fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut events = Vec::new();
        let mut start = 0;
        for at in memchr::memchr_iter(b'\n', bytes) {
            self.rest.extend_from_slice(&bytes[start..at]);
            start = at + 1;
            let line = std::mem::take(&mut self.rest);
            let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(&line))?;
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        self.rest.extend_from_slice(&bytes[start..]);
        anyhow::ensure!(
            self.rest.len() + self.data.len() <= EVENT_BYTES_MAX,
            "an event is too large"
        );
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let stream =
            b": hello\n\nevent: x\ndata: {\"a\":1}\r\nid: 3\n\ndata:one\ndata: two\n\ndata: unfinished";
        for piece in 1..stream.len() {
            let mut events = Events::default();
            let all: Vec<String> = stream
                .chunks(piece)
                .flat_map(|part| events.feed(part).unwrap())
                .collect();
            assert_eq!(all, ["{\"a\":1}", "one\ntwo"], "{piece}");
        }
    }
}
