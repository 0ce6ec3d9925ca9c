//! The agent itself: what its tasks share, how it finds the jobs of the one before it, and how
//! steps become tasks.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context;
use api::{
    Controller,
    host::{Assignment, HostJob, JobReport, ReportedState},
};
use container::{Adopted, protocol::Phase as ShimPhase};
use daemon::Shutdown;
use futures::StreamExt;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use types::{AppId, Exit, HostId, JobId};

use crate::{
    disk::{Disk, Found, JobRecord, Progress, Stage},
    edge::{Net, Runtime},
    life::{self, End},
    network::Network,
    reconcile::{Step, Wanted, reconcile},
    report, spec,
    start::STOPPED_BEFORE,
    table::{Entry, Phase, Table},
    volumes::Volumes,
};

/// Containers that are made at the same time. More of them make each other wait for the kernel's
/// mount and network locks.
const STARTS_MAX: usize = 8;
/// A shim that takes longer than this to say how it is, is.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
const LOOKS_MAX: usize = 32;
/// How long starts that have begun may take when the host's daemon shuts down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// What a job is told or given and does not come from the controller.
#[derive(Clone)]
pub struct Settings {
    pub cgroup_parent: String,
    pub uid_base: u32,
    pub dns: Ipv4Addr,
    /// `IP:PORT` of the registry.
    pub discoverd: String,
    pub tokens: daemon::AppTokens,
    pub ca_bundle: Option<PathBuf>,
}

impl Settings {
    /// Where jobs of an app reach the registry, with the app's key in it: programs that were written
    /// for the original's registry, which asked for none, send it without knowing.
    pub fn discoverd_url(&self, app: AppId, name: &str) -> String {
        format!("http://app:{}@{}", self.tokens.issue(app, name), self.discoverd)
    }
}

pub struct Agent {
    pub host: HostId,
    pub settings: Settings,
    pub disk: Disk,
    pub table: Table,
    pub runtime: Arc<dyn Runtime>,
    pub net: Arc<dyn Net>,
    pub controller: Controller,
    pub starts: Semaphore,
    /// Counts the times that the controller came back: what it was told before is told again.
    pub resend: watch::Sender<u64>,
    pub shutdown: Shutdown,
    pub tasks: TaskTracker,
    pub volumes: Arc<Volumes>,
    pub network: Network,
    wanted: Mutex<Wanted>,
}

/// A job of an earlier agent whose container is there or was.
struct Seen {
    id: JobId,
    record: Box<JobRecord>,
    progress: Progress,
    look: Look,
}

enum Look {
    Running { pid: u32, phase: ShimPhase },
    Ended(container::ExitRecord),
    Lost,
}

