//! A registry in a directory of its own, a stand-in of the controller, and requests in few words.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use api::{Endpoint, Trust};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use daemon::{Keys, Principal, StateDir};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use types::{AppId, Uuid};

use crate::{Config, Registry, layer::converter::Worker, name::BlobDigest};

pub const KEY: &str = "the-key";
pub const INTERNAL_KEY: &str = "internal";

pub struct World {
    pub dir: tempfile::TempDir,
    pub registry: Arc<Registry>,
    pub router: Router,
    pub told: Arc<Told>,
}

/// What the stand-in knows, and what it was told.
#[derive(Default)]
pub struct Told {
    pub apps: Mutex<BTreeMap<String, Value>>,
    pub artifacts: Mutex<Vec<Value>>,
    pub releases: Mutex<Vec<Value>>,
    pub current: Mutex<Option<Value>>,
    pub deployed: Mutex<Vec<Value>>,
}

pub fn app_id(name: &str) -> AppId {
    AppId(Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()))
}

impl Told {
    fn app(&self, key: &str) -> Option<Value> {
        let apps = self.apps.lock().unwrap();
        apps.values()
            .find(|app| app["name"] == key || app["id"] == key)
            .cloned()
    }

    pub fn add(&self, name: &str, meta: Value) {
        let app = json!({
            "id": app_id(name), "name": name, "meta": meta, "strategy": "all-at-once", "deploy_timeout": 120,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        });
        self.apps.lock().unwrap().insert(name.to_owned(), app);
    }
}

type Shared = State<Arc<Told>>;

async fn controller(told: Arc<Told>) -> String {
    async fn app(State(told): Shared, Path(app): Path<String>) -> Response {
        told.app(&app)
            .map_or(StatusCode::NOT_FOUND.into_response(), |app| {
                Json(app).into_response()
            })
    }
    async fn create_artifact(State(told): Shared, Json(mut artifact): Json<Value>) -> Json<Value> {
        let mut artifacts = told.artifacts.lock().unwrap();
        if let Some(known) = artifacts.iter().find(|known| known["uri"] == artifact["uri"]) {
            return Json(known.clone());
        }
        artifact["id"] = json!(Uuid::new_v4());
        artifact["created_at"] = json!("2026-01-01T00:00:00Z");
        artifacts.push(artifact.clone());
        Json(artifact)
    }
    async fn create_release(State(told): Shared, Json(mut release): Json<Value>) -> Json<Value> {
        release["id"] = json!(Uuid::new_v4());
        release["created_at"] = json!("2026-01-01T00:00:00Z");
        told.releases.lock().unwrap().push(release.clone());
        Json(release)
    }
    async fn current(State(told): Shared) -> Response {
        let current = told.current.lock().unwrap().clone();
        current.map_or(StatusCode::NOT_FOUND.into_response(), |release| {
            Json(release).into_response()
        })
    }
    async fn set_current(State(told): Shared, Json(body): Json<Value>) -> Json<Value> {
        let releases = told.releases.lock().unwrap();
        let release = releases
            .iter()
            .find(|release| release["id"] == body["id"])
            .unwrap()
            .clone();
        *told.current.lock().unwrap() = Some(release.clone());
        Json(release)
    }
    async fn deploy(State(told): Shared, Json(body): Json<Value>) -> Json<Value> {
        told.deployed.lock().unwrap().push(body["id"].clone());
        Json(json!({
            "id": Uuid::new_v4(), "app": Uuid::nil(), "new_release": body["id"], "status": "pending",
            "strategy": "all-at-once", "created_at": "2026-01-01T00:00:00Z",
        }))
    }
    let router = Router::new()
        .route(
            "/apps",
            get(async |State(told): Shared| {
                Json(told.apps.lock().unwrap().values().cloned().collect::<Vec<_>>())
            }),
        )
        .route("/apps/{app}", get(app))
        .route(
            "/internal/apps",
            get(async |State(told): Shared| {
                Json(
                    told.apps
                        .lock()
                        .unwrap()
                        .values()
                        .map(|app| app["id"].clone())
                        .collect::<Vec<_>>(),
                )
            }),
        )
        .route("/apps/{app}/release", get(current).merge(put(set_current)))
        .route(
            "/apps/{app}/releases",
            get(async |State(told): Shared| Json(told.releases.lock().unwrap().clone())),
        )
        .route("/apps/{app}/deploy", post(deploy))
        .route("/artifacts", post(create_artifact))
        .route("/releases", post(create_release))
        .with_state(told);
    let listener = daemon::server::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(daemon::server::serve(listener, router, daemon::Shutdown::new()));
    url
}

