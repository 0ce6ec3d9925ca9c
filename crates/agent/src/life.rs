//! The life of one job on this host: start, health, stop, end. One task each.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use api::host::{JobReport, ReportedState};
use container::{Adopted, ControlError, ExitRecord, Outcome, Started, protocol::Phase as ShimPhase};
use overlay::Lease;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};
use types::{Exit, Timestamp};

use crate::{
    agent::Agent,
    disk::{JobRecord, Progress},
    health,
    image_check::Asker,
    monitor::{self, Change, Subject},
    probe, spec,
    start::{self, Failed, Running, STOPPED_BEFORE},
    table::{Entry, Phase},
    volumes,
};

/// How often a job that waits for somebody to attach is looked at.
const ATTACH_POLL: Duration = Duration::from_millis(100);
/// How long a container that was given up may take to go.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(10);
/// For calls to a shim that did not work for a reason that may pass.
const RETRY: Duration = Duration::from_millis(200);
/// A record is written whole: one that cannot be read five times will not be.
const UNREADABLE_MAX: u32 = 5;

/// How a job that had a container ended.
pub struct End {
    pub exit: Exit,
    pub at: Timestamp,
    pub lease: Option<Lease>,
    /// Nobody has tidied up after it.
    pub needs_cleanup: bool,
}

/// A job that has to be started.
pub async fn run(agent: Arc<Agent>, entry: Arc<Entry>) {
    entry.announce("create");
    tokio::select! {
        _ = volumes::are_free(&agent.table, &entry) => {}
        _ = entry.stop_asked() => return never_began(&agent, &entry).await,
        _ = agent.shutdown.cancelled() => return,
    }
    let began = Instant::now();
    let permit = tokio::select! {
        permit = agent.starts.acquire() => permit.expect("never closed"),
        _ = entry.stop_asked() => return never_began(&agent, &entry).await,
        // Nothing of it is anywhere: the next agent is told of it again.
        _ = agent.shutdown.cancelled() => return,
    };
    if entry.is_to_stop() {
        return never_began(&agent, &entry).await;
    }
    let started = start::start(&agent, &entry).await;
    drop(permit);
    match started {
        Ok(running) => {
            let milliseconds = began.elapsed().as_millis() as u64;
            info!(
                job = %entry.id, app = %running.record.lease.app, address = %running.record.lease.address,
                pid = running.pid, ms = milliseconds, "job started"
            );
            let phase = match running.started {
                Started::Running => ShimPhase::Running,
                Started::WaitingForAttach => ShimPhase::WaitingForAttach,
            };
            let Running { record, pid, .. } = running;
            supervise(agent, entry, record, Progress::default(), pid, phase).await;
        }
        Err(failed) => failed_to_start(&agent, &entry, failed).await,
    }
}

async fn never_began(agent: &Arc<Agent>, entry: &Arc<Entry>) {
    let exit = Exit::NotStarted(STOPPED_BEFORE.into());
    let end = End {
        exit,
        at: daemon::now(),
        lease: None,
        needs_cleanup: false,
    };
    finish(agent, entry, &Progress::default(), "", end).await;
}

async fn failed_to_start(agent: &Arc<Agent>, entry: &Arc<Entry>, failed: Failed) {
    if failed.is_begun {
        // Its shim has been let go of and is giving up: only when it is gone its address is free.
        let dir = agent.disk.job_dir(entry.id);
        let _ = tokio::time::timeout(GIVE_UP_PATIENCE, ended(agent, &dir)).await;
    }
    let end = End {
        exit: failed.exit,
        at: daemon::now(),
        lease: failed.lease,
        needs_cleanup: failed.is_begun,
    };
    finish(agent, entry, &Progress::default(), &agent.cgroup(entry.id), end).await;
}

