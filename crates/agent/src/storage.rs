//! `/storage`: the volumes of this host over HTTP.
//!
//! A volume is a row of the cluster, so what is made or removed here goes through the controller.
//! Snapshots and their transport, which the original's file system had, do not exist here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use api::{
    Error,
    host::{VolumeEvent, VolumeInfo},
    sse,
    wire::NewVolume,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use types::{VolumeId, VolumeReport, VolumeType};

use crate::{
    agent::Agent,
    http::{Failure, Host, body, wants_events},
    volumes,
};

/// The one provider there is.
const PROVIDER: &str = "default";
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) fn routes() -> Router<Host> {
    Router::new()
        .route("/storage/providers", post(no_providers))
        .route("/storage/providers/{provider}/volumes", post(create))
        .route("/storage/volumes", get(list))
        .route("/storage/volumes/{volume}", get(show).delete(destroy))
        .route("/storage/volumes/{volume}/snapshot", put(no_snapshots))
        .route("/storage/volumes/{volume}/pull_snapshot", post(no_snapshots))
        .route("/storage/volumes/{volume}/send", get(no_snapshots))
}

async fn no_providers() -> Failure {
    let hint = "mount another file system at the volumes' directory to have them elsewhere";
    Error::validation("kind", "must be that of the provider that is there, default")
        .with_hint(hint)
        .into()
}

async fn no_snapshots() -> Failure {
    let hint = "volumes are plain directories: copy them with the job stopped, or back up the cluster";
    Error::invalid("volumes of this host have no snapshots")
        .with_hint(hint)
        .into()
}

async fn list(State(host): State<Host>, headers: HeaderMap) -> Result<Response, Failure> {
    if wants_events(&headers) {
        return Ok(events(host.agent));
    }
    let volumes = host.agent.volumes.clone();
    let found = tokio::task::spawn_blocking(move || volumes.list()).await;
    match found {
        Ok(Ok(list)) => Ok(Json(list).into_response()),
        Ok(Err(error)) => Err(Error::unavailable(format!("cannot read the volumes: {error}")).into()),
        Err(_) => Err(Error::unavailable("the host is shutting down").into()),
    }
}

async fn show(State(host): State<Host>, Path(id): Path<String>) -> Result<Json<VolumeInfo>, Failure> {
    Ok(Json(find(&host.agent, &id)?))
}

#[derive(Default, Deserialize)]
struct NewInfo {
    id: Option<VolumeId>,
    #[serde(rename = "type", default)]
    kind: VolumeType,
    #[serde(default)]
    meta: std::collections::BTreeMap<String, String>,
}

/// A volume that belongs to no app.
async fn create(
    State(host): State<Host>,
    Path(provider): Path<String>,
    request: Request,
) -> Result<Json<VolumeInfo>, Failure> {
    if provider != PROVIDER {
        return Err(Error::not_found().into());
    }
    let new: NewInfo = body(request).await?;
    if new.kind != VolumeType::Data {
        return Err(Error::validation("type", "must be data").into());
    }
    let agent = &host.agent;
    let id = new.id.unwrap_or_else(|| VolumeId(types::Uuid::new_v4()));
    let row = NewVolume {
        host_id: Some(agent.host.clone()),
        meta: new.meta,
        ..NewVolume::default()
    };
    let row = agent
        .controller
        .put_volume(id, &row)
        .await
        .map_err(of_controller)?;
    let (volumes, info) = (
        agent.volumes.clone(),
        VolumeInfo {
            id,
            kind: VolumeType::Data,
            meta: row.meta,
            created_at: row.created_at,
        },
    );
    let made = info.clone();
    match tokio::task::spawn_blocking(move || volumes.make(&made)).await {
        Ok(Ok(())) => Ok(Json(info)),
        Ok(Err(error)) => Err(Error::unavailable(format!("cannot make the volume: {error}")).into()),
        Err(_) => Err(Error::unavailable("the host is shutting down").into()),
    }
}

/// Gone when this answers. One that the cluster does not know is removed, too.
async fn destroy(State(host): State<Host>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let id: VolumeId = id.parse().map_err(|_| Error::not_found())?;
    let agent = &host.agent;
    let is_known = match agent.controller.destroy_volume(id).await {
        Ok(()) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(of_controller(error)),
    };
    if !is_known {
        find(agent, &id.to_string())?;
    }
    volumes::remove(agent, id)
        .await
        .map_err(|why| Error::conflict(format!("cannot remove volume {id}: {why}")))?;
    if is_known {
        let report = VolumeReport::Removed;
        agent
            .controller
            .report_volume(&agent.host, id, report)
            .await
            .map_err(of_controller)?;
    }
    Ok(StatusCode::OK)
}

fn find(agent: &Agent, id: &str) -> Result<VolumeInfo, Failure> {
    let id: VolumeId = id.parse().map_err(|_| Error::not_found())?;
    match agent.volumes.get(id) {
        Ok(Some(info)) => Ok(info),
        Ok(None) => Err(Error::new(
            api::Code::ObjectNotFound,
            format!("there is no volume {id} on this host"),
        )
        .into()),
        Err(error) => Err(Error::unavailable(format!("cannot read volume {id}: {error}")).into()),
    }
}

fn of_controller(error: api::ClientError) -> Failure {
    match error.code() {
        Some(code) => Error::new(code, error.to_string()).into(),
        None => Error::unavailable(error.to_string()).into(),
    }
}

fn events(agent: Arc<Agent>) -> Response {
    let state = (agent.volumes.events(), agent);
    let stream = futures::stream::unfold(state, |(mut receiver, agent)| async move {
        loop {
            let event: Result<Arc<VolumeEvent>, RecvError> = tokio::select! {
                event = receiver.recv() => event,
                _ = tokio::time::sleep(KEEP_ALIVE) => {
                    return Some((Ok::<_, Infallible>(Bytes::from_static(sse::KEEP_ALIVE)), (receiver, agent)));
                }
                _ = agent.shutdown.cancelled() => return None,
            };
            match event {
                Ok(event) => return Some((Ok(sse::message(&*event)), (receiver, agent))),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, sse::CONTENT_TYPE)];
    (headers, Body::from_stream(stream)).into_response()
}
