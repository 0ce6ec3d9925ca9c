//! The fake controller's event streams.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::{Path, Query, Request, State as Shared},
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio_stream::{StreamExt, wrappers::BroadcastStream};
use types::Event;

use crate::fake::{Failure, Server};

fn sse(value: &impl serde::Serialize) -> Result<String, std::io::Error> {
    Ok(format!("data: {}\n\n", serde_json::to_string(value).unwrap()))
}

fn event_stream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

pub async fn events(
    Shared(inner): Server,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Response, Failure> {
    let state = inner.lock();
    let app = match query.get("app_id") {
        Some(app) => Some(state.app(app)?.id),
        None => None,
    };
    let kinds: Vec<String> = query["object_types"].split(',').map(str::to_owned).collect();
    let matches = move |event: &Event| {
        let kind = serde_json::to_value(event.object_type).unwrap();
        (app.is_none() || event.app == app) && kinds.iter().any(|known| kind == *known)
    };
    let since: u64 = query.get("since_id").map_or(u64::MAX, |id| id.parse().unwrap());
    let past: Vec<_> = state
        .events
        .iter()
        .filter(|event| event.id > since && matches(event))
        .map(sse)
        .collect();
    let live = BroadcastStream::new(inner.happened.subscribe())
        .map_while(|event| event.unwrap())
        .filter(move |event| matches(event))
        .map(|event| sse(&event));
    Ok(event_stream(Body::from_stream(
        tokio_stream::iter(past).chain(live),
    )))
}

pub async fn log(
    Shared(inner): Server,
    Path(app): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let mut state = inner.lock();
    state.app(&app)?;
    state
        .log_queries
        .push(request.uri().query().unwrap_or_default().to_owned());
    let is_last = state.logs.len() <= 1;
    let messages = if is_last {
        state.logs.first().cloned()
    } else {
        Some(state.logs.remove(0))
    };
    let lines: Vec<_> = messages
        .unwrap_or_default()
        .iter()
        .map(|message| sse(&json!({ "event": "message", "data": message })))
        .collect();
    let follow = request
        .uri()
        .query()
        .is_some_and(|query| query.contains("follow=true"));
    let lines = tokio_stream::iter(lines);
    let eof = sse(&json!({ "event": "eof" }));
    if !follow {
        return Ok(event_stream(Body::from_stream(
            lines.chain(tokio_stream::iter([eof])),
        )));
    }
    let broken = BroadcastStream::new(inner.happened.subscribe())
        .filter(|event| matches!(event, Ok(None)))
        .map(|_| Err(std::io::Error::other("the fake was told to break")));
    Ok(event_stream(Body::from_stream(lines.chain(broken))))
}
