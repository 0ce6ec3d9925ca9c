//! The distribution specification's requests. Names hold slashes, so paths are read by hand.
//!
//! ```text
//!  /v2/  ·  /v2/_catalog  ·  /v2/NAME/tags/list  ·  /v2/NAME/manifests/REFERENCE
//!  /v2/NAME/blobs/DIGEST  ·  /v2/NAME/blobs/uploads/[ID]  ·  /v2/NAME/referrers/DIGEST
//! ```

mod blobs;
mod lists;
mod manifests;
mod uploads;

pub use manifests::Taking;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use daemon::Principal;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use types::{App, AppId, Uuid};

use crate::{
    Registry, copies,
    error::{Code, Failure, Result},
    name::{BlobDigest, Reference, RepositoryName},
    store::Repository,
};

const VERSION: &str = "docker-distribution-api-version";

pub fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .merge(crate::extra::routes())
        .fallback(serve)
        .layer(axum::middleware::from_fn_with_state(registry.clone(), pass_on))
        .merge(
            copies::http::routes().route_layer(axum::middleware::from_fn_with_state(
                registry.keys.clone(),
                daemon::auth::require_internal_key,
            )),
        )
        .with_state(registry)
}

/// How long a request may wait for a host that leads.
const LEADER_PATIENCE: Duration = Duration::from_secs(8);

/// One host answers for all: uploads are on its disk, and pushes to one repository come one after the other.
async fn pass_on(State(registry): State<Arc<Registry>>, request: Request, next: Next) -> Response {
    let forward = registry.copies.as_ref().map(copies::Copies::forward);
    let Some(forward) = forward.filter(|forward| !forward.leads()) else {
        return next.run(request).await;
    };
    match forward.forward("images", request, LEADER_PATIENCE).await {
        Ok(response) => response,
        // Without a leader what is here can still be read.
        Err(request) if forward.leads() || request.method().is_safe() => next.run(request).await,
        Err(_) => copies::no_leader().into_response(),
    }
}

/// Whom a request is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// With one of the cluster's keys.
    Cluster(Principal),
    /// A job, with its app's key: it has its own app's images.
    App(AppId),
}

async fn serve(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let is_head = request.method() == Method::HEAD;
    let mut response = match dispatch(&registry, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    response
        .headers_mut()
        .insert(VERSION, HeaderValue::from_static("registry/2.0"));
    if is_head && !response.status().is_success() {
        *response.body_mut() = axum::body::Body::empty();
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

async fn dispatch(registry: &Arc<Registry>, request: Request) -> Result<Response> {
    let caller = registry.caller(request.headers())?;
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path());
    let Some(path) = path.strip_prefix("/v2") else {
        let text = "this is the cluster's registry of images. hint: docker login, then docker push HOST/APP";
        return Err(Failure::new(Code::Unsupported, text).with_status(StatusCode::NOT_FOUND));
    };
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(axum::Json(serde_json::json!({})).into_response());
    }
    if path == "_catalog" {
        return lists::catalog(registry, &caller, &parts).await;
    }
    let (name, what) = split(path)?;
    let on = registry.repository(&caller, &name).await?;
    match (what, method) {
        (What::Tags, Method::GET) => lists::tags(&on, &parts),
        (What::Referrers(digest), Method::GET) => lists::referrers(registry, &on, &digest, &parts),
        (What::Manifest(reference), Method::GET | Method::HEAD) => {
            manifests::get(registry, &on, &reference, &parts)
        }
        (What::Manifest(reference), Method::PUT) => {
            manifests::put(registry, on, reference, &parts, body).await
        }
        (What::Manifest(reference), Method::DELETE) => manifests::delete(registry, &on, &reference).await,
        (What::Blob(digest), Method::GET | Method::HEAD) => blobs::get(registry, &on, &digest, &parts).await,
        (What::Blob(digest), Method::DELETE) => blobs::delete(&on, &digest),
        (What::Uploads, Method::POST) => uploads::begin(registry, &caller, &on, &parts, body).await,
        (What::Upload(id), Method::GET) => uploads::status(registry, &on, id).await,
        (What::Upload(id), Method::PATCH) => uploads::append(registry, &on, id, &parts, body).await,
        (What::Upload(id), Method::PUT) => uploads::finish(registry, &on, id, &parts, body).await,
        (What::Upload(id), Method::DELETE) => uploads::cancel(registry, &on, id).await,
        (_, method) => Err(Failure::new(
            Code::Unsupported,
            format!("{method} does nothing here"),
        )),
    }
}

/// The repository that a request is about.
#[derive(Clone)]
pub struct On {
    pub name: RepositoryName,
    pub app: App,
    pub repository: Repository,
}

enum What {
    Tags,
    Manifest(Reference),
    Blob(BlobDigest),
    Uploads,
    Upload(Uuid),
    Referrers(BlobDigest),
}

/// `NAME/blobs/…` into its parts. A name may hold these words, too, so the last that fits counts.
fn split(path: &str) -> Result<(RepositoryName, What)> {
    let unknown =
        || Failure::new(Code::Unsupported, "there is nothing here").with_status(StatusCode::NOT_FOUND);
    let of = |name: &str| {
        name.parse::<RepositoryName>()
            .map_err(|()| Failure::new(Code::NameInvalid, format!("{name:?} is no name of a repository")))
    };
    let digest = |text: &str| {
        text.parse::<BlobDigest>().map_err(|()| {
            Failure::new(
                Code::DigestInvalid,
                format!("{text:?} is no digest such as sha256:…"),
            )
        })
    };
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Ok((of(name)?, What::Tags));
    }
    if let Some(name) = path
        .strip_suffix("/blobs/uploads/")
        .or(path.strip_suffix("/blobs/uploads"))
    {
        return Ok((of(name)?, What::Uploads));
    }
    let (front, last) = path.rsplit_once('/').ok_or_else(unknown)?;
    if let Some(name) = front.strip_suffix("/blobs/uploads") {
        let id = last
            .parse()
            .map_err(|_| Failure::new(Code::BlobUploadUnknown, "there is no such upload"))?;
        return Ok((of(name)?, What::Upload(id)));
    }
    if let Some(name) = front.strip_suffix("/manifests") {
        let name = of(name)?;
        let reference = match last.parse() {
            Ok(reference) => reference,
            Err(()) if last.contains(':') => return Err(digest(last).expect_err("it is none")),
            Err(()) => {
                let text = format!("{last:?} is neither a tag nor a digest");
                return Err(Failure::new(Code::ManifestInvalid, text));
            }
        };
        return Ok((name, What::Manifest(reference)));
    }
    if let Some(name) = front.strip_suffix("/blobs") {
        return Ok((of(name)?, What::Blob(digest(last)?)));
    }
    if let Some(name) = front.strip_suffix("/referrers") {
        return Ok((of(name)?, What::Referrers(digest(last)?)));
    }
    Err(unknown())
}

/// The value of a query's parameter.
pub(crate) fn query(request: &Parts, name: &str) -> Option<String> {
    let query = request.uri.query()?;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(found, _)| *found == name)?.1;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let escaped = match bytes[at] {
            b'%' => text
                .get(at + 1..at + 3)
                .and_then(|hex| u8::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        match (bytes[at], escaped) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', None) => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
