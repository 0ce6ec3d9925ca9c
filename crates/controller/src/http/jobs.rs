//! Jobs: listed, run once, stopped, entered.

use std::sync::Arc;

use api::{Error, attach, wire};
use axum::{
    Json,
    extract::{FromRequest, Path, Request, State as Extract},
    response::{IntoResponse, Response},
};
use daemon::Principal;
use http::header;
use state::{Change, JobChange, State};
use types::{
    Job, JobId, JobRef, JobState, OneOff, StopReason, Timestamp, Tty, Uuid, check_env_key, check_process_type,
};

use super::{Shared, body::Body, error::Failure, find_app, find_app_id};
use crate::{attach::Session, event_view};

pub async fn list(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<wire::Job>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(newest_first(&state, state.jobs_of(app).cloned().collect())))
}

/// All jobs of all apps that have not ended.
pub async fn active(Extract(controller): Shared) -> Json<Vec<wire::Job>> {
    let state = controller.state();
    let jobs = state
        .jobs
        .values()
        .filter(|job| job.state != JobState::Down)
        .cloned()
        .collect();
    Json(newest_first(&state, jobs))
}

pub async fn get(
    Extract(controller): Shared,
    Path((app, job)): Path<(String, String)>,
) -> Result<Json<wire::Job>, Failure> {
    let state = controller.state();
    let job = find_job(&state, &app, &job)?;
    Ok(Json(event_view::job(&state, &job)))
}

pub async fn stop(
    Extract(controller): Shared,
    Path((app, job)): Path<(String, String)>,
) -> Result<(), Failure> {
    let job = find_job(&controller.state(), &app, &job)?;
    let change = JobChange::Stop {
        reason: StopReason::Killed,
    };
    controller.write(Change::Job { job: job.id, change }).await?;
    Ok(())
}

/// A one-off job: detached with a plain request, attached with `Upgrade: flynn-attach/0`.
pub async fn create(
    Extract(controller): Shared,
    Path(app): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let principal = request.extensions().get::<Principal>().copied();
    let (request, wants_attach) = take_upgrade(request)?;
    let (upgrade, request) = request;
    let Body(new) = Body::<wire::NewJob>::from_request(request, &()).await?;
    let is_own = principal == Some(Principal::Internal);
    if !is_own && (!new.mounts.is_empty() || !new.profile.is_empty() || new.host.is_some()) {
        return Err(Error::invalid("mounts, host and profile are for the platform's own jobs").into());
    }
    if let Some(profile) = new.profiles.first() {
        let reason = format!("names {profile:?}, and jobs have no devices of their host here");
        return Err(Error::validation("profiles", reason).into());
    }
    let job = one_off(&controller.state(), controller.now(), &app, new, wants_attach)?;
    let id = job.id;
    controller.write(Change::CreateJob { job }).await?;
    if !wants_attach {
        crate::attach::wait_for_place(&controller, id).await;
        let state = controller.state();
        let job = state.jobs.get(&id).ok_or_else(Error::not_found)?;
        return Ok(Json(event_view::job(&state, job)).into_response());
    }
    let upgrade = upgrade.ok_or_else(upgrade_missing)?;
    let session = Session::of_job(&controller, id)
        .await
        .inspect_err(|_| stop_detached(&controller, id))?;
    Ok(session.answer(controller, upgrade, Some(id)))
}

