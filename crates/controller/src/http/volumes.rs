//! Volumes: listed, followed, decommissioned, destroyed. Making and attaching them is the scheduler's.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use api::{Error, sse, wire::NewVolume};
use axum::{
    Json,
    extract::{Path, State as Extract},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use state::{Change, State};
use types::{HostId, ProcessType, Timestamp, Volume, VolumeId, VolumeReport, VolumeRequest, VolumeState};

use super::{
    Shared,
    body::{Body, Parameters},
    error::Failure,
    event_stream, find_app_id, parse_id,
};
use crate::Controller;

#[derive(Debug, Deserialize)]
pub struct Since {
    since: Option<String>,
}

/// A list, newest first, or with `?since` (or asked for as a stream) the volumes changed since then as
/// events, an empty one, and then what changes.
pub async fn list_or_follow(
    Extract(controller): Shared,
    Parameters(query): Parameters<Since>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let is_stream = accept.is_some_and(|accept| accept.contains("text/event-stream"));
    let since = query.since.as_deref().filter(|since| !since.is_empty());
    if since.is_none() && !is_stream {
        return Ok(Json(newest_first(controller.state().volumes.values())).into_response());
    }
    let since = match since {
        None => Timestamp::from_micros(i64::MIN),
        Some(text) => text
            .parse()
            .map_err(|_| Error::validation("since", format!("{text:?} is not a time as RFC 3339 has it")))?,
    };
    Ok(event_stream(follow(controller, since)))
}

pub async fn list_of_app(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<Arc<Volume>>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(newest_first(state.volumes_of(app))))
}

pub async fn get_of_app(
    Extract(controller): Shared,
    Path((app, id)): Path<(String, String)>,
) -> Result<Json<Arc<Volume>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    let found = find(&state, &id)?;
    match found.app == Some(app) {
        true => Ok(Json(found)),
        false => Err(Error::not_found().into()),
    }
}

/// Makes a volume on a host, or changes the metadata of one.
pub async fn put(
    Extract(controller): Shared,
    Path(id): Path<String>,
    Body(new): Body<NewVolume>,
) -> Result<Json<Arc<Volume>>, Failure> {
    let id: VolumeId = parse_id(&id)?;
    let Some(host_id) = new.host_id else {
        return Err(Error::validation("host_id", "must be set").into());
    };
    let path = match new.path.as_str() {
        "" => String::new(),
        path => tidied(path)?,
    };
    let now = controller.now();
    let volume = Volume {
        path,
        delete_on_stop: new.delete_on_stop,
        id,
        host_id,
        kind: new.kind,
        state: VolumeState::Pending,
        app: new.app,
        release: new.release,
        job: None,
        job_type: new.job_type,
        meta: new.meta,
        created_at: now,
        updated_at: now,
        decommissioned_at: None,
    };
    controller.write(Change::PutVolume { volume }).await?;
    Ok(Json(find(&controller.state(), &id.to_string())?))
}

fn tidied(path: &str) -> Result<String, Error> {
    let mut process = ProcessType {
        volumes: vec![VolumeRequest {
            path: path.into(),
            delete_on_stop: false,
        }],
        ..ProcessType::default()
    };
    match process.tidy_volumes() {
        Ok(()) => Ok(process.volumes.remove(0).path),
        Err(_) => Err(Error::validation(
            "path",
            format!("{path:?} is no path for a volume"),
        )),
    }
}

/// The body names the volume once more, as the original's clients do, and is not needed.
pub async fn decommission(
    Extract(controller): Shared,
    Path((app, id)): Path<(String, String)>,
) -> Result<Json<Arc<Volume>>, Failure> {
    let state = controller.state();
    let (app, volume) = (find_app_id(&state, &app)?, parse_id(&id)?);
    controller
        .write(Change::DecommissionVolume { app, volume })
        .await?;
    Ok(Json(find(&controller.state(), &id)?))
}

/// An addition: destroys a volume that no job has, and what is in it.
pub async fn destroy(Extract(controller): Shared, Path(id): Path<String>) -> Result<(), Failure> {
    let volume = parse_id(&id)?;
    controller.write(Change::DestroyVolume { volume }).await?;
    Ok(())
}

/// Between the platform's own parts: what a host says of a volume.
pub async fn report(
    Extract(controller): Shared,
    Path((host, volume)): Path<(String, String)>,
    Body(report): Body<VolumeReport>,
) -> Result<(), Failure> {
    let (host, volume): (HostId, VolumeId) = (parse_id(&host)?, parse_id(&volume)?);
    controller.write(Change::Volume { host, volume, report }).await?;
    Ok(())
}

type Rows = BTreeMap<VolumeId, Arc<Volume>>;

/// What is followed is the rows and not the events, so a reader that is slow or was away is told of
/// the present and of nothing else.
fn follow(controller: Controller, since: Timestamp) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    let start = (
        controller,
        changes,
        None::<types::Table<VolumeId, Volume>>,
        VecDeque::<Bytes>::new(),
    );
    futures::stream::unfold(
        start,
        move |(controller, mut changes, mut told, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    return Some((message, (controller, changes, told, ready)));
                }
                changes.borrow_and_update();
                let now = controller.state().volumes.clone();
                match &told {
                    None => {
                        let list = newest_first(now.values().filter(|volume| volume.updated_at >= since));
                        ready.extend(list.iter().map(sse::message));
                        ready.push_back(Bytes::from_static(MARK));
                    }
                    // The tables share what is the same, so this is quick where nothing changed.
                    Some(before) if before.ptr_eq(&now) => {}
                    Some(before) => {
                        ready.extend(differences(&rows(before), &rows(&now)).iter().map(sse::message))
                    }
                }
                told = Some(now);
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

/// The end of the first list, as the original wrote it.
const MARK: &[u8] = b"data: {\"id\":\"\",\"host_id\":\"\",\"type\":\"\",\"state\":\"\"}\n\n";

fn rows(table: &types::Table<VolumeId, Volume>) -> Rows {
    table.iter().map(|(id, row)| (*id, row.clone())).collect()
}

fn differences(before: &Rows, now: &Rows) -> Vec<Arc<Volume>> {
    let gone = before
        .iter()
        .filter(|(id, row)| !now.contains_key(id) && row.state != VolumeState::Destroyed);
    let gone = gone.map(|(_, row)| {
        Arc::new(Volume {
            state: VolumeState::Destroyed,
            ..Volume::clone(row)
        })
    });
    let new = now.iter().filter(|(id, row)| before.get(id) != Some(row));
    gone.chain(new.map(|(_, row)| row.clone())).collect()
}

fn newest_first<'a>(volumes: impl Iterator<Item = &'a Arc<Volume>>) -> Vec<Arc<Volume>> {
    let mut volumes: Vec<_> = volumes.cloned().collect();
    volumes.sort_by_key(|volume| std::cmp::Reverse((volume.created_at, volume.id)));
    volumes
}

fn find(state: &State, id: &str) -> Result<Arc<Volume>, Error> {
    let id: VolumeId = parse_id(id)?;
    state.volumes.get(&id).cloned().ok_or_else(Error::not_found)
}
