//! Lets stopping jobs finish their requests: a host may signal a job only when every router has let
//! go of it, or when that has taken too long.

use std::{net::SocketAddr, time::Duration};

use daemon::Shutdown;
use state::{Change, JobChange, State};
use types::{Job, JobState, Timestamp};

use crate::{Controller, host_job};

/// How long requests in flight hold up the stop of their job (the original's limit). The job still
/// has its own grace after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut changes = controller.changes();
    let mut progress = controller.routers.progress();
    let mut leadership = controller.store.leadership();
    loop {
        changes.borrow_and_update();
        progress.borrow_and_update();
        let state = controller.state();
        let now = controller.now();
        let leads = *leadership.borrow_and_update();
        let stopping: Vec<_> = state
            .jobs
            .values()
            .filter(|job| leads && job.state == JobState::Stopping && !job.is_drained)
            .cloned()
            .collect();
        let drained: Vec<_> = stopping
            .iter()
            .filter(|job| is_drained(&controller, &state, job, now))
            .collect();
        if !drained.is_empty() {
            let changes = drained
                .iter()
                .map(|job| Change::Job {
                    job: job.id,
                    change: JobChange::Drained,
                })
                .collect();
            if let Err(error) = controller.write(Change::All { changes }).await {
                tracing::warn!(%error, "cannot note that jobs are drained");
            }
        }
        let is_waiting = drained.len() < stopping.len();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = progress.changed() => {}
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(Duration::from_millis(250)), if is_waiting => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

fn is_drained(controller: &Controller, state: &State, job: &Job, now: Timestamp) -> bool {
    if now.since(job.updated_at) >= DRAIN_TIMEOUT {
        return true;
    }
    backends(state, job).all(|backend| controller.routers.have_let_go_of(backend))
}

/// Where routers may reach the job. A job without a routed service has no such place.
fn backends<'a>(state: &'a State, job: &'a Job) -> impl Iterator<Item = SocketAddr> + 'a {
    let process = || {
        let app = state.apps.get(&job.app)?;
        let release = state.releases.get(&job.release?)?;
        Some((app, release.processes.get(&job.process_type)?))
    };
    let services = process().into_iter().flat_map(|(app, process)| {
        host_job::services(&app.name, &job.process_type, process).map(|(name, port)| (name, port.port))
    });
    let routed = services.filter(|(name, _)| state.routes.values().any(|route| route.service == *name));
    routed.filter_map(|(_, port)| job.address.map(|address| SocketAddr::new(address, port)))
}
