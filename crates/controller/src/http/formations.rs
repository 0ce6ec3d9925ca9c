//! Formations and scale requests.

use std::sync::Arc;

use api::{
    Error,
    wire::{ExpandedFormation, FormationUpdate, NewScaleRequest},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use serde::Deserialize;
use state::{Change, State};
use types::{
    AppId, Formation, Processes, ReleaseId, ScaleRequest, ScaleRequestId, ScaleRequestState, Timestamp, Uuid,
};

use super::{
    Shared,
    body::{Body, Parameters},
    error::Failure,
    event_stream, find_app_id, formation_stream, parse_id,
};

/// Jobs of one type that one request may ask for.
const COUNT_MAX: u32 = 10_000;

#[derive(Deserialize)]
pub struct Expand {
    #[serde(default)]
    expand: Option<String>,
}

#[derive(Deserialize)]
pub struct Active {
    #[serde(default)]
    active: Option<String>,
    #[serde(default)]
    since: Option<String>,
}

pub async fn list(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<Arc<Formation>>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(state.formations_of(app).cloned().collect()))
}

/// All formations that want something, with what they refer to; or, for `text/event-stream`, those
/// that changed since a time, and then every change.
pub async fn all_or_follow(
    Extract(controller): Shared,
    Parameters(query): Parameters<Active>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/event-stream")) {
        let since = match query.since.as_deref().filter(|since| !since.is_empty()) {
            None => Timestamp::from_micros(i64::MIN),
            Some(text) => text
                .parse()
                .map_err(|_| Error::validation("since", "must be a time such as 2026-01-31T12:00:00Z"))?,
        };
        return Ok(event_stream(formation_stream::follow(controller, since)));
    }
    if query.active.as_deref() != Some("true") {
        return Err(Error::invalid("must either request a stream or only active formations").into());
    }
    let state = controller.state();
    let wanted = state
        .formations
        .values()
        .filter(|formation| formation.processes.values().any(|count| *count > 0));
    Ok(Json(
        wanted
            .filter_map(|formation| expanded(&state, formation))
            .collect::<Vec<_>>(),
    )
    .into_response())
}

pub async fn get(
    Extract(controller): Shared,
    Path((app, release)): Path<(String, String)>,
    Parameters(query): Parameters<Expand>,
) -> Result<Response, Failure> {
    let state = controller.state();
    let (app, release) = (find_app_id(&state, &app)?, parse_id::<ReleaseId>(&release)?);
    let formation = state
        .formations
        .get(&(app, release))
        .ok_or_else(Error::not_found)?;
    if query.expand.as_deref() == Some("true") {
        return Ok(Json(expanded(&state, formation).ok_or_else(Error::not_found)?).into_response());
    }
    Ok(Json(formation.clone()).into_response())
}

