//! A controller of which a test says what it wants, and sees what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use api::host::{Assignment, HostJob, HostReport, HostVolume, JobReport, NetworkChange, ReportedState};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http::{StatusCode, header};
use tokio::sync::watch;
use types::{AppId, JobId, VolumeId, VolumeReport};

use crate::machine::Fuse;

#[derive(Clone)]
pub struct Controller {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<Known>,
    /// Counts changes of what is wanted.
    version: watch::Sender<u64>,
    fuse: Fuse,
}

#[derive(Default)]
pub struct Known {
    wishes: BTreeMap<JobId, Assignment>,
    pub is_away: bool,
    pub heartbeats: u64,
    pub host: Option<HostReport>,
    pub reports: BTreeMap<JobId, Vec<JobReport>>,
    pub layers: Vec<String>,
    pub apps: Vec<AppId>,
    pub volumes: Vec<(VolumeId, VolumeReport)>,
}

impl Known {
    pub fn last(&self, job: JobId) -> Option<&ReportedState> {
        self.reports
            .get(&job)
            .and_then(|reports| reports.last())
            .map(|report| &report.state)
    }

    pub fn is_up(&self, job: JobId) -> bool {
        self.last(job) == Some(&ReportedState::Up)
    }

    pub fn is_down(&self, job: JobId) -> bool {
        matches!(
            self.last(job),
            Some(ReportedState::Down { .. } | ReportedState::NeverHealthy { .. })
        )
    }
}

impl Controller {
    pub fn new(fuse: Fuse) -> Self {
        Controller {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                version: watch::Sender::new(0),
                fuse,
            }),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, Known> {
        self.inner.state.lock().unwrap()
    }

    /// Serves on any free port of this machine, for as long as the runtime lives.
    pub async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/internal/hosts/{host}", put(host))
            .route("/internal/hosts/{host}/assignments", get(assignments))
            .route("/internal/hosts/{host}/jobs/{job}", post(job))
            .route("/internal/hosts/{host}/volumes/{volume}", post(volume))
            .route(
                "/internal/layers",
                get(async |State(it): State<Controller>| Json(it.state().layers.clone())),
            )
            .route(
                "/internal/apps",
                get(async |State(it): State<Controller>| Json(it.state().apps.clone())),
            )
            .with_state(self.clone());
        tokio::spawn(daemon::server::serve(listener, router, daemon::Shutdown::new()));
        address
    }

    pub fn run(&self, job: &HostJob) {
        self.want(
            job.job_id().unwrap(),
            Assignment::Run {
                job: Box::new(job.clone()),
            },
        );
    }

    pub fn stop(&self, job: JobId) {
        self.want(job, Assignment::Stop { job });
    }

    pub fn ask_for(&self, volume: HostVolume) {
        self.want(JobId(volume.id.0), Assignment::Volume { volume });
    }

    pub fn drain(&self, job: JobId) {
        self.want(job, Assignment::Drain { job });
    }

    /// Something about other hosts; `forget` with the same id takes it out of the list.
    pub fn tell_network(&self, id: JobId, change: NetworkChange) {
        self.want(id, Assignment::Network { change });
    }

    /// Never heard of it.
    pub fn forget(&self, job: JobId) {
        self.state().wishes.remove(&job);
        self.inner.version.send_modify(|version| *version += 1);
    }

    fn want(&self, job: JobId, wish: Assignment) {
        self.state().wishes.insert(job, wish);
        self.inner.version.send_modify(|version| *version += 1);
    }

    /// Answers nothing from now on, and lets go of its streams.
    pub fn go_away(&self) {
        self.state().is_away = true;
        self.inner.version.send_modify(|version| *version += 1);
    }

    pub fn come_back(&self) {
        self.state().is_away = false;
    }
}

fn away() -> Response {
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

async fn host(State(it): State<Controller>, Json(report): Json<HostReport>) -> Response {
    let mut state = it.state();
    if state.is_away {
        return away();
    }
    state.heartbeats += 1;
    state.host = Some(report);
    StatusCode::OK.into_response()
}

async fn job(
    State(it): State<Controller>,
    Path((_, job)): Path<(String, JobId)>,
    Json(report): Json<JobReport>,
) -> Response {
    it.inner.fuse.burn().await;
    {
        let mut state = it.state();
        if state.is_away {
            return away();
        }
        if !state.wishes.contains_key(&job) && !state.reports.contains_key(&job) {
            return StatusCode::NOT_FOUND.into_response();
        }
        state.reports.entry(job).or_default().push(report);
        if state.is_down(job) {
            state.wishes.remove(&job);
        }
    }
    it.inner.fuse.burn().await;
    StatusCode::OK.into_response()
}

async fn volume(
    State(it): State<Controller>,
    Path((_, volume)): Path<(String, VolumeId)>,
    Json(report): Json<VolumeReport>,
) -> StatusCode {
    it.state().volumes.push((volume, report));
    StatusCode::OK
}

async fn assignments(State(it): State<Controller>) -> Response {
    if it.state().is_away {
        return away();
    }
    let version = it.inner.version.subscribe();
    let begin = (it, version, None::<BTreeMap<JobId, Assignment>>);
    let stream = futures::stream::unfold(begin, |(it, mut version, before)| async move {
        if before.is_some() {
            version.changed().await.ok()?;
        }
        version.borrow_and_update();
        let wishes = {
            let state = it.state();
            if state.is_away {
                return None;
            }
            state.wishes.clone()
        };
        let text = |assignment: &Assignment| serde_json::to_string(assignment).unwrap();
        let known: BTreeSet<String> = before
            .iter()
            .flat_map(|before| before.values().map(text))
            .collect();
        let mut messages = Vec::new();
        for wish in wishes.values().filter(|wish| !known.contains(&text(wish))) {
            messages.extend_from_slice(&api::sse::message(wish));
        }
        if before.is_none() {
            messages.extend_from_slice(&api::sse::message(&Assignment::Current));
        }
        Some((Ok::<_, Infallible>(messages), (it, version, Some(wishes))))
    });
    (
        [(header::CONTENT_TYPE, api::sse::CONTENT_TYPE)],
        Body::from_stream(stream),
    )
        .into_response()
}
