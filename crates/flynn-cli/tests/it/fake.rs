//! A controller in a few maps, with the real one's shapes, for the commands to talk to.
//!
//! Ids are counted and times are fixed, so that what is printed can be compared as a whole. What
//! is hard to bring about with a real cluster is switched on by the fields of [`State`].

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use api::{
    Code, Error,
    wire::{AppUpdate, Job, NewApp, NewJob, NewRelease, NewRoute, NewScaleRequest, ReleaseRef, RouteView},
};
use axum::{
    Json, Router,
    extract::{Path, Request, State as Shared},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use types::{App, Deployment, Event, Formation, Release, ScaleRequest};

use crate::{
    actors,
    state::{Deploys, State},
    streams, tls,
};

pub const KEY: &str = "0123456789abcdef";
type Fallible<T> = Result<Json<T>, Failure>;

pub struct Fake {
    pub address: SocketAddr,
    /// Of the TLS certificate, where there is one.
    pub pin: String,
    inner: Arc<Inner>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub struct Inner {
    state: Mutex<State>,
    /// `None` breaks all streams of events and logs.
    pub happened: broadcast::Sender<Option<Event>>,
    ca_cert: String,
}

impl Fake {
    /// A controller on plain HTTP.
    pub fn start() -> Fake {
        Fake::serve(None)
    }

    /// A controller on HTTPS for `*.flynn.localhost`.
    pub fn start_tls() -> Fake {
        Fake::serve(Some(tls::Identity::generate()))
    }

    fn serve(identity: Option<tls::Identity>) -> Fake {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            happened: broadcast::channel(1000).0,
            ca_cert: identity
                .as_ref()
                .map(|identity| identity.ca_pem.clone())
                .unwrap_or_default(),
        });
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let pin = identity
            .as_ref()
            .map(|identity| identity.pin.clone())
            .unwrap_or_default();
        let router = router(inner.clone());
        runtime.spawn(async move {
            match identity {
                Some(identity) => axum::serve(tls::Listener::new(listener, &identity), router).await,
                None => axum::serve(listener, router).await,
            }
        });
        Fake {
            address,
            pin,
            inner,
            runtime: Some(runtime),
        }
    }

    /// Breaks all streams of events and logs that are being followed.
    pub fn break_streams(&self) {
        let _ = self.inner.happened.send(None);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    /// An app with a release that has web and worker processes.
    pub fn deployed_app(&self, name: &str) {
        let mut state = self.state();
        let app = state.create_app(name.to_owned());
        let process = json!({ "args": ["/bin/web"], "resources": {
            "cpu": { "request": 1000, "limit": 1000 }, "memory": { "request": 1 << 30, "limit": 1 << 30 },
        } });
        let new: NewRelease = serde_json::from_value(json!({
            "app_id": app.id, "artifacts": [state.next_id()], "env": { "FOO": "bar" },
            "processes": { "web": process, "worker": process },
        }))
        .unwrap();
        let release = state.create_release(new);
        state.apps[0].release = Some(release.id);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes an event known to all who follow.
    fn happen(&self, state: &mut State, app: &App, object_type: &str, object_id: String, data: Value) {
        self.happen_to(state, Some(app), object_type, object_id, data);
    }

    pub fn happen_to(
        &self,
        state: &mut State,
        app: Option<&App>,
        object_type: &str,
        object_id: String,
        data: Value,
    ) {
        state.count += 1;
        let event: Event = serde_json::from_value(json!({
            "id": state.count, "app": app.map(|app| app.id), "object_type": object_type, "object_id": object_id,
            "data": data, "created_at": state.now(),
        }))
        .unwrap();
        state.events.push(event.clone());
        let _ = self.happened.send(Some(event));
    }
}

pub enum Failure {
    NotFound,
    Api(Error),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Failure::NotFound => StatusCode::NOT_FOUND.into_response(),
            Failure::Api(error) => {
                (StatusCode::from_u16(error.code.status()).unwrap(), Json(error)).into_response()
            }
        }
    }
}