/// Looks after a container that runs, or waits to, until it ends. A host that shuts down leaves it.
pub async fn supervise(
    agent: Arc<Agent>,
    entry: Arc<Entry>,
    record: JobRecord,
    mut progress: Progress,
    pid: u32,
    phase: ShimPhase,
) {
    let dir = agent.disk.job_dir(entry.id);
    let address = record.lease.address;
    entry.change(|view| {
        view.address = Some(IpAddr::V4(address));
        view.pid = Some(pid);
    });
    let (sender, mut changes) = mpsc::channel(4);
    let mut watcher = None;
    let mut stopper = None;
    // One that is only made gives up by itself: who made it is gone.
    let mut is_waiting = matches!(phase, ShimPhase::WaitingForAttach | ShimPhase::Created);
    if is_waiting {
        entry.change(|view| view.phase = Phase::WaitingForAttach);
        report(&entry, ReportedState::Starting);
    } else if !entry.is_to_stop() {
        watcher = Some(begin(&agent, &entry, address, pid, &mut progress, &sender));
    }
    let mut poll = tokio::time::interval(ATTACH_POLL);
    let mut end = std::pin::pin!(ended(&agent, &dir));
    let ended = loop {
        tokio::select! {
            ended = &mut end => break ended,
            grace = entry.stop_asked(), if stopper.is_none() => {
                watcher = None;
                if progress.never_healthy.is_none() && let Some(why) = excuse(&agent, &entry, address, pid, &progress).await {
                    progress.never_healthy = Some(why);
                    keep(&agent, &entry, &progress);
                }
                entry.change(|view| view.phase = Phase::Stopping);
                stopper = Some(stop(&agent, &entry, grace));
            }
            Some(change) = changes.recv(), if watcher.is_some() => {
                if matches!(change, Change::Up | Change::StillUp) {
                    look_for_ipv6(&agent, &entry, address, pid);
                }
                heed(&agent, &entry, change, &mut progress);
            }
            _ = poll.tick(), if is_waiting && stopper.is_none() => {
                if let Ok(Adopted::Running(state)) = agent.runtime.look(&dir).await
                    && state.phase == ShimPhase::Running
                {
                    is_waiting = false;
                    watcher = Some(begin(&agent, &entry, address, pid, &mut progress, &sender));
                }
            }
            _ = agent.shutdown.cancelled() => return,
        }
    };
    let was_stopped = stopper.is_some();
    drop((watcher, stopper));
    let end = match ended {
        Some(exit) => {
            if exit.started_at.is_some() && progress.started_at.is_none() {
                entry.change(|view| view.started_at = exit.started_at.map(timestamp));
            }
            let at = timestamp(exit.ended_at);
            End {
                exit: exit_of(&exit, was_stopped),
                at,
                lease: Some(record.lease),
                needs_cleanup: false,
            }
        }
        None => {
            let exit = Exit::Lost("its shim was killed".into());
            End {
                exit,
                at: daemon::now(),
                lease: Some(record.lease),
                needs_cleanup: true,
            }
        }
    };
    finish(&agent, &entry, &progress, &record.cgroup, end).await;
}

/// The process runs: from here on its health is watched.
fn begin(
    agent: &Agent,
    entry: &Arc<Entry>,
    address: Ipv4Addr,
    pid: u32,
    progress: &mut Progress,
    changes: &mpsc::Sender<Change>,
) -> AbortOnDropHandle<()> {
    let was_up = progress.up_at.is_some();
    let started_at = *progress.started_at.get_or_insert_with(daemon::now);
    entry.change(|view| {
        view.phase = Phase::Running;
        view.started_at = Some(started_at);
    });
    entry.announce("start");
    if was_up {
        look_for_ipv6(agent, entry, address, pid);
    }
    report(
        entry,
        if was_up {
            ReportedState::Up
        } else {
            ReportedState::Starting
        },
    );
    keep(agent, entry, progress);
    let subject = Subject { address, pid, was_up };
    AbortOnDropHandle::new(tokio::spawn(monitor::watch(
        subject,
        asker(agent, entry),
        health::readiness(&entry.job),
        changes.clone(),
    )))
}

/// Why a job that is to be stopped never came up, if that is so.
async fn excuse(
    agent: &Agent,
    entry: &Entry,
    address: Ipv4Addr,
    pid: u32,
    progress: &Progress,
) -> Option<String> {
    let age = daemon::now().since(progress.started_at?);
    let subject = Subject {
        address,
        pid,
        was_up: progress.up_at.is_some(),
    };
    monitor::excuse(subject, asker(agent, entry), health::readiness(&entry.job), age).await
}

fn asker(agent: &Agent, entry: &Entry) -> Asker {
    Asker {
        runtime: agent.runtime.clone(),
        job_dir: agent.disk.job_dir(entry.id),
    }
}

/// Finds out whether the job answers by its other address, too. Not by asking it: an app would see a connection that
/// nobody needs.
fn look_for_ipv6(agent: &Agent, entry: &Entry, address: Ipv4Addr, pid: u32) {
    let ports = health::ports(&health::readiness(&entry.job));
    let other = agent.net.ipv6(address).filter(|other| {
        let open = probe::ports_of_ipv6(pid, *other).unwrap_or_default();
        !ports.is_empty() && ports.is_subset(&open)
    });
    entry.change(|view| view.ipv6 = other);
}

fn heed(agent: &Agent, entry: &Arc<Entry>, change: Change, progress: &mut Progress) {
    match change {
        Change::Up => {
            if progress.up_at.is_none() {
                progress.up_at = Some(daemon::now());
                keep(agent, entry, progress);
                info!(job = %entry.id, "job is up");
            }
            report(entry, ReportedState::Up);
        }
        Change::StillUp => report_ipv6(entry),
        Change::Unhealthy { is_to_be_killed } => {
            warn!(job = %entry.id, is_to_be_killed, "job is unhealthy");
            report(entry, ReportedState::Unhealthy);
            if is_to_be_killed {
                entry.stop(spec::stop_grace(&entry.job));
            }
        }
        Change::Never { why } => {
            warn!(job = %entry.id, why, "job never became healthy");
            progress.never_healthy = Some(why);
            keep(agent, entry, progress);
            entry.stop(spec::stop_grace(&entry.job));
        }
    }
}

