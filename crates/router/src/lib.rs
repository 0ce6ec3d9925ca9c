//! Accepts HTTP, TLS and TCP, and forwards them to the backends that a table names.
//!
//! ```text
//! feed (controller, SSE) ─> control ─ table ─┬─> worker 1   accept ─> connection ─┬─> http1::exchange ─> backend
//!        ^                     │             └─> worker N                         └─> http2
//!        └── acknowledgement ──┘ state file
//! ```
//!
//! Runs in a process of its own and needs nobody to go on: without a controller it serves the last
//! table that it heard, and starts from the one on disk. Which backend takes a request, and whether
//! a failed one may be repeated, is decided in the `routing` crate; here it is carried out.
//!
//! Each worker is a thread with an event loop of its own. Nothing on the way of a request waits for
//! another thread: the table is replaced between requests, counters are atomic, log lines go into a
//! bounded queue.

mod access_log;
mod buffer;
mod choice;
mod client;
mod config;
mod connection;
mod control;
mod feed;
mod http2;
mod listen;
mod live;
mod pages;
mod prepare;
mod sockets;
mod state_file;
mod tcp;
mod tls;
mod upstream;
mod watch;
mod worker;

pub mod http1;

pub use config::{CertificatePem, Config, Limits, Timeouts};
pub use feed::{ControllerFeed, Feed};
pub use listen::Kind;
pub use prepare::HEALTH_PATH;
pub use sockets::Sockets;

use anyhow::Context;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::AbortHandle;

/// A router at work.
pub struct Running {
    /// What it listens on, with the real ports where 0 was asked for.
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    begun: channel::Receiver<bool>,
    stop: channel::Sender<bool>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    writer: Option<JoinHandle<()>>,
    tasks: Vec<AbortHandle>,
}

/// Runs until `shutdown`, then lets requests finish.
pub async fn run(
    config: Config,
    feed: Box<dyn Feed>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let running = start(config, feed)?;
    shutdown.await;
    running.stop().await
}

/// Opens the addresses of `config` and starts. To be called within a tokio runtime.
pub fn start(config: Config, feed: Box<dyn Feed>) -> anyhow::Result<Running> {
    let sockets = Sockets::open(&config)?;
    start_on(sockets, config, feed)
}

/// Starts all threads on sockets that somebody else may have opened. To be called within a tokio
/// runtime, which runs feed and control.
pub fn start_on(sockets: Sockets, config: Config, feed: Box<dyn Feed>) -> anyhow::Result<Running> {
    let config = Arc::new(config);
    let (http, https) = (sockets.addresses(Kind::Http), sockets.addresses(Kind::Https));
    let threads = sockets.threads();

    let shared = Arc::new(live::Shared::new(threads));
    let certificates = Arc::new(tls::Certificates::new(config.default_certificate.as_ref())?);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server_config(certificates.clone())?));
    let (control, tables) = control::Control::start(shared.clone(), certificates, config.state_file.clone())?;
    let (writer, writer_thread) = match &config.access_log_directory {
        Some(directory) => {
            let (writer, thread) =
                access_log::Writer::start(directory, &config.limits).context("access log")?;
            (Some(writer), Some(thread))
        }
        None => (None, None),
    };

    let (stop, stopped) = channel::channel(false);
    let (begin, begun) = channel::channel(false);
    let connections = match config.limits.connections {
        0 => open_files_max() * 3 / 4,
        connections => connections,
    };
    let mut handles = Vec::new();
    for (index, listeners) in sockets.share().into_iter().enumerate() {
        let mut seed = [0u8; 8];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        let start = worker::Start {
            index,
            config: config.clone(),
            shared: shared.clone(),
            log: writer.as_ref().map(access_log::Writer::log),
            tls: Some(acceptor.clone()),
            listeners,
            tables: tables.clone(),
            begin: begun.clone(),
            stop: stopped.clone(),
            seed: u64::from_ne_bytes(seed),
            connections_max: (connections / threads).max(1),
        };
        let thread = std::thread::Builder::new()
            .name(format!("router-{index}"))
            .spawn(move || worker::run(start))
            .context("starting a thread")?;
        handles.push(thread);
    }

    let (updates, incoming) = mpsc::channel(1024);
    let (answers, acknowledgements) = channel::channel(routing::feed::Acknowledgement::default());
    let (out_of_reach, is_out_of_reach) = channel::channel(false);
    let beginning = begin_serving(begin, config.clone(), tables, is_out_of_reach, stopped);
    let tasks = vec![
        tokio::spawn(control.run(incoming, answers)).abort_handle(),
        tokio::spawn(feed.run(updates, acknowledgements, out_of_reach)).abort_handle(),
        tokio::spawn(beginning).abort_handle(),
    ];
    tracing::info!(?http, ?https, threads, "router listens");
    Ok(Running {
        http,
        https,
        begun,
        stop,
        threads: handles,
        writer: writer_thread,
        tasks,
    })
}

impl Running {
    /// Waits until connections are accepted: there is a table of now, or none to be had.
    pub async fn serves(&mut self) {
        let _ = self.begun.wait_for(|begun| *begun).await;
    }

    /// Takes no more connections, lets requests finish, and returns when all is done or the limit of
    /// [`Timeouts::drain`] is reached. The feed hears of the draining until the end.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        let Running {
            threads,
            writer,
            tasks,
            ..
        } = self;
        let joined = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a router thread panicked"))??;
            }
            if let Some(writer) = writer {
                writer
                    .join()
                    .map_err(|_| anyhow::anyhow!("the access log's thread panicked"))?;
            }
            Ok(())
        });
        let result = joined.await?;
        for task in tasks {
            task.abort();
        }
        result
    }
}

/// Lets the threads accept connections: as soon as there is a newer table than the one on disk, which
/// may name backends that are long gone; or when it is clear that none comes.
async fn begin_serving(
    begin: channel::Sender<bool>,
    config: Arc<Config>,
    mut tables: channel::Receiver<Arc<live::LiveTable>>,
    mut is_out_of_reach: channel::Receiver<bool>,
    mut stopped: channel::Receiver<bool>,
) {
    let first = tables.borrow_and_update().version;
    let newer = async {
        // The sender may be gone without one: then nothing is waited for.
        let _ = tables.wait_for(|table| table.version > first).await;
    };
    let unreachable = async {
        // A feed that does not say so may still bring a table.
        if is_out_of_reach.wait_for(|is_so| *is_so).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = newer => {}
        () = unreachable => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
        () = tokio::time::sleep(config.timeouts.first_table) => {}
    }
    begin.send_replace(true);
    // Whoever asks whether it serves asks this.
    begin.closed().await;
}

fn open_files_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit
        .current
        .map_or(1 << 20, |limit| usize::try_from(limit).unwrap_or(1 << 20))
}
