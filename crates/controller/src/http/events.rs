//! Events: listed, or followed without losing or doubling one over a reconnect.

use std::{collections::VecDeque, sync::Arc};

use api::{Error, sse};
use axum::{
    Json,
    extract::{Path, Query, State as Extract},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use state::{State, StateEvent};
use types::{AppId, Event, ObjectType};

use super::{Shared, error::Failure, event_stream, find_app_id};
use crate::{Controller, event_view};

#[derive(Debug, Default, Deserialize)]
pub struct Filter {
    app_id: Option<String>,
    object_types: Option<String>,
    object_id: Option<String>,
    past: Option<String>,
    count: Option<usize>,
    before_id: Option<u64>,
    since_id: Option<u64>,
}

pub async fn get(Extract(controller): Shared, Path(id): Path<u64>) -> Result<Json<Event>, Failure> {
    let state = controller.state();
    let found = state
        .events
        .iter()
        .find(|event| event.id == id)
        .ok_or_else(Error::not_found)?;
    Ok(Json(event_view::event(&state, found)))
}

/// A list for `Accept: application/json` exactly, a stream for everything else.
pub async fn list_or_follow(
    Extract(controller): Shared,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let state = controller.state();
    let wanted = Wanted::new(&state, &filter)?;
    let accepts_json = headers
        .get(header::ACCEPT)
        .is_some_and(|value| value.as_bytes() == b"application/json");
    if accepts_json {
        let events = state.events.iter().rev().filter(|event| wanted.matches(event));
        let events = events.filter(|event| filter.before_id.is_none_or(|before| event.id < before));
        let count = filter.count.unwrap_or(usize::MAX);
        let list: Vec<_> = events
            .take(count)
            .map(|event| event_view::event(&state, event))
            .collect();
        return Ok(Json(list).into_response());
    }
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .filter(|id| *id > 0);
    let start = match last_seen.or(filter.since_id) {
        Some(id) => id,
        None if filter.past.as_deref() == Some("true") => first_of_past(&state, &wanted, filter.count),
        None => state.last_event,
    };
    Ok(event_stream(follow(controller, wanted, start)))
}

/// Where a stream begins so that the newest `count` past events are in it.
fn first_of_past(state: &State, wanted: &Wanted, count: Option<usize>) -> u64 {
    let Some(count) = count else { return 0 };
    let past: Vec<_> = state
        .events
        .iter()
        .rev()
        .filter(|event| wanted.matches(event))
        .take(count)
        .collect();
    past.last().map_or(state.last_event, |oldest| oldest.id - 1)
}

/// Events after `seen`, for ever. A slow reader holds nothing but its own position: it reads from the
/// kept events, and one that falls behind them is told so and cut off.
fn follow(controller: Controller, wanted: Wanted, seen: u64) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    let state = (controller, wanted, seen, changes, VecDeque::<Bytes>::new(), false);
    futures::stream::unfold(
        state,
        |(controller, wanted, mut seen, mut changes, mut ready, ended)| async move {
            if ended {
                return None;
            }
            loop {
                if let Some(message) = ready.pop_front() {
                    return Some((message, (controller, wanted, seen, changes, ready, false)));
                }
                changes.borrow_and_update();
                let state = controller.state();
                let oldest = state.events.front().map_or(0, |event| event.id);
                if seen > 0 && seen + 1 < oldest {
                    let gone =
                        sse::error("events were missed: they are no longer kept; reload and follow again");
                    return Some((gone, (controller, wanted, seen, changes, ready, true)));
                }
                for event in state.events_since(seen).filter(|event| wanted.matches(event)) {
                    ready.push_back(sse::message(&event_view::event(&state, event)));
                }
                seen = seen.max(state.last_event);
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

struct Wanted {
    app: Option<AppId>,
    types: Option<Arc<[ObjectType]>>,
    object_id: Option<String>,
}

impl Wanted {
    fn new(state: &State, filter: &Filter) -> Result<Self, Failure> {
        let app = match filter.app_id.as_deref().filter(|app| !app.is_empty()) {
            // An app that is being deleted is still followed by its id, to its deletion event.
            Some(app) => match app.parse::<AppId>() {
                Ok(id) if state.deleted_apps.contains_key(&id) => Some(id),
                _ => Some(find_app_id(state, app)?),
            },
            None => None,
        };
        let types = match filter.object_types.as_deref().filter(|types| !types.is_empty()) {
            Some(list) => {
                let parse = |name: &str| {
                    ObjectType::parse(name)
                        .ok_or_else(|| Error::validation("object_types", format!("has no type {name:?}")))
                };
                Some(list.split(',').map(parse).collect::<Result<Vec<_>, _>>()?.into())
            }
            None => None,
        };
        Ok(Wanted {
            app,
            types,
            object_id: filter.object_id.clone().filter(|id| !id.is_empty()),
        })
    }

    fn matches(&self, event: &StateEvent) -> bool {
        self.app.is_none_or(|app| event.app == Some(app))
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.contains(&event.subject.object_type()))
            && self
                .object_id
                .as_ref()
                .is_none_or(|id| event.subject.object_id() == *id)
    }
}
