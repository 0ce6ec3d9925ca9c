//! Runs the jobs of one host and reports them.
//!
//! ```text
//!   controller ──assignments──▶ link ─▶ reconcile ─▶ one task per job ──▶ flynn-shim, overlay
//!        ▲                                (pure)     (start, life)
//!        └──────────reports──────────── report ◀─────────┘
//! ```
//!
//! What a reader would get wrong:
//! * Jobs are not this process's children. It is killed and started again at will; it finds its jobs
//!   by their directories ([`disk`]) and shims, and goes on. Starting after a power cut is the same
//!   code.
//! * A controller that cannot be reached is no reason to stop anything. Only a list of jobs that was
//!   sent to its end makes a job surplus.
//! * A job's directory stays until the controller has confirmed that it knows of the job's end.
//!
//! It does not decide what should run, fetch layers, serve names or write logs: the shim does that.

mod agent;
mod disk;
pub mod edge;
mod gc;
mod health;
mod http;
mod image_check;
mod life;
mod link;
mod monitor;
mod network;
mod probe;
mod reconcile;
mod report;
mod spec;
mod start;
mod storage;
mod streams;
mod table;
mod volumes;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use api::{Controller, Endpoint};
use daemon::{Keys, Shutdown, StateDir};
use tokio::net::TcpListener;
use types::HostId;

use agent::{Agent, Settings};
use edge::{Net, OverlayNet, Runtime, ShimRuntime};
use link::About;

/// The port of the original's registry, unless the network's configuration names another.
const DISCOVERD_PORT: u16 = 1111;

pub struct Config {
    pub host: HostId,
    pub state: StateDir,
    /// Where the controller's API is, with the internal key.
    pub controller: Endpoint,
    /// Where the host API is served, and whose keys it takes.
    pub listener: TcpListener,
    pub keys: Keys,
    /// `IP:PORT` by which others reach the host API, where that is not what the listener is bound to.
    pub advertised: Option<String>,
    pub network: overlay::Config,
    /// Of this host's tunnel to the others, base64, where what its jobs send is encrypted.
    pub public_key: Option<String>,
    /// By which the outside reaches this host's router, where that is not what other hosts reach it by.
    pub public_addresses: Vec<IpAddr>,
    /// Name of the cgroup that the jobs' ones are made in.
    pub cgroup_parent: String,
    /// The program that runs containers.
    pub shim: PathBuf,
    /// The name server of jobs; the gateway as a rule.
    pub dns: Ipv4Addr,
    pub tags: BTreeMap<String, String>,
    /// The authorities that the machine trusts; every job trusts them too. A file that is not there
    /// counts as none.
    pub ca_bundle: Option<PathBuf>,
    /// What ships the logs of this host's jobs.
    pub sinks: Arc<dyn api::sinks::Sinks>,
    /// What the host's own API serves beside the agent's part of it, with keys of its own.
    pub more: axum::Router,
    /// First of the user ids that belong to jobs: 65 536 for each address of the network.
    pub uid_base: u32,
}

/// Runs until `shutdown`, which leaves the jobs running.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let runtime = Arc::new(ShimRuntime::new(&config.shim));
    let net = Arc::new(OverlayNet::new(config.network.clone()));
    run_with(config, runtime, net, shutdown).await
}

/// [`run`] on another machine than the real one.
pub async fn run_with(
    config: Config,
    runtime: Arc<dyn Runtime>,
    net: Arc<dyn Net>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let gateway = edge::gateway(&config.network);
    let discoverd_port = config.network.discoverd_port.unwrap_or(DISCOVERD_PORT);
    let about = About {
        addr: match config.advertised {
            Some(addr) => addr,
            None => config.listener.local_addr()?.to_string(),
        },
        tags: Arc::new(config.tags.into()),
        gateway: IpAddr::V4(gateway),
        subnet: config.network.subnet,
        underlay: config.network.underlay.as_ref().map(|underlay| underlay.address),
        public_key: config.public_key,
        public_addresses: config.public_addresses,
        started_at: daemon::now(),
    };
    let settings = Settings {
        cgroup_parent: config.cgroup_parent,
        uid_base: config.uid_base,
        dns: config.dns,
        discoverd: format!("{gateway}:{discoverd_port}"),
        tokens: daemon::AppTokens::new(&config.controller.key),
        ca_bundle: config.ca_bundle.filter(|path| path.is_file()),
    };
    let agent = Agent::new(
        config.host,
        settings,
        disk::Disk::new(config.state),
        runtime,
        net,
        Controller::new(&config.controller)?,
        shutdown.clone(),
    );
    agent.adopt().await?;
    let api = http::router(agent.clone(), about.clone(), config.sinks, config.keys).merge(config.more);
    tokio::join!(
        daemon::server::serve(config.listener, api, shutdown),
        link::run(agent.clone(), about),
        gc::run(agent.clone()),
        volumes::run(agent.clone()),
        network::run(agent.clone()),
    );
    agent.wind_down().await;
    Ok(())
}
