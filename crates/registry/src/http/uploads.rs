//! Uploads over HTTP: begun, gone on with, asked about, finished, given up; or mounted from elsewhere.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use types::Uuid;

use super::{Caller, On, header_value, query};
use crate::{
    Registry,
    error::{Code, Failure, Result},
    name::{Algorithm, BlobDigest, RepositoryName},
};

pub async fn begin(
    registry: &Arc<Registry>,
    caller: &Caller,
    on: &On,
    request: &Parts,
    body: Body,
) -> Result<Response> {
    if let Some(digest) = query(request, "mount")
        && let Ok(digest) = digest.parse::<BlobDigest>()
        && mount(registry, caller, on, &digest, query(request, "from")).await?
    {
        return Ok(created(on, &digest));
    }
    let digest = match query(request, "digest") {
        Some(text) => Some(parse_digest(&text)?),
        None => None,
    };
    let algorithm = match (&digest, query(request, "digest-algorithm").as_deref()) {
        (Some(digest), _) => digest.algorithm(),
        (None, Some("sha512")) => Algorithm::Sha512,
        (None, _) => Algorithm::Sha256,
    };
    let id = registry.uploads.begin(&on.repository, algorithm)?;
    let Some(digest) = digest else {
        return Ok(going_on(on, id, 0, StatusCode::ACCEPTED));
    };
    // All of it in one request: nobody could go on with it.
    let finished = registry
        .uploads
        .finish(&on.repository, id, Some(0), &digest, body)
        .await;
    if finished.is_err() {
        let _ = registry.uploads.cancel(&on.repository, id).await;
    }
    finished?;
    registry.convert_early(on, &digest);
    Ok(created(on, &digest))
}

/// Whether the blob could be taken from another repository, or from any where none is named.
async fn mount(
    registry: &Arc<Registry>,
    caller: &Caller,
    on: &On,
    digest: &BlobDigest,
    from: Option<String>,
) -> Result<bool> {
    let source = match from {
        Some(name) => match name.parse::<RepositoryName>() {
            Ok(name) => match registry.repository(caller, &name).await {
                Ok(other) => Some(other.repository).filter(|other| other.has_blob(digest)),
                // One that is not the caller's, or not there: the bytes have to be sent.
                Err(_) => None,
            },
            Err(()) => None,
        },
        // Whoever has the cluster's key may read all of it.
        None => {
            let may_read = matches!(caller, Caller::Cluster(_)) || on.repository.has_blob(digest);
            may_read.then(|| on.repository.clone())
        }
    };
    let Some(source) = source else {
        return Ok(false);
    };
    let is_here = registry.store.touch(digest)?;
    // On another host at most where a repository has it.
    let is_found = is_here || (source.has_blob(digest) && registry.fetch_blob(&source, digest).await?);
    if !is_found {
        return Ok(false);
    }
    source.touch_blob(digest)?;
    on.repository.link_blob(digest)?;
    Ok(true)
}

pub async fn status(registry: &Arc<Registry>, on: &On, id: Uuid) -> Result<Response> {
    let length = registry.uploads.length(&on.repository, id).await?;
    Ok(going_on(on, id, length, StatusCode::NO_CONTENT))
}

pub async fn append(
    registry: &Arc<Registry>,
    on: &On,
    id: Uuid,
    request: &Parts,
    body: Body,
) -> Result<Response> {
    let offset = offset(&request.headers)?;
    let appended = registry.uploads.append(&on.repository, id, offset, body).await;
    match appended {
        Ok(length) => Ok(going_on(on, id, length, StatusCode::ACCEPTED)),
        Err(failure) => told_where(registry, on, id, failure),
    }
}

pub async fn finish(
    registry: &Arc<Registry>,
    on: &On,
    id: Uuid,
    request: &Parts,
    body: Body,
) -> Result<Response> {
    let Some(text) = query(request, "digest") else {
        return Err(Failure::new(
            Code::DigestInvalid,
            "the upload's digest is missing: ?digest=sha256:…",
        ));
    };
    let digest = parse_digest(&text)?;
    let offset = offset(&request.headers)?;
    let finished = registry
        .uploads
        .finish(&on.repository, id, offset, &digest, body)
        .await;
    match finished {
        Ok(()) => {
            registry.convert_early(on, &digest);
            Ok(created(on, &digest))
        }
        Err(failure) => told_where(registry, on, id, failure),
    }
}

pub async fn cancel(registry: &Arc<Registry>, on: &On, id: Uuid) -> Result<Response> {
    registry.uploads.cancel(&on.repository, id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A client at the wrong place is told the right one, as the specification wants it.
fn told_where(registry: &Arc<Registry>, on: &On, id: Uuid, failure: Failure) -> Result<Response> {
    if failure.status != StatusCode::RANGE_NOT_SATISFIABLE {
        return Err(failure);
    }
    let mut response = failure.into_response();
    response
        .headers_mut()
        .extend(place(on, id, registry.uploads.length_now(id)));
    Ok(response)
}

fn parse_digest(text: &str) -> Result<BlobDigest> {
    text.parse().map_err(|()| {
        Failure::new(
            Code::DigestInvalid,
            format!("{text:?} is no digest such as sha256:…"),
        )
    })
}

/// `Content-Range: FIRST-LAST`, which is not what HTTP makes of this header.
fn offset(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let invalid = || {
        let text = "Content-Range is FIRST-LAST, and LAST the number of the last byte that is sent";
        Failure::new(Code::BlobUploadInvalid, text).with_status(StatusCode::RANGE_NOT_SATISFIABLE)
    };
    let text = range.to_str().map_err(|_| invalid())?;
    let text = text
        .strip_prefix("bytes ")
        .or(text.strip_prefix("bytes="))
        .unwrap_or(text);
    let (first, last) = text.split_once('-').ok_or_else(invalid)?;
    let last = last.split('/').next().unwrap_or_default();
    let (first, last): (u64, u64) = match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) => (first, last),
        _ => return Err(invalid()),
    };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let fits = length.is_none_or(|length| last.checked_sub(first).is_some_and(|span| span + 1 == length));
    match fits || length == Some(0) {
        true => Ok(Some(first)),
        false => Err(invalid()),
    }
}

fn place(on: &On, id: Uuid, length: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let location = format!("/v2/{}/blobs/uploads/{id}", on.name);
    headers.insert(header::LOCATION, header_value(&location));
    // The number of the last byte; nothing at all is said as if there were one.
    headers.insert(
        header::RANGE,
        header_value(&format!("0-{}", length.saturating_sub(1))),
    );
    headers.insert("docker-upload-uuid", header_value(&id.to_string()));
    headers
}

fn going_on(on: &On, id: Uuid, length: u64, status: StatusCode) -> Response {
    (status, place(on, id, length), Body::empty()).into_response()
}

fn created(on: &On, digest: &BlobDigest) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{}/blobs/{digest}", on.name)),
        (
            header::HeaderName::from_static("docker-content-digest"),
            digest.to_string(),
        ),
    ];
    (StatusCode::CREATED, headers).into_response()
}
