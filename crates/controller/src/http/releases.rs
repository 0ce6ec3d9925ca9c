//! Releases: `/releases`, `/apps/:app/releases`, `/apps/:app/release`.

use std::sync::Arc;

use api::{
    Error,
    wire::{NewRelease, ReleaseView},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use state::Change;
use types::{
    AppId, ProcessType, Release, ReleaseId, Resources, Timestamp, Uuid, check_env_key, check_process_type,
};

use crate::{Controller, domain};

use super::{Shared, body::Body, deployments::AnyRelease, error::Failure, find_app, find_app_id, parse_id};

type Answer = Result<Json<ReleaseView>, Failure>;

/// All of a release's environment together; the kernel's limit for a new process is about 2 MiB.
const ENV_BYTES_MAX: usize = 1 << 20;
const PROCESS_TYPES_MAX: usize = 100;
const ARTIFACTS_MAX: usize = 100;
const PORTS_MAX: usize = 100;
const META_BYTES_MAX: usize = 64 << 10;
/// An hour: what is stopped holds up deployments and the drain of its host.
const STOP_TIMEOUT_MAX_S: u32 = 3600;

pub async fn list(Extract(controller): Shared) -> Json<Vec<ReleaseView>> {
    let state = controller.state();
    let seen = state.releases.keys().filter_map(|id| state.release(*id));
    Json(newest_first(seen.cloned().collect()))
}

pub async fn list_of_app(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<ReleaseView>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    let seen = state
        .releases_of(app)
        .filter_map(|release| state.release(release.id));
    Ok(Json(newest_first(seen.cloned().collect())))
}

pub async fn get(Extract(controller): Shared, Path(id): Path<String>) -> Answer {
    let id: ReleaseId = parse_id(&id)?;
    Ok(Json(
        controller
            .state()
            .release(id)
            .cloned()
            .ok_or_else(Error::not_found)?
            .into(),
    ))
}

pub async fn get_of_app(Extract(controller): Shared, Path((app, id)): Path<(String, String)>) -> Answer {
    let state = controller.state();
    let (app, id): (_, ReleaseId) = (find_app_id(&state, &app)?, parse_id(&id)?);
    let release = state.release(id).filter(|release| release.app_id == app);
    Ok(Json(release.cloned().ok_or_else(Error::not_found)?.into()))
}

pub async fn current(Extract(controller): Shared, Path(app): Path<String>) -> Answer {
    let state = controller.state();
    if app == PLATFORM_APP && state.find_app(&app).is_none() {
        return Ok(Json(platform_release(&controller).into()));
    }
    let release = find_app(&state, &app)?
        .release
        .and_then(|id| state.releases.get(&id).cloned());
    Ok(Json(release.ok_or_else(Error::not_found)?.into()))
}

/// The app that the original's controller was, as which clients ask for the cluster's own settings.
const PLATFORM_APP: &str = "controller";

/// What there is to know in it: the cluster's domain, by which a migration to another one begins.
fn platform_release(controller: &Controller) -> Arc<Release> {
    let domain = domain::current(&controller.state(), &controller.config).name;
    Arc::new(Release {
        id: ReleaseId(Uuid::nil()),
        app_id: AppId(Uuid::nil()),
        artifacts: vec![],
        env: [("DEFAULT_ROUTE_DOMAIN".to_owned(), domain)].into(),
        meta: Default::default(),
        processes: Default::default(),
        created_at: Timestamp::EPOCH,
    })
}

pub async fn set_current(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Body(release): Body<AnyRelease>,
) -> Answer {
    let release = release.parse()?;
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
            .ok_or_else(Error::not_found)?
            .into(),
    ))
}

