//! The jobs of this host in memory: how far each is, who waits for that, and what has ended lately.
//!
//! A job's task is the only one that changes its [`View`]; everybody else reads and watches it, and
//! asks for a stop through [`Entry::stop`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use api::host::{ActiveJob, HostEvent, HostJob, JobReport, ReportedState, status};
use tokio::sync::{broadcast, watch};
use types::{AppId, Exit, HostId, JobId, Timestamp};

use crate::reconcile::Life;

/// Ended jobs that stay in the list, per app, as the original kept them.
const FINISHED_PER_APP_MAX: usize = 25;
/// Ids of ended jobs that a late message must not begin anew. A message is late by seconds, and a
/// host starts some hundred jobs a second at most.
const SETTLED_MAX: usize = 20_000;
/// A listener of events that is further behind loses the oldest.
const EVENTS_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waits for its turn, or is being made.
    Starting,
    /// Made; its process starts when somebody attaches.
    WaitingForAttach,
    Running,
    Stopping,
    Down,
}

#[derive(Debug, Clone)]
pub struct View {
    pub phase: Phase,
    pub address: Option<IpAddr>,
    /// Its other address, if it is known to answer there.
    pub ipv6: Option<Ipv6Addr>,
    pub pid: Option<u32>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub exit: Option<Exit>,
    /// What the controller has to know.
    pub report: Option<JobReport>,
}

#[derive(Debug)]
pub struct Entry {
    pub id: JobId,
    pub job: Arc<HostJob>,
    view: watch::Sender<View>,
    /// Set once: how long it has between the polite signal and the other one.
    stop: watch::Sender<Option<Duration>>,
    events: broadcast::Sender<Arc<HostEvent>>,
    host: HostId,
    is_out_of_rotation: AtomicBool,
}

impl Entry {
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
    }

    /// Asks for the end; the first one to ask decides on the grace.
    pub fn stop(&self, grace: Duration) {
        self.stop.send_if_modified(|stop| match stop {
            Some(_) => false,
            None => {
                *stop = Some(grace);
                true
            }
        });
    }

    /// From here on nobody is sent to the job any more, whatever its checks say: what is up is told
    /// as unhealthy. Ends with the job, or with this process.
    pub fn take_out_of_rotation(&self) {
        self.is_out_of_rotation.store(true, Ordering::Relaxed);
        self.change(|view| {
            if let Some(report) = &mut view.report
                && report.state == ReportedState::Up
            {
                report.state = ReportedState::Unhealthy;
            }
        });
    }

    pub fn is_out_of_rotation(&self) -> bool {
        self.is_out_of_rotation.load(Ordering::Relaxed)
    }

    pub fn is_to_stop(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Waits until somebody asks for the end.
    pub async fn stop_asked(&self) -> Duration {
        let mut stop = self.stop.subscribe();
        let grace = stop
            .wait_for(Option::is_some)
            .await
            .expect("the sender is in self");
        grace.expect("just waited for it")
    }

    pub fn announce(&self, event: &'static str) {
        // No listener is no error.
        let _ = self.events.send(Arc::new(HostEvent {
            event: event.to_owned(),
            job_id: self.job.id.clone(),
            job: Some(self.active_job()),
        }));
    }

    pub fn active_job(&self) -> ActiveJob {
        let view = self.view();
        ActiveJob {
            job: Some(HostJob::clone(&self.job)),
            host_id: Some(self.host.clone()),
            internal_ip: view.address,
            pid: view.pid.and_then(|pid| i32::try_from(pid).ok()),
            force_stop: self.is_to_stop(),
            status: status_of(&view),
            created_at: Some(view.created_at),
            started_at: view.started_at,
            ended_at: view.ended_at,
            exit_status: view
                .exit
                .as_ref()
                .filter(|_| view.started_at.is_some())
                .map(Exit::status),
            error: match &view.exit {
                Some(exit @ (Exit::NotStarted(_) | Exit::Lost(_) | Exit::OutOfMemory)) => {
                    Some(exit.to_string())
                }
                _ => None,
            },
        }
    }

    fn life(&self) -> Life {
        let phase = self.view.borrow().phase;
        match phase {
            Phase::Down => Life::Down,
            _ if self.is_to_stop() => Life::Stopping,
            Phase::Starting => Life::Starting,
            Phase::WaitingForAttach | Phase::Running => Life::Running,
            Phase::Stopping => Life::Stopping,
        }
    }
}

fn status_of(view: &View) -> u8 {
    match (view.phase, &view.exit) {
        (_, Some(Exit::Code(0))) => status::DONE,
        (_, Some(Exit::NotStarted(_))) => status::FAILED,
        (_, Some(_)) => status::CRASHED,
        (Phase::Starting | Phase::WaitingForAttach, None) => status::STARTING,
        (_, None) => status::RUNNING,
    }
}

