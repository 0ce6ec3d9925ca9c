//! `PUT /apps/:app/jobs/:job`: what became of a job, as the original's scheduler reported it.
//!
//! Here hosts report, so this is for tools of the original's. A job moves on as far as it may and
//! never back. A job that nobody here knows can only be recorded as ended: the platform starts jobs,
//! and a row that says otherwise would be believed.

use api::{
    Error,
    provision::JobUpdate,
    wire::{self, NewJob},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use state::{Change, JobChange};
use types::{Exit, Job, JobRef, JobState, StopReason};

use super::{Shared, body::Body, error::Failure, find_app_id, jobs::one_off};
use crate::event_view;

/// The recorded states, and `blocked`, which the original's own schema had forgotten.
const STATES: &str = "pending starting up stopping down crashed failed";

pub async fn put(
    Extract(controller): Shared,
    Path((app, job)): Path<(String, String)>,
    Body(update): Body<JobUpdate>,
) -> Result<Json<wire::Job>, Failure> {
    let state = controller.state();
    let app_id = find_app_id(&state, &app)?;
    if !update.app.is_empty() && find_app_id(&state, &update.app).ok() != Some(app_id) {
        return Err(Error::validation("app", "is another one than the path's").into());
    }
    let reference: JobRef = job
        .parse()
        .map_err(|_| Error::validation("uuid", "must be a UUID"))?;
    let id = reference.job;
    if !update.uuid.is_empty() && update.uuid != id.to_string() {
        return Err(Error::validation("uuid", "is another one than the path's").into());
    }
    let known = state.jobs.get(&id);
    if known.is_some_and(|known| known.app != app_id) {
        return Err(Error::not_found().into());
    }
    let exit = exit(&update);
    let change = match update.state.as_str() {
        "pending" | "blocked" => None,
        "starting" => Some(JobChange::Started { address: None }),
        "up" => Some(JobChange::Up {
            address: None,
            ipv6: None,
        }),
        "stopping" => Some(JobChange::Stop {
            reason: StopReason::Killed,
        }),
        "down" | "crashed" | "failed" => Some(JobChange::Down { exit }),
        _ => {
            let reason = format!("Enum error. The data must be equal to one of these values [{STATES}].");
            return Err(Error::validation("state", reason).into());
        }
    };
    let changes = match (known, change) {
        (Some(_), None) => vec![],
        (Some(_), Some(change)) => vec![Change::Job { job: id, change }],
        (None, Some(JobChange::Down { exit })) => {
            let recorded = recorded(&state, controller.now(), &app, &update, id, exit)?;
            vec![Change::CreateJob { job: recorded }]
        }
        (None, _) => {
            return Err(Error::conflict(format!("the platform did not start a job {id}"))
                .with_hint("POST /apps/:app/jobs starts one")
                .into());
        }
    };
    for change in changes {
        controller.write(change).await?;
    }
    let state = controller.state();
    let job = state.jobs.get(&id).ok_or_else(Error::not_found)?;
    Ok(Json(event_view::job(&state, job)))
}

fn exit(update: &JobUpdate) -> Exit {
    match (update.host_error.as_deref(), update.exit_status) {
        (Some(error), _) if !error.is_empty() => Exit::NotStarted(error.to_owned()),
        (_, Some(status)) => Exit::Code(status),
        (_, None) if update.state == "down" => Exit::Code(0),
        (_, None) => Exit::Code(1),
    }
}

/// A row of a job that ended somewhere, sometime before now.
fn recorded(
    state: &state::State,
    now: types::Timestamp,
    app: &str,
    update: &JobUpdate,
    id: types::JobId,
    exit: Exit,
) -> Result<Job, Failure> {
    let new = NewJob {
        release: update.release,
        args: update.args.clone().unwrap_or_default(),
        meta: update.meta.clone().unwrap_or_default(),
        process_type: update.process_type.clone(),
        ..NewJob::default()
    };
    let host = match update.host_id.as_str() {
        "" => None,
        host => Some(
            host.parse()
                .map_err(|_| Error::validation("host_id", "is no id of a host"))?,
        ),
    };
    Ok(Job {
        id,
        host,
        state: JobState::Down,
        exit: Some(exit),
        ended_at: Some(now),
        is_drained: true,
        ..one_off(state, now, app, new, false)?
    })
}