/// Takes the original's deprecated inputs, too: `artifact` of a release, `entrypoint` and `cmd` of a
/// process type, which became its `args`.
pub async fn post(shared: Shared, Body(mut new): Body<serde_json::Value>) -> Answer {
    let is_of_old = new.get("artifact").is_some();
    if let Some(artifact) = new.get("artifact").filter(|id| id.as_str() != Some("")).cloned()
        && new
            .get("artifacts")
            .and_then(|list| list.as_array())
            .is_none_or(Vec::is_empty)
    {
        new["artifacts"] = serde_json::json!([artifact]);
    }
    let processes = new
        .get_mut("processes")
        .and_then(|processes| processes.as_object_mut());
    for process in processes.into_iter().flat_map(|processes| processes.values_mut()) {
        let list = |name: &str| process.get(name).and_then(|list| list.as_array()).cloned();
        let (entrypoint, cmd) = (
            list("entrypoint").unwrap_or_default(),
            list("cmd").unwrap_or_default(),
        );
        if entrypoint.is_empty() && cmd.is_empty() {
            continue;
        }
        let mut args = match entrypoint.is_empty() {
            true => list("args").unwrap_or_default(),
            false => entrypoint,
        };
        args.extend(cmd);
        process["args"] = args.into();
    }
    let new = serde_json::from_value(new).map_err(|_| super::body::syntax_error())?;
    let Json(mut made) = create(shared, Body(new)).await?;
    // The answer is the request with what was added to it.
    made.artifact = made.artifact.filter(|_| is_of_old);
    Ok(Json(made))
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
    let meta = new.meta.unwrap_or_default();
    if meta
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > META_BYTES_MAX
    {
        return Err(Error::validation("meta", format!("is longer than {META_BYTES_MAX} bytes")).into());
    }
    let artifacts = new.artifacts.unwrap_or_default();
    if artifacts.len() > ARTIFACTS_MAX {
        return Err(Error::validation("artifacts", format!("has more than {ARTIFACTS_MAX} images")).into());
    }
    let mut processes = new.processes.unwrap_or_default();
    if processes.len() > PROCESS_TYPES_MAX {
        return Err(
            Error::validation("processes", format!("has more than {PROCESS_TYPES_MAX} types")).into(),
        );
    }
    for (name, process) in &mut processes {
        check_process_type(name)?;
        process
            .tidy_volumes()
            .map_err(|reason| Error::validation("volumes", format!("of type {name:?} {reason}")))?;
        check_env(env.iter().chain(&process.env))?;
        check_resources(&process.resources)?;
        check_process(name, process)?;
        process.resources = process.resources.with_defaults();
    }
    let release = Release {
        id: ReleaseId(Uuid::new_v4()),
        app_id,
        artifacts,
        env,
        meta,
        processes,
        created_at: controller.now(),
    };
    controller
        .write(Change::CreateRelease {
            release: release.clone(),
        })
        .await?;
    Ok(Json(Arc::new(release).into()))
}

pub async fn delete(
    Extract(controller): Shared,
    Path((app, id)): Path<(String, String)>,
) -> Result<(), Failure> {
    let state = controller.state();
    let (app, id): (_, ReleaseId) = (find_app_id(&state, &app)?, parse_id(&id)?);
    if state.release(id).is_none() {
        return Err(Error::not_found().into());
    }
    controller
        .write(Change::DeleteRelease { app, release: id })
        .await?;
    Ok(())
}

/// Limits that no machine has are slips of the keyboard, and would overflow what is reckoned with them.
const LIMITS_MAX: [(&str, i64); 5] = [
    ("memory", 16 << 40),
    ("cpu", 1_000_000),
    ("temp_disk", 16 << 40),
    // The kernel's own bound, unless the machine's owner raised it.
    ("max_fd", 1 << 20),
    ("max_processes", 1 << 20),
];

pub fn check_resources(resources: &Resources) -> Result<(), Error> {
    for (name, value) in &resources.0 {
        let Some((_, most)) = LIMITS_MAX.iter().find(|(known, _)| known == name) else {
            let known: Vec<_> = LIMITS_MAX.iter().map(|(known, _)| *known).collect();
            let hint = format!("there are {}", known.join(", "));
            return Err(Error::validation("resources", format!("has no {name:?}")).with_hint(hint));
        };
        if value.limit.is_some_and(|limit| limit <= 0) || value.request.is_some_and(|request| request < 0) {
            return Err(Error::validation(
                "resources",
                format!("has a {name} that is not positive"),
            ));
        }
        if value.limit.max(value.request).is_some_and(|given| given > *most) {
            let reason = format!("has a {name} of more than {most}");
            return Err(Error::validation("resources", reason));
        }
        if value.limit.is_some() && value.request > value.limit {
            let reason = format!("asks for more {name} than its limit allows");
            return Err(Error::validation("resources", reason));
        }
    }
    Ok(())
}

fn check_process(name: &str, process: &ProcessType) -> Result<(), Error> {
    if process.ports.len() > PORTS_MAX {
        let reason = format!("has a type {name:?} with more than {PORTS_MAX} ports");
        return Err(Error::validation("processes", reason));
    }
    if process
        .stop_timeout
        .is_some_and(|seconds| seconds > STOP_TIMEOUT_MAX_S)
    {
        let reason = format!("has a type {name:?} with a stop_timeout of more than {STOP_TIMEOUT_MAX_S} s");
        return Err(Error::validation("processes", reason));
    }
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

fn newest_first(mut releases: Vec<Arc<Release>>) -> Vec<ReleaseView> {
    releases.sort_by_key(|release| std::cmp::Reverse((release.created_at, release.id)));
    releases.into_iter().map(Into::into).collect()
}
