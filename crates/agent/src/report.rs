//! Tells the controller how one job fares, for as long as it takes.
//!
//! Only the latest state counts: a controller that was away hears that a job is up, not that it was
//! starting before. The end is said until the controller confirms it, and only then is the job
//! forgotten here. A controller that comes back is told everything again, since it may have lost
//! what it had not yet written.

use std::{sync::Arc, time::Duration};

use api::host::{JobReport, ReportedState};
use tracing::{debug, warn};

use crate::{agent::Agent, table::Entry};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

pub async fn until_settled(agent: Arc<Agent>, entry: Arc<Entry>) {
    let mut view = entry.watch();
    let mut resend = agent.resend.subscribe();
    let mut confirmed: Option<JobReport> = None;
    let mut backoff = BACKOFF_MIN;
    loop {
        let latest = view.borrow_and_update().report.clone();
        let mut wait = None;
        if let Some(report) = latest
            && confirmed.as_ref() != Some(&report)
        {
            let sent = tokio::select! {
                sent = send(&agent, &entry, &report) => sent,
                _ = agent.shutdown.cancelled() => return,
            };
            if sent {
                backoff = BACKOFF_MIN;
                if is_end(&report) {
                    return agent.settle(&entry).await;
                }
                confirmed = Some(report);
            } else {
                wait = Some(backoff);
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        tokio::select! {
            _ = view.changed() => {}
            _ = resend.changed() => {
                confirmed = None;
                backoff = BACKOFF_MIN;
            }
            _ = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            _ = agent.shutdown.cancelled() => return,
        }
    }
}

fn is_end(report: &JobReport) -> bool {
    matches!(
        report.state,
        ReportedState::Down { .. } | ReportedState::NeverHealthy { .. }
    )
}

/// Whether the controller knows now, or says that it need not.
async fn send(agent: &Agent, entry: &Entry, report: &JobReport) -> bool {
    let call = agent.controller.report_job(&agent.host, entry.id, report);
    match tokio::time::timeout(ANSWER_PATIENCE, call).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) if error.is_not_found() => {
            debug!(job = %entry.id, "the controller does not know the job");
            true
        }
        Ok(Err(error)) => {
            // A controller that is away is the heartbeat's to complain about, once for all jobs.
            match error.may_retry() {
                true => debug!(job = %entry.id, %error, "cannot report a job; it is tried again"),
                false => warn!(job = %entry.id, %error, "a report of a job is refused; it is tried again"),
            }
            false
        }
        Err(_) => false,
    }
}
