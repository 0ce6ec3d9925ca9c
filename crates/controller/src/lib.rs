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
mod cleanup;
mod drain;
mod event_view;
mod feed;
mod host_job;
mod hosts;
mod http;
mod names;
mod planner;
mod routers;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::logs::LogSource;
use daemon::{Keys, Shutdown};
use state::{Change, Command, State};
use tokio::{net::TcpListener, sync::watch};
use types::AppId;

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
    pub ca_cert: String,
    pub cert: String,
    pub cert_key: String,
    pub system_routes: Vec<SystemRoute>,
    pub logs: Arc<dyn LogSource>,
    pub forget: Vec<Arc<dyn Forget>>,
}

/// What all handlers and loops share.
#[derive(Clone)]
pub struct Controller {
    store: Store,
    config: Arc<Config>,
    hosts: Arc<hosts::Liveness>,
    routers: Arc<routers::Routers>,
}

impl Controller {
    pub fn new(store: Store, config: Config) -> Self {
        Controller {
            store,
            config: Arc::new(config),
            hosts: Arc::default(),
            routers: Arc::new(routers::Routers::new(daemon::now())),
        }
    }

    /// Serves until `shutdown`.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let loops = [
            tokio::spawn(planner::run(self.clone(), shutdown.clone())),
            tokio::spawn(drain::run(self.clone(), shutdown.clone())),
            tokio::spawn(hosts::run(self.clone(), shutdown.clone())),
            tokio::spawn(cleanup::run(self.clone(), shutdown.clone())),
        ];
        let router = http::router(self);
        daemon::server::serve(listener, router, shutdown).await;
        for task in loops {
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }

    fn state(&self) -> Arc<State> {
        self.store.read().state
    }

    /// Proposes a change, stamped with this machine's time.
    async fn write(&self, change: Change) -> Result<state::Applied, api::Error> {
        let command = Command {
            at: daemon::now(),
            change,
        };
        match self.store.write(command).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(rejection)) => Err(http::error::of_rejection(rejection)),
            Err(error) => Err(http::error::of_store(error)),
        }
    }

    /// Wakes after every change of the state.
    fn changes(&self) -> watch::Receiver<store::View<State>> {
        self.store.watch()
    }
}
