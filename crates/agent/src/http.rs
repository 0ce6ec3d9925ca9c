//! The host API (port 1113 in the original): what runs here, and hands on it.
//!
//! Jobs are named by `HOST-UUID` or the bare UUID. Jobs are not started here: only the controller's
//! assignments do that, so that there is one place which knows what should run.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use api::{
    Code, Error,
    host::{AttachReq, HostEvent, HostPort, HostStatus, ResourceCheck},
    sinks::{HostSink, NewSink, Sinks},
    sse,
    wire::{NewExec, Status, StatusAnswer},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{OriginalUri, Path, Query, Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use daemon::{Keys, auth};
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::{OnUpgrade, Upgraded};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use types::{JobId, JobRef};

use crate::{
    agent::Agent,
    gc,
    link::About,
    spec, streams,
    table::{Entry, Phase},
};

const BODY_BYTES_MAX: usize = 1 << 20;
/// Tags are sent with each heartbeat.
const TAGS_BYTES_MAX: usize = 16 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub(crate) struct Host {
    pub agent: Arc<Agent>,
    about: Arc<About>,
    sinks: Arc<dyn Sinks>,
}

pub fn router(agent: Arc<Agent>, about: About, sinks: Arc<dyn Sinks>, keys: Keys) -> Router {
    Router::new()
        .route("/host/jobs", get(list))
        .route("/host/jobs/{job}", get(show).delete(stop))
        .route("/host/jobs/{job}/signal/{signal}", put(signal))
        .route("/host/jobs/{job}/discoverd-deregister", put(deregister))
        .route("/host/jobs/{job}/exec", post(exec))
        .route("/host/status", get(status))
        .route("/host/resource-check", post(check_resources))
        .route("/host/tags", post(set_tags))
        .route("/host/gc", post(collect_garbage))
        .route("/sinks", get(list_sinks))
        .route("/sinks/{sink}", put(put_sink).delete(remove_sink))
        .route("/attach", post(attach))
        .merge(crate::storage::routes())
        .route("/.well-known/status", get(well))
        .fallback(|| async { Failure(Error::not_found()) })
        .layer(middleware::from_fn_with_state(keys, auth::require_key))
        .with_state(Host {
            agent,
            about: Arc::new(about),
            sinks,
        })
}

/// The error envelope as an answer.
pub(crate) struct Failure(Error);

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

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    active: bool,
}

async fn list(
    State(host): State<Host>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let query: ListQuery = parameters(&uri)?;
    if wants_events(&headers) {
        return Ok(events(host.agent.table.events(), None, &host.agent));
    }
    Ok(Json(host.agent.table.list(!query.active)).into_response())
}

async fn show(
    State(host): State<Host>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let job = job_id(&id)?;
    if wants_events(&headers) {
        return Ok(events(host.agent.table.events(), Some(job), &host.agent));
    }
    let active = host.agent.table.get(job).map(|entry| entry.active_job());
    match active.or_else(|| host.agent.table.finished(job)) {
        Some(active) => Ok(Json(active).into_response()),
        None => Err(no_job(&id)),
    }
}

async fn stop(State(host): State<Host>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let entry = entry(&host, &id)?;
    entry.stop(spec::stop_grace(&entry.job));
    Ok(StatusCode::OK)
}

async fn signal(
    State(host): State<Host>,
    Path((id, signal)): Path<(String, i32)>,
) -> Result<StatusCode, Failure> {
    let entry = running(&host, &id)?;
    if !(1..=64).contains(&signal) {
        return Err(Error::validation("signal", "must be a number from 1 to 64").into());
    }
    let dir = host.agent.disk.job_dir(entry.id);
    match host.agent.runtime.signal(&dir, signal).await {
        Ok(()) => Ok(StatusCode::OK),
        Err(error) => Err(Error::conflict(format!("job {id}: {error}")).into()),
    }
}

/// The job runs on; nobody is sent to it any more.
async fn deregister(State(host): State<Host>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    running(&host, &id)?.take_out_of_rotation();
    Ok(StatusCode::OK)
}