pub type Server = Shared<Arc<Inner>>;

fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route(
            "/ca-cert",
            get(|Shared(inner): Server| async move { inner.ca_cert.clone() }),
        )
        .route("/apps", get(list_apps).post(create_app))
        .route("/apps/{app}", get(get_app).post(update_app).delete(delete_app))
        .route("/apps/{app}/meta", post(update_app))
        .route("/releases", post(create_release))
        .route("/releases/{id}", get(get_release))
        .route("/artifacts/{id}", get(get_artifact))
        .route("/apps/{app}/release", get(app_release))
        .route("/apps/{app}/releases", get(app_releases))
        .route("/apps/{app}/releases/{id}", delete(delete_release))
        .route("/apps/{app}/deploy", post(deploy))
        .route("/apps/{app}/deployments", get(deployments))
        .route("/deployments/{id}", get(get_deployment))
        .route("/apps/{app}/formations", get(formations))
        .route("/apps/{app}/formations/{release}", get(get_formation))
        .route("/apps/{app}/scale/{release}", put(scale))
        .route("/apps/{app}/jobs", get(jobs).post(run_job))
        .route("/apps/{app}/jobs/{job}", get(get_job).delete(stop_job))
        .route("/active-jobs", get(active_jobs))
        .route("/apps/{app}/jobs/{job}/exec", post(exec))
        .route("/apps/{app}/routes", get(routes).post(create_route))
        .route(
            "/apps/{app}/routes/{kind}/{id}",
            get(get_route).put(update_route).delete(delete_route),
        )
        .route("/apps/{app}/log", get(streams::log))
        .route("/events", get(streams::events))
        .merge(crate::operators::routes())
        .layer(from_fn_with_state(inner.clone(), check_key))
        .with_state(inner)
}

async fn check_key(headers: HeaderMap, request: Request, next: Next) -> Response {
    let expected = format!("Basic {}", BASE64_STANDARD.encode(format!(":{KEY}")));
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if request.uri().path() != "/ca-cert" && given != Some(&expected) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    next.run(request).await
}

async fn list_apps(Shared(inner): Server) -> Json<Vec<App>> {
    Json(inner.lock().apps.clone())
}

async fn create_app(Shared(inner): Server, Json(new): Json<NewApp>) -> Fallible<App> {
    let mut state = inner.lock();
    if !new.name.is_empty() {
        types::check_app_name(&new.name).map_err(|error| Failure::Api(error.into()))?;
    }
    if state.app(&new.name).is_ok() {
        let message = format!("application {:?} already exists", new.name);
        return Err(Failure::Api(Error::new(Code::ObjectExists, message)));
    }
    Ok(Json(state.create_app(new.name)))
}

async fn get_app(Shared(inner): Server, Path(app): Path<String>) -> Fallible<App> {
    Ok(Json(inner.lock().app(&app)?.clone()))
}

async fn update_app(
    Shared(inner): Server,
    Path(app): Path<String>,
    Json(update): Json<AppUpdate>,
) -> Fallible<App> {
    let mut state = inner.lock();
    let id = state.app(&app)?.id;
    let app = state.apps.iter_mut().find(|app| app.id == id).unwrap();
    app.meta = update.meta.unwrap_or(app.meta.clone());
    app.strategy = update.strategy.unwrap_or(app.strategy);
    app.deploy_timeout = update.deploy_timeout.unwrap_or(app.deploy_timeout);
    Ok(Json(app.clone()))
}

async fn delete_app(Shared(inner): Server, Path(app): Path<String>) -> Result<(), Failure> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    state.apps.retain(|other| other.id != app.id);
    let data = json!({ "error": "", "app_deletion": {
        "app": app.id, "deleted_routes": state.routes, "deleted_releases": state.releases, "deleted_resources": null,
    } });
    inner.happen(&mut state, &app, "app_deletion", app.id.to_string(), data);
    Ok(())
}