/// Without it a later agent judges the job as new, which is wrong but does no harm.
fn keep(agent: &Agent, entry: &Entry, progress: &Progress) {
    if let Err(error) = agent.disk.progress(entry.id, progress) {
        warn!(job = %entry.id, %error, "cannot keep how far a job is");
    }
}

/// Tells the shim until it has heard it; the shim alone sees to the grace.
fn stop(agent: &Arc<Agent>, entry: &Arc<Entry>, grace: Duration) -> AbortOnDropHandle<()> {
    let (agent, entry) = (agent.clone(), entry.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let dir = agent.disk.job_dir(entry.id);
        loop {
            match agent.runtime.stop(&dir, grace).await {
                Ok(()) | Err(ControlError::NotRunning) => return,
                Err(error) => warn!(job = %entry.id, %error, "cannot tell a shim to stop its job"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }))
}

/// Waits for the end of a container. `None`: it is gone and left no record that can be read.
async fn ended(agent: &Agent, dir: &Path) -> Option<ExitRecord> {
    let mut unreadable = 0;
    loop {
        let error = match agent.runtime.wait(dir).await {
            Ok(record) => return Some(record),
            Err(ControlError::NotRunning) => match agent.runtime.look(dir).await {
                Ok(Adopted::Ended(record)) => return Some(record),
                Ok(Adopted::Lost) => return None,
                // The connection broke, and it is there all the same.
                Ok(Adopted::Running(_)) => ControlError::NotRunning,
                Err(error) => error,
            },
            Err(error) => error,
        };
        warn!(dir = %dir.display(), %error, "cannot wait for a container's end");
        // What else goes wrong is this process's trouble, and no sign of the container's end.
        if matches!(&error, ControlError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData) {
            unreadable += 1;
        }
        if unreadable == UNREADABLE_MAX {
            return None;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The job is over: gives back what it had and makes its report known.
pub async fn finish(agent: &Arc<Agent>, entry: &Arc<Entry>, progress: &Progress, cgroup: &str, end: End) {
    let dir = agent.disk.job_dir(entry.id);
    if end.needs_cleanup
        && let Err(error) = agent.runtime.cleanup(&dir, cgroup).await
    {
        error!(job = %entry.id, error = format!("{error:#}"), "something of a job's container is left");
    }
    let state = match &progress.never_healthy {
        Some(why) => ReportedState::NeverHealthy {
            why: why.clone(),
            exit: end.exit.clone(),
        },
        None => ReportedState::Down {
            exit: end.exit.clone(),
        },
    };
    let address = entry.view().address;
    let report = JobReport {
        state,
        address,
        ipv6: None,
        at: end.at,
    };
    let (disk, id, kept) = (agent.disk.clone(), entry.id, report.clone());
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || disk.down(id, &kept)).await {
        warn!(job = %entry.id, %error, "cannot keep how a job ended");
    }
    if let Some(lease) = &end.lease
        && let Err(error) = agent.net.detach(lease).await
    {
        warn!(job = %entry.id, error = format!("{error:#}"), "cannot take a job off the network");
    }
    info!(job = %entry.id, exit = %end.exit, "job ended");
    entry.change(|view| {
        view.phase = Phase::Down;
        view.ended_at = Some(end.at);
        view.exit = Some(end.exit);
        view.report = Some(report);
    });
    entry.announce(if matches!(entry.view().exit, Some(Exit::NotStarted(_))) {
        "error"
    } else {
        "stop"
    });
}

fn report(entry: &Entry, state: ReportedState) {
    let state = match state {
        ReportedState::Up if entry.is_out_of_rotation() => ReportedState::Unhealthy,
        state => state,
    };
    entry.change(|view| {
        let ipv6 = view.ipv6.filter(|_| state == ReportedState::Up);
        view.report = Some(JobReport {
            state,
            address: view.address,
            ipv6,
            at: daemon::now(),
        });
    });
}

/// What came to light since the job was reported as up.
fn report_ipv6(entry: &Entry) {
    entry.change(|view| {
        let ipv6 = view.ipv6;
        if let Some(report) = &mut view.report
            && report.state == ReportedState::Up
        {
            report.ipv6 = ipv6;
        }
    });
}

/// Out of memory is what the kernel said *and* how the main process ended: an app that survives the
/// death of one of its processes and exits much later did so for another reason.
pub fn exit_of(record: &ExitRecord, was_stopped: bool) -> Exit {
    let is_out_of_memory = record.oom_killed && !was_stopped;
    match &record.outcome {
        Outcome::Exited { code: 137 } | Outcome::Signaled { signal: 9 } if is_out_of_memory => {
            Exit::OutOfMemory
        }
        Outcome::Exited { code } => Exit::Code(*code),
        Outcome::Signaled { signal } => Exit::Signal(*signal),
        Outcome::NotStarted { error, .. } => Exit::NotStarted(error.clone()),
    }
}

/// The shim's clock has nanoseconds.
pub fn timestamp(time: impl Into<std::time::SystemTime>) -> Timestamp {
    Timestamp::from_system(time.into())
}