/// Whether ports of the host itself are free: for what the original ran in the host's network, and
/// for whoever wants to listen beside the platform.
async fn check_resources(request: Request) -> Result<StatusCode, Failure> {
    let check: ResourceCheck = body(request).await?;
    let taken: Vec<_> = check.ports.into_iter().filter(|port| !is_free(port)).collect();
    if taken.is_empty() {
        return Ok(StatusCode::OK);
    }
    let mut error = Error::conflict("conflicting ports");
    error.detail = serde_json::to_value(ResourceCheck { ports: taken }).ok();
    Err(error.into())
}

fn is_free(port: &HostPort) -> bool {
    let place = (std::net::Ipv4Addr::UNSPECIFIED, port.port);
    match port.proto.eq_ignore_ascii_case("udp") {
        true => std::net::UdpSocket::bind(place).is_ok(),
        false => std::net::TcpListener::bind(place).is_ok(),
    }
}

/// All tags, until the daemon starts again with those of its configuration.
async fn set_tags(State(host): State<Host>, request: Request) -> Result<StatusCode, Failure> {
    let tags: BTreeMap<String, String> = body(request).await?;
    let bytes: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > TAGS_BYTES_MAX || tags.keys().any(String::is_empty) {
        let reason = format!("must have names, and not more than {TAGS_BYTES_MAX} bytes in all");
        return Err(Error::validation("tags", reason).into());
    }
    host.about.set_tags(tags);
    Ok(StatusCode::OK)
}

async fn status(State(host): State<Host>) -> Json<HostStatus> {
    let agent = &host.agent;
    Json(HostStatus {
        id: agent.host.clone(),
        tags: host.about.tags(),
        pid: std::process::id(),
        url: format!("http://{}", host.about.addr),
        discoverd: Some(serde_json::json!({
            "url": format!("http://{}", agent.settings.discoverd),
            "dns": format!("{}:53", agent.settings.dns),
        })),
        network: Some(
            serde_json::json!({ "resolvers": [agent.settings.dns], "gateway": host.about.gateway }),
        ),
        version: api::VERSION.into(),
        flags: Vec::new(),
    })
}

#[derive(Deserialize)]
struct CollectQuery {
    /// Seconds; what is younger stays.
    grace: Option<u64>,
}

/// An addition: removes now what the next round would, and names the layers that went.
async fn collect_garbage(
    State(host): State<Host>,
    OriginalUri(uri): OriginalUri,
) -> Result<Json<Vec<String>>, Failure> {
    let query: CollectQuery = parameters(&uri)?;
    let grace = query.grace.map_or(gc::GRACE, Duration::from_secs);
    match gc::collect(&host.agent, grace).await {
        Ok(removed) => Ok(Json(removed)),
        Err(error) => Err(Error::unavailable(format!("{error:#}")).into()),
    }
}

/// The cluster's sinks and this host's own, with how each gets on.
async fn list_sinks(State(host): State<Host>) -> Json<Vec<HostSink>> {
    Json(host.sinks.list())
}

