//! Releases: `/releases`, `/apps/:app/releases`, `/apps/:app/release`.

use std::sync::Arc;

use api::{
    Error,
    wire::{NewRelease, ReleaseRef},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use state::Change;
use types::{Release, ReleaseId, Uuid, check_env_key, check_process_type};

use super::{Shared, body::Body, error::Failure, find_app, find_app_id, parse_id};

type Answer = Result<Json<Arc<Release>>, Failure>;

/// All of a release's environment together; the kernel's limit for a new process is about 2 MiB.
const ENV_BYTES_MAX: usize = 1 << 20;
const PROCESS_TYPES_MAX: usize = 100;

pub async fn list(Extract(controller): Shared) -> Json<Vec<Arc<Release>>> {
    Json(newest_first(
        controller.state().releases.values().cloned().collect(),
    ))
}

pub async fn list_of_app(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<Arc<Release>>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(newest_first(state.releases_of(app).cloned().collect())))
}

pub async fn get(Extract(controller): Shared, Path(id): Path<String>) -> Answer {
    let id: ReleaseId = parse_id(&id)?;
    Ok(Json(
        controller
            .state()
            .releases
            .get(&id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

pub async fn get_of_app(Extract(controller): Shared, Path((app, id)): Path<(String, String)>) -> Answer {
    let state = controller.state();
    let (app, id): (_, ReleaseId) = (find_app_id(&state, &app)?, parse_id(&id)?);
    let release = state.releases.get(&id).filter(|release| release.app_id == app);
    Ok(Json(release.cloned().ok_or_else(Error::not_found)?))
}

pub async fn current(Extract(controller): Shared, Path(app): Path<String>) -> Answer {
    let state = controller.state();
    let release = find_app(&state, &app)?
        .release
        .and_then(|id| state.releases.get(&id).cloned());
    Ok(Json(release.ok_or_else(Error::not_found)?))
}

pub async fn set_current(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Body(release): Body<ReleaseRef>,
) -> Answer {
    let app = find_app_id(&controller.state(), &app)?;
    controller
        .write(Change::SetAppRelease {
            app,
            release: release.id,
        })
        .await?;
    Ok(Json(
        controller
            .state()
            .releases
            .get(&release.id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

pub async fn create(Extract(controller): Shared, Body(new): Body<NewRelease>) -> Answer {
    let Some(app_id) = new.app_id else {
        return Err(Error::validation("app_id", "must be set").into());
    };
    if !controller.state().apps.contains_key(&app_id) {
        return Err(Error::validation("app_id", format!("names no app: {app_id}")).into());
    }
    let env = new.env.unwrap_or_default();
    check_env(env.iter())?;
    let mut processes = new.processes.unwrap_or_default();
    if processes.len() > PROCESS_TYPES_MAX {
        return Err(
            Error::validation("processes", format!("has more than {PROCESS_TYPES_MAX} types")).into(),
        );
    }
    for (name, process) in &mut processes {
        check_process_type(name)?;
        check_env(env.iter().chain(&process.env))?;
        for (resource, value) in &process.resources.0 {
            if value.limit.is_some_and(|limit| limit <= 0) || value.request.is_some_and(|request| request < 0)
            {
                return Err(
                    Error::validation("resources", format!("has a {resource} that is not positive")).into(),
                );
            }
        }
        process.resources = process.resources.with_defaults();
    }
    let release = Release {
        id: ReleaseId(Uuid::new_v4()),
        app_id,
        artifacts: new.artifacts.unwrap_or_default(),
        env,
        meta: new.meta.unwrap_or_default(),
        processes,
        created_at: daemon::now(),
    };
    controller
        .write(Change::CreateRelease {
            release: release.clone(),
        })
        .await?;
    Ok(Json(Arc::new(release)))
}

pub async fn delete(
    Extract(controller): Shared,
    Path((app, id)): Path<(String, String)>,
) -> Result<(), Failure> {
    let state = controller.state();
    let (app, id): (_, ReleaseId) = (find_app_id(&state, &app)?, parse_id(&id)?);
    if !state.releases.contains_key(&id) {
        return Err(Error::not_found().into());
    }
    controller
        .write(Change::DeleteRelease { app, release: id })
        .await?;
    Ok(())
}

fn check_env<'a>(env: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), Error> {
    let mut bytes = 0;
    for (key, value) in env {
        check_env_key(key, value)?;
        bytes += key.len() + value.len() + 2;
    }
    if bytes > ENV_BYTES_MAX {
        return Err(Error::validation(
            "env",
            format!("is longer than {ENV_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

fn newest_first(mut releases: Vec<Arc<Release>>) -> Vec<Arc<Release>> {
    releases.sort_by_key(|release| std::cmp::Reverse((release.created_at, release.id)));
    releases
}