pub async fn put(
    Extract(controller): Shared,
    Path((app, release)): Path<(String, String)>,
    Body(update): Body<FormationUpdate>,
) -> Result<Json<Arc<Formation>>, Failure> {
    let (app, release) = ids(&controller.state(), &app, &release)?;
    request(&controller, app, release, update.processes, update.tags).await?;
    let state = controller.state();
    Ok(Json(
        state
            .formations
            .get(&(app, release))
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

/// Scales everything down and forgets the formation.
pub async fn delete(
    Extract(controller): Shared,
    Path((app, release)): Path<(String, String)>,
) -> Result<(), Failure> {
    let state = controller.state();
    let (app, release) = ids(&state, &app, &release)?;
    if !state.formations.contains_key(&(app, release)) {
        return Err(Error::not_found().into());
    }
    controller.write(Change::DeleteFormation { app, release }).await?;
    Ok(())
}

/// A scale request with its id and state is one that was made before, and ends by this: how the
/// original's scheduler completed them.
#[derive(Deserialize)]
pub struct AnyScaleRequest {
    #[serde(default)]
    id: String,
    #[serde(default)]
    state: Option<String>,
    #[serde(flatten)]
    new: NewScaleRequest,
}

pub async fn put_scale(
    shared: Shared,
    Path((app, release)): Path<(String, String)>,
    Body(any): Body<AnyScaleRequest>,
) -> Result<Json<Arc<ScaleRequest>>, Failure> {
    let Extract(controller) = &shared;
    let state = match any.state.as_deref() {
        None | Some("" | "pending") => ScaleRequestState::Pending,
        Some("complete") => ScaleRequestState::Complete,
        Some("cancelled") => ScaleRequestState::Cancelled,
        Some(_) => {
            let known = "pending cancelled complete";
            let reason = format!("Enum error. The data must be equal to one of these values [{known}].");
            return Err(Error::validation("state", reason).into());
        }
    };
    let known = any.id.parse::<ScaleRequestId>().ok().and_then(|id| {
        let state = controller.state();
        let (app, release) = ids(&state, &app, &release).ok()?;
        let found = state.scale_requests.get(&id)?;
        (found.app == app && found.release == release).then_some(id)
    });
    let Some(request) = known else {
        return scale(shared, Path((app, release)), Body(any.new)).await;
    };
    let change = match state {
        ScaleRequestState::Complete => Some(Change::CompleteScaleRequest { request }),
        ScaleRequestState::Cancelled => Some(Change::CancelScaleRequest { request }),
        // The same request again, which changes nothing.
        ScaleRequestState::Pending => None,
    };
    if let Some(change) = change {
        controller.write(change).await?;
    }
    let found = controller.state().scale_requests.get(&request).cloned();
    Ok(Json(found.ok_or_else(Error::not_found)?))
}

pub async fn scale(
    Extract(controller): Shared,
    Path((app, release)): Path<(String, String)>,
    Body(new): Body<NewScaleRequest>,
) -> Result<Json<Arc<ScaleRequest>>, Failure> {
    let (app, release) = ids(&controller.state(), &app, &release)?;
    if new.new_processes.is_none() && new.new_tags.is_none() {
        let message = "scale request must have either processes or tags set";
        return Err(Error::invalid(message).into());
    }
    let id = request(&controller, app, release, new.new_processes, new.new_tags).await?;
    let found = controller.state().scale_requests.get(&id).cloned();
    let mut found = ScaleRequest::clone(&*found.ok_or_else(Error::not_found)?);
    // The answer is the request as it was made, whatever became of it since.
    found.state = ScaleRequestState::Pending;
    found.updated_at = found.created_at;
    Ok(Json(Arc::new(found)))
}

async fn request(
    controller: &crate::Controller,
    app: AppId,
    release: ReleaseId,
    processes: Option<Processes>,
    tags: Option<types::Tags>,
) -> Result<ScaleRequestId, Failure> {
    if let Some((name, count)) = processes.iter().flatten().find(|(_, count)| **count > COUNT_MAX) {
        let reason = format!("asks for {count} jobs of type {name:?}; at most {COUNT_MAX} can be asked for");
        return Err(Error::validation("processes", reason).into());
    }
    let request = ScaleRequestId(Uuid::new_v4());
    controller
        .write(Change::Scale {
            request,
            app,
            release,
            processes,
            tags,
        })
        .await?;
    Ok(request)
}

fn ids(state: &State, app: &str, release: &str) -> Result<(AppId, ReleaseId), Failure> {
    Ok((find_app_id(state, app)?, parse_id(release)?))
}

pub fn expanded(state: &State, formation: &Formation) -> Option<ExpandedFormation> {
    let app = state.apps.get(&formation.app)?.clone();
    let release = state.releases.get(&formation.release)?.clone();
    let artifacts = release
        .artifacts
        .iter()
        .filter_map(|id| state.artifacts.get(id).cloned())
        .collect();
    let is_pending = |request: &&Arc<ScaleRequest>| {
        request.state == ScaleRequestState::Pending
            && (request.app, request.release) == (formation.app, formation.release)
    };
    let pending = state.scale_requests.values().find(is_pending).cloned();
    Some(ExpandedFormation::of(app, release, artifacts, formation, pending))
}
