//! Which jobs go first when there are too many, and which go because they do not work.

use std::{cmp::Reverse, time::Duration};

use types::{Job, JobState, ProcessType, Timestamp};

use crate::{Wake, index::Index};

/// The original's: a job with `kill_down` that says nothing else has ten seconds to become healthy.
const START_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Sorts jobs so that the ones to stop first come first: what serves nobody before what serves, and
/// of these the youngest, which has the least in its caches and the fewest connections.
pub(crate) fn sort(index: &Index, jobs: &mut [&Job]) {
    jobs.sort_by_cached_key(|job| {
        let class = match job.state {
            JobState::Pending => 0,
            _ if job.is_unhealthy => 1,
            JobState::Starting => 2,
            _ if index.is_on_silent_host(job) => 3,
            _ => 4,
        };
        (class, Reverse(job.started_at.unwrap_or(job.created_at)), job.id)
    });
}

/// Whether a job is to be stopped for being unhealthy, which its type must have asked for
/// (`kill_down`). What is on a silent host is not judged: what we know of it is old.
pub(crate) fn is_sick(index: &Index, process: &ProcessType, job: &Job, wake: &mut Wake) -> bool {
    let Some(start_timeout) = kill_down(process) else {
        return false;
    };
    if index.is_on_silent_host(job) {
        return false;
    }
    match (job.state, job.started_at) {
        (JobState::Up, _) => job.is_unhealthy,
        (JobState::Starting, Some(started_at)) => !wake.is_ahead(started_at + start_timeout),
        _ => false,
    }
}

fn kill_down(process: &ProcessType) -> Option<Duration> {
    let checks = process
        .ports
        .iter()
        .filter_map(|port| port.service.as_ref()?.check.as_ref());
    let timeouts =
        checks
            .filter(|check| check.kill_down)
            .map(|check| match u64::try_from(check.start_timeout) {
                Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
                _ => START_TIMEOUT_DEFAULT,
            });
    timeouts.max()
}

/// Whether a job does what it is there for, as far as is known: up, healthy, and on a host that
/// talks to us. A deployment goes on, and a misplaced job goes away, only for such ones.
pub(crate) fn serves(index: &Index, job: &Job) -> bool {
    job.state == JobState::Up && !job.is_unhealthy && !index.is_on_silent_host(job)
}

/// Whether a job that serves has done so for long enough to be trusted.
pub(crate) fn is_steady(process: &ProcessType, job: &Job, wake: &mut Wake) -> bool {
    let proves_itself = !process.ports.is_empty();
    let steady_at = job.up_at.unwrap_or(Timestamp::EPOCH) + crate::STEADY_MIN;
    proves_itself || !wake.is_ahead(steady_at)
}
