//! Serves the registry of services: HTTP for programs, DNS for everything.
//!
//! Follows the controller's instances and keeps the last ones it heard, so names go on answering
//! while the controller is away. Names that are not ours are asked of the machine's own resolver.

mod access;
mod dns;
mod follow;
mod forward;
mod http;
mod public_reply;
mod reply;
mod stream;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use ::http::HeaderValue;
use api::{Controller, Endpoint};
use daemon::{AppTokens, Keys, Shutdown};
use discovery::{Registry, Zone};
use tokio::sync::watch;

pub use public_reply::public_reply;
pub use reply::{Reply, Transport, reply};

pub struct Config {
    pub controller: Endpoint,
    pub keys: Keys,
    /// The cluster's domain, whose names lead to the router, until the controller says more.
    pub domain: String,
    /// The address by which this host's jobs reach it.
    pub gateway: Ipv4Addr,
    pub dns_port: u16,
    pub http_port: u16,
    /// Where those are answered to whom the cluster's domain was delegated. Never all addresses at once: an answer
    /// has to come from the address that was asked.
    pub public: Vec<SocketAddr>,
}

/// The registry, and the news that it changed.
pub(crate) struct Shared {
    registry: Mutex<Registry>,
    /// The cluster's domain and those that it had before.
    domains: Mutex<Arc<[String]>>,
    /// What is told to the outside.
    zone: Mutex<Arc<Zone>>,
    changed: watch::Sender<u64>,
    controller: Controller,
    /// Where others find this registry.
    peer: HeaderValue,
}

impl Shared {
    fn new(controller: Controller, place: SocketAddr, domain: String) -> Self {
        Shared {
            registry: Mutex::default(),
            domains: Mutex::new([domain].into()),
            zone: Mutex::default(),
            changed: watch::channel(0).0,
            controller,
            peer: HeaderValue::from_str(&place.to_string()).expect("addresses are plain text"),
        }
    }

    /// Waits until the registry is as wanted: a change that the controller has kept comes back by the
    /// stream that everybody follows.
    async fn until(&self, is_so: impl Fn(&Registry) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !self.read(&is_so) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ECHO_PATIENCE, wait).await;
    }

    fn domains(&self) -> Arc<[String]> {
        self.domains.lock().expect("no panic while held").clone()
    }

    fn set_domains(&self, domains: Vec<String>) {
        *self.domains.lock().expect("no panic while held") = domains.into();
    }

    fn zone(&self) -> Arc<Zone> {
        self.zone.lock().expect("no panic while held").clone()
    }

    fn set_zone(&self, zone: Zone) {
        *self.zone.lock().expect("no panic while held") = Arc::new(zone);
    }

    fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.registry.lock().expect("no panic while held"))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        let changed = change(&mut self.registry.lock().expect("no panic while held"));
        self.changed.send_modify(|count| *count += 1);
        changed
    }
}

/// How long a change may take to come back. Who asked for it is answered then in any case: it is kept.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// The gateway's address appears when the host's network has been set up.
const GATEWAY_RETRY: Duration = Duration::from_millis(50);

pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let controller = Controller::new(&config.controller)?;
    let place = SocketAddr::from((config.gateway, config.http_port));
    let shared = Arc::new(Shared::new(controller.clone(), place, config.domain));
    let followed = tokio::spawn(follow::run(shared.clone(), controller, shutdown.clone()));
    let expired = tokio::spawn(expire(shared.clone(), shutdown.clone()));
    let public = Arc::new(dns::PublicNames::new(shared.clone()));
    for place in config.public {
        tokio::spawn(serve_public(place, public.clone(), shutdown.clone()));
    }

    let gateway = |port| SocketAddr::from((config.gateway, port));
    let Some(udp) = bind(&shutdown, || {
        tokio::net::UdpSocket::bind(gateway(config.dns_port))
    })
    .await
    else {
        return Ok(());
    };
    let Some(tcp) = bind(&shutdown, || {
        tokio::net::TcpListener::bind(gateway(config.dns_port))
    })
    .await
    else {
        return Ok(());
    };
    let Some(api) = bind(&shutdown, || {
        tokio::net::TcpListener::bind(gateway(config.http_port))
    })
    .await
    else {
        return Ok(());
    };
    let local = daemon::server::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, config.http_port))).await?;
    let names = Arc::new(dns::Names::new(shared.clone(), config.gateway.into()));
    let gate = access::Gate {
        tokens: AppTokens::new(&config.controller.key),
        keys: config.keys,
    };
    let router = http::router(shared, gate);
    tokio::join!(
        dns::serve_udp(Arc::new(udp), names.clone(), shutdown.clone()),
        dns::serve_tcp(tcp, names, shutdown.clone()),
        daemon::server::serve(api, router.clone(), shutdown.clone()),
        daemon::server::serve(local, router, shutdown),
    );
    followed.abort();
    expired.abort();
    Ok(())
}

/// Apart from all else: what the outside asks holds up nobody inside.
async fn serve_public(place: SocketAddr, names: Arc<dns::PublicNames>, shutdown: Shutdown) {
    let Some(udp) = bind(&shutdown, || tokio::net::UdpSocket::bind(place)).await else {
        return;
    };
    let Some(tcp) = bind(&shutdown, || tokio::net::TcpListener::bind(place)).await else {
        return;
    };
    tracing::info!(%place, "names of the cluster's domain are answered for the outside");
    tokio::join!(
        dns::serve_udp(Arc::new(udp), names.clone(), shutdown.clone()),
        dns::serve_tcp(tcp, names, shutdown),
    );
}

/// Binds as soon as the address is there. `None` at shutdown.
async fn bind<T, F: Future<Output = std::io::Result<T>>>(
    shutdown: &Shutdown,
    bind: impl Fn() -> F,
) -> Option<T> {
    let mut is_told = false;
    loop {
        match bind().await {
            Ok(socket) => return Some(socket),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::AddrNotAvailable
                    && !std::mem::replace(&mut is_told, true)
                {
                    tracing::warn!(%error, "cannot listen for questions about names; trying again");
                }
            }
        }
        tokio::select! {
            _ = tokio::time::sleep(GATEWAY_RETRY) => {}
            _ = shutdown.cancelled() => return None,
        }
    }
}

/// Forgets instances whose heartbeat has stopped.
async fn expire(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut changed = shared.changed.subscribe();
    loop {
        let now = daemon::now();
        changed.borrow_and_update();
        let due = shared.read(|registry| registry.clone().expire(now));
        let pause = due.map_or(Duration::from_secs(60), |at| at.since(now));
        tokio::select! {
            _ = tokio::time::sleep(pause) => {
                shared.change(|registry| registry.expire(daemon::now()));
            }
            _ = changed.changed() => {}
            _ = shutdown.cancelled() => return,
        }
    }
}
