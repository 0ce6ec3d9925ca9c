//! One thread of the router: its own event loop, listeners, table and connections to backends.
//!
//! Threads share nothing that a request waits for. The kernel spreads new connections over their
//! listening sockets (`SO_REUSEPORT`); a new table arrives by a watch channel and is taken over
//! between two requests.

use crate::access_log::AccessLog;
use crate::buffer::{self, Buffer};
use crate::config::Config;
use crate::listen::{self, Kind, Listening};
use crate::live::{LiveTable, Shared, ThreadTable};
use crate::prepare::Entrance;
use crate::upstream::Pool;
use crate::watch::Watches;
use crate::{connection, tcp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio_rustls::TlsAcceptor;

/// How often deadlines are looked at, and batches of log lines handed over.
const TICK: Duration = Duration::from_millis(250);

pub struct Worker {
    pub index: usize,
    pub config: Arc<Config>,
    pub shared: Arc<Shared>,
    pub log: Option<AccessLog>,
    pub pool: Pool,
    pub watches: Watches,
    pub tls: Option<TlsAcceptor>,
    table: RefCell<Rc<ThreadTable>>,
    random: Cell<u64>,
    /// Takes no more connections, and each answer is the last on its connection.
    is_stopping: Cell<bool>,
    /// Connections without a request end, too.
    is_ending: Cell<bool>,
    /// Told once, when stopping begins.
    stopping: Notify,
    connections: Cell<usize>,
    connections_max: usize,
    /// Listeners that the table asks for.
    extra: RefCell<BTreeMap<(u16, Kind), AbortHandle>>,
    /// Ports whose opening failed, so that it is said once.
    refused_ports: RefCell<BTreeMap<(u16, Kind), String>>,
}

/// What a thread is started with.
pub struct Start {
    pub index: usize,
    pub config: Arc<Config>,
    pub shared: Arc<Shared>,
    pub log: Option<AccessLog>,
    pub tls: Option<TlsAcceptor>,
    pub listeners: Vec<Listening>,
    pub tables: watch::Receiver<Arc<LiveTable>>,
    /// When connections are accepted; until then they queue.
    pub begin: watch::Receiver<bool>,
    pub stop: watch::Receiver<bool>,
    pub seed: u64,
    pub connections_max: usize,
}

/// Runs until told to stop and drained.
pub fn run(start: Start) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(start))
}

async fn serve(mut start: Start) -> std::io::Result<()> {
    let first = start.tables.borrow_and_update().clone();
    let version = first.version;
    let worker = Rc::new(Worker {
        index: start.index,
        config: start.config,
        shared: start.shared,
        log: start.log,
        pool: Pool::default(),
        watches: Watches::new(),
        tls: start.tls,
        table: RefCell::new(Rc::new(ThreadTable::new(first, None))),
        random: Cell::new(start.seed | 1),
        is_stopping: Cell::new(false),
        is_ending: Cell::new(false),
        stopping: Notify::new(),
        connections: Cell::new(0),
        connections_max: start.connections_max,
        extra: RefCell::default(),
        refused_ports: RefCell::default(),
    });
    worker.open_extra();
    worker.shared.applied(worker.index, version);
    for listening in start.listeners {
        let listener = TcpListener::from_std(listening.listener)?;
        let (worker, mut begin, tables) = (worker.clone(), start.begin.clone(), start.tables.clone());
        spawn_local(async move {
            let _ = begin.wait_for(|begun| *begun).await;
            // The table that was waited for may not have been taken over by this thread yet.
            let newest = tables.borrow().clone();
            if newest.version > worker.table().live.version {
                worker.take_over(newest);
            }
            worker.accept(listener, listening.kind, 0).await;
        });
    }
    let mut tick = tokio::time::interval(worker.tick());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sweeps = Instant::now();
    let mut drained_by: Option<Instant> = None;
    let mut is_resting = false;
    let timeouts = worker.config.timeouts.clone();
    loop {
        tokio::select! {
            changed = start.tables.changed(), if drained_by.is_none() => {
                if changed.is_ok() {
                    let live = start.tables.borrow_and_update().clone();
                    worker.take_over(live);
                    is_resting = false;
                }
            }
            () = worker.watches.rest(), if is_resting => is_resting = false,
            _ = tick.tick(), if !is_resting => {
                worker.watches.sweep();
                if let Some(log) = &worker.log {
                    log.flush();
                }
                if sweeps.elapsed() >= Duration::from_secs(1) {
                    sweeps = Instant::now();
                    let table = worker.table();
                    worker.pool.sweep(worker.config.timeouts.backend_idle, |addr| table.live.has(addr));
                    worker.open_extra();
                    is_resting = buffer::trim() && drained_by.is_none() && worker.has_nothing_to_watch();
                }
                match drained_by {
                    Some(limit) if worker.connections.get() == 0 || Instant::now() >= limit => break,
                    Some(limit) if Instant::now() + timeouts.drain >= limit + timeouts.drain_idle => {
                        worker.is_ending.set(true);
                        worker.watches.end_idle();
                    }
                    _ => {}
                }
            }
            _ = start.stop.wait_for(|stop| *stop), if drained_by.is_none() => {
                worker.is_stopping.set(true);
                worker.stopping.notify_waiters();
                drained_by = Some(Instant::now() + timeouts.drain);
                is_resting = false;
            }
        }
    }
    if let Some(log) = &worker.log {
        log.flush();
    }
    Ok(())
}

