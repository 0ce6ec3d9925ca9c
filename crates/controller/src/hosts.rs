//! Whether hosts are heard of: each says every second that it is there.
//!
//! When a host was last heard is kept in memory, as it would be a write a second for nothing; that it
//! fell silent, and that it is back, are rows.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use api::{Error, host::HostReport};
use daemon::Shutdown;
use state::Change;
use types::{Host, HostId, HostState, Timestamp};

use crate::Controller;

/// After this long without a word a host is out of rotation.
const SILENCE_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Liveness {
    heard: Mutex<BTreeMap<HostId, Timestamp>>,
}

impl Liveness {
    fn hear(&self, host: HostId, now: Timestamp) {
        self.heard.lock().expect("no panic while held").insert(host, now);
    }

    /// When the host was last heard; a host that was never heard counts from `start`.
    fn last_heard(&self, host: &HostId, start: Timestamp) -> Timestamp {
        self.heard
            .lock()
            .expect("no panic while held")
            .get(host)
            .copied()
            .unwrap_or(start)
    }
}

impl Controller {
    pub(crate) async fn report_host(&self, id: HostId, report: HostReport) -> Result<(), Error> {
        let now = daemon::now();
        self.hosts.hear(id.clone(), now);
        let state = self.state();
        let known = state.hosts.get(&id);
        let host = Host {
            id: id.clone(),
            addr: report.addr,
            tags: report.tags,
            state: HostState::Up,
            memory_bytes: report.memory_bytes,
            cpu_milli: report.cpu_milli,
            gateway: report.gateway,
            subnet: report.subnet,
            underlay: report.underlay,
            public_key: report.public_key,
            version: report.version,
            created_at: known.map_or(now, |known| known.created_at),
            started_at: report.started_at,
        };
        if known.is_none_or(|known| **known != host) {
            tracing::info!(host = %id, addr = %host.addr, "host is up");
            self.write(Change::PutHost { host }).await?;
        }
        Ok(())
    }
}

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let start = daemon::now();
    let mut timer = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            _ = shutdown.cancelled() => return,
        }
        let now = daemon::now();
        for host in controller.state().hosts.values() {
            let last_heard = controller.hosts.last_heard(&host.id, start);
            if host.state == HostState::Up && now.since(last_heard) > SILENCE_MAX {
                tracing::warn!(host = %host.id, "host is silent");
                let state = HostState::Silent { since: last_heard };
                if let Err(error) = controller
                    .write(Change::SetHostState {
                        host: host.id.clone(),
                        state,
                    })
                    .await
                {
                    tracing::warn!(%error, "cannot note that a host is silent");
                }
            }
        }
    }
}
