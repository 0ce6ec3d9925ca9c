//! A machine made of values, and a fuse that kills whoever uses it at a chosen moment.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use agent::edge::{Created, Net, Runtime, Streams};
use async_trait::async_trait;
use container::{
    Adopted, Attached, ControlError, ExecSession, ExecSpec, ExitRecord, Outcome, Spec, StartError, Started,
    protocol::{Phase, State},
};
use overlay::{Lease, Leases};
use tokio::sync::watch;

/// Burns down with every step. Whoever takes the last one, or any after it, never comes back: to
/// the rest of the world that is a process that was killed.
#[derive(Clone)]
pub struct Fuse {
    left: Arc<AtomicU64>,
    is_blown: Arc<AtomicBool>,
}

impl Fuse {
    pub fn endless() -> Self {
        Fuse::of(u64::MAX)
    }

    pub fn of(steps: u64) -> Self {
        Fuse {
            left: Arc::new(AtomicU64::new(steps)),
            is_blown: Arc::default(),
        }
    }

    pub fn is_blown(&self) -> bool {
        self.is_blown.load(Ordering::SeqCst)
    }

    /// Makes it endless, for the next life.
    pub fn renew(&self) {
        self.left.store(u64::MAX, Ordering::SeqCst);
        self.is_blown.store(false, Ordering::SeqCst);
    }