async fn create_release(Shared(inner): Server, Json(new): Json<NewRelease>) -> Json<Release> {
    Json(inner.lock().create_release(new))
}

async fn get_release(Shared(inner): Server, Path(id): Path<String>) -> Fallible<Release> {
    let state = inner.lock();
    let found = state.releases.iter().find(|release| release.id.to_string() == id);
    found.cloned().map(Json).ok_or(Failure::NotFound)
}

async fn get_artifact(Shared(inner): Server, Path(id): Path<String>) -> Json<Value> {
    if let Some(artifact) = inner
        .lock()
        .artifacts
        .iter()
        .find(|known| known["id"] == json!(id))
    {
        return Json(artifact.clone());
    }
    let created_at = inner.lock().now();
    Json(json!({ "id": id, "type": "flynn", "uri": "http://images.test/x.json", "created_at": created_at }))
}

async fn app_release(Shared(inner): Server, Path(app): Path<String>) -> Fallible<Release> {
    let state = inner.lock();
    let id = state.app(&app)?.release.ok_or(Failure::NotFound)?;
    Ok(Json(
        state
            .releases
            .iter()
            .find(|release| release.id == id)
            .unwrap()
            .clone(),
    ))
}

async fn app_releases(Shared(inner): Server, Path(app): Path<String>) -> Fallible<Vec<Release>> {
    let state = inner.lock();
    state.app(&app)?;
    Ok(Json(state.releases.clone()))
}

async fn delete_release(
    Shared(inner): Server,
    Path((app, id)): Path<(String, String)>,
) -> Result<(), Failure> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    if app.release.is_some_and(|current| current.to_string() == id) {
        return Err(Failure::Api(Error::invalid("cannot delete current app release")));
    }
    let before = state.releases.len();
    state.releases.retain(|release| release.id.to_string() != id);
    if state.releases.len() == before {
        return Err(Failure::NotFound);
    }
    let deletion = json!({ "app": "", "release": id, "deleted_files": ["x"], "remaining_apps": null });
    let data = json!({ "error": "", "release_deletion": deletion });
    inner.happen(&mut state, &app, "release_deletion", id, data);
    Ok(())
}

async fn deploy(
    Shared(inner): Server,
    Path(app): Path<String>,
    Json(wanted): Json<ReleaseRef>,
) -> Fallible<Deployment> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    let deploys = state.deploys.clone();
    let mut deployment: Deployment = serde_json::from_value(json!({
        "id": state.next_id(), "app": app.id, "old_release": app.release, "new_release": wanted.id,
        "strategy": "all-at-once", "status": "pending", "deploy_timeout": 120, "created_at": state.now(),
    }))
    .unwrap();
    let answer = deployment.clone();
    let id = deployment.id.to_string();
    let event = |status: &str, error: &str| json!({ "app": app.id, "deployment": id, "release": wanted.id, "status": status, "error": error });
    let (status, error) = match &deploys {
        Deploys::Fail(error) => ("failed", error.as_str()),
        _ => ("complete", ""),
    };
    deployment.status = serde_json::from_value(json!(status)).unwrap();
    deployment.error = error.to_owned();
    if status == "complete" {
        state
            .apps
            .iter_mut()
            .find(|other| other.id == app.id)
            .unwrap()
            .release = Some(wanted.id);
    }
    state.deployments.insert(0, deployment.clone());
    match deploys {
        Deploys::AtOnce => return Ok(Json(deployment)),
        Deploys::ByEvents | Deploys::Fail(_) => {
            inner.happen(&mut state, &app, "deployment", id.clone(), event("running", ""));
            inner.happen(&mut state, &app, "deployment", id.clone(), event(status, error));
        }
        Deploys::BreakBeforeTheEnd => {
            inner.happen(&mut state, &app, "deployment", id.clone(), event("running", ""));
            let _ = inner.happened.send(None);
        }
    }
    Ok(Json(answer))
}

