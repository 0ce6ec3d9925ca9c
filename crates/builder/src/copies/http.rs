//! Between builders of different hosts: which version of a repository one has, and git's protocol.
//!
//! ```text
//!   GET  /.cluster/repos/ID                  its version here
//!   POST /.cluster/repos/ID/copy             fetch it from another host
//!   GET  /.cluster/repos/ID/info/refs, POST /.cluster/repos/ID/git-upload-pack      git, read only
//!   any  /.cluster/from/NODE/repos/ID/…      the same of another host: this host's git comes by here
//!   POST /.cluster/repos                     fetch the newest of all, before a backup
//! ```
//!
//! No app's name begins with a dot, so none of these is in a repository's way.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State as Extract},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use types::AppId;

use super::{ANSWER_MAX, Copies};
use crate::{
    Builder,
    failure::Failure,
    http::{Asked, Service, advertise_repo, exchange_with},
    repo::Repo,
    version::Version,
};

type Shared = Extract<Arc<Builder>>;

/// A version's description is its refs and little else.
const VERSION_BYTES_MAX: usize = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Copy {
    /// Who has it.
    node: u64,
    version: Version,
}

pub fn routes() -> Router<Arc<Builder>> {
    Router::new()
        .route("/.cluster/repos", post(catch_up_all))
        .route("/.cluster/repos/{app}", get(version))
        .route("/.cluster/repos/{app}/copy", post(copy))
        .route("/.cluster/repos/{app}/info/refs", get(advertise))
        .route("/.cluster/repos/{app}/git-upload-pack", post(upload_pack))
        .route("/.cluster/from/{node}/{*rest}", any(from))
}

/// The repository of an app, if this host has one.
async fn existing(builder: &Builder, app: &str) -> Result<(AppId, Repo), Response> {
    let not_found = || StatusCode::NOT_FOUND.into_response();
    let app: AppId = app.parse().map_err(|_| not_found())?;
    match builder.repos.existing(app) {
        Some(repo) => Ok((app, repo)),
        None => Err(not_found()),
    }
}

async fn version(Extract(builder): Shared, Path(app): Path<String>) -> Response {
    let (_, repo) = match existing(&builder, &app).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    match repo.version().await {
        Ok(version) => Json(version).into_response(),
        Err(error) => {
            tracing::error!(app, error = format!("{error:#}"), "a repository cannot be read");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn copy(Extract(builder): Shared, Path(app): Path<String>, Json(copy): Json<Copy>) -> Response {
    let (Ok(app), Some(copies)) = (app.parse::<AppId>(), &builder.copies) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match builder.copy(copies, app, copy.node, &copy.version).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(Failure::Refused(lines)) => (StatusCode::CONFLICT, lines.join("\n")).into_response(),
        Err(Failure::Broken(error)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")).into_response()
        }
        Err(Failure::Cancelled | Failure::Stopping) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn catch_up_all(Extract(builder): Shared) -> Response {
    match builder.catch_up_all().await {
        Ok(failed) => Json(failed).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

async fn advertise(
    Extract(builder): Shared,
    Path(app): Path<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    if !asked.is(Service::UploadPack) {
        return StatusCode::FORBIDDEN.into_response();
    }
    match existing(&builder, &app).await {
        Ok((_, repo)) => advertise_repo(&builder, &repo, Service::UploadPack, &headers).await,
        Err(refusal) => refusal,
    }
}

async fn upload_pack(Extract(builder): Shared, Path(app): Path<String>, request: Request) -> Response {
    match existing(&builder, &app).await {
        Ok((_, repo)) => exchange_with(builder, app, None, repo, request, Service::UploadPack).await,
        Err(refusal) => refusal,
    }
}

/// Only what others may read.
async fn from(
    Extract(builder): Shared,
    Path((node, rest)): Path<(u64, String)>,
    mut request: Request,
) -> Response {
    let Some(copies) = builder.copies.as_ref().filter(|_| rest.starts_with("repos/")) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let query = request.uri().query().map(|query| format!("?{query}"));
    match format!("/.cluster/{rest}{}", query.unwrap_or_default()).parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return StatusCode::NOT_FOUND.into_response(),
    }
    match copies.forward.to(node, "git", request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error).into_response(),
    }
}

/// What another host has of an app's repository, if anything.
pub async fn version_at(copies: &Copies, node: u64, app: AppId) -> Result<Option<Version>, String> {
    let path = format!("/.cluster/repos/{app}");
    let asked = call(copies, node, Method::GET, &path, Body::empty());
    let response = tokio::time::timeout(ANSWER_MAX, asked).await;
    let response = response.map_err(|_| "no answer".to_owned())??;
    match response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => {
            let bytes = axum::body::to_bytes(response.into_body(), VERSION_BYTES_MAX).await;
            let bytes = bytes.map_err(|error| error.to_string())?;
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| error.to_string())
        }
        status => Err(format!("it answers {status}")),
    }
}

/// Has another host fetch a version from this one.
pub async fn have_copied(
    copies: &Copies,
    node: u64,
    app: AppId,
    own: u64,
    version: &Version,
) -> Result<(), String> {
    let copy = Copy {
        node: own,
        version: version.clone(),
    };
    let body = serde_json::to_vec(&copy).map_err(|error| error.to_string())?;
    let path = format!("/.cluster/repos/{app}/copy");
    let response = call(copies, node, Method::POST, &path, body.into()).await?;
    match response.status() {
        StatusCode::OK => Ok(()),
        status => {
            let text = axum::body::to_bytes(response.into_body(), 4096).await;
            let text = text.unwrap_or_default();
            Err(format!("{status}: {}", String::from_utf8_lossy(&text)))
        }
    }
}

async fn call(
    copies: &Copies,
    node: u64,
    method: Method,
    path: &str,
    body: Body,
) -> Result<Response, String> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| error.to_string())?;
    let key = crate::version::basic(&copies.key);
    let key = HeaderValue::from_str(&key).map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::AUTHORIZATION, key);
    copies.forward.to(node, "git", request).await
}
