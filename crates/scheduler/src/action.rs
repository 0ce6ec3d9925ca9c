//! What a plan consists of: one change each, complete, so that carrying it out makes no choices.
//!
//! Each action is one command to the store. The times that a command stamps (`updated_at`,
//! `finished_at`) are the proposer's; everything else is in the action. `label` is for people only.

use std::fmt;

use types::{
    AppId, DeploymentId, Formation, HostId, Job, JobId, Processes, ReleaseId, ScaleRequestId, StopReason,
    Volume, VolumeId,
};

#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a large plan is nearly all jobs to create; a box would be one more allocation for each"
)]
pub enum Action {
    /// Insert this row. It is pending; a `PlaceJob` follows if there is a host for it.
    CreateJob {
        job: Job,
        label: String,
    },
    /// Pending → starting on this host; clears `waiting`. All of it or nothing.
    PlaceJob {
        job: JobId,
        host: HostId,
        /// What it gets there, in the order of its requests.
        volumes: Vec<VolumeId>,
        /// The rows of those that are new.
        new_volumes: Vec<Volume>,
        label: String,
    },
    /// Why a pending job waits.
    ExplainJob {
        job: JobId,
        waiting: String,
        label: String,
    },
    /// Starting or up → stopping. A pending one is down at once: nothing of it runs.
    StopJob {
        job: JobId,
        reason: StopReason,
        label: String,
    },
    /// Down with `Exit::Lost(why)`, whatever it was; an earlier stop reason stays.
    LoseJob {
        job: JobId,
        why: String,
        label: String,
    },
    /// Insert or replace this row.
    SetFormation {
        formation: Formation,
    },
    DeleteFormation {
        app: AppId,
        release: ReleaseId,
    },
    /// Pending → running.
    StartDeployment {
        deployment: DeploymentId,
    },
    /// A user scaled the app meanwhile: what the deployment ends with, either way.
    RetargetDeployment {
        deployment: DeploymentId,
        processes: Processes,
    },
    CompleteDeployment {
        deployment: DeploymentId,
    },
    /// `error` is a sentence for people; the last lines of the log are the caller's to add.
    FailDeployment {
        deployment: DeploymentId,
        error: String,
    },
    /// The app's current release, when a deployment has completed.
    SetAppRelease {
        app: AppId,
        release: ReleaseId,
    },
    CompleteScaleRequest {
        request: ScaleRequestId,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::CreateJob { job, label } => {
                write!(f, "create {label}")?;
                if let Some(release) = job.release {
                    write!(f, " of {release}")?;
                }
                if job.restarts > 0 {
                    write!(f, ", restart {}", job.restarts)?;
                }
                if !job.waiting.is_empty() {
                    write!(f, ", waits: {}", job.waiting)?;
                }
                Ok(())
            }
            Action::PlaceJob {
                host,
                volumes,
                new_volumes,
                label,
                ..
            } => {
                write!(f, "start {label} on {host}")?;
                for id in volumes {
                    match new_volumes.iter().find(|volume| volume.id == *id) {
                        Some(volume) => write!(f, " with a new volume at {}", volume.path)?,
                        None => write!(f, " with volume {id}")?,
                    }
                }
                Ok(())
            }
            Action::ExplainJob { waiting, label, .. } => write!(f, "wait {label}: {waiting}"),
            Action::StopJob { reason, label, .. } => {
                let reason = match reason {
                    StopReason::Unwanted => "unwanted",
                    StopReason::Killed => "killed",
                    StopReason::Unhealthy => "unhealthy",
                };
                write!(f, "stop {label}: {reason}")
            }
            Action::LoseJob { why, label, .. } => write!(f, "lose {label}: {why}"),
            Action::SetFormation { formation } => {
                write!(f, "set formation {}:", formation.release)?;
                write_processes(f, &formation.processes)
            }
            Action::DeleteFormation { release, .. } => write!(f, "delete formation {release}"),
            Action::StartDeployment { deployment } => write!(f, "run deployment {deployment}"),
            Action::RetargetDeployment {
                deployment,
                processes,
            } => {
                write!(f, "retarget deployment {deployment}:")?;
                write_processes(f, processes)
            }
            Action::CompleteDeployment { deployment } => write!(f, "complete deployment {deployment}"),
            Action::FailDeployment { deployment, error } => {
                write!(f, "fail deployment {deployment}: {error}")
            }
            Action::SetAppRelease { app, release } => write!(f, "set release of {app} to {release}"),
            Action::CompleteScaleRequest { request } => write!(f, "complete scale request {request}"),
        }
    }
}

fn write_processes(f: &mut fmt::Formatter<'_>, processes: &Processes) -> fmt::Result {
    if processes.is_empty() {
        return f.write_str(" nothing");
    }
    processes
        .iter()
        .try_for_each(|(process_type, count)| write!(f, " {process_type}={count}"))
}
