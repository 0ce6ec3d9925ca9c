//! The store's messages between hosts: one connection to each, on which many are under way.
//!
//! ```text
//! there   number u64  kind u8  length u32  message
//! back    number u64  is answered u8  length u32  answer, or why there is none
//! ```
//!
//! A connection that breaks is opened again by the next message; what was under way is lost, which
//! the store expects. Snapshots go by HTTP, so that they do not hold heartbeats up.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http_body_util::BodyExt;
use store::{MessageKind, OutgoingSnapshot, Peer, Store, Transport, TransportError};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{mpsc, oneshot},
};

use crate::{dial::Dialer, pool::Pool};

/// The longest message: a batch of the log, of which one command may be 8 MiB.
const MESSAGE_BYTES_MAX: u32 = 64 << 20;
const READ_BYTES: usize = 64 << 10;
/// Messages that wait for a connection that does not take them.
const WAITING_MAX: usize = 256;
/// After a failure to connect messages fail at once for so long, rather than each waiting for it.
const PAUSE: Duration = Duration::from_millis(100);
const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// Sends messages over connections that it keeps.
#[derive(Clone)]
pub struct PeerTransport {
    dialer: Dialer,
    pool: Pool,
    links: Arc<Mutex<BTreeMap<u64, Arc<Link>>>>,
}

impl PeerTransport {
    pub fn new(dialer: Dialer, pool: Pool) -> PeerTransport {
        PeerTransport {
            dialer,
            pool,
            links: Arc::default(),
        }
    }

    fn link(&self, to: &Peer) -> Arc<Link> {
        let mut links = self.links.lock().expect("no panic while held");
        links.entry(to.id).or_default().clone()
    }
}

/// What is kept for one peer.
#[derive(Default)]
struct Link {
    open: tokio::sync::Mutex<Opened>,
}

#[derive(Default)]
enum Opened {
    #[default]
    NotYet,
    Open(Sender),
    Failed {
        at: tokio::time::Instant,
        why: String,
    },
}

type Answer = Result<Vec<u8>, TransportError>;
type Sender = mpsc::Sender<(MessageKind, Vec<u8>, oneshot::Sender<Answer>)>;

impl Link {
    async fn sender(&self, dialer: &Dialer, to: &Peer) -> Result<Sender, TransportError> {
        let mut open = self.open.lock().await;
        match &*open {
            Opened::Open(sender) if !sender.is_closed() => return Ok(sender.clone()),
            Opened::Failed { at, why } if at.elapsed() < PAUSE => return Err(TransportError(why.clone())),
            _ => {}
        }
        match dialer.raft(to.id, &to.address).await {
            Ok(connection) => {
                let (sender, receiver) = mpsc::channel(WAITING_MAX);
                tokio::spawn(carry(connection, receiver));
                *open = Opened::Open(sender.clone());
                Ok(sender)
            }
            Err(error) => {
                let why = error.to_string();
                *open = Opened::Failed {
                    at: tokio::time::Instant::now(),
                    why: why.clone(),
                };
                Err(TransportError(why))
            }
        }
    }
}

