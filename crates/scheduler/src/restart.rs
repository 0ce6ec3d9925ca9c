//! When a job that ended by itself is followed by another: at once at first, then ever later.
//!
//! Which ended job a new one follows is known from the job table alone: the new one names it in
//! [`META_REPLACES`]. An ended job that nobody names has left a place open.
//!
//! Lost jobs, and jobs that were told to stop, never delay what follows them.

use std::{collections::BTreeSet, time::Duration};

use types::{Exit, Job, JobId, JobState, StopReason, Timestamp};

use crate::META_REPLACES;

/// A job that was up for so long starts its count of restarts anew when it ends; the original's.
pub const RUN_LONG_MIN: Duration = Duration::from_secs(300);

/// Restarts that happen at once: a crash is healed at once, and a typo is known after three.
const RESTARTS_AT_ONCE: u32 = 3;
/// The original's longest wait. A fixed app should not wait longer for its database to come back.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// How the place of `ended` goes on.
pub(crate) struct Restart {
    pub restarts: u32,
    pub run_at: Option<Timestamp>,
    /// For people, if it is not at once.
    pub waiting: String,
}

/// Whether a job ended by itself, or was stopped because it did not work: what back-off and failing
/// deployments count. `Exit::Lost` says nothing about the job.
pub(crate) fn is_crash(job: &Job) -> bool {
    let is_lost = matches!(job.exit, Some(Exit::Lost(_)));
    let was_told_to = matches!(job.stop_reason, Some(StopReason::Unwanted | StopReason::Killed));
    job.state == JobState::Down && !is_lost && !was_told_to
}

/// The crashed jobs among `ended` whose place is open, newest first.
///
/// What ended before the formation was last changed (`since`) is not followed: a user or a
/// deployment has asked anew since, and gets a fresh start.
pub(crate) fn open_places<'a>(
    ended: &[&'a Job],
    followed: &BTreeSet<JobId>,
    since: Timestamp,
) -> Vec<&'a Job> {
    let mut open: Vec<&Job> = ended
        .iter()
        .filter(|job| job.ended_by_itself() && job.ended_at.unwrap_or(job.updated_at) >= since)
        .filter(|job| !followed.contains(&job.id))
        .copied()
        .collect();
    open.sort_by_key(|job| std::cmp::Reverse((job.ended_at, job.id)));
    open
}

pub(crate) fn after(ended: &Job, now: Timestamp) -> Restart {
    // A host's clock may be ahead of ours; its job must not wait longer for it.
    let ended_at = ended.ended_at.unwrap_or(now).min(now);
    if ended
        .up_at
        .is_some_and(|up_at| ended_at.since(up_at) >= RUN_LONG_MIN)
    {
        return Restart {
            restarts: 0,
            run_at: None,
            waiting: String::new(),
        };
    }
    let restarts = ended.restarts.saturating_add(1);
    let delay = delay(restarts);
    if ended_at + delay <= now {
        return Restart {
            restarts,
            run_at: None,
            waiting: String::new(),
        };
    }
    let how = ended
        .exit
        .as_ref()
        .map_or_else(|| "it ended".to_owned(), Exit::to_string);
    Restart {
        restarts,
        run_at: Some(ended_at + delay),
        // Worded so that it stays true while the wait passes, and need not be written every second.
        waiting: format!("restarts {} s after crash {restarts} ({how})", delay.as_secs()),
    }
}

fn delay(restarts: u32) -> Duration {
    match restarts.checked_sub(RESTARTS_AT_ONCE + 1) {
        None => Duration::ZERO,
        Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(DELAY_MAX),
    }
}

/// The job whose place `job` took.
pub(crate) fn replaced_by(job: &Job) -> Option<JobId> {
    job.meta.get(META_REPLACES)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_restarts_are_at_once_and_later_ones_wait_up_to_half_a_minute() {
        let delays: Vec<u64> = (0..=12).map(|restarts| delay(restarts).as_secs()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30, 30]);
        assert_eq!(delay(u32::MAX), DELAY_MAX);
    }
}
