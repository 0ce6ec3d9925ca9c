//! The registry over HTTP, with the original's paths and shapes.

use std::{collections::VecDeque, sync::Arc};

use api::{Code, Error, sse};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use bytes::Bytes;
use daemon::Keys;
use discovery::{Change, Service};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use types::Instance;

use crate::Shared;

type Registry = State<Arc<Shared>>;

pub fn router(shared: Arc<Shared>, keys: Keys) -> Router {
    Router::new()
        .route("/services/{service}", get(follow).put(create).delete(remove))
        .route("/services/{service}/instances", get(instances))
        .route(
            "/services/{service}/instances/{id}",
            put(register).delete(unregister),
        )
        .route("/services/{service}/leader", get(leader).put(set_leader))
        .layer(from_fn_with_state(keys, daemon::auth::require_key))
        .route("/ping", get(async || StatusCode::OK))
        .with_state(shared)
}

/// One event of a service's stream.
#[derive(Serialize)]
struct Event<'a> {
    service: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<Instance>,
}

struct Failure(Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

fn service_not_found(name: &str) -> Failure {
    Failure(Error::new(
        Code::ObjectNotFound,
        format!("service not found: {name:?}"),
    ))
}

fn find(shared: &Shared, name: &str) -> Result<Service, Failure> {
    shared
        .read(|registry| registry.service(name))
        .ok_or_else(|| service_not_found(name))
}

async fn create(State(shared): Registry, Path(service): Path<String>) {
    shared.change(|registry| registry.create(&service));
}

async fn remove(State(shared): Registry, Path(service): Path<String>) -> Result<(), Failure> {
    let is_removed = shared.change(|registry| registry.remove(&service));
    if is_removed {
        Ok(())
    } else {
        Err(service_not_found(&service))
    }
}

async fn instances(
    State(shared): Registry,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let found = find(&shared, &service)?;
    let wants_events = headers
        .get(header::ACCEPT)
        .is_some_and(|value| value.as_bytes() == b"text/event-stream");
    Ok(if wants_events {
        events(shared, service)
    } else {
        Json(found.instances).into_response()
    })
}

async fn follow(State(shared): Registry, Path(service): Path<String>) -> Result<Response, Failure> {
    find(&shared, &service)?;
    Ok(events(shared, service))
}

async fn leader(State(shared): Registry, Path(service): Path<String>) -> Result<Json<Instance>, Failure> {
    let found = find(&shared, &service)?;
    let none = || Failure(Error::new(Code::ObjectNotFound, "no leader found"));
    Ok(Json(found.leader().cloned().ok_or_else(none)?))
}

async fn set_leader(
    State(shared): Registry,
    Path(service): Path<String>,
    Json(instance): Json<Instance>,
) -> Result<(), Failure> {
    if shared.change(|registry| registry.set_leader(&service, &instance.id)) {
        return Ok(());
    }
    Err(Failure(Error::new(
        Code::ObjectNotFound,
        "only an instance that registered itself can be made leader",
    )))
}

async fn register(
    State(shared): Registry,
    Path((service, id)): Path<(String, String)>,
    Json(mut instance): Json<Instance>,
) -> Result<(), Failure> {
    if instance.addr.parse::<std::net::SocketAddr>().is_err() {
        return Err(Failure(Error::validation(
            "addr",
            "must be an IP address and a port",
        )));
    }
    instance.id = id;
    shared.change(|registry| registry.register(&service, instance, daemon::now()));
    Ok(())
}

async fn unregister(
    State(shared): Registry,
    Path((service, id)): Path<(String, String)>,
) -> Result<(), Failure> {
    if shared.change(|registry| registry.unregister(&service, &id)) {
        return Ok(());
    }
    Err(Failure(Error::new(
        Code::ObjectNotFound,
        format!("instance not found: {id:?}"),
    )))
}

/// What there is, `current`, then every change.
fn events(shared: Arc<Shared>, service: String) -> Response {
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
        |(shared, service, mut changed, mut seen, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    let message = Ok::<_, std::convert::Infallible>(message);
                    return Some((message, (shared, service, changed, seen, ready)));
                }
                changed.borrow_and_update();
                let now = shared
                    .read(|registry| registry.service(&service))
                    .unwrap_or_default();
                let is_first = seen.is_none();
                let before = seen.take().unwrap_or_default();
                for change in discovery::changes(&before, &now) {
                    ready.push_back(sse::message(&event(&service, change)));
                }
                if is_first {
                    ready.push_back(sse::message(&Event {
                        service: &service,
                        kind: "current",
                        instance: None,
                    }));
                }
                seen = Some(now);
                if ready.is_empty() {
                    let pause = tokio::time::sleep(std::time::Duration::from_secs(30));
                    tokio::select! {
                        changed = changed.changed() => if changed.is_err() { return None },
                        _ = pause => ready.push_back(Bytes::from_static(sse::KEEP_ALIVE)),
                    }
                }
            }
        },
    );
    Response::builder()
        .header(header::CONTENT_TYPE, sse::CONTENT_TYPE)
        .body(Body::from_stream(stream))
        .expect("constant headers are valid")
}

fn event(service: &str, change: Change) -> Event<'_> {
    let (kind, instance) = match change {
        Change::Up(instance) => ("up", instance),
        Change::Update(instance) => ("update", instance),
        Change::Down(instance) => ("down", instance),
        Change::Leader(instance) => ("leader", instance),
    };
    Event {
        service,
        kind,
        instance: Some(instance),
    }
}