async fn deployments(Shared(inner): Server, Path(app): Path<String>) -> Fallible<Vec<Deployment>> {
    let state = inner.lock();
    state.app(&app)?;
    Ok(Json(state.deployments.clone()))
}

async fn get_deployment(Shared(inner): Server, Path(id): Path<String>) -> Fallible<Deployment> {
    let state = inner.lock();
    let found = state
        .deployments
        .iter()
        .find(|deployment| deployment.id.to_string() == id);
    found.cloned().map(Json).ok_or(Failure::NotFound)
}

async fn formations(Shared(inner): Server, Path(_): Path<String>) -> Json<Vec<Formation>> {
    Json(inner.lock().formations.clone())
}

async fn get_formation(
    Shared(inner): Server,
    Path((_, release)): Path<(String, String)>,
) -> Fallible<Formation> {
    let state = inner.lock();
    let found = state
        .formations
        .iter()
        .find(|formation| formation.release.to_string() == release);
    found.cloned().map(Json).ok_or(Failure::NotFound)
}

async fn scale(
    Shared(inner): Server,
    Path((app, release)): Path<(String, String)>,
    Json(wanted): Json<NewScaleRequest>,
) -> Fallible<ScaleRequest> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    let mut request: ScaleRequest = serde_json::from_value(json!({
        "id": state.next_id(), "app": app.id, "release": release, "state": "pending",
        "new_processes": wanted.new_processes, "new_tags": wanted.new_tags,
        "created_at": state.now(), "updated_at": state.now(),
    }))
    .unwrap();
    let known = state
        .formations
        .iter()
        .position(|formation| formation.release == request.release);
    let mut formation: Formation = match known {
        Some(at) => state.formations.remove(at),
        None => serde_json::from_value(json!({
            "app": app.id, "release": release, "created_at": state.now(), "updated_at": state.now(),
        }))
        .unwrap(),
    };
    inner.happen(
        &mut state,
        &app,
        "scale_request",
        request.id.to_string(),
        json!(request),
    );
    let answer = request.clone();
    for (process_type, count) in wanted.new_processes.iter().flatten() {
        let before = formation
            .processes
            .insert(process_type.clone(), *count)
            .unwrap_or(0);
        for _ in before..*count {
            start_job(&inner, &mut state, &app, &release, process_type);
        }
        for _ in *count..before {
            let at = state
                .jobs
                .iter()
                .position(|job| job.process_type == *process_type)
                .unwrap();
            let mut job = state.jobs.remove(at);
            job.state = types::JobState::Down;
            inner.happen(&mut state, &app, "job", job.uuid.to_string(), json!(job));
        }
    }
    formation.tags.extend(wanted.new_tags.unwrap_or_default());
    state.formations.push(formation);
    if state.is_scaled_by_others {
        request.state = types::ScaleRequestState::Cancelled;
        let id = request.id.to_string();
        inner.happen(&mut state, &app, "scale_request_cancelation", id, json!(request));
        return Ok(Json(answer));
    }
    if state.scale_waits_for.is_empty() {
        request.state = types::ScaleRequestState::Complete;
        inner.happen(
            &mut state,
            &app,
            "scale_request",
            request.id.to_string(),
            json!(request),
        );
    }
    Ok(Json(answer))
}

fn start_job(inner: &Inner, state: &mut State, app: &App, release: &str, process_type: &str) {
    let mut job: Job = serde_json::from_value(json!({
        "uuid": state.next_id(), "app": app.id, "release": release, "type": process_type, "state": "pending",
        "args": ["/bin/web", "-v"], "created_at": state.now(), "updated_at": state.now(),
        "waiting": state.scale_waits_for,
    }))
    .unwrap();
    inner.happen(state, app, "job", job.uuid.to_string(), json!(job));
    if job.waiting.is_empty() {
        job.id = format!("host0-{}", job.uuid);
        job.state = types::JobState::Up;
        inner.happen(state, app, "job", job.uuid.to_string(), json!(job));
    }
    state.jobs.insert(0, job);
}