    pub async fn burn(&self) {
        let left = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(left.saturating_sub(1))
            });
        if left.is_ok_and(|left| left <= 1) {
            self.is_blown.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

struct Inner {
    containers: Mutex<BTreeMap<PathBuf, Container>>,
    leases: Mutex<Leases>,
    map: Mutex<overlay::Map>,
    fuse: Fuse,
}

struct Container {
    is_running: bool,
    is_gone: watch::Sender<bool>,
    starts: u32,
    address: Option<Ipv4Addr>,
}

impl Machine {
    pub fn new(fuse: Fuse) -> Self {
        let inner = Inner {
            containers: Mutex::default(),
            leases: Mutex::new(book()),
            map: Mutex::default(),
            fuse,
        };
        Machine {
            inner: Arc::new(inner),
        }
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Container>> {
        self.inner.containers.lock().unwrap()
    }

    /// Other hosts, as the network has them.
    pub fn hosts(&self) -> Vec<String> {
        self.inner.map.lock().unwrap().hosts.keys().cloned().collect()
    }

    /// As after a power cut.
    pub fn forget_hosts(&self) {
        *self.inner.map.lock().unwrap() = overlay::Map::default();
    }

    /// Names of the directories of what runs.
    pub fn running(&self) -> Vec<String> {
        let containers = self.containers();
        let running = containers.iter().filter(|(_, container)| container.is_running);
        running
            .map(|(dir, _)| dir.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    /// The most often that any one container's process was begun.
    pub fn starts_max(&self) -> u32 {
        self.containers()
            .values()
            .map(|container| container.starts)
            .max()
            .unwrap_or(0)
    }

    /// Addresses that are leased now.
    pub fn leased(&self) -> usize {
        self.inner.leases.lock().unwrap().iter().count()
    }

    /// A process ends by itself.
    pub fn exit(&self, dir: &Path, outcome: Outcome) {
        let now = jiff::Timestamp::now();
        let started_at = (!matches!(outcome, Outcome::NotStarted { .. })).then_some(now);
        let record = ExitRecord {
            outcome,
            oom_killed: false,
            started_at,
            ended_at: now,
        };
        if dir.exists() {
            record.write(dir).unwrap();
        }
        self.vanish(dir);
    }

    /// A container is killed, and its shim too.
    pub fn vanish(&self, dir: &Path) {
        if let Some(container) = self.containers().get_mut(dir) {
            container.is_running = false;
            container.is_gone.send_replace(true);
        }
    }

    pub fn power_cut(&self) {
        let dirs: Vec<PathBuf> = self.containers().keys().cloned().collect();
        dirs.iter().for_each(|dir| self.vanish(dir));
    }

    fn is_gone(&self, dir: &Path) -> bool {
        self.containers()
            .get(dir)
            .is_none_or(|container| *container.is_gone.borrow())
    }
}

fn book() -> Leases {
    Leases::new("100.100.0.0/24".parse().unwrap(), []).unwrap()
}

struct FakeCreated {
    machine: Machine,
    dir: PathBuf,
    is_started: bool,
}

impl Drop for FakeCreated {
    fn drop(&mut self) {
        if !self.is_started {
            let error = "whoever made it went away".into();
            self.machine
                .exit(&self.dir, Outcome::NotStarted { code: 125, error });
        }
    }
}

#[async_trait]
impl Created for FakeCreated {
    fn pid(&self) -> u32 {
        u32::MAX
    }

    async fn start(mut self: Box<Self>) -> Result<Started, StartError> {
        self.machine.inner.fuse.burn().await;
        self.is_started = true;
        if let Some(container) = self.machine.containers().get_mut(&self.dir) {
            container.is_running = true;
            container.starts += 1;
        }
        self.machine.inner.fuse.burn().await;
        Ok(Started::Running)
    }
}

#[async_trait]
impl Runtime for Machine {
    async fn create(&self, job_dir: &Path, spec: &Spec) -> Result<Box<dyn Created>, StartError> {
        self.inner.fuse.burn().await;
        assert!(spec.problem().is_none(), "{:?}", spec.problem());
        assert!(
            self.is_gone(job_dir),
            "a second container in {}",
            job_dir.display()
        );
        std::fs::write(
            job_dir.join(container::job_dir::SPEC),
            serde_json::to_vec(spec).unwrap(),
        )
        .unwrap();
        {
            let mut containers = self.containers();
            let starts = containers.get(job_dir).map_or(0, |container| container.starts);
            let container = Container {
                is_running: false,
                is_gone: watch::Sender::new(false),
                starts,
                address: None,
            };
            containers.insert(job_dir.to_owned(), container);
        }
        let created = FakeCreated {
            machine: self.clone(),
            dir: job_dir.to_owned(),
            is_started: false,
        };
        self.inner.fuse.burn().await;
        Ok(Box::new(created))
    }

    async fn look(&self, job_dir: &Path) -> Result<Adopted, ControlError> {
        if !self.is_gone(job_dir) {
            return Ok(Adopted::Running(State {
                phase: Phase::Running,
                pid: u32::MAX,
            }));
        }
        Ok(match ExitRecord::read(job_dir)? {
            Some(record) => Adopted::Ended(record),
            None => Adopted::Lost,
        })
    }

    async fn wait(&self, job_dir: &Path) -> Result<ExitRecord, ControlError> {
        let gone = self
            .containers()
            .get(job_dir)
            .map(|container| container.is_gone.subscribe());
        let Some(mut gone) = gone else {
            return Err(ControlError::NotRunning);
        };
        let _ = gone.wait_for(|is_gone| *is_gone).await;
        ExitRecord::read(job_dir)?.ok_or(ControlError::NotRunning)
    }

    async fn stop(&self, job_dir: &Path, _grace: Duration) -> Result<(), ControlError> {
        self.inner.fuse.burn().await;
        if self.is_gone(job_dir) {
            return Err(ControlError::NotRunning);
        }
        self.exit(job_dir, Outcome::Signaled { signal: 15 });
        self.inner.fuse.burn().await;
        Ok(())
    }

    async fn signal(&self, _job_dir: &Path, _signal: i32) -> Result<(), ControlError> {
        Ok(())
    }

    async fn attach(&self, _job_dir: &Path, _streams: Streams) -> Result<Attached, ControlError> {
        Err(ControlError::NotRunning)
    }

    async fn exec(&self, _job_dir: &Path, _spec: &ExecSpec) -> Result<ExecSession, StartError> {
        Err(StartError::Spec("these containers are made of values".into()))
    }

    async fn cleanup(&self, job_dir: &Path, _cgroup: &str) -> anyhow::Result<()> {
        self.inner.fuse.burn().await;
        self.vanish(job_dir);
        Ok(())
    }
}

#[async_trait]
impl Net for Machine {
    async fn open(&self, leases: Vec<Lease>, map: overlay::Map) -> anyhow::Result<Vec<Lease>> {
        self.inner.fuse.burn().await;
        *self.inner.map.lock().unwrap() = map;
        let mut new = book();
        let unknown = leases
            .into_iter()
            .filter(|lease| new.adopt(lease).is_err())
            .collect();
        *self.inner.leases.lock().unwrap() = new;
        Ok(unknown)
    }

    fn allocate(&self, app: &str) -> anyhow::Result<Lease> {
        let lease = self.inner.leases.lock().unwrap().allocate(app)?;
        let containers = self.containers();
        let mut alive = containers
            .values()
            .filter(|container| !*container.is_gone.borrow());
        assert!(
            !alive.any(|container| container.address == Some(lease.address)),
            "{lease:?} is in use"
        );
        Ok(lease)
    }

    async fn attach(&self, _pid: u32, lease: &Lease) -> anyhow::Result<()> {
        self.inner.fuse.burn().await;
        {
            let mut containers = self.containers();
            let newest = containers
                .values_mut()
                .find(|it| it.address.is_none() && !*it.is_gone.borrow());
            if let Some(container) = newest {
                container.address = Some(lease.address);
            }
        }
        self.inner.fuse.burn().await;
        Ok(())
    }

    async fn detach(&self, lease: &Lease) -> anyhow::Result<()> {
        self.inner.fuse.burn().await;
        self.inner.leases.lock().unwrap().release(lease);
        Ok(())
    }

    fn ipv6(&self, _: std::net::Ipv4Addr) -> Option<std::net::Ipv6Addr> {
        None
    }

    async fn apply(&self, map: overlay::Map) -> anyhow::Result<()> {
        self.inner.fuse.burn().await;
        *self.inner.map.lock().unwrap() = map;
        Ok(())
    }

    async fn repair(&self) -> anyhow::Result<bool> {
        Ok(false)
    }
}
