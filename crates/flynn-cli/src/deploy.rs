//! Making a release and waiting until it is deployed, as `env set`, `limit set`, `release` and
//! `restart` do.

use std::time::{Duration, Instant};

use api::{
    Controller,
    wire::{DeploymentEvent, NewRelease},
};
use types::{Deployment, DeploymentStatus, Release, ReleaseId};

use crate::{
    events::{Follower, Next},
    failure::{Failure, Result},
    output,
};

/// How long nothing is said: most deployments without running jobs are over by then.
const QUIET: Duration = Duration::from_secs(1);

/// Without events for this long, the deployment itself is looked at: a connection can be dead
/// without having been closed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A new release with everything that `release` has.
pub fn copy_of(release: &Release) -> NewRelease {
    NewRelease {
        app_id: Some(release.app_id),
        artifacts: Some(release.artifacts.clone()),
        env: Some(release.env.clone()),
        meta: Some(release.meta.clone()),
        processes: Some(release.processes.clone()),
    }
}

/// Creates a release and deploys it.
pub async fn create_and_deploy(controller: &Controller, app: &str, new: &NewRelease) -> Result<Release> {
    let release = controller.create_release(new).await?;
    deploy(controller, app, release.id).await?;
    Ok(release)
}

/// Deploys a release and waits for the end of it.
pub async fn deploy(controller: &Controller, app: &str, release: ReleaseId) -> Result<()> {
    let started = Instant::now();
    let mut events = Follower::open(controller, app, &["deployment"]).await?;
    let deployment = controller.deploy(app, release).await?;
    if let Some(end) = end_of(&deployment) {
        return end;
    }
    let mut is_announced = false;
    loop {
        if !is_announced && started.elapsed() >= QUIET {
            is_announced = true;
            eprintln!("Deploying release {release} ...");
        }
        let patience = if is_announced {
            SILENCE_MAX
        } else {
            QUIET.saturating_sub(started.elapsed())
        };
        match tokio::time::timeout(patience, events.next())
            .await
            .transpose_timeout()?
        {
            Some(Next::Event(event)) if event.object_id == deployment.id.to_string() => {
                let Ok(change) = serde_json::from_value::<DeploymentEvent>((*event.data).clone()) else {
                    continue;
                };
                match change.status.as_str() {
                    "complete" => return Ok(()),
                    "failed" => return Err(failed(release, &change.error)),
                    _ => {}
                }
                if let (true, Some(state)) = (is_announced, change.job_state) {
                    eprintln!(
                        "{} ==> {} {state}",
                        output::clock(event.created_at),
                        change.job_type
                    );
                }
            }
            Some(Next::Event(_)) => {}
            None if !is_announced => {}
            Some(Next::Reconnected) | None => {
                if let Some(end) = end_of(&controller.deployment(deployment.id).await?) {
                    return end;
                }
            }
        }
    }
}

fn end_of(deployment: &Deployment) -> Option<Result<()>> {
    match deployment.status {
        DeploymentStatus::Complete => Some(Ok(())),
        DeploymentStatus::Failed => Some(Err(failed(deployment.new_release, &deployment.error))),
        DeploymentStatus::Pending | DeploymentStatus::Running => None,
    }
}

fn failed(release: ReleaseId, reason: &str) -> Failure {
    let reason = if reason.is_empty() {
        "no reason is known"
    } else {
        reason
    };
    Failure::new(format!("the deployment of release {release} failed: {reason}")).with_hint(
        "the release before it is still the current one; `flynn log` has all that the new one wrote",
    )
}

/// A timeout as `None`.
pub trait TransposeTimeout<T> {
    fn transpose_timeout(self) -> Result<Option<T>>;
}

impl<T> TransposeTimeout<T> for std::result::Result<Result<T>, tokio::time::error::Elapsed> {
    fn transpose_timeout(self) -> Result<Option<T>> {
        match self {
            Ok(result) => result.map(Some),
            Err(_) => Ok(None),
        }
    }
}
