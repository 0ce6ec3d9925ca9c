//! On the leader: plans, and carries the plan out as one command.
//!
//! A plan is made from one state of the cluster and written in one command. If the state changed in
//! between, parts of it are refused or come too late; the next plan, made at once, knows better.

use std::{sync::Arc, time::Duration};

use api::logs::{Message, Query};
use daemon::Shutdown;
use futures::StreamExt;
use scheduler::{Action, Cluster, Plan, Planner};
use state::{Change, JobChange, State};
use types::{AppId, DeploymentId, DeploymentStatus, Exit, JobState, ScaleRequestState, Timestamp};

use crate::Controller;

/// Lines of a failed job's log that its deployment's error quotes.
const QUOTED_LINES: usize = 12;
/// How long the quoting may take: the rollback must not wait for it.
const QUOTE_TIMEOUT: Duration = Duration::from_secs(2);

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut changes = controller.changes();
    let mut leadership = controller.store.leadership();
    let mut planner = Planner::default();
    loop {
        changes.borrow_and_update();
        let mut pause = None;
        if *leadership.borrow_and_update() {
            let now = controller.now();
            let state = controller.state();
            let plan = planner.plan(&cluster(&state), now);
            pause = plan.wake_at.map(|at| at.since(now));
            if !plan.is_empty()
                && let Err(error) = execute(&controller, &state, plan).await
            {
                tracing::warn!(%error, "cannot carry out a plan; trying again");
                pause = Some(Duration::from_secs(1));
            }
        } else {
            // What it remembers costs memory; the next term begins anew.
            planner = Planner::default();
        }
        // Without a time of its own the loop still looks once a minute, should a wake be missed.
        let pause = pause.unwrap_or(Duration::from_secs(60));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(pause) => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

/// The part of the state that the scheduler decides by.
pub fn cluster(state: &State) -> Cluster {
    Cluster {
        apps: state.apps.clone(),
        releases: state.releases.clone(),
        formations: state.formations.clone(),
        scale_requests: state
            .scale_requests
            .iter()
            .filter(|(_, request)| request.state == ScaleRequestState::Pending)
            .map(|(id, request)| (*id, request.clone()))
            .collect(),
        deployments: state
            .deployments
            .iter()
            .filter(|(_, deployment)| !deployment.status.is_finished())
            .map(|(id, deployment)| (*id, deployment.clone()))
            .collect(),
        jobs: state.jobs.clone(),
        hosts: state.hosts.clone(),
        volumes: state.volumes.clone(),
        revision: state.revision,
    }
}

async fn execute(controller: &Controller, state: &Arc<State>, plan: Plan) -> Result<(), api::Error> {
    let mut changes = Vec::with_capacity(plan.actions.len());
    for action in plan.actions {
        tracing::info!("{action}");
        changes.push(match action {
            Action::FailDeployment { deployment, error } => {
                let error = with_log(controller, state, deployment, error).await;
                Change::SetDeploymentStatus {
                    deployment,
                    status: DeploymentStatus::Failed,
                    error,
                }
            }
            other => change(other),
        });
    }
    controller.write(Change::All { changes }).await?;
    Ok(())
}

/// The command of an action.
pub fn change(action: Action) -> Change {
    let status = |deployment, status, error| Change::SetDeploymentStatus {
        deployment,
        status,
        error,
    };
    match action {
        Action::CreateJob { job, .. } => Change::CreateJob { job },
        Action::PlaceJob {
            job,
            host,
            volumes,
            new_volumes,
            ..
        } => Change::Job {
            job,
            change: JobChange::Place {
                host,
                volumes,
                new_volumes,
            },
        },
        Action::ExplainJob { job, waiting, .. } => Change::Job {
            job,
            change: JobChange::Wait { reason: waiting },
        },
        Action::StopJob { job, reason, .. } => Change::Job {
            job,
            change: JobChange::Stop { reason },
        },
        Action::LoseJob { job, why, .. } => Change::Job {
            job,
            change: JobChange::Down {
                exit: Exit::Lost(why),
            },
        },
        Action::SetFormation { formation } => Change::SetFormation {
            app: formation.app,
            release: formation.release,
            processes: formation.processes,
            tags: formation.tags,
        },
        Action::DeleteFormation { app, release } => Change::DeleteFormation { app, release },
        Action::StartDeployment { deployment } => {
            status(deployment, DeploymentStatus::Running, String::new())
        }
        Action::RetargetDeployment {
            deployment,
            processes,
        } => Change::RetargetDeployment {
            deployment,
            processes,
        },
        Action::CompleteDeployment { deployment } => {
            status(deployment, DeploymentStatus::Complete, String::new())
        }
        Action::FailDeployment { deployment, error } => status(deployment, DeploymentStatus::Failed, error),
        Action::SetAppRelease { app, release } => Change::SetAppRelease { app, release },
        Action::CompleteScaleRequest { request } => Change::CompleteScaleRequest { request },
    }
}

/// The error with the last lines that the failed release's jobs wrote.
async fn with_log(controller: &Controller, state: &State, deployment: DeploymentId, error: String) -> String {
    let lines = async {
        let deployment = state.deployments.get(&deployment)?;
        let since = deployment.created_at;
        let mut jobs: Vec<_> = state
            .jobs_of(deployment.app)
            .filter(|job| job.release == Some(deployment.new_release) && job.created_at >= since)
            .collect();
        // What ended last says most; a job that merely never came up may have said why, too.
        jobs.sort_by_key(|job| (job.state == JobState::Down, job.ended_at, job.created_at));
        let mut quoted = vec![];
        for job in jobs.iter().rev().take(3) {
            quoted = last_lines(controller, deployment.app, job.id.to_string(), since).await?;
            if !quoted.is_empty() {
                break;
            }
        }
        Some(quoted)
    };
    let lines = tokio::time::timeout(QUOTE_TIMEOUT, lines)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    if lines.is_empty() {
        return error;
    }
    let text: String = lines
        .iter()
        .map(|message| format!("\n  {}", message.msg))
        .collect();
    format!("{error}\nThe last lines of its log:{text}")
}

async fn last_lines(
    controller: &Controller,
    app: AppId,
    job_id: String,
    since: Timestamp,
) -> Option<Vec<Message>> {
    let query = Query {
        job_id: Some(job_id),
        lines: Some(QUOTED_LINES),
        ..Default::default()
    };
    let messages = controller.log(app, query).await.ok()?;
    Some(
        messages
            .filter(|message| std::future::ready(message.timestamp >= since))
            .collect()
            .await,
    )
}