async fn put_sink(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<HostSink>, Failure> {
    let new: NewSink = body(request).await?;
    Ok(Json(host.sinks.put(&id, new).await?))
}

async fn remove_sink(State(host): State<Host>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    host.sinks.remove(&id).await?;
    Ok(StatusCode::OK)
}

async fn well() -> Json<StatusAnswer> {
    let status = Status {
        status: "healthy".into(),
        version: api::VERSION.into(),
        detail: None,
    };
    Json(StatusAnswer { data: status })
}

async fn attach(State(host): State<Host>, request: Request) -> Result<Response, Failure> {
    let (upgrade, request): (OnUpgrade, AttachReq) = upgrade(request).await?;
    let id = job_id(&request.job_id)?;
    let agent = host.agent.clone();
    Ok(switch(upgrade, &host, move |connection| {
        streams::attach(agent, connection, id, request)
    }))
}

async fn exec(
    State(host): State<Host>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let entry = running(&host, &id)?;
    let (upgrade, request): (OnUpgrade, NewExec) = upgrade(request).await?;
    if request.args.is_empty() {
        return Err(Error::validation("args", "must not be empty").into());
    }
    let (agent, id) = (host.agent.clone(), entry.id);
    Ok(switch(upgrade, &host, move |connection| {
        streams::exec(agent, connection, id, request)
    }))
}

fn job_id(text: &str) -> Result<JobId, Failure> {
    match text.parse::<JobRef>() {
        Ok(reference) => Ok(reference.job),
        Err(error) => Err(Error::validation("job_id", error).into()),
    }
}

fn no_job(id: &str) -> Failure {
    Error::new(Code::ObjectNotFound, format!("there is no job {id} on this host")).into()
}

fn entry(host: &Host, id: &str) -> Result<Arc<Entry>, Failure> {
    host.agent.table.get(job_id(id)?).ok_or_else(|| no_job(id))
}

fn running(host: &Host, id: &str) -> Result<Arc<Entry>, Failure> {
    let entry = entry(host, id)?;
    match entry.view().phase {
        Phase::Running | Phase::Stopping => Ok(entry),
        Phase::Starting | Phase::WaitingForAttach => {
            Err(Error::conflict(format!("job {id} has not started yet")).into())
        }
        Phase::Down => Err(Error::conflict(format!("job {id} has ended")).into()),
    }
}

pub(crate) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

fn events(receiver: Receiver<Arc<HostEvent>>, job: Option<JobId>, agent: &Arc<Agent>) -> Response {
    let state = (receiver, agent.clone());
    let stream = futures::stream::unfold(state, move |(mut receiver, agent)| async move {
        loop {
            let event = tokio::select! {
                event = receiver.recv() => event,
                _ = tokio::time::sleep(KEEP_ALIVE) => {
                    return Some((Bytes::from_static(sse::KEEP_ALIVE), (receiver, agent)));
                }
                _ = agent.shutdown.cancelled() => return None,
            };
            match event {
                Ok(event) => {
                    let is_wanted = job.is_none_or(|job| job_id(&event.job_id).is_ok_and(|id| id == job));
                    if is_wanted {
                        return Some((sse::message(&*event), (receiver, agent)));
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let body = futures::StreamExt::map(stream, Ok::<Bytes, Infallible>);
    (
        [(header::CONTENT_TYPE, sse::CONTENT_TYPE)],
        Body::from_stream(body),
    )
        .into_response()
}

/// The body of a request that asks for the attach protocol, and the connection to come.
async fn upgrade<T: DeserializeOwned>(mut request: Request) -> Result<(OnUpgrade, T), Failure> {
    let asks = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    let is_attach = asks.is_some_and(|protocol| protocol.eq_ignore_ascii_case(api::attach::PROTOCOL));
    let upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .filter(|_| is_attach);
    let Some(upgrade) = upgrade else {
        return Err(Error::invalid(format!(
            "this needs the header Upgrade: {}",
            api::attach::PROTOCOL
        ))
        .into());
    };
    Ok((upgrade, body(request).await?))
}

pub(crate) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|_| Error::new(Code::RequestBodyTooBig, "the request is too long"))?;
    let syntax = |error: serde_json::Error| Error::new(Code::SyntaxError, error.to_string());
    Ok(serde_json::from_slice(&body.to_bytes()).map_err(syntax)?)
}

/// What stands behind the `?`.
fn parameters<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    let Query(value) = Query::try_from_uri(uri)
        .map_err(|error| Error::invalid(format!("the query is invalid: {}", error.body_text())))?;
    Ok(value)
}

fn switch<F>(upgrade: OnUpgrade, host: &Host, serve: impl FnOnce(Upgraded) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send,
{
    host.agent.tasks.spawn(async move {
        match upgrade.await {
            Ok(connection) => serve(connection).await,
            Err(error) => tracing::debug!(%error, "a connection did not switch"),
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, api::attach::PROTOCOL),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
