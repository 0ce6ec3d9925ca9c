//! DNS over UDP and TCP. Our own names are answered here; queries for others travel on as they came.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use daemon::Shutdown;
use discovery::{Question, zone_answer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};

use crate::{
    Shared,
    forward::Resolvers,
    public_reply::public_reply,
    reply::{Reply, Transport, reply},
};

/// Questions in progress; more are dropped, and their askers ask again.
const IN_PROGRESS_MAX: usize = 1024;
/// A TCP connection without a question is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Whoever answers queries.
pub trait Answers: Send + Sync + 'static {
    /// The whole answer to a whole query; `None` for what is no query.
    fn respond(&self, query: &[u8], transport: Transport) -> impl Future<Output = Option<Vec<u8>>> + Send;

    fn in_progress(&self) -> &Arc<Semaphore>;
}

pub struct Names {
    shared: Arc<Shared>,
    router: IpAddr,
    turn: AtomicUsize,
    resolvers: Resolvers,
    in_progress: Arc<Semaphore>,
}

impl Names {
    pub fn new(shared: Arc<Shared>, router: IpAddr) -> Self {
        Names {
            shared,
            router,
            turn: AtomicUsize::new(0),
            resolvers: Resolvers::default(),
            in_progress: Arc::new(Semaphore::new(IN_PROGRESS_MAX)),
        }
    }
}

impl Answers for Names {
    async fn respond(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let find = |question: &Question| {
            let domains = self.shared.domains();
            self.shared
                .read(|registry| discovery::answer(registry, question, &domains, self.router, turn))
        };
        match reply(query, transport, find) {
            Reply::Answer(answer) => Some(answer),
            Reply::Forward { otherwise } => {
                let is_tcp = transport == Transport::Tcp;
                Some(self.resolvers.ask(query, is_tcp).await.unwrap_or(otherwise))
            }
            Reply::Silence => None,
        }
    }

    fn in_progress(&self) -> &Arc<Semaphore> {
        &self.in_progress
    }
}

/// Answers those to whom the cluster's domain was delegated, from the outside.
pub struct PublicNames {
    shared: Arc<Shared>,
    turn: AtomicUsize,
    in_progress: Arc<Semaphore>,
}

impl PublicNames {
    pub fn new(shared: Arc<Shared>) -> Self {
        PublicNames {
            shared,
            turn: AtomicUsize::new(0),
            in_progress: Arc::new(Semaphore::new(IN_PROGRESS_MAX)),
        }
    }
}

impl Answers for PublicNames {
    async fn respond(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let zone = self.shared.zone();
        public_reply(query, transport, |name, kind| {
            zone_answer(&zone, name, kind, turn)
        })
    }

    fn in_progress(&self) -> &Arc<Semaphore> {
        &self.in_progress
    }
}

pub async fn serve_udp(socket: Arc<UdpSocket>, names: Arc<impl Answers>, shutdown: Shutdown) {
    let mut buffer = vec![0; 4096];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = shutdown.cancelled() => return,
        };
        // An error is an ICMP message about an earlier answer; the socket goes on.
        let Ok((length, peer)) = received else { continue };
        let Ok(permit) = names.in_progress().clone().try_acquire_owned() else {
            continue;
        };
        let (query, names, socket) = (buffer[..length].to_vec(), names.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = names.respond(&query, Transport::Udp).await {
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(permit);
        });
    }
}

pub async fn serve_tcp(listener: TcpListener, names: Arc<impl Answers>, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(permit) = names.in_progress().clone().try_acquire_owned() else {
                    continue;
                };
                let names = names.clone();
                tokio::spawn(async move {
                    let _ = converse(stream, &*names).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, names: &impl Answers) -> std::io::Result<()> {
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = names.respond(&query, Transport::Tcp).await else {
            return Ok(());
        };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        stream.write_all(&framed).await?;
    }
}