impl World {
    /// With the apps `shop` and `blog`.
    pub async fn new() -> World {
        World::with(1 << 30, 0).await
    }

    pub async fn with(blob_bytes_max: u64, disk_reserve_bytes: u64) -> World {
        let told = Arc::new(Told::default());
        told.add("shop", json!({}));
        told.add("blog", json!({}));
        let url = controller(told.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let registry = open(&dir, url, blob_bytes_max, disk_reserve_bytes);
        World {
            router: crate::http::router(registry.clone()),
            registry,
            dir,
            told,
        }
    }

    /// The registry killed and started again: what was in memory is gone.
    pub fn restart(&mut self) {
        let url = self.registry.controller.client().url().to_owned();
        self.reopen(url, 0);
    }

    pub fn reopen(&mut self, url: String, disk_reserve_bytes: u64) {
        self.registry = open(&self.dir, url, 1 << 30, disk_reserve_bytes);
        self.router = crate::http::router(self.registry.clone());
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {KEY}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(body.into()).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body
                .collect()
                .await
                .map(|body| body.to_bytes().to_vec())
                .unwrap_or_default(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.send(Method::HEAD, path, &[], "").await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// A blob by POST and PUT.
    pub async fn push_blob(&self, name: &str, bytes: &[u8]) -> BlobDigest {
        let digest = BlobDigest::of(bytes);
        let begun = self
            .send(Method::POST, &format!("/v2/{name}/blobs/uploads/"), &[], "")
            .await;
        assert_eq!(begun.status, 202, "{}", begun.text());
        let path = format!("{}?digest={digest}", begun.header("location"));
        let done = self.send(Method::PUT, &path, &[], bytes.to_vec()).await;
        assert_eq!(done.status, 201, "{}", done.text());
        digest
    }

    pub async fn push_manifest(&self, name: &str, reference: &str, manifest: &Value) -> (Answer, BlobDigest) {
        let bytes = manifest.to_string();
        let kind = manifest["mediaType"]
            .as_str()
            .unwrap_or(crate::manifest::OCI_MANIFEST);
        let path = format!("/v2/{name}/manifests/{reference}");
        let digest = BlobDigest::of(bytes.as_bytes());
        (
            self.send(Method::PUT, &path, &[("content-type", kind)], bytes)
                .await,
            digest,
        )
    }

    /// Something that is kept and makes no release: a chart, say.
    pub async fn artifact(&self, name: &str, text: &str) -> Value {
        let digest = self.push_blob(name, text.as_bytes()).await;
        json!({
            "schemaVersion": 2, "mediaType": crate::manifest::OCI_MANIFEST, "artifactType": "application/x.chart",
            "config": {"mediaType": "application/x.config", "digest": digest, "size": text.len()},
            "layers": [{"mediaType": "application/x.data", "digest": digest, "size": text.len()}],
        })
    }

    pub fn files(&self, path: &str) -> Vec<PathBuf> {
        let dir = self.dir.path().join(path);
        std::fs::read_dir(dir).map_or(vec![], |entries| {
            entries.map(|entry| entry.unwrap().path()).collect()
        })
    }
}

fn open(dir: &tempfile::TempDir, url: String, blob_bytes_max: u64, disk_reserve_bytes: u64) -> Arc<Registry> {
    let registry = Registry::open(Config {
        state: StateDir::new(dir.path()),
        controller: Endpoint {
            url,
            key: INTERNAL_KEY.into(),
            trust: Trust::System,
        },
        keys: Keys::new([(KEY, Principal::User)]),
        internal_key: INTERNAL_KEY.into(),
        worker: Worker::InProcess,
        blob_bytes_max,
        disk_reserve_bytes,
        host: "host0".parse().unwrap(),
        objects: None,
        forward: None,
    });
    Arc::new(registry.unwrap())
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Refused in this way, in the specification's envelope.
    pub fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(
            (self.status, self.json()["errors"][0]["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.text()
        );
        self.json()["errors"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}
