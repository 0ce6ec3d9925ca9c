//! One job: how it stands, how it ended, what came before and after it.

use api::wire::Job;
use types::{Exit, JobState, ProcessType, Timestamp};

use super::{Cause, Facts, number};
use crate::output;

/// One job: its state, since when, and what is behind it.
pub(super) fn of_job(facts: &Facts, job: &Job) -> Cause {
    let id = job.display_id();
    let lasting = |since: Timestamp| output::lasting(facts.now, since);
    let quoted = facts.logs.get(&job.uuid).cloned().unwrap_or_default();
    match job.state {
        JobState::Pending => Cause::new(match job.run_at.filter(|run_at| *run_at > facts.now) {
            Some(run_at) => {
                let seconds = run_at.since(facts.now).as_secs().max(1);
                let crashes = number(job.restarts.unwrap_or(0).max(1) as u32, "crash", "crashes");
                format!("{id} starts in {seconds} s, after {crashes} in a row")
            }
            None if job.waiting.is_empty() => format!("{id} was asked for {} ago", lasting(job.created_at)),
            None => format!("{id} waits: {}", job.waiting),
        }),
        JobState::Starting => Cause {
            quoted,
            ..Cause::new(format!(
                "{id} has been starting for {}: {}",
                lasting(job.created_at),
                not_yet(facts, job)
            ))
        },
        JobState::Up => Cause::new(format!("{id} is up, asked for {} ago", lasting(job.created_at))),
        JobState::Stopping => Cause::new(format!(
            "{id} has been stopping for {}: it finishes what it has begun",
            lasting(job.updated_at)
        )),
        JobState::Down => Cause {
            quoted,
            hint: advice(facts, job),
            ..Cause::new(format!(
                "{id} ended {} ago: {}",
                lasting(job.updated_at),
                how_it_ended(facts, job)
            ))
        },
    }
}

fn not_yet(facts: &Facts, job: &Job) -> String {
    let port = process_of(facts, job).and_then(|process| process.ports.first());
    match port {
        Some(port) if port.port > 0 => format!("its port {} does not answer yet", port.port),
        Some(_) => "its port does not answer yet".into(),
        None => "its host has not started it yet".into(),
    }
}

fn process_of<'a>(facts: &'a Facts, job: &Job) -> Option<&'a ProcessType> {
    let release = facts
        .release
        .as_ref()
        .filter(|release| Some(release.id) == job.release)?;
    release.processes.get(&job.process_type)
}

fn memory_limit(facts: &Facts, job: &Job) -> Option<i64> {
    Some(process_of(facts, job)?.resources.limit("memory"))
}

pub(super) fn how_it_ended(facts: &Facts, job: &Job) -> String {
    match &job.exit {
        Some(Exit::Code(0)) if !job.process_type.is_empty() => {
            "its process exited with status 0, though it is to go on".into()
        }
        Some(Exit::OutOfMemory) => match memory_limit(facts, job) {
            Some(limit) => format!(
                "it took more than its {} of memory",
                output::limit("memory", limit)
            ),
            None => "it took more memory than its limit".into(),
        },
        Some(Exit::Signal(15)) => "it was told to stop".into(),
        Some(exit) => exit.to_string(),
        None => match &job.host_error {
            Some(error) => error.clone(),
            None => "nobody knows how".into(),
        },
    }
}

fn advice(facts: &Facts, job: &Job) -> String {
    let app = &facts.app.name;
    match &job.exit {
        Some(Exit::OutOfMemory) => {
            let limit = memory_limit(facts, job).unwrap_or(1 << 30);
            let more = output::limit("memory", limit.saturating_mul(2));
            format!(
                "give it more: `flynn -a {app} limit set {} memory={more}`",
                job.process_type
            )
        }
        Some(Exit::Lost(_) | Exit::Signal(15)) | None => String::new(),
        Some(Exit::Code(127) | Exit::NotStarted(_)) => {
            "the program that the process type names may be missing in the image: see the Procfile".into()
        }
        Some(_) if is_crash(job) => format!("all that it wrote: `flynn -a {app} log -j {}`", job.uuid),
        Some(_) => String::new(),
    }
}

/// Whether a job ended other than by being told to.
pub(super) fn is_crash(job: &Job) -> bool {
    if job.state != JobState::Down {
        return false;
    }
    match &job.exit {
        Some(Exit::Code(0)) => !job.process_type.is_empty(),
        Some(Exit::Signal(15)) | None => false,
        Some(_) => true,
    }
}

/// The job of the same kind that ended last before this one was asked for.
pub(super) fn predecessor<'a>(facts: &'a Facts, job: &Job) -> Option<&'a Job> {
    let is_before = |other: &&Job| {
        other.process_type == job.process_type
            && other.release == job.release
            && other.created_at < job.created_at
            && is_crash(other)
    };
    // Newest first, and of several that ended at one time the last one counts: hence backwards.
    facts
        .jobs
        .iter()
        .rev()
        .filter(is_before)
        .max_by_key(|other| other.updated_at)
}

/// Whether another job has taken the place of one that ended.
pub(super) fn what_followed(facts: &Facts, job: &Job) -> Option<Cause> {
    if job.process_type.is_empty() || !is_crash(job) {
        return None;
    }
    let is_after = |other: &&Job| {
        other.process_type == job.process_type
            && other.release == job.release
            && other.created_at >= job.updated_at
            && other.uuid != job.uuid
    };
    let next = facts
        .jobs
        .iter()
        .filter(is_after)
        .min_by_key(|other| other.created_at)?;
    Some(Cause::new(format!("{} took its place", next.display_id())))
}