pub struct Table {
    host: HostId,
    inner: Mutex<Inner>,
    /// Counts additions, for whoever waits for a job to appear.
    additions: watch::Sender<u64>,
    events: broadcast::Sender<Arc<HostEvent>>,
}

#[derive(Default)]
struct Inner {
    jobs: BTreeMap<JobId, Arc<Entry>>,
    finished: BTreeMap<String, VecDeque<(JobId, ActiveJob)>>,
    settled: BTreeSet<JobId>,
    settled_in_order: VecDeque<JobId>,
}

impl Table {
    pub fn new(host: HostId) -> Self {
        Table {
            host,
            inner: Mutex::default(),
            additions: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS_MAX),
        }
    }

    pub fn events(&self) -> broadcast::Receiver<Arc<HostEvent>> {
        self.events.subscribe()
    }

    /// A new entry, unless the job is there or was: then none.
    pub fn add(&self, id: JobId, job: Arc<HostJob>, created_at: Timestamp) -> Option<Arc<Entry>> {
        let mut inner = self.lock();
        if inner.jobs.contains_key(&id) || inner.settled.contains(&id) {
            return None;
        }
        let view = View {
            phase: Phase::Starting,
            address: None,
            ipv6: None,
            pid: None,
            created_at,
            started_at: None,
            ended_at: None,
            exit: None,
            report: None,
        };
        let entry = Arc::new(Entry {
            id,
            job,
            view: watch::Sender::new(view),
            stop: watch::Sender::new(None),
            events: self.events.clone(),
            host: self.host.clone(),
            is_out_of_rotation: AtomicBool::new(false),
        });
        inner.jobs.insert(id, entry.clone());
        drop(inner);
        self.additions.send_modify(|count| *count += 1);
        Some(entry)
    }

    /// The controller knows that the job has ended.
    pub fn settle(&self, entry: &Entry) {
        let mut inner = self.lock();
        inner.jobs.remove(&entry.id);
        inner.settled.insert(entry.id);
        inner.settled_in_order.push_back(entry.id);
        if inner.settled_in_order.len() > SETTLED_MAX
            && let Some(oldest) = inner.settled_in_order.pop_front()
        {
            inner.settled.remove(&oldest);
        }
        let app = entry.job.metadata.get(HostJob::APP).cloned().unwrap_or_default();
        let finished = inner.finished.entry(app).or_default();
        finished.push_back((entry.id, entry.active_job()));
        if finished.len() > FINISHED_PER_APP_MAX {
            finished.pop_front();
        }
    }

    /// Forgets what is listed of apps that do not exist any more.
    pub fn forget_apps_but(&self, exists: impl Fn(AppId) -> bool) {
        self.lock()
            .finished
            .retain(|app, _| app.parse::<AppId>().is_ok_and(&exists));
    }

    pub fn get(&self, id: JobId) -> Option<Arc<Entry>> {
        self.lock().jobs.get(&id).cloned()
    }

    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().jobs.values().cloned().collect()
    }

    pub fn finished(&self, id: JobId) -> Option<ActiveJob> {
        let inner = self.lock();
        inner
            .finished
            .values()
            .flatten()
            .find(|(job, _)| *job == id)
            .map(|(_, active)| active.clone())
    }

    /// By `HOST-UUID`: what is there, and with `all` what ended lately.
    pub fn list(&self, all: bool) -> BTreeMap<String, ActiveJob> {
        let (entries, finished) = {
            let inner = self.lock();
            let finished: Vec<ActiveJob> = if all {
                inner
                    .finished
                    .values()
                    .flatten()
                    .map(|(_, job)| job.clone())
                    .collect()
            } else {
                vec![]
            };
            (inner.jobs.values().cloned().collect::<Vec<_>>(), finished)
        };
        let running = entries
            .iter()
            .filter(|entry| all || entry.view.borrow().phase != Phase::Down)
            .map(|entry| entry.active_job());
        let key = |job: &ActiveJob| job.job.as_ref().map_or_else(String::new, |job| job.id.clone());
        finished
            .into_iter()
            .chain(running)
            .map(|job| (key(&job), job))
            .collect()
    }

    /// How far each job is; of those that are settled only `named` ones, for there may be many.
    pub fn lives(&self, named: impl Iterator<Item = JobId>) -> BTreeMap<JobId, Life> {
        let inner = self.lock();
        let settled = named
            .filter(|id| inner.settled.contains(id))
            .map(|id| (id, Life::Settled));
        settled
            .chain(inner.jobs.iter().map(|(id, entry)| (*id, entry.life())))
            .collect()
    }

    /// Waits until the job is there; the caller limits the time.
    pub async fn appears(&self, id: JobId) -> Arc<Entry> {
        let mut additions = self.additions.subscribe();
        loop {
            if let Some(entry) = self.get(id) {
                return entry;
            }
            additions.changed().await.expect("the sender is in self");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds this")
    }
}