async fn jobs(Shared(inner): Server, Path(app): Path<String>) -> Fallible<Vec<Job>> {
    let state = inner.lock();
    state.app(&app)?;
    Ok(Json(state.jobs.clone()))
}

async fn get_job(Shared(inner): Server, Path((app, job)): Path<(String, String)>) -> Fallible<Job> {
    let state = inner.lock();
    state.app(&app)?;
    let found = state
        .jobs
        .iter()
        .find(|known| known.id == job || known.uuid.to_string() == job);
    found.cloned().map(Json).ok_or(Failure::NotFound)
}

async fn active_jobs(Shared(inner): Server) -> Json<Vec<Job>> {
    let state = inner.lock();
    let active = state.jobs.iter().filter(|job| job.state != types::JobState::Down);
    Json(active.cloned().collect())
}

async fn run_job(
    Shared(inner): Server,
    Path(app): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    inner.lock().app(&app)?;
    actors::start(&inner, request, |inner, new: NewJob| {
        let mut state = inner.lock();
        let uuid = state.next_id();
        Json(json!({
            "id": format!("host0-{uuid}"), "uuid": uuid, "release": new.release, "state": "starting",
            "args": new.args, "created_at": state.now(), "updated_at": state.now(),
        }))
    })
    .await
}

async fn exec(
    Shared(inner): Server,
    Path((_, job)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    if !inner.lock().jobs.iter().any(|known| known.id == job) {
        return Err(Failure::NotFound);
    }
    actors::start(&inner, request, |_, _: NewJob| Json(Value::Null)).await
}

async fn stop_job(Shared(inner): Server, Path((app, job)): Path<(String, String)>) -> Result<(), Failure> {
    let mut state = inner.lock();
    state.app(&app)?;
    let before = state.jobs.len();
    state.jobs.retain(|known| known.id != job);
    if state.jobs.len() == before {
        Err(Failure::NotFound)
    } else {
        Ok(())
    }
}

async fn routes(Shared(inner): Server, Path(app): Path<String>) -> Fallible<Vec<RouteView>> {
    let state = inner.lock();
    state.app(&app)?;
    Ok(Json(state.routes.clone()))
}

async fn create_route(
    Shared(inner): Server,
    Path(app): Path<String>,
    Json(new): Json<NewRoute>,
) -> Fallible<RouteView> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    state.requests.push(("routes".into(), json!(new)));
    if !new.domain.is_empty()
        && state
            .routes
            .iter()
            .any(|known| (&known.route.domain, &known.route.path) == (&new.domain, &new.path))
    {
        return Err(Failure::Api(Error::conflict("Duplicate route")));
    }
    Ok(Json(state.put_route(&app, new, None)))
}

async fn get_route(
    Shared(inner): Server,
    Path((_, _, id)): Path<(String, String, String)>,
) -> Fallible<RouteView> {
    let state = inner.lock();
    state
        .routes
        .iter()
        .find(|known| known.route.id.to_string() == id)
        .cloned()
        .map(Json)
        .ok_or(Failure::NotFound)
}

async fn update_route(
    Shared(inner): Server,
    Path((app, _, id)): Path<(String, String, String)>,
    Json(new): Json<NewRoute>,
) -> Fallible<RouteView> {
    let mut state = inner.lock();
    let app = state.app(&app)?.clone();
    state.requests.push((format!("routes/{id}"), json!(new)));
    Ok(Json(state.put_route(&app, new, Some(&id))))
}

async fn delete_route(
    Shared(inner): Server,
    Path((_, _, id)): Path<(String, String, String)>,
) -> Result<(), Failure> {
    let mut state = inner.lock();
    let before = state.routes.len();
    state.routes.retain(|known| known.route.id.to_string() != id);
    if state.routes.len() == before {
        Err(Failure::NotFound)
    } else {
        Ok(())
    }
}