impl Worker {
    pub fn table(&self) -> Rc<ThreadTable> {
        self.table.borrow().clone()
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    pub fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Good enough to spread load and to tell requests apart (xorshift64*).
    pub fn random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn put_ip(&self, out: &mut Buffer, ip: IpAddr) {
        let mut text = [0u8; 48];
        let mut rest = &mut text[..];
        // An IPv4 client on an IPv6 socket is an IPv4 client.
        write!(rest, "{}", ip.to_canonical()).expect("an address is shorter");
        let left = rest.len();
        out.put(&text[..text.len() - left]);
    }

    /// No connection, none kept to a backend, no port to try again. What a connection logs is handed over by the
    /// tick that finds it gone.
    fn has_nothing_to_watch(&self) -> bool {
        self.watches.is_empty() && self.pool.is_empty() && self.refused_ports.borrow().is_empty()
    }

    fn tick(&self) -> Duration {
        let timeouts = &self.config.timeouts;
        let shortest = timeouts
            .head
            .min(timeouts.idle)
            .min(timeouts.stall)
            .min(timeouts.connect)
            .min(timeouts.connect_first)
            .min(timeouts.response);
        TICK.min(shortest / 4).max(Duration::from_millis(5))
    }

    fn take_over(self: &Rc<Self>, live: Arc<LiveTable>) {
        let version = live.version;
        let table = Rc::new(ThreadTable::new(live, Some(&self.table.borrow())));
        self.pool
            .sweep(self.config.timeouts.backend_idle, |addr| table.live.has(addr));
        self.table.replace(table);
        self.open_extra();
        self.shared.applied(self.index, version);
    }

    /// Opens the ports that the table wants and closes those it no longer does.
    fn open_extra(self: &Rc<Self>) {
        let table = self.table();
        let mut wanted: BTreeMap<(u16, Kind), ()> = table
            .table()
            .tcp_ports()
            .map(|port| ((port, Kind::Tcp), ()))
            .collect();
        for (port, kind) in table.table().http_ports() {
            let kind = match kind {
                routing::HttpPort::Plain => Kind::Http,
                routing::HttpPort::Tls => Kind::Https,
            };
            wanted.insert((port, kind), ());
        }
        self.extra.borrow_mut().retain(|key, task| {
            let stays = wanted.contains_key(key) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        self.refused_ports
            .borrow_mut()
            .retain(|key, _| wanted.contains_key(key));
        for key in wanted.into_keys() {
            if self.is_stopping() || self.extra.borrow().contains_key(&key) {
                continue;
            }
            match self.open_port(key.0) {
                Ok(listeners) => {
                    self.refused_ports.borrow_mut().remove(&key);
                    let accept = |listener| self.clone().accept(listener, key.1, key.0);
                    let accepting = futures::future::join_all(listeners.into_iter().map(accept));
                    let task = spawn_local(accepting);
                    self.extra.borrow_mut().insert(key, task.abort_handle());
                }
                Err(error) => {
                    let told = self.refused_ports.borrow_mut().insert(key, error.to_string());
                    if told != Some(error.to_string()) {
                        tracing::warn!(port = key.0, %error, "cannot listen on a route's port");
                    }
                }
            }
        }
    }

    /// On all addresses, where all of IPv4 are asked for: those of IPv6 as well, if there are any.
    fn open_port(&self, port: u16) -> std::io::Result<Vec<TcpListener>> {
        let ip = self.config.tcp_bind_ip;
        let mut listeners = vec![TcpListener::from_std(listen::open(SocketAddr::new(ip, port))?)?];
        if ip == Ipv4Addr::UNSPECIFIED {
            let other = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            match listen::open_ipv6_only(other) {
                Ok(listener) => listeners.push(TcpListener::from_std(listener)?),
                Err(error) if listen::is_unknown(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(listeners)
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, kind: Kind, route_port: u16) {
        let port = listener.local_addr().map_or(0, |addr| addr.port());
        while !self.is_stopping() {
            if self.connections.get() >= self.connections_max {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = self.stopping.notified() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let is_tls = kind == Kind::Https;
                    self.welcome(
                        stream,
                        kind,
                        Entrance {
                            peer,
                            port,
                            route_port,
                            is_tls,
                        },
                    );
                }
                Err(error) => {
                    // Out of descriptors, most likely. The connection stays in the queue.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        // Whoever is in the queue already would get a reset.
        while let Some(Ok((stream, peer))) = futures::FutureExt::now_or_never(listener.accept()) {
            let is_tls = kind == Kind::Https;
            self.welcome(
                stream,
                kind,
                Entrance {
                    peer,
                    port,
                    route_port,
                    is_tls,
                },
            );
        }
    }

    fn welcome(self: &Rc<Self>, stream: TcpStream, kind: Kind, entrance: Entrance) {
        let _ = stream.set_nodelay(true);
        let guest = Guest::enter(self);
        match kind {
            Kind::Http => spawn_local(connection::serve_plain(guest, stream, entrance)),
            Kind::Https => spawn_local(connection::serve_tls(guest, stream, entrance)),
            Kind::Tcp => spawn_local(tcp::serve(guest, stream, entrance)),
        };
    }
}

/// A connection that is being served; counted while it lives.
pub struct Guest {
    pub worker: Rc<Worker>,
}

impl Guest {
    fn enter(worker: &Rc<Worker>) -> Guest {
        worker.connections.set(worker.connections.get() + 1);
        Guest {
            worker: worker.clone(),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get() - 1);
    }
}
