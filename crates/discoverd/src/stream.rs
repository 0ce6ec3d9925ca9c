//! A service's events: what there is, `current`, then every change.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use api::{
    discoverd::{Event, EventKind},
    sse,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use discovery::{Change, Service};
use http::header;

use crate::Shared;

/// A comment this often shows that the other side is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What of a service is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Everything,
    Instances,
    Leaders,
}

/// Ends with the process; a reader that is slow is told the latest state, not every one between.
pub fn events(shared: Arc<Shared>, service: String, of: Of) -> Response {
    let changed = shared.changed.subscribe();
    let state = (
        shared,
        service,
        changed,
        None::<Service>,
        VecDeque::<Bytes>::new(),
    );
    let stream = futures::stream::unfold(
        state,
        move |(shared, service, mut changed, mut seen, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    return Some((
                        Ok::<_, Infallible>(message),
                        (shared, service, changed, seen, ready),
                    ));
                }
                changed.borrow_and_update();
                let now = shared
                    .read(|registry| registry.service(&service))
                    .unwrap_or_default();
                let is_first = seen.is_none();
                let before = seen.take().unwrap_or_default();
                for change in discovery::changes(&before, &now) {
                    ready.extend(event(&service, change, of).map(|event| sse::message(&event)));
                }
                if is_first {
                    ready.push_back(sse::message(&Event {
                        service: service.clone(),
                        kind: EventKind::Current,
                        instance: None,
                        service_meta: None,
                    }));
                }
                seen = Some(now);
                if ready.is_empty() {
                    tokio::select! {
                        changed = changed.changed() => if changed.is_err() { return None },
                        _ = tokio::time::sleep(KEEP_ALIVE) => ready.push_back(Bytes::from_static(sse::KEEP_ALIVE)),
                    }
                }
            }
        },
    );
    Response::builder()
        .header(header::CONTENT_TYPE, sse::CONTENT_TYPE)
        .header(header::CACHE_CONTROL, "no-cache")
        .body(Body::from_stream(stream))
        .expect("constant headers are valid")
}

fn event(service: &str, change: Change, of: Of) -> Option<Event> {
    let (kind, instance, service_meta) = match change {
        Change::Up(instance) => (EventKind::Up, Some(instance), None),
        Change::Update(instance) => (EventKind::Update, Some(instance), None),
        Change::Down(instance) => (EventKind::Down, Some(instance), None),
        Change::Leader(instance) => (EventKind::Leader, Some(instance), None),
        Change::Meta(meta) => (EventKind::ServiceMeta, None, Some(meta)),
    };
    let is_wanted = match of {
        Of::Everything => true,
        Of::Instances => matches!(kind, EventKind::Up | EventKind::Update | EventKind::Down),
        Of::Leaders => kind == EventKind::Leader,
    };
    is_wanted.then(|| Event {
        service: service.to_owned(),
        kind,
        instance,
        service_meta,
    })
}
