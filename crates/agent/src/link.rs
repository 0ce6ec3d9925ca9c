//! The connection to the controller: a heartbeat one way, assignments the other.
//!
//! That it is down changes nothing for the jobs: nothing is stopped, nothing is started, and what
//! happens meanwhile is told when it is up again.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use api::host::{Assignment, HostReport};
use futures::{FutureExt, StreamExt};
use tokio::{sync::Notify, time::MissedTickBehavior};
use tracing::{debug, info, warn};
use types::Timestamp;

use crate::agent::Agent;

/// The contract says at least once a second.
const HEARTBEAT: Duration = Duration::from_millis(900);
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What a host says of itself.
#[derive(Debug, Clone)]
pub struct About {
    pub addr: String,
    /// As the configuration has them, or as they were set since.
    pub tags: Arc<RwLock<BTreeMap<String, String>>>,
    pub gateway: IpAddr,
    pub subnet: overlay::Subnet,
    pub underlay: Option<IpAddr>,
    pub public_key: Option<String>,
    pub public_addresses: Vec<IpAddr>,
    pub started_at: Timestamp,
}

impl About {
    pub fn tags(&self) -> BTreeMap<String, String> {
        self.tags
            .read()
            .expect("nothing panics while it holds this")
            .clone()
    }

    pub fn set_tags(&self, tags: BTreeMap<String, String>) {
        *self.tags.write().expect("nothing panics while it holds this") = tags;
    }

    fn report(&self, memory_bytes: i64, cpu_milli: i64) -> HostReport {
        HostReport {
            addr: self.addr.clone(),
            tags: self.tags(),
            memory_bytes,
            cpu_milli,
            gateway: Some(self.gateway),
            subnet: Some(self.subnet.to_string()),
            underlay: self.underlay,
            public_key: self.public_key.clone(),
            public_addresses: self.public_addresses.clone(),
            version: api::VERSION.into(),
            started_at: self.started_at,
        }
    }
}

pub async fn run(agent: Arc<Agent>, about: About) {
    let came_back = Notify::new();
    tokio::select! {
        _ = heartbeat(&agent, &about, &came_back) => {}
        _ = follow(&agent, &came_back) => {}
        _ = agent.shutdown.cancelled() => {}
    }
}

async fn heartbeat(agent: &Agent, about: &About, came_back: &Notify) {
    // Once: finding out takes a dozen system calls.
    let (memory_bytes, cpu_milli) = (memory_bytes(), cpu_milli());
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_up = None;
    loop {
        tick.tick().await;
        let report = about.report(memory_bytes, cpu_milli);
        let call = agent.controller.report_host(&agent.host, &report);
        let failure = match tokio::time::timeout(ANSWER_PATIENCE, call).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", ANSWER_PATIENCE.as_secs())),
        };
        match (&failure, is_up) {
            (Some(error), None | Some(true)) => warn!(error, "the controller is out of reach; jobs go on"),
            (None, None | Some(false)) => {
                info!(host = %agent.host, "the controller knows this host");
                // A stream from before may be dead without having ended.
                came_back.notify_one();
            }
            _ => {}
        }
        is_up = Some(failure.is_none());
    }
}

/// Follows assignments. A stream is opened when the heartbeat (again) gets through, so that the
/// controller knows the host that asks.
async fn follow(agent: &Arc<Agent>, came_back: &Notify) {
    came_back.notified().await;
    let mut backoff = BACKOFF_MIN;
    loop {
        tokio::select! {
            heard = listen(agent) => {
                if heard { backoff = BACKOFF_MIN } else { backoff = (backoff * 2).min(BACKOFF_MAX) }
                tokio::select! {
                    _ = tokio::time::sleep(backoff) => {}
                    _ = came_back.notified() => backoff = BACKOFF_MIN,
                }
            }
            _ = came_back.notified() => {}
        }
    }
}

/// One stream from beginning to end; whether anything was heard.
async fn listen(agent: &Arc<Agent>) -> bool {
    let mut stream = match agent.controller.assignments(&agent.host).await {
        Ok(stream) => stream,
        Err(error) => {
            debug!(%error, "cannot follow assignments");
            return false;
        }
    };
    agent.reconnected();
    let mut has_heard = false;
    while let Some(message) = stream.next().await {
        let mut message = Some(message);
        // All that is there already is taken in before anything is decided.
        while let Some(Ok(assignment)) = message {
            has_heard = true;
            if matches!(assignment, Assignment::Current) {
                debug!("the controller has named every job of this host");
            }
            agent.hear(assignment);
            message = stream.next().now_or_never().flatten();
        }
        agent.reconcile();
        if let Some(Err(error)) = message {
            debug!(%error, "the stream of assignments broke");
            return has_heard;
        }
    }
    has_heard
}

/// Of those that this process may use.
fn cpu_milli() -> i64 {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    cpus as i64 * 1000
}

/// Of the machine; 0 where it cannot be told.
fn memory_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