/// A further process in a running job.
pub async fn exec(
    Extract(controller): Shared,
    Path((app, job)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    let ((upgrade, request), wants_attach) = take_upgrade(request)?;
    if !wants_attach {
        return Err(upgrade_missing().into());
    }
    let Body(mut new) = Body::<wire::NewExec>::from_request(request, &()).await?;
    if new.args.is_empty() {
        return Err(Error::validation("args", "must name a command").into());
    }
    let state = controller.state();
    let job = find_job(&state, &app, &job)?;
    if job.state != JobState::Up && job.state != JobState::Starting {
        let message = format!(
            "job {} is {}, commands run in jobs that are up",
            job.reference(),
            job.state
        );
        return Err(Error::conflict(message)
            .with_hint("`flynn ps` lists the jobs that are up")
            .into());
    }
    new.args = crate::host_job::exec_args(&state, &job, new.args);
    let session = Session::of_exec(&controller, &job, &new).await?;
    Ok(session.answer(controller, upgrade.ok_or_else(upgrade_missing)?, None))
}

pub fn one_off(
    state: &State,
    now: Timestamp,
    app: &str,
    new: wire::NewJob,
    attached: bool,
) -> Result<Job, Failure> {
    let app = find_app(state, app)?;
    let release = new.release.or(app.release);
    if let Some(id) = release {
        if !state.releases.contains_key(&id) {
            return Err(Error::invalid(format!("could not find release with ID {id}")).into());
        }
    } else if new.artifacts.is_empty() {
        let hint = "push code with `git push flynn main`, or name a release with -r";
        return Err(Error::invalid("the app has no release").with_hint(hint).into());
    }
    for id in &new.artifacts {
        if !state.artifacts.contains_key(id) {
            return Err(
                Error::validation("artifacts", format!("could not find artifact with ID {id}")).into(),
            );
        }
    }
    let images = match (&new.artifacts[..], release.and_then(|id| state.releases.get(&id))) {
        ([], Some(release)) => release.artifacts.len(),
        (named, _) => named.len(),
    };
    if images == 0 {
        let hint = "it only has configuration; push code with `git push flynn main`";
        return Err(Error::invalid("the release has no image to run")
            .with_hint(hint)
            .into());
    }
    for (key, value) in &new.env {
        check_env_key(key, value)?;
    }
    if !new.process_type.is_empty() {
        check_process_type(&new.process_type)?;
    }
    let is_type = |name: &String| {
        let of = release.and_then(|id| state.releases.get(&id));
        of.is_some_and(|release| release.processes.contains_key(name))
    };
    if !new.mounts_from.is_empty() && !is_type(&new.mounts_from) {
        let reason = format!(
            "names {:?}, which is no process type of the release",
            new.mounts_from
        );
        return Err(Error::validation("mounts_from", reason).into());
    }
    super::releases::check_resources(&new.resources)?;
    let mut meta = new.meta;
    meta.extend(new.host.map(|host| ("flynn-host".to_owned(), host.to_string())));
    Ok(Job {
        id: JobId(Uuid::new_v4()),
        app: app.id,
        release,
        process_type: new.process_type,
        state: JobState::Pending,
        host: None,
        volumes: vec![],
        one_off: Some(OneOff {
            args: new.args,
            env: new.env,
            release_env: new.release_env,
            artifacts: new.artifacts,
            tty: new.tty.then_some(Tty {
                columns: if new.tty_columns == 0 { 80 } else { new.tty_columns },
                lines: if new.tty_lines == 0 { 24 } else { new.tty_lines },
            }),
            attached,
            disable_log: new.disable_log,
            resources: new.resources,
            mounts: new.mounts,
            profile: new.profile,
            volumes: new.data.then(own_data).into_iter().collect(),
            volumes_from: new.mounts_from,
        }),
        meta,
        run_at: None,
        restarts: 0,
        waiting: String::new(),
        stop_reason: None,
        is_drained: false,
        ipv6: None,
        address: None,
        is_unhealthy: false,
        exit: None,
        created_at: now,
        updated_at: now,
        started_at: None,
        up_at: None,
        ended_at: None,
    })
}

/// The original's `data`: room that goes with the job.
fn own_data() -> types::VolumeRequest {
    types::VolumeRequest {
        path: types::DATA_PATH.into(),
        delete_on_stop: true,
    }
}

type Upgradable = (Option<hyper::upgrade::OnUpgrade>, Request);

/// Takes the connection's upgrade out of a request that asks for the attach protocol.
fn take_upgrade(mut request: Request) -> Result<(Upgradable, bool), Failure> {
    let asked = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    let wants_attach = match asked {
        Some(protocol) if protocol.eq_ignore_ascii_case(attach::PROTOCOL) => true,
        Some(other) => return Err(Error::invalid(format!("cannot upgrade to {other:?}")).into()),
        None => false,
    };
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    Ok(((upgrade, request), wants_attach))
}

fn upgrade_missing() -> Error {
    Error::invalid(format!(
        "this request needs `Upgrade: {}` over HTTP/1.1",
        attach::PROTOCOL
    ))
}

fn stop_detached(controller: &crate::Controller, job: JobId) {
    let controller = controller.clone();
    tokio::spawn(async move {
        let change = JobChange::Stop {
            reason: StopReason::Killed,
        };
        let _ = controller.write(Change::Job { job, change }).await;
    });
}

/// By UUID or whole id, within the app.
fn find_job(state: &State, app: &str, job: &str) -> Result<Arc<Job>, Error> {
    let app = find_app_id(state, app)?;
    let reference: JobRef = super::parse_id(job)?;
    let found = state.jobs.get(&reference.job).filter(|found| found.app == app);
    let found = found.filter(|found| reference.host.is_none() || reference.host == found.host);
    found.cloned().ok_or_else(Error::not_found)
}

fn newest_first(state: &State, mut jobs: Vec<Arc<Job>>) -> Vec<wire::Job> {
    jobs.sort_by_key(|job| std::cmp::Reverse((job.created_at, job.id)));
    jobs.iter().map(|job| event_view::job(state, job)).collect()
}
