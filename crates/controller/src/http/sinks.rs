//! Log sinks: `/sinks`. Hosts follow the same list that users read.

use std::{collections::BTreeMap, collections::VecDeque, sync::Arc};

use api::{
    Error,
    sinks::{NewSink, SinkView},
    sse,
};
use axum::{
    Json,
    extract::{Path, State as Extract},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use state::{Change, State};
use types::{Sink, SinkId, Timestamp, Uuid};

use super::{
    Shared,
    body::{Body, Parameters},
    error::Failure,
    event_stream, parse_id,
};
use crate::Controller;

#[derive(Deserialize)]
pub struct Since {
    since: Option<String>,
}

pub async fn create(
    Extract(controller): Shared,
    Body(new): Body<NewSink>,
) -> Result<Json<SinkView>, Failure> {
    let sink = new.sink(Uuid::new_v4(), controller.now())?;
    let view = SinkView::of(&sink);
    controller.write(Change::CreateSink { sink }).await?;
    Ok(Json(view))
}

pub async fn get(Extract(controller): Shared, Path(id): Path<String>) -> Result<Json<SinkView>, Failure> {
    Ok(Json(SinkView::of(&*find(&controller.state(), &id)?)))
}

/// Gives what was deleted.
pub async fn delete(Extract(controller): Shared, Path(id): Path<String>) -> Result<Json<SinkView>, Failure> {
    let sink = find(&controller.state(), &id)?;
    controller.write(Change::DeleteSink { sink: sink.id }).await?;
    Ok(Json(SinkView::of(&sink)))
}

/// A list, newest first, or with `Accept: text/event-stream` that list as events and then what changes.
pub async fn list_or_follow(
    Extract(controller): Shared,
    Parameters(query): Parameters<Since>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if !accept.is_some_and(|accept| accept.contains("text/event-stream")) {
        let views: Vec<_> = newest_first(&controller.state())
            .iter()
            .map(|sink| SinkView::of(sink))
            .collect();
        return Ok(Json(views).into_response());
    }
    let since = match query.since.as_deref().filter(|since| !since.is_empty()) {
        None => Timestamp::from_micros(i64::MIN),
        Some(text) => text
            .parse()
            .map_err(|_| Error::validation("since", format!("{text:?} is not a time as RFC 3339 has it")))?,
    };
    Ok(event_stream(follow(controller, since)))
}

/// The sinks changed since then, an empty one, and then every change for ever. What is followed is the
/// rows and not the events, so a reader that is slow or was away is told of the present and of nothing else.
fn follow(controller: Controller, since: Timestamp) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    let state = (
        controller,
        changes,
        None::<BTreeMap<SinkId, Arc<Sink>>>,
        VecDeque::<Bytes>::new(),
    );
    futures::stream::unfold(
        state,
        move |(controller, mut changes, mut told, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    return Some((message, (controller, changes, told, ready)));
                }
                changes.borrow_and_update();
                let state = controller.state();
                let now: BTreeMap<_, _> = state.sinks.iter().map(|(id, sink)| (*id, sink.clone())).collect();
                match &told {
                    None => {
                        let list = newest_first(&state);
                        let news = list.iter().filter(|sink| sink.updated_at >= since);
                        ready.extend(news.map(|sink| sse::message(&SinkView::of(sink))));
                        ready.push_back(sse::message(&SinkView::default()));
                    }
                    Some(before) => ready.extend(differences(before, &now).iter().map(sse::message)),
                }
                told = Some(now);
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

fn differences(before: &BTreeMap<SinkId, Arc<Sink>>, now: &BTreeMap<SinkId, Arc<Sink>>) -> Vec<SinkView> {
    let gone = before
        .iter()
        .filter(|(id, _)| !now.contains_key(id))
        .map(|(_, sink)| SinkView {
            config: None,
            ..SinkView::of(sink)
        });
    let new = now.iter().filter(|(id, sink)| before.get(id) != Some(sink));
    gone.chain(new.map(|(_, sink)| SinkView::of(sink))).collect()
}

fn newest_first(state: &State) -> Vec<Arc<Sink>> {
    let mut sinks: Vec<_> = state.sinks.values().cloned().collect();
    sinks.sort_by_key(|sink| std::cmp::Reverse((sink.created_at, sink.id)));
    sinks
}

fn find(state: &State, id: &str) -> Result<Arc<Sink>, Error> {
    let id: SinkId = parse_id(id)?;
    state.sinks.get(&id).cloned().ok_or_else(Error::not_found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinks(list: &[(u128, &str)]) -> BTreeMap<SinkId, Arc<Sink>> {
        let sink = |(id, url): &(u128, &str)| {
            let id = SinkId(Uuid::from_u128(*id));
            let config = types::SyslogSinkConfig {
                url: (*url).into(),
                ..Default::default()
            };
            let at = Timestamp::EPOCH;
            (
                id,
                Arc::new(Sink {
                    id,
                    config,
                    created_at: at,
                    updated_at: at,
                }),
            )
        };
        list.iter().map(sink).collect()
    }

    #[test]
    fn followers_are_told_of_new_sinks_and_of_deleted_ones_without_their_configuration() {
        let told: Vec<_> = differences(
            &sinks(&[(1, "syslog://a"), (2, "syslog://b")]),
            &sinks(&[(2, "syslog://b"), (3, "syslog://c")]),
        )
        .into_iter()
        .map(|view| (view.id.chars().last(), view.config.map(|config| config.url)))
        .collect();
        assert_eq!(
            told,
            [(Some('1'), None), (Some('3'), Some("syslog://c".to_owned()))]
        );
    }
}
