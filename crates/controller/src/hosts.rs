//! Whether hosts are heard of: each says every second that it is there.
//!
//! When a host was last heard is kept in memory, as it would be a write a second for nothing; that it
//! fell silent, and that it is back, are rows. Only the host that leads listens: one that begins to
//! lead has heard nobody yet, and gives every host as long as if it had just been heard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{Error, host::HostReport};
use daemon::Shutdown;
use state::Change;
use tokio::time::Instant;
use types::{Host, HostId, HostState, Timestamp};

use crate::Controller;

/// After this long without a word a host is out of rotation.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long hosts may take to find a new leader, beyond that.
const FIRST_WORD_MAX: Duration = Duration::from_secs(2);
/// Between two looks; what could not be written is tried again then.
const PAUSE_MIN: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Liveness {
    heard: Mutex<BTreeMap<HostId, Instant>>,
    /// When this host began to listen.
    began: Mutex<Option<Instant>>,
}

impl Liveness {
    fn hear(&self, host: HostId) {
        self.heard().insert(host, Instant::now());
    }

    /// How long nothing was heard of a host.
    pub fn silence(&self, host: &HostId) -> Option<Duration> {
        self.heard().get(host).map(Instant::elapsed)
    }

    fn begin(&self, hosts: impl Iterator<Item = HostId>) {
        let now = Instant::now();
        *self.began.lock().expect("no panic while held") = Some(now);
        *self.heard() = hosts.map(|host| (host, now)).collect();
    }

    /// For how long hosts may still look for who leads.
    fn first_words(&self) -> Duration {
        let began = *self.began.lock().expect("no panic while held");
        let since = began.map_or(Duration::ZERO, |began| began.elapsed());
        (SILENCE_MAX + FIRST_WORD_MAX).saturating_sub(since)
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostId, Instant>> {
        self.heard.lock().expect("no panic while held")
    }
}

impl Controller {
    pub(crate) async fn report_host(&self, id: HostId, report: HostReport) -> Result<(), Error> {
        self.hosts.hear(id.clone());
        let state = self.state();
        let known = state.hosts.get(&id);
        let member = state.member_of(&id);
        if member.is_none() && !state.members.is_empty() && self.config.membership.is_some() {
            let error = Error::new(
                api::Code::Unauthorized,
                format!("host {id} is not a member of the cluster"),
            );
            return Err(error.with_hint("it was removed; `flynn-host join` makes it one again"));
        }
        let host = Host {
            id: id.clone(),
            addr: report.addr,
            tags: report.tags,
            is_draining: known.is_some_and(|known| known.is_draining),
            state: HostState::Up,
            memory_bytes: report.memory_bytes,
            cpu_milli: report.cpu_milli,
            gateway: report.gateway,
            subnet: report.subnet,
            underlay: report.underlay,
            public_key: report.public_key,
            node: member.map(|member| member.node),
            peer_addr: member.map(|member| member.addr.clone()),
            public_addresses: report.public_addresses,
            version: report.version,
            created_at: known.map_or_else(|| self.now(), |known| known.created_at),
            started_at: report.started_at,
            up_since: known.map_or(Timestamp::EPOCH, |known| known.up_since),
            relapses: known.map_or(0, |known| known.relapses),
        };
        if known.is_none_or(|known| **known != host) {
            tracing::info!(host = %id, addr = %host.addr, "host is up");
            self.write(Change::PutHost { host }).await?;
        }
        Ok(())
    }
}

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut leadership = controller.store.leadership();
    let mut pause = Duration::ZERO;
    let mut leads = false;
    loop {
        tokio::select! {
            changed = leadership.wait_for(|now| *now != leads) => {
                if changed.is_err() {
                    return;
                }
            }
            _ = tokio::time::sleep(pause), if leads => {}
            _ = shutdown.cancelled() => return,
        }
        if std::mem::replace(&mut leads, *leadership.borrow_and_update()) != leads && leads {
            controller.begin_to_lead();
        }
        if leads {
            pause = look(&controller).await.max(PAUSE_MIN);
        }
    }
}

impl Controller {
    fn begin_to_lead(&self) {
        let state = self.state();
        self.clock.lead(state.last_at, daemon::now());
        self.hosts.begin(state.hosts.keys().cloned());
        self.routers.begin();
    }
}

/// How long nobody can be missed now, whatever is heard meanwhile.
async fn look(controller: &Controller) -> Duration {
    let first_words = controller.hosts.first_words();
    if !first_words.is_zero() {
        return first_words;
    }
    let mut pause = SILENCE_MAX;
    let hosts: Vec<Arc<Host>> = controller.state().hosts.values().cloned().collect();
    for host in hosts.iter().filter(|host| host.state == HostState::Up) {
        let Some(silence) = controller.hosts.silence(&host.id) else {
            // It became known a moment ago, by what another host said.
            controller.hosts.hear(host.id.clone());
            continue;
        };
        pause = pause.min(SILENCE_MAX.saturating_sub(silence));
        if silence < SILENCE_MAX {
            continue;
        }
        tracing::warn!(host = %host.id, "host is silent");
        let since = controller.now() - silence;
        let silent = Change::SetHostState {
            host: host.id.clone(),
            state: HostState::Silent { since },
        };
        if let Err(error) = controller.write(silent).await {
            tracing::warn!(%error, "cannot note that a host is silent");
        }
    }
    pause
}
