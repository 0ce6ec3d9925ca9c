//! Serves the controller's API; on the leader, plans and carries plans out.
//!
//! What a reader would get wrong: nothing here remembers what the cluster should look like. Every
//! wish is a row in the store, every decision is the scheduler's, made anew from the rows; this crate
//! turns requests into commands, plans into commands, and rows into what hosts and routers follow.
//! So it may be killed at any point and started again.
//!
//! ```text
//!  request ──► http ──► command ──► store ──► plan (scheduler) ──► commands
//!                                     │
//!                                     ├──► assignments ──► hosts ──► reports ──► commands
//!                                     └──► routing feed ──► routers ──► acknowledgements ──► drained jobs
//! ```

mod assignments;
mod attach;
mod authority;
pub mod backup;
mod by_host;
mod cleanup;
mod clock;
mod copies;
mod domain;
mod drain;
mod event_cache;
mod event_view;
mod feed;
mod host_job;
mod hosts;
mod http;
mod layer_objects;
mod leading;
mod manifests;
mod membership;
mod merged_log;
mod names;
mod network_map;
pub mod planner;
mod preview;
mod providers;
mod routers;
mod ways;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::logs::LogSource;
use daemon::{Keys, Shutdown};
use state::{Change, Command, State};
use tokio::{net::TcpListener, sync::watch};
use types::AppId;

pub use membership::Membership;
pub use names::random_name;

/// The cluster's state, replicated.
pub type Store = store::Store<State>;

/// What a component other than the controller does when an app is deleted: removes what it keeps.
pub trait Forget: Send + Sync + 'static {
    fn forget(&self, app: AppId) -> futures::future::BoxFuture<'_, Result<(), api::Error>>;
}

/// A part of the platform that the router serves under the cluster's domain.
#[derive(Debug, Clone)]
pub struct SystemRoute {
    /// What stands before the domain: `controller`, `git`.
    pub subdomain: String,
    pub address: SocketAddr,
}

pub struct Config {
    pub domain: String,
    /// Ports that users' URLs need to name; 80 and 443 need not be named.
    pub http_port: u16,
    pub https_port: u16,
    pub keys: Keys,
    /// For calls to hosts.
    pub internal_key: String,
    /// The first certificate of the cluster's authority, which the host has on disk.
    pub ca_cert: String,
    pub cert: String,
    pub cert_key: String,
    pub system_routes: Vec<SystemRoute>,
    pub logs: Arc<dyn LogSource>,
    pub forget: Vec<Arc<dyn Forget>>,
    /// Discovery's API, by which providers that are services of the cluster are found.
    pub discoverd: Option<api::Endpoint>,
    /// Makes the certificates of domains that the cluster migrates to, and what follows those that end.
    pub authority: daemon::secrets::Authority,
    /// Packs what a backup needs beside the state.
    pub archive: Option<Arc<dyn backup::Archive>>,
    /// Where layers are, `DIGEST.erofs` each.
    pub layers: std::path::PathBuf,
    /// Where the list of base images is, which hosts without one take over from others.
    pub stack: Option<std::path::PathBuf>,
    /// The cluster's bucket, where it has one.
    pub objects: Option<Arc<dyn api::objects::Objects>>,
    /// Passes requests on to the leader where this host is not the one; a host that is alone needs none.
    pub forward: Option<Arc<dyn daemon::Forward>>,
    /// The way to other hosts.
    pub peers: Option<Arc<dyn api::peers::Peers>>,
    /// This host as a member of the cluster.
    pub membership: Option<Membership>,
}

/// What all handlers and loops share.
#[derive(Clone)]
pub struct Controller {
    store: Store,
    config: Arc<Config>,
    hosts: Arc<hosts::Liveness>,
    routers: Arc<routers::Routers>,
    providers: Arc<providers::Providers>,
    events: Arc<event_cache::EventCache>,
    clock: Arc<clock::Clock>,
    announced: Arc<membership::Announced>,
    fetches: Arc<copies::Fetches>,
    answered: Arc<leading::Answered>,
    by_host: Arc<by_host::Cache>,
    renewal_failure: Arc<authority::Failure>,
    /// Where changes go that are only tried: to a copy of the state instead of the store.
    copy: Option<Arc<std::sync::Mutex<State>>>,
}

impl Controller {
    pub fn new(store: Store, config: Config) -> Self {
        Controller {
            store,
            providers: Arc::new(providers::Providers::new(config.discoverd.clone())),
            events: Arc::default(),
            config: Arc::new(config),
            hosts: Arc::default(),
            clock: Arc::default(),
            announced: Arc::default(),
            fetches: Arc::default(),
            answered: Arc::default(),
            by_host: Arc::default(),
            renewal_failure: Arc::default(),
            routers: Arc::default(),
            copy: None,
        }
    }

    /// Serves until `shutdown`.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let loops = [
            tokio::spawn(planner::run(self.clone(), shutdown.clone())),
            tokio::spawn(drain::run(self.clone(), shutdown.clone())),
            tokio::spawn(hosts::run(self.clone(), shutdown.clone())),
            tokio::spawn(cleanup::run(self.clone(), shutdown.clone())),
            tokio::spawn(domain::run(self.clone(), shutdown.clone())),
            tokio::spawn(authority::run(self.clone(), shutdown.clone())),
            tokio::spawn(membership::run(self.clone(), shutdown.clone())),
            tokio::spawn(copies::run(self.clone(), shutdown.clone())),
            tokio::spawn(layer_objects::run(self.clone(), shutdown.clone())),
        ];
        let router = http::router(self);
        daemon::server::serve(listener, router, shutdown).await;
        for task in loops {
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }

    fn state(&self) -> Arc<State> {
        match &self.copy {
            None => self.store.read().state,
            Some(copy) => Arc::new(copy.lock().expect("no panic while held").clone()),
        }
    }

    /// A controller for whose handlers everything is as it is now, and whose changes nobody sees.
    fn on_a_copy(&self) -> Controller {
        let copy = State::clone(&self.state());
        Controller {
            copy: Some(Arc::new(std::sync::Mutex::new(copy))),
            ..self.clone()
        }
    }

    /// Proposes a change, stamped with this machine's time.
    async fn write(&self, change: Change) -> Result<state::Applied, api::Error> {
        let command = Command {
            at: self.now(),
            change,
        };
        if let Some(copy) = &self.copy {
            return write_to(copy, command);
        }
        match self.store.write(command).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(rejection)) => Err(http::error::of_rejection(rejection)),
            Err(error) => Err(http::error::of_store(error)),
        }
    }

    /// The cluster's time: that of the host that leads, going on where the one before it was.
    fn now(&self) -> types::Timestamp {
        self.clock.now(daemon::now())
    }

    /// Clients of other hosts, or of this one by its address where no others can be.
    fn client_of(&self, host: &types::Host, part: api::peers::Part) -> Result<api::Client, api::ClientError> {
        if let Some(peers) = &self.config.peers {
            return peers.client(host, part);
        }
        api::Client::new(&api::Endpoint {
            url: format!("http://{}", host.addr),
            key: self.config.internal_key.clone(),
            trust: api::Trust::System,
        })
    }

    /// Wakes after every change of the state.
    fn changes(&self) -> watch::Receiver<store::View<State>> {
        self.store.watch()
    }
}

fn write_to(copy: &std::sync::Mutex<State>, command: Command) -> Result<state::Applied, api::Error> {
    let mut copy = copy.lock().expect("no panic while held");
    let index = copy.revision + 1;
    copy.apply(index, command).map_err(http::error::of_rejection)
}
