//! The registry over HTTP, with the original's paths and shapes.
//!
//! Registrations live on the host that got them, as long as their heartbeats come. Everything else
//! that is said of a service (its kind of leader, its leader, its metadata) goes to the controller,
//! which keeps it and tells every host.

use std::sync::Arc;

use api::{
    Code, Error,
    discoverd::{INDEX_HEADER, ServiceConfig, ServiceUpdate},
};
use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use discovery::{Refused, Service};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use types::{Instance, LeaderType, ServiceChange, ServiceMeta, ServiceRow};

use crate::{
    Shared,
    access::{Caller, Gate},
    stream::{self, Of},
};

type Registry = State<Arc<Shared>>;

const BODY_BYTES_MAX: usize = 1 << 20;

pub(crate) fn router(shared: Arc<Shared>, gate: Gate) -> Router {
    Router::new()
        .route("/services/{service}", get(follow).put(create).delete(remove))
        .route("/services/{service}/meta", get(meta).put(set_meta))
        .route("/services/{service}/instances", get(instances))
        .route(
            "/services/{service}/instances/{instance}",
            put(register).delete(unregister),
        )
        .route("/services/{service}/leader", get(leader).put(set_leader))
        .layer(from_fn_with_state(gate, crate::access::require))
        .route("/ping", get(async || StatusCode::OK))
        .fallback(async || Failure(Error::new(Code::NotFound, "there is no such path")))
        .layer(from_fn_with_state(shared.clone(), index))
        .with_state(shared)
}

/// Every answer says which state of the registry it is from, and where there are others to ask.
async fn index(State(shared): Registry, request: Request, next: Next) -> Response {
    let index = *shared.changed.borrow();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(INDEX_HEADER, HeaderValue::from(index));
    headers.insert("Discoverd-Peers", shared.peer.clone());
    response
}

pub(crate) struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

fn missing(message: impl Into<String>) -> Failure {
    Failure(Error::new(Code::ObjectNotFound, message))
}

fn find(shared: &Shared, name: &str) -> Result<Service, Failure> {
    shared
        .read(|registry| registry.service(name))
        .ok_or_else(|| missing(format!("service not found: {name:?}")))
}

async fn create(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
    request: Request,
) -> Result<(), Failure> {
    caller.may_use(&shared, &service)?;
    check_name("service", &service)?;
    let bytes = to_bytes(request.into_body(), BODY_BYTES_MAX)
        .await
        .map_err(too_long)?;
    let config: ServiceConfig = match bytes.is_empty() {
        true => ServiceConfig::default(),
        false => parse(&bytes)?,
    };
    let leader_type = config.leader_type;
    change(&shared, caller, &service, ServiceChange::Create { leader_type }).await?;
    Ok(())
}

async fn remove(State(shared): Registry, caller: Caller, Path(service): Path<String>) -> Result<(), Failure> {
    caller.may_use(&shared, &service)?;
    let has_row = find(&shared, &service)?.row.is_some();
    let had_instances = shared.change(|registry| registry.unregister_all(&service));
    if has_row {
        change(&shared, caller, &service, ServiceChange::Remove).await?;
    } else if !had_instances {
        let message = format!("service {service:?} is the platform's: it is there while jobs of it are");
        return Err(Error::conflict(message).into());
    }
    Ok(())
}

async fn follow(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
) -> Result<Response, Failure> {
    caller.may_use(&shared, &service)?;
    find(&shared, &service)?;
    Ok(stream::events(shared, service, Of::Everything))
}

async fn meta(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
) -> Result<Json<ServiceMeta>, Failure> {
    caller.may_use(&shared, &service)?;
    let found = find(&shared, &service)?;
    let none = || missing("service meta not found");
    Ok(Json(found.meta().cloned().ok_or_else(none)?))
}

async fn set_meta(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
    Body(meta): Body<ServiceMeta>,
) -> Result<Json<ServiceMeta>, Failure> {
    caller.may_use(&shared, &service)?;
    find(&shared, &service)?;
    let data = meta.data.clone();
    let row = change(&shared, caller, &service, ServiceChange::SetMeta { meta }).await?;
    // Somebody may have replaced it since; what was asked for was done all the same.
    let meta = row
        .and_then(|row| row.meta)
        .ok_or_else(|| missing("service meta not found"))?;
    Ok(Json(ServiceMeta { data, ..meta }))
}

async fn instances(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    caller.may_use(&shared, &service)?;
    let found = find(&shared, &service)?;
    if wants_events(&headers) {
        return Ok(stream::events(shared, service, Of::Instances));
    }
    Ok(Json(found.instances).into_response())
}

