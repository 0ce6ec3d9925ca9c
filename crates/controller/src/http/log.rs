//! An app's log: `/apps/:app/log`, as a stream of events or as lines of JSON.

use api::{
    Error,
    logs::{Message, Query, SseLogChunk},
    sse,
};
use axum::{
    body::Body,
    extract::{Path, State as Extract},
    response::Response,
};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, header};

use super::{Shared, body::Parameters, error::Failure, event_stream, find_app_id};

const LINES_MAX: usize = 10_000;

pub async fn get(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Parameters(query): Parameters<Query>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let app = find_app_id(&controller.state(), &app)?;
    if query.lines.is_some_and(|lines| lines > LINES_MAX) {
        return Err(
            Error::validation("lines", format!("must be an integer between 0 and {LINES_MAX}")).into(),
        );
    }
    let messages = controller.log(app, query).await?;
    Ok(answer(messages, &headers))
}

/// What of it is on this host, whichever host leads.
pub async fn get_of_this_host(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Parameters(query): Parameters<Query>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    // Not by name: this host may not know of the app yet.
    let messages = controller
        .config
        .logs
        .query(super::parse_id(&app)?, query)
        .await?;
    Ok(answer(messages, &headers))
}

fn answer(messages: BoxStream<'static, Message>, headers: &HeaderMap) -> Response {
    let wants_events =
        headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) == Some("text/event-stream");
    if wants_events {
        let chunks = messages.map(|message| {
            sse::message(&SseLogChunk {
                event: "message".into(),
                data: serde_json::to_value(message).ok(),
            })
        });
        let end = futures::stream::once(async {
            sse::message(&SseLogChunk {
                event: "eof".into(),
                data: None,
            })
        });
        return event_stream(chunks.chain(end));
    }
    let lines = messages.map(|message| {
        let mut line = serde_json::to_vec(&message).expect("API values always serialise");
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(line)
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from_stream(lines))
        .expect("constant headers are valid")
}
