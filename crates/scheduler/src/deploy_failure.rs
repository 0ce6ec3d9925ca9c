//! Whether a deployment has failed, and why, in words for the one who deployed.
//!
//! Two ways: jobs of the new release keep ending by themselves, or one is not up in its time. The
//! time runs from the job's creation, also while it waits for a place.

use std::time::Duration;

use types::{
    DEFAULT_DEPLOY_TIMEOUT_S, Deployment, Exit, HostState, Job, JobState, ProcessType, StopReason, Timestamp,
};

use crate::{Wake, index::Index, surplus};

/// Jobs of one type that end by themselves until the release is given up. The original took five; by
/// then a user has long seen that it does not work.
const CRASHES_MAX: usize = 3;
/// What never ran will not the next time either; the second try is for a host's own trouble.
const NOT_STARTED_MAX: usize = 2;

pub(crate) fn find<'a>(
    index: &Index<'a>,
    deployment: &Deployment,
    started: impl Iterator<Item = (&'a String, &'a ProcessType)>,
    wake: &mut Wake,
) -> Option<String> {
    // All types are looked at, so that all their deadlines are known.
    let mut failure = None;
    for (name, process) in started {
        let Some(group) = index.group(deployment.app, deployment.new_release, name) else {
            continue;
        };
        let crashed = group
            .crashed
            .iter()
            .filter(|job| job.created_at >= deployment.created_at);
        let found = by_crashes(name, &crashed.copied().collect::<Vec<_>>());
        let late = group
            .active
            .iter()
            .filter(|job| !surplus::serves(index, job) && !wake.is_ahead(deadline(index, deployment, job)));
        let late = late.min_by_key(|job| (job.created_at, job.id));
        let found = found.or_else(|| late.map(|job| by_time(name, process, job, timeout(deployment))));
        failure = failure.or(found);
    }
    failure
}

fn by_crashes(name: &str, crashed: &[&Job]) -> Option<String> {
    let not_started = crashed
        .iter()
        .filter(|job| matches!(job.exit, Some(Exit::NotStarted(_))))
        .count();
    if crashed.len() < CRASHES_MAX && not_started < NOT_STARTED_MAX {
        return None;
    }
    let last = crashed.iter().max_by_key(|job| (job.ended_at, job.id))?;
    let how = match (&last.exit, last.stop_reason) {
        (_, Some(StopReason::Unhealthy)) => "did not become healthy".to_owned(),
        (Some(exit), _) => exit.to_string(),
        (None, _) => "ended".to_owned(),
    };
    Some(format!(
        "{name} job {} {how} ({} times)",
        last.reference(),
        crashed.len()
    ))
}

fn deadline(index: &Index, deployment: &Deployment, job: &Job) -> Timestamp {
    let mut from = job.created_at.max(deployment.created_at);
    if job.state == JobState::Up {
        // It was up and is not healthy any more, or its host is silent: the time runs from then.
        from = from.max(job.updated_at);
        let host = job.host.as_ref().and_then(|host| index.view(host));
        if let Some(HostState::Silent { since }) = host.map(|view| view.host.state) {
            from = from.max(since);
        }
    }
    from + timeout(deployment)
}

fn timeout(deployment: &Deployment) -> Duration {
    let seconds = if deployment.deploy_timeout > 0 {
        deployment.deploy_timeout
    } else {
        DEFAULT_DEPLOY_TIMEOUT_S
    };
    Duration::from_secs(seconds as u64)
}

fn by_time(name: &str, process: &ProcessType, job: &Job, timeout: Duration) -> String {
    let seconds = timeout.as_secs();
    if job.state == JobState::Pending {
        let waiting = if job.waiting.is_empty() {
            "it waits for a host"
        } else {
            &job.waiting
        };
        return format!("{name} was not started within {seconds} s: {waiting}");
    }
    if job.state == JobState::Up {
        return format!(
            "{name} job {} was up but not healthy for {seconds} s",
            job.reference()
        );
    }
    let Some(port) = process.ports.first() else {
        return format!("{name} was not up within {seconds} s");
    };
    let number = if port.port == 0 {
        "its port".to_owned()
    } else {
        format!("port {}", port.port)
    };
    let check = port.service.as_ref().and_then(|service| service.check.as_ref());
    match check.filter(|check| check.kind.starts_with("http")) {
        Some(check) => {
            let path = if check.path.is_empty() { "/" } else { &check.path };
            let status = if check.status == 0 { 200 } else { check.status };
            format!("{name} did not answer GET {path} on {number} with {status} within {seconds} s")
        }
        None => format!("{name} was not up on {number} within {seconds} s"),
    }
}
