//! Events: listed, or followed without losing or doubling one over a reconnect.

use std::{collections::VecDeque, sync::Arc};

use api::{Error, sse};
use axum::{
    Json,
    extract::{Path, State as Extract},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use state::{State, StateEvent};
use types::{AppId, Event, ObjectType};

use super::{Shared, body::Parameters, error::Failure, event_stream, find_app_id, parse_id};
use crate::{Controller, event_view};

#[derive(Debug, Default, Deserialize)]
pub struct Filter {
    app_id: Option<String>,
    object_types: Option<String>,
    object_id: Option<String>,
    past: Option<String>,
    count: Option<String>,
    before_id: Option<String>,
    since_id: Option<String>,
}

/// A number that may be left out or empty.
fn number(name: &str, text: Option<&String>) -> Result<Option<u64>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| Error::validation(name, "is invalid"))
}

pub async fn get(Extract(controller): Shared, Path(id): Path<String>) -> Result<Json<Event>, Failure> {
    let id: u64 = parse_id(&id)?;
    let state = controller.state();
    let found = id
        .checked_sub(1)
        .and_then(|before| state.events_since(before).next());
    let found = found
        .filter(|event| event.id == id)
        .ok_or_else(Error::not_found)?;
    Ok(Json(event_view::event(&state, found)))
}

/// A list for `Accept: application/json` exactly, a stream for everything else.
pub async fn list_or_follow(
    Extract(controller): Shared,
    Parameters(filter): Parameters<Filter>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let state = controller.state();
    let wanted = Wanted::new(&state, &filter)?;
    let count = number("count", filter.count.as_ref())?.map(|count| count as usize);
    let before_id = number("before_id", filter.before_id.as_ref())?;
    let since_id = number("since_id", filter.since_id.as_ref())?;
    let accepts_json = headers
        .get(header::ACCEPT)
        .is_some_and(|value| value.as_bytes() == b"application/json");
    if accepts_json {
        let events = state.events.iter().rev().filter(|event| wanted.matches(event));
        let events = events.filter(|event| before_id.is_none_or(|before| event.id < before));
        let events = events.take_while(|event| since_id.is_none_or(|since| event.id > since));
        let list: Vec<_> = events
            .take(count.unwrap_or(usize::MAX))
            .map(|event| event_view::event(&state, event))
            .collect();
        return Ok(Json(list).into_response());
    }
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .filter(|id| *id > 0);
    let start = match last_seen.or(since_id) {
        Some(id) => id,
        None if filter.past.as_deref() == Some("true") => first_of_past(&state, &wanted, count),
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

/// Events after `seen`, for ever. A slow reader holds nothing but its own position and a few events
/// that are being sent: it reads from the kept ones, and if it falls behind them it is told so and cut
/// off. An id that is yet to come is waited for: the reader heard it from a voter that is ahead.
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
                let mut bytes = 0;
                for event in state.events_since(seen) {
                    if bytes > READY_BYTES_MAX {
                        break;
                    }
                    seen = event.id;
                    if wanted.matches(event) {
                        let message = controller.events.message(&state, event);
                        bytes += message.len();
                        ready.push_back(message);
                    }
                }
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

/// Made ready for one stream before it has sent them; more are made when these are gone.
const READY_BYTES_MAX: usize = 64 << 10;

fn has_events(state: &State, app: AppId) -> bool {
    state.events.iter().any(|event| event.app == Some(app))
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
                // And after it, for who missed that event.
                Ok(id) if state.deleted_apps.contains_key(&id) || has_events(state, id) => Some(id),
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
