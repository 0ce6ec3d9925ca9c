//! What would come of a change: the change is made on a copy of the state, and an ideal cluster
//! follows it to its end.
//!
//! [`follow`] plans as the controller does, and answers for the hosts: what is placed comes up, what
//! is told to stop ends, silent hosts stay silent. Time passes only where something waits for it. So
//! nothing is said here that the scheduler would not do; what is left out is what jobs do by
//! themselves.
//!
//! Pure: the same state, change and time give the same answer. Nothing is written anywhere.

use std::{collections::BTreeSet, time::Duration};

use api::dry_run::{Preview, PreviewJob};
use state::{Change, Command, JobChange, State};
use types::{AppId, DeploymentStatus, Exit, HostState, Job, JobId, JobState, ScaleRequestState, Timestamp};

use crate::planner;

/// How long a host takes to do what it is told, in a world where nothing goes wrong.
const ROUND: Duration = Duration::from_millis(100);
/// How far it is looked ahead. A deployment in small batches whose jobs find no place takes its whole
/// timeout; one that goes well is over long before.
const AHEAD_MAX: Duration = Duration::from_secs(3600);
/// Plans that are made at most: a bound on the work, beyond what any sensible change takes.
const PLANS_MAX: usize = 5_000;

/// What the app would have after `changed`, compared with `before`, which is the same state without
/// the change.
pub fn preview(before: &State, changed: State, app: AppId, now: Timestamp) -> Preview {
    let mut after = changed;
    let end = follow(&mut after, app, now);
    compare(before, &after, app, end.map(|_| AHEAD_MAX.as_secs()))
}

/// Lets the cluster follow until the app has what it wants, or can get no more of it. Gives the time
/// if it was not settled by then.
fn follow(state: &mut State, app: AppId, start: Timestamp) -> Option<Timestamp> {
    let mut now = start;
    for _ in 0..PLANS_MAX {
        let plan = scheduler::plan(&planner::cluster(state), now);
        let wake_at = plan.wake_at;
        if !plan.is_empty() {
            let changes = plan.actions.into_iter().map(planner::change).collect();
            write(state, now, changes);
            continue;
        }
        let reports = reports(state);
        if !reports.is_empty() {
            now = now + ROUND;
            write(state, now, reports);
            continue;
        }
        if is_settled(state, app) {
            return None;
        }
        match wake_at {
            Some(at) if at <= start + AHEAD_MAX => now = at,
            Some(_) => return Some(now),
            // Nothing will change by itself any more: what waits goes on waiting.
            None => return None,
        }
    }
    Some(now)
}

fn write(state: &mut State, at: Timestamp, changes: Vec<Change>) {
    let index = state.revision + 1;
    let change = Change::All { changes };
    // `All` leaves out what is refused, and is never refused itself.
    let _ = state.apply(index, Command { at, change });
}

/// What hosts that answer would report next.
fn reports(state: &State) -> Vec<Change> {
    let is_up = |job: &Job| {
        let host = job.host.as_ref().and_then(|host| state.hosts.get(host));
        host.is_some_and(|host| host.state == HostState::Up)
    };
    let mut reports = vec![];
    for job in state.jobs.values().filter(|job| is_up(job)) {
        let mut report = |change| reports.push(Change::Job { job: job.id, change });
        match job.state {
            JobState::Starting => report(JobChange::Up {
                address: job.address,
                ipv6: job.ipv6,
            }),
            JobState::Stopping => {
                report(JobChange::Drained);
                report(JobChange::Down {
                    exit: Exit::Signal(15),
                });
            }
            JobState::Pending | JobState::Up | JobState::Down => {}
        }
    }
    reports
}

fn is_settled(state: &State, app: AppId) -> bool {
    let is_scaling = state
        .scale_requests
        .values()
        .any(|request| request.app == app && request.state == ScaleRequestState::Pending);
    let is_restarting = state
        .jobs_of(app)
        .any(|job| job.state == JobState::Pending && job.run_at.is_some());
    state.unfinished_deployment(app).is_none() && !is_scaling && !is_restarting
}

fn compare(before: &State, after: &State, app: AppId, unfinished_after_s: Option<u64>) -> Preview {
    let is_of_formation = |job: &&std::sync::Arc<Job>| job.one_off.is_none();
    let mut preview = Preview {
        unfinished_after_s,
        ..Preview::default()
    };
    let mut known: BTreeSet<JobId> = BTreeSet::new();
    for job in before
        .jobs_of(app)
        .filter(is_of_formation)
        .filter(|job| job.is_active())
    {
        known.insert(job.id);
        // A row that is gone is that of a job that has ended.
        match after.jobs.get(&job.id).filter(|job| job.is_active()) {
            None => preview.stops.push(line(job, true)),
            Some(now) if now.state == JobState::Pending => preview.waits.push(line(now, true)),
            Some(now) if job.state == JobState::Pending => preview.starts.push(line(now, true)),
            Some(_) => preview.kept += 1,
        }
    }
    for job in after.jobs_of(app).filter(is_of_formation) {
        if known.contains(&job.id) || !job.is_active() {
            continue;
        }
        match job.state {
            JobState::Pending => preview.waits.push(line(job, false)),
            _ => preview.starts.push(line(job, false)),
        }
    }
    let failed = after.deployments.values().find(|deployment| {
        deployment.app == app
            && deployment.status == DeploymentStatus::Failed
            && before
                .deployments
                .get(&deployment.id)
                .is_none_or(|known| !known.status.is_finished())
    });
    preview.error = failed
        .map(|deployment| deployment.error.clone())
        .unwrap_or_default();
    // What waits already, and would go on to, is not for want of room for the change.
    let finds_no_place = |job: &PreviewJob| job.id.is_empty();
    preview.fits = !preview.waits.iter().any(finds_no_place) && preview.error.is_empty();
    preview.stops.sort();
    preview.starts.sort();
    preview.waits.sort();
    preview
}

/// Ids of jobs that do not exist are the trial's own: nobody will see them again.
fn line(job: &Job, exists: bool) -> PreviewJob {
    PreviewJob {
        process_type: job.process_type.clone(),
        host: job.host.clone(),
        id: if exists { id(job) } else { String::new() },
        waiting: job.waiting.clone(),
    }
}

fn id(job: &Job) -> String {
    match job.host {
        Some(_) => job.reference().to_string(),
        None => job.id.to_string(),
    }
}

#[cfg(test)]
mod tests;