impl Transport for PeerTransport {
    fn send(
        &self,
        to: &Peer,
        kind: MessageKind,
        message: Vec<u8>,
        _timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let (link, dialer, to) = (self.link(to), self.dialer.clone(), to.clone());
        async move {
            let sender = link.sender(&dialer, &to).await?;
            let (answer, answered) = oneshot::channel();
            let gone = || TransportError("the connection broke".to_owned());
            sender.send((kind, message, answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        }
        .boxed()
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        snapshot: OutgoingSnapshot,
        timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let (pool, node) = (self.pool.clone(), to.id);
        async move {
            let failed = |error: String| TransportError(error);
            let head = [
                &(snapshot.header.len() as u32).to_be_bytes()[..],
                &snapshot.header,
            ]
            .concat();
            let content = read_in_chunks(snapshot.file.reader());
            let content = futures::stream::once(async { io::Result::Ok(Bytes::from(head)) }).chain(content);
            let request = http::Request::post(format!("http://node-{node}/raft/snapshot"))
                .body(Body::from_stream(content))
                .map_err(|error| failed(error.to_string()))?;
            let sent = async {
                let response = pool.request(request).await.map_err(|error| error.to_string())?;
                let status = response.status();
                let body = response.into_body().collect().await;
                let body = body.map_err(|error| error.to_string())?.to_bytes();
                match status.is_success() {
                    true => Ok(body.to_vec()),
                    false => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
                }
            };
            let sent = tokio::time::timeout(timeout, sent).await;
            sent.map_err(|_| failed("no answer in time".into()))?
                .map_err(failed)
        }
        .boxed()
    }
}

/// A file that is read where reading may block.
fn read_in_chunks(
    mut reader: impl io::Read + Send + 'static,
) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    let (sender, mut receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; SNAPSHOT_CHUNK_BYTES];
            let read = reader.read(&mut chunk).map(|count| {
                chunk.truncate(count);
                Bytes::from(chunk)
            });
            let is_end = !read.as_ref().is_ok_and(|chunk| !chunk.is_empty());
            if matches!(&read, Ok(chunk) if chunk.is_empty()) || sender.blocking_send(read).is_err() || is_end
            {
                return;
            }
        }
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// Carries messages until the connection breaks or nobody sends any more.
async fn carry(
    connection: impl AsyncRead + AsyncWrite,
    mut messages: mpsc::Receiver<(MessageKind, Vec<u8>, oneshot::Sender<Answer>)>,
) {
    let (reader, mut writer) = tokio::io::split(connection);
    let waiting = Waiting::default();
    let write = async {
        let mut number = 0u64;
        let mut buffer = BytesMut::new();
        while let Some(first) = messages.recv().await {
            // What waits goes along in one write.
            let mut next = Some(first);
            while let Some((kind, message, answer)) = next {
                number += 1;
                waiting
                    .lock()
                    .expect("no panic while held")
                    .insert(number, answer);
                buffer.put_u64(number);
                buffer.put_u8(kind_number(kind));
                buffer.put_u32(message.len() as u32);
                buffer.put_slice(&message);
                next = messages.try_recv().ok();
            }
            writer.write_all(&buffer).await?;
            writer.flush().await?;
            buffer.clear();
        }
        io::Result::Ok(())
    };
    let read = async {
        let mut reader = BufReader::with_capacity(READ_BYTES, reader);
        loop {
            let number = reader.read_u64().await?;
            let is_answered = reader.read_u8().await? == 1;
            let bytes = read_block(&mut reader).await?;
            let answer = match is_answered {
                true => Ok(bytes),
                false => Err(TransportError(String::from_utf8_lossy(&bytes).into_owned())),
            };
            let asker = waiting.lock().expect("no panic while held").remove(&number);
            if let Some(asker) = asker {
                let _ = asker.send(answer);
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = write => ended,
        ended = read => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection between nodes of the state broke");
    }
}

fn kind_number(kind: MessageKind) -> u8 {
    let position = MessageKind::ALL.iter().position(|known| *known == kind);
    position.expect("all are in ALL") as u8
}

async fn read_block(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = reader.read_u32().await?;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a message of {length} bytes is too long"
        )));
    }
    let mut block = vec![0; length as usize];
    reader.read_exact(&mut block).await?;
    Ok(block)
}

/// Answers a peer's messages until it goes.
pub(crate) async fn serve<M: store::Machine>(
    store: Store<M>,
    connection: impl AsyncRead + AsyncWrite + Send + 'static,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let (answers, mut answered) = mpsc::channel::<(u64, Answer)>(WAITING_MAX);
    let write = async move {
        let mut buffer = BytesMut::new();
        while let Some(first) = answered.recv().await {
            let mut next = Some(first);
            while let Some((number, answer)) = next {
                buffer.put_u64(number);
                let (is_answered, bytes) = match answer {
                    Ok(bytes) => (1, bytes),
                    Err(error) => (0, error.0.into_bytes()),
                };
                buffer.put_u8(is_answered);
                buffer.put_u32(bytes.len() as u32);
                buffer.put_slice(&bytes);
                next = answered.try_recv().ok();
            }
            writer.write_all(&buffer).await?;
            writer.flush().await?;
            buffer.clear();
        }
        Ok(())
    };
    let read = async move {
        loop {
            let number = match reader.read_u64().await {
                Ok(number) => number,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            let kind = reader.read_u8().await?;
            let message = read_block(&mut reader).await?;
            let kind = MessageKind::ALL
                .get(usize::from(kind))
                .copied()
                .ok_or_else(|| io::Error::other("a message of a kind that is not known here"))?;
            let (store, answers) = (store.clone(), answers.clone());
            // Each on its own: a heartbeat must not wait for the disk that entries wait for.
            tokio::spawn(async move {
                let answer = store.receive(kind, &message).await;
                let answer = answer.map_err(|error| TransportError(error.to_string()));
                let _ = answers.send((number, answer)).await;
            });
        }
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
    }
}

/// Takes a snapshot in that a peer sends as a request's body.
pub(crate) async fn receive_snapshot<M: store::Machine>(
    store: &Store<M>,
    body: Body,
) -> Result<Vec<u8>, String> {
    let stream = body
        .into_data_stream()
        .map(|chunk| chunk.map_err(io::Error::other));
    let mut reader = tokio_util::io::StreamReader::new(stream);
    let header = read_block(&mut reader).await.map_err(|error| error.to_string())?;
    store
        .receive_snapshot(&header, reader)
        .await
        .map_err(|error| error.to_string())
}