async fn leader(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    caller.may_use(&shared, &service)?;
    let found = find(&shared, &service)?;
    if wants_events(&headers) {
        return Ok(stream::events(shared, service, Of::Leaders));
    }
    let leader = found
        .leader()
        .cloned()
        .ok_or_else(|| missing("no leader found"))?;
    Ok(Json(leader).into_response())
}

async fn set_leader(
    State(shared): Registry,
    caller: Caller,
    Path(service): Path<String>,
    Body(instance): Body<Instance>,
) -> Result<(), Failure> {
    caller.may_use(&shared, &service)?;
    let found = find(&shared, &service)?;
    let is_manual = found
        .row
        .as_ref()
        .is_some_and(|row| row.leader_type == LeaderType::Manual);
    if !is_manual {
        let hint = "make the service with {\"leader_type\": \"manual\"} first";
        return Err(Error::invalid("service leader election type is not manual")
            .with_hint(hint)
            .into());
    }
    if !found.instances.iter().any(|known| known.id == instance.id) {
        return Err(missing(format!("instance not found: {:?}", instance.id)));
    }
    let instance = instance.id;
    change(&shared, caller, &service, ServiceChange::SetLeader { instance }).await?;
    Ok(())
}

async fn register(
    State(shared): Registry,
    caller: Caller,
    Path((service, id)): Path<(String, String)>,
    Body(mut instance): Body<Instance>,
) -> Result<(), Failure> {
    caller.may_use(&shared, &service)?;
    check_name("service", &service)?;
    check_name("id", &id)?;
    if instance.addr.parse::<std::net::SocketAddr>().is_err() {
        return Err(Error::validation("addr", "must be an IP address and a port").into());
    }
    let meta_bytes: usize = instance
        .meta
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if meta_bytes > 4 << 10 || instance.proto.len() > 64 {
        return Err(Error::validation("meta", "is longer than 4096 bytes").into());
    }
    instance.id = id;
    // Who an instance is, is not for a job to say.
    if let Some(app) = caller.app() {
        instance.meta.insert("FLYNN_APP_ID".into(), app.to_string());
    }
    let registered =
        shared.change(|registry| registry.register(&service, instance, caller.app(), daemon::now()));
    registered.map_err(|Refused::TooMany| Error::conflict("the app has registered too many instances").into())
}

async fn unregister(
    State(shared): Registry,
    caller: Caller,
    Path((service, id)): Path<(String, String)>,
) -> Result<(), Failure> {
    caller.may_use(&shared, &service)?;
    if shared.change(|registry| registry.unregister(&service, &id)) {
        return Ok(());
    }
    Err(missing(format!("instance not found: {id:?}")))
}

/// Has the controller keep a change.
async fn change(
    shared: &Shared,
    caller: Caller,
    service: &str,
    change: ServiceChange,
) -> Result<Option<ServiceRow>, Failure> {
    let app = caller.app();
    let update = ServiceUpdate { app, change };
    match shared.controller.update_service(service, &update).await {
        Ok(row) => {
            let index = |row: &ServiceRow| row.meta.as_ref().map(|meta| meta.index);
            let seen = |registry: &discovery::Registry| {
                let now = registry.service(service).and_then(|found| found.row);
                match (&row, &now) {
                    (Some(row), Some(now)) => **now == *row || index(now) > index(row),
                    (row, now) => row.is_none() && now.is_none(),
                }
            };
            shared.until(seen).await;
            Ok(row)
        }
        Err(api::ClientError::Api(error)) if error.code == Code::NotFound => {
            Err(missing(format!("service not found: {service:?}")))
        }
        Err(api::ClientError::Api(error)) => Err(error.into()),
        Err(error) => Err(Error::unavailable(format!("the controller does not answer: {error}")).into()),
    }
}

/// Names that can be part of a domain name and of a path.
fn check_name(field: &str, name: &str) -> Result<(), Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(fits) {
        return Ok(());
    }
    let reason = "must be 1 to 128 letters, digits, dashes, dots and underscores";
    Err(Error::validation(field, reason).into())
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let error = |_| Error::new(Code::SyntaxError, "The provided JSON input is invalid");
    serde_json::from_slice(bytes).map_err(|found| Failure(error(found)))
}

fn too_long(_: axum::Error) -> Failure {
    let message = format!("the request body is longer than {BODY_BYTES_MAX} bytes, or broke off");
    Failure(Error::new(Code::RequestBodyTooBig, message))
}

/// A JSON body, with the contract's errors.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = to_bytes(request.into_body(), BODY_BYTES_MAX)
            .await
            .map_err(too_long)?;
        parse(&bytes).map(Body)
    }
}

#[cfg(test)]
mod tests;