impl Agent {
    #[allow(
        clippy::too_many_arguments,
        reason = "called in two places, each naming everything once"
    )]
    pub fn new(
        host: HostId,
        settings: Settings,
        disk: Disk,
        runtime: Arc<dyn Runtime>,
        net: Arc<dyn Net>,
        controller: Controller,
        shutdown: Shutdown,
    ) -> Arc<Agent> {
        Arc::new(Agent {
            table: Table::new(host.clone()),
            host,
            settings,
            volumes: Arc::new(Volumes::new(disk.state().volumes())),
            network: Network::read(&disk.state().network_map()),
            disk,
            runtime,
            net,
            controller,
            starts: Semaphore::new(STARTS_MAX),
            resend: watch::Sender::new(0),
            shutdown,
            tasks: TaskTracker::new(),
            wanted: Mutex::default(),
        })
    }

    /// `/parent/job`, from the root of every hierarchy.
    pub fn cgroup(&self, id: JobId) -> String {
        format!("/{}/{id}", self.settings.cgroup_parent.trim_matches('/'))
    }

    /// Finds the jobs of an earlier agent and opens the network with their leases. Comes before
    /// everything else, so that no job is begun twice and no address is given out twice.
    pub async fn adopt(self: &Arc<Self>) -> anyhow::Result<()> {
        let found = self.disk.scan().context("cannot read the directory of jobs")?;
        let looks = futures::stream::iter(found)
            .map(|found| self.look(found))
            .buffer_unordered(LOOKS_MAX);
        let seen: Vec<Seen> = looks.filter_map(async |seen| seen).collect().await;

        let running = seen
            .iter()
            .filter(|seen| matches!(seen.look, Look::Running { .. }));
        let leases: Vec<_> = running.map(|seen| seen.record.lease.clone()).collect();
        let unknown = self
            .net
            .open(leases, self.network.map())
            .await
            .context("cannot open the network of jobs")?;

        let counts = (
            seen.len(),
            seen.iter()
                .filter(|seen| matches!(seen.look, Look::Running { .. }))
                .count(),
        );
        for seen in seen {
            let is_cut_off = unknown.contains(&seen.record.lease);
            self.take_over(seen, is_cut_off);
        }
        if counts.0 > 0 {
            info!(jobs = counts.0, running = counts.1, "jobs of before found");
        }
        Ok(())
    }

    async fn look(self: &Arc<Self>, found: Found) -> Option<Seen> {
        let id = found.id;
        let (record, progress) = match found.stage {
            Stage::Begun(record, progress) => (record, progress),
            Stage::Ended(record, report) => {
                self.report_end_of_before(id, record, report);
                return None;
            }
            Stage::Unbegun => {
                debug!(job = %id, "a job that was not begun is forgotten");
                let disk = self.disk.clone();
                let removed = tokio::task::spawn_blocking(move || disk.remove(id)).await;
                if let Ok(Err(error)) = removed {
                    warn!(job = %id, %error, "cannot remove a job's directory");
                }
                return None;
            }
        };
        let dir = self.disk.job_dir(id);
        let look = match tokio::time::timeout(LOOK_PATIENCE, self.runtime.look(&dir)).await {
            Ok(Ok(Adopted::Running(state))) => Look::Running {
                pid: state.pid,
                phase: state.phase,
            },
            Ok(Ok(Adopted::Ended(record))) => Look::Ended(record),
            Ok(Ok(Adopted::Lost)) => Look::Lost,
            // Not known to be gone: it is watched, and its end will show. Counting it as lost would
            // kill it for nothing more than, say, a lack of file descriptors here.
            unknown => {
                let error = match unknown {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer in time".to_owned(),
                };
                warn!(job = %id, error, "a shim does not say how its job is");
                Look::Running {
                    pid: 0,
                    phase: ShimPhase::Running,
                }
            }
        };
        Some(Seen {
            id,
            record,
            progress,
            look,
        })
    }

    fn take_over(self: &Arc<Self>, seen: Seen, is_cut_off: bool) {
        let Seen {
            id,
            record,
            progress,
            look,
        } = seen;
        let Some(entry) = self.enter(id, Arc::new(record.job.clone()), record.created_at) else {
            return;
        };
        entry.change(|view| {
            view.started_at = progress.started_at;
            view.address = Some(record.lease.address.into());
        });
        let agent = self.clone();
        match look {
            Look::Running { pid, phase } => {
                if is_cut_off {
                    warn!(job = %id, address = %record.lease.address, "stopping a job whose address is of no network");
                    entry.stop(spec::stop_grace(&record.job));
                }
                // What the agent before this one had decided, and perhaps not carried out.
                if progress.never_healthy.is_some() || matches!(phase, ShimPhase::Stopping | ShimPhase::Ended)
                {
                    entry.stop(spec::stop_grace(&record.job));
                }
                self.tasks
                    .spawn(life::supervise(agent, entry, *record, progress, pid, phase));
            }
            Look::Ended(exit) => {
                let at = life::timestamp(exit.ended_at);
                let end = End {
                    exit: life::exit_of(&exit, false),
                    at,
                    lease: None,
                    needs_cleanup: false,
                };
                self.tasks
                    .spawn(async move { life::finish(&agent, &entry, &progress, &record.cgroup, end).await });
            }
            Look::Lost => {
                let exit = Exit::Lost("its container was gone when the host started again".into());
                let end = End {
                    exit,
                    at: daemon::now(),
                    lease: None,
                    needs_cleanup: true,
                };
                self.tasks
                    .spawn(async move { life::finish(&agent, &entry, &progress, &record.cgroup, end).await });
            }
        }
    }

    fn report_end_of_before(self: &Arc<Self>, id: JobId, record: Option<Box<JobRecord>>, report: JobReport) {
        let created_at = record.as_ref().map_or(report.at, |record| record.created_at);
        let job = record.map_or_else(|| self.nameless(id), |record| record.job);
        if let Some(entry) = self.enter(id, Arc::new(job), created_at) {
            set_down(&entry, report);
        }
    }

    /// All that is known of a job that this host never had.
    fn nameless(&self, id: JobId) -> HostJob {
        HostJob {
            id: format!("{}-{id}", self.host),
            ..HostJob::default()
        }
    }

    fn enter(
        self: &Arc<Self>,
        id: JobId,
        job: Arc<HostJob>,
        created_at: types::Timestamp,
    ) -> Option<Arc<Entry>> {
        let entry = self.table.add(id, job, created_at)?;
        self.tasks
            .spawn(report::until_settled(self.clone(), entry.clone()));
        Some(entry)
    }

    /// The controller's stream begins anew: all that it was told may be told again.
    pub fn reconnected(&self) {
        self.wanted().reconnected();
        self.network.reconnected();
        self.resend.send_modify(|count| *count += 1);
    }

    pub fn hear(&self, message: Assignment) {
        match message {
            Assignment::Volume { volume } => return self.volumes.hear(volume),
            Assignment::Network { change } => return self.network.hear(change),
            Assignment::Current => self.network.complete(),
            _ => {}
        }
        if let Err(id) = self.wanted().hear(message) {
            warn!(id, "the controller names a job by what is no id");
        }
    }

    /// Begins what has to be done for things to be as they are wanted.
    pub fn reconcile(self: &Arc<Self>) {
        let mut wanted = self.wanted();
        let lives = self.table.lives(wanted.named());
        for step in reconcile(&wanted, &lives) {
            match step {
                Step::Start(id) => {
                    let job = wanted.job(id).expect("only what is to run is started");
                    if let Some(entry) = self.enter(id, job, daemon::now()) {
                        self.tasks.spawn(life::run(self.clone(), entry));
                    }
                }
                Step::Stop(id) => {
                    if let Some(entry) = self.table.get(id) {
                        info!(job = %id, "stopping a job");
                        entry.stop(spec::stop_grace(&entry.job));
                    }
                }
                Step::Deny(id) => {
                    if let Some(entry) = self.enter(id, Arc::new(self.nameless(id)), daemon::now()) {
                        let exit = Exit::NotStarted(STOPPED_BEFORE.into());
                        let report = JobReport {
                            state: ReportedState::Down { exit },
                            address: None,
                            ipv6: None,
                            at: daemon::now(),
                        };
                        set_down(&entry, report);
                    }
                }
            }
        }
        // Late words about a settled job are not kept.
        for (id, life) in lives {
            if life == crate::reconcile::Life::Settled {
                wanted.settled(id);
            }
        }
    }

    /// The controller knows of a job's end.
    pub async fn settle(&self, entry: &Entry) {
        let (disk, id) = (self.disk.clone(), entry.id);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || disk.remove(id)).await {
            warn!(job = %id, %error, "cannot remove an ended job's directory");
        }
        self.wanted().settled(id);
        self.table.settle(entry);
        entry.announce("cleanup");
    }

    /// Layers of every job that is here.
    pub fn layers_in_use(&self) -> std::collections::BTreeSet<String> {
        let entries = self.table.entries();
        entries
            .iter()
            .flat_map(|entry| crate::start::digests(&entry.job))
            .map(str::to_owned)
            .collect()
    }

    /// Apps that have a job here.
    pub fn apps_in_use(&self) -> std::collections::BTreeSet<AppId> {
        let entries = self.table.entries();
        entries
            .iter()
            .filter_map(|entry| entry.job.metadata.get(HostJob::APP)?.parse().ok())
            .collect()
    }

    /// How many jobs are in which phase, for the log.
    pub fn census(&self) -> BTreeMap<Phase, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.table.entries() {
            *counts.entry(entry.view().phase).or_default() += 1;
        }
        counts
    }

    /// Waits for what must not be left half done; jobs go on.
    pub async fn wind_down(&self) {
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_PATIENCE, self.tasks.wait())
            .await
            .is_err()
        {
            warn!(jobs = ?self.census(), "shut down while something was still going on");
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("nothing panics while it holds this")
    }
}

fn set_down(entry: &Entry, report: JobReport) {
    entry.change(|view| {
        view.phase = Phase::Down;
        view.ended_at = Some(report.at);
        view.address = report.address;
        view.exit = match &report.state {
            ReportedState::Down { exit } | ReportedState::NeverHealthy { exit, .. } => Some(exit.clone()),
            _ => None,
        };
        view.report = Some(report);
    });
}
