//! One life of an agent: on threads of its own, so that it can be killed at any moment.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use agent::edge::{Net, Runtime};
use api::{
    Client, Endpoint, Trust,
    host::{HostJob, Mountspec},
};
use daemon::{Keys, Principal, Shutdown, StateDir};
use types::{AppId, JobId};

pub const HOST: &str = "host0";
pub const KEY: &str = "a-key-for-tests-only";
/// Only a test that fails takes as long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Life {
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: Shutdown,
    done: tokio::sync::watch::Receiver<bool>,
    pub url: String,
}

/// The parts of an agent's configuration that tests differ in.
pub struct Setup {
    pub state: PathBuf,
    pub controller: SocketAddr,
    pub network: overlay::Config,
    pub cgroup_parent: String,
    pub shim: PathBuf,
}

/// What an agent says is shown with a test that fails; `FLYNN_LOG=debug` shows the phases of starts.
static LOGGING: Once = Once::new();

impl Life {
    /// `None`: the real machine.
    pub fn begin(setup: &Setup, machine: Option<(Arc<dyn Runtime>, Arc<dyn Net>)>) -> Life {
        LOGGING.call_once(daemon::init_logging);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (state, controller, network) = (setup.state.clone(), setup.controller, setup.network.clone());
        let (cgroup_parent, shim) = (setup.cgroup_parent.clone(), setup.shim.clone());
        let shutdown = Shutdown::new();
        let (stop, (ended, done)) = (shutdown.clone(), tokio::sync::watch::channel(false));
        runtime.spawn(async move {
            let config = agent::Config {
                more: axum::Router::new(),
                host: HOST.parse().unwrap(),
                state: StateDir::new(state),
                controller: endpoint(format!("http://{controller}")),
                listener: tokio::net::TcpListener::from_std(listener).unwrap(),
                keys: Keys::new([(KEY, Principal::Internal)]),
                advertised: None,
                dns: network.subnet.gateway(),
                network,
                public_key: None,
                public_addresses: vec![],
                cgroup_parent,
                shim,
                tags: BTreeMap::new(),
                ca_bundle: None,
                sinks: std::sync::Arc::new(NoSinks),
                uid_base: 1 << 24,
            };
            let result = match machine {
                Some((runtime, net)) => agent::run_with(config, runtime, net, stop).await,
                None => agent::run(config, stop).await,
            };
            result.expect("an agent only ends when it is told to");
            ended.send_replace(true);
        });
        Life {
            runtime: Some(runtime),
            shutdown,
            done,
            url,
        }
    }

    /// A client of its host API.
    pub fn client(&self) -> Client {
        Client::new(&endpoint(self.url.clone())).unwrap()
    }

    /// Every task is dropped where it waits, as kill -9 would; comes back when none is left.
    pub fn kill(mut self) {
        let runtime = self.runtime.take().expect("it is killed once");
        // Waiting is not allowed on a thread of another runtime, as this one is.
        std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE))
            .join()
            .unwrap();
    }

    pub async fn shut_down(mut self) {
        self.shutdown.cancel();
        self.done.wait_for(|is_done| *is_done).await.unwrap();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn endpoint(url: String) -> Endpoint {
    Endpoint {
        url,
        key: KEY.into(),
        trust: Trust::System,
    }
}

/// Waits for something that comes about elsewhere.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn id_of(job: &HostJob) -> JobId {
    job.job_id().unwrap()
}

/// A one-off job: up as soon as it runs.
pub fn job(layer: &str, args: &[&str]) -> HostJob {
    let mut job = HostJob {
        id: format!("{HOST}-{}", uuid::Uuid::new_v4()),
        ..HostJob::default()
    };
    job.metadata
        .insert(HostJob::APP.into(), uuid::Uuid::new_v4().to_string());
    job.metadata.insert(HostJob::APP_NAME.into(), "shop".into());
    job.metadata.insert(HostJob::TYPE.into(), "web".into());
    job.mountspecs = vec![Mountspec {
        kind: "erofs".into(),
        id: layer.into(),
        ..Mountspec::default()
    }];
    job.config.args = args.iter().map(|arg| arg.to_string()).collect();
    job
}

pub fn app_of(job: &HostJob) -> AppId {
    job.metadata[HostJob::APP].parse().unwrap()
}

/// Jobs that have a directory.
pub fn directories(state: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(StateDir::new(state).jobs()) else {
        return vec![];
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// No log is sent anywhere.
struct NoSinks;

#[async_trait::async_trait]
impl api::sinks::Sinks for NoSinks {
    fn list(&self) -> Vec<api::sinks::HostSink> {
        vec![]
    }

    async fn put(&self, _: &str, _: api::sinks::NewSink) -> Result<api::sinks::HostSink, api::Error> {
        Err(api::Error::unavailable("there are no sinks here"))
    }

    async fn remove(&self, _: &str) -> Result<(), api::Error> {
        Err(api::Error::not_found())
    }
}
