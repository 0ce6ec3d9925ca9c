//! Between registries of different hosts: indexes, manifests and blobs as they are there.
//!
//! ```text
//!   GET  /.cluster/images/KEY           the index
//!   POST /.cluster/images/KEY/copy      take it over from another host
//!   GET  /.cluster/blobs/DIGEST         a blob or manifest
//! ```

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;
use types::Digest;

use super::{ANSWER_MAX, Copies, Index, index_of};
use crate::{Registry, manifest::MANIFEST_BYTES_MAX, name::BlobDigest};

type Shared = State<Arc<Registry>>;

/// An index has a line for each tag and manifest.
pub const INDEX_BYTES_MAX: usize = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Copy {
    /// Who has it.
    node: u64,
    digest: Digest,
}

pub fn routes() -> Router<Arc<Registry>> {
    Router::new()
        .route("/.cluster/images/{key}", get(index))
        .route("/.cluster/images/{key}/copy", post(copy))
        .route("/.cluster/blobs/{digest}", get(blob))
}

async fn index(State(registry): Shared, Path(key): Path<String>) -> Response {
    let repository = registry.store.repository_of_key(&key);
    if key.contains('/') || repository.app().is_none() || !repository.exists() {
        return StatusCode::NOT_FOUND.into_response();
    }
    match index_of(&repository).await {
        Ok(index) => Json(index).into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn copy(State(registry): Shared, Path(key): Path<String>, Json(copy): Json<Copy>) -> Response {
    let Some(copies) = registry.copies.as_ref().filter(|_| !key.contains('/')) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match registry.copy(copies, &key, copy.node, &copy.digest).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")).into_response(),
    }
}

async fn blob(State(registry): Shared, Path(digest): Path<String>) -> Response {
    let Ok(digest) = digest.parse::<BlobDigest>() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // Who copies it needs it for as long as that takes.
    let is_here = registry.store.touch(&digest);
    let file = match is_here {
        Ok(true) => tokio::fs::File::open(registry.store.blob(&digest)).await,
        Ok(false) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) => Err(error),
    };
    let opened = async {
        let file = file?;
        Ok::<_, std::io::Error>((file.metadata().await?.len(), file))
    };
    match opened.await {
        Ok((length, file)) => {
            let body = Body::from_stream(ReaderStream::with_capacity(file, CHUNK_BYTES));
            ([(header::CONTENT_LENGTH, length)], body).into_response()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::error!(%digest, %error, "a blob cannot be read");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
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
    let key = BASE64_STANDARD.encode(format!(":{}", copies.key));
    let mut key = HeaderValue::from_str(&format!("Basic {key}")).expect("base64 is a header value");
    key.set_sensitive(true);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, key)
        .body(body)
        .map_err(|error| error.to_string())?;
    copies.forward.to(node, "images", request).await
}

/// What is asked for, if the other host has it.
async fn ask(copies: &Copies, node: u64, path: &str) -> Result<Option<Body>, String> {
    let asked = call(copies, node, Method::GET, path, Body::empty());
    let response = tokio::time::timeout(ANSWER_MAX, asked).await;
    let response = response.map_err(|_| "no answer".to_owned())??;
    match response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => Ok(Some(response.into_body())),
        status => Err(format!("it answers {status}")),
    }
}

pub async fn index_at(copies: &Copies, node: u64, key: &str) -> Result<Option<Index>, String> {
    let Some(body) = ask(copies, node, &format!("/.cluster/images/{key}")).await? else {
        return Ok(None);
    };
    let bytes = axum::body::to_bytes(body, INDEX_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

pub async fn manifest_at(copies: &Copies, node: u64, digest: &BlobDigest) -> Result<Vec<u8>, String> {
    let body = blob_at(copies, node, digest).await?;
    let body = body.ok_or_else(|| format!("it does not have {digest}"))?;
    let bytes = axum::body::to_bytes(body, MANIFEST_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| error.to_string())?;
    match BlobDigest::of_as(digest.algorithm(), &bytes) == *digest {
        true => Ok(bytes.into()),
        false => Err(format!("what it has is not {digest}")),
    }
}

pub async fn blob_at(copies: &Copies, node: u64, digest: &BlobDigest) -> Result<Option<Body>, String> {
    ask(copies, node, &format!("/.cluster/blobs/{digest}")).await
}

/// Has another host take a version over from this one.
pub async fn have_copied(
    copies: &Copies,
    node: u64,
    key: &str,
    own: u64,
    digest: &Digest,
) -> Result<(), String> {
    let copy = Copy {
        node: own,
        digest: digest.clone(),
    };
    let body = serde_json::to_vec(&copy).map_err(|error| error.to_string())?;
    let path = format!("/.cluster/images/{key}/copy");
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
