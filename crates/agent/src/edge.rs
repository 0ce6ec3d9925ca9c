//! What the agent needs of the machine, as two narrow traits, and the real things behind them.
//!
//! The traits exist so that everything above them is tested with a machine made of values; what
//! they promise is what the shim and the network promise, not more.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use container::{
    Adopted, Attached, Control, ControlError, ExecSession, ExecSpec, ExitRecord, Shim, Spec, StartError,
    Started,
};
use overlay::{Lease, Map, Network};
use tokio::sync::OnceCell;

/// Runs containers. A container is named by its job's directory.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes a container whose process does not run yet. Dropping what is given back makes it go away.
    async fn create(&self, job_dir: &Path, spec: &Spec) -> Result<Box<dyn Created>, StartError>;
    /// What has become of it, for whoever did not see it being made.
    async fn look(&self, job_dir: &Path) -> Result<Adopted, ControlError>;
    /// Waits for the end.
    async fn wait(&self, job_dir: &Path) -> Result<ExitRecord, ControlError>;
    /// The polite signal now, SIGKILL after `grace`, also if nobody is there to see to it.
    async fn stop(&self, job_dir: &Path, grace: Duration) -> Result<(), ControlError>;
    async fn signal(&self, job_dir: &Path, signal: i32) -> Result<(), ControlError>;
    async fn attach(&self, job_dir: &Path, streams: Streams) -> Result<Attached, ControlError>;
    async fn exec(&self, job_dir: &Path, spec: &ExecSpec) -> Result<ExecSession, StartError>;
    /// Ends whatever is left of a container that nobody looks after any more.
    async fn cleanup(&self, job_dir: &Path, cgroup: &str) -> anyhow::Result<()>;
}

#[async_trait]
pub trait Created: Send {
    /// The container's first process, by which its network namespace is found.
    fn pid(&self) -> u32;
    async fn start(self: Box<Self>) -> Result<Started, StartError>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Gives jobs addresses.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Called once, before anything else. Gives back those leases that this network does not know
    /// how to honour, for example since its subnet is another one now.
    async fn open(&self, leases: Vec<Lease>, map: Map) -> anyhow::Result<Vec<Lease>>;
    fn allocate(&self, app: &str) -> anyhow::Result<Lease>;
    async fn attach(&self, pid: u32, lease: &Lease) -> anyhow::Result<()>;
    /// The job's other address, where jobs have one.
    fn ipv6(&self, address: Ipv4Addr) -> Option<Ipv6Addr>;
    /// Takes a lease back, attached or not.
    async fn detach(&self, lease: &Lease) -> anyhow::Result<()>;
    /// Takes a new map of the other hosts.
    async fn apply(&self, map: Map) -> anyhow::Result<()>;
    /// Puts back what something else on the machine took away; whether there was anything.
    async fn repair(&self) -> anyhow::Result<bool>;
}

/// Containers by `flynn-shim`.
pub struct ShimRuntime {
    shim: Shim,
}

impl ShimRuntime {
    pub fn new(shim_path: &Path) -> Self {
        ShimRuntime {
            shim: Shim::new(shim_path),
        }
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn create(&self, job_dir: &Path, spec: &Spec) -> Result<Box<dyn Created>, StartError> {
        Ok(Box::new(self.shim.create(job_dir, spec).await?))
    }

    async fn look(&self, job_dir: &Path) -> Result<Adopted, ControlError> {
        container::adopt(job_dir).await
    }

    async fn wait(&self, job_dir: &Path) -> Result<ExitRecord, ControlError> {
        Control::connect(job_dir).await?.wait().await
    }

    async fn stop(&self, job_dir: &Path, grace: Duration) -> Result<(), ControlError> {
        Control::connect(job_dir).await?.stop(grace).await
    }

    async fn signal(&self, job_dir: &Path, signal: i32) -> Result<(), ControlError> {
        Control::connect(job_dir).await?.signal(signal).await
    }

    async fn attach(&self, job_dir: &Path, streams: Streams) -> Result<Attached, ControlError> {
        let control = Control::connect(job_dir).await?;
        control
            .attach(streams.stdin, streams.stdout, streams.stderr)
            .await
    }

    async fn exec(&self, job_dir: &Path, spec: &ExecSpec) -> Result<ExecSession, StartError> {
        self.shim.exec(job_dir, spec).await
    }

    async fn cleanup(&self, job_dir: &Path, cgroup: &str) -> anyhow::Result<()> {
        let (job_dir, cgroup) = (job_dir.to_owned(), cgroup.to_owned());
        let work = move || match container::cleanup(&job_dir) {
            Ok(()) => Ok(()),
            // The power may have gone while the specification was being written: the cgroup is
            // known without it.
            Err(_) => container::cgroup::Cgroup::locate(&cgroup)?.destroy(),
        };
        tokio::task::spawn_blocking(work)
            .await?
            .context("cannot end what is left of a container")
    }
}

#[async_trait]
impl Created for container::Created {
    fn pid(&self) -> u32 {
        self.pid
    }

    async fn start(self: Box<Self>) -> Result<Started, StartError> {
        container::Created::start(*self).await
    }
}

/// Addresses by `overlay`.
pub struct OverlayNet {
    config: overlay::Config,
    network: OnceCell<Network>,
}

impl OverlayNet {
    pub fn new(config: overlay::Config) -> Self {
        OverlayNet {
            config,
            network: OnceCell::new(),
        }
    }

    fn network(&self) -> anyhow::Result<&Network> {
        self.network.get().context("the network is not open")
    }
}

#[async_trait]
impl Net for OverlayNet {
    async fn open(&self, leases: Vec<Lease>, map: Map) -> anyhow::Result<Vec<Lease>> {
        let mut book = overlay::Leases::new(self.config.subnet, [])?;
        let (known, unknown): (Vec<Lease>, Vec<Lease>) =
            leases.into_iter().partition(|lease| book.adopt(lease).is_ok());
        let network = Network::open(self.config.clone(), known, map)
            .await
            .map_err(with_hint)?;
        if let Err(error) = network.sweep().await {
            tracing::warn!(%error, "cannot look for links that are left over");
        }
        for finding in network.diagnose().await.unwrap_or_default() {
            tracing::warn!(?finding, "jobs may not reach what they should");
        }
        if self.network.set(network).is_err() {
            anyhow::bail!("the network is open already");
        }
        Ok(unknown)
    }

    fn allocate(&self, app: &str) -> anyhow::Result<Lease> {
        self.network()?.allocate(app).map_err(with_hint)
    }

    async fn attach(&self, pid: u32, lease: &Lease) -> anyhow::Result<()> {
        self.network()?
            .attach(pid, lease)
            .await
            .map(drop)
            .map_err(with_hint)
    }

    fn ipv6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let prefix = self.network.get()?.config().ipv6?;
        Some(prefix.address(address))
    }

    async fn detach(&self, lease: &Lease) -> anyhow::Result<()> {
        self.network()?.detach(lease).await.map_err(with_hint)
    }

    async fn apply(&self, map: Map) -> anyhow::Result<()> {
        self.network()?.apply(map).await.map_err(with_hint)
    }

    async fn repair(&self) -> anyhow::Result<bool> {
        self.network()?.repair().await.map_err(with_hint)
    }
}

fn with_hint(error: overlay::Error) -> anyhow::Error {
    match error.hint() {
        Some(hint) => anyhow::anyhow!("{error} (hint: {hint})"),
        None => error.into(),
    }
}

/// The address by which jobs reach this host.
pub fn gateway(config: &overlay::Config) -> Ipv4Addr {
    config.subnet.gateway()
}
