//! Blobs: asked for, read whole or in part, removed from a repository.

use std::{fs::File, io::SeekFrom, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{On, header_value};
use crate::{
    Registry,
    error::{Code, Failure, Result},
    name::BlobDigest,
};

/// One read of the disk; smaller ones cost more than they save.
const CHUNK_BYTES: usize = 1 << 20;

pub async fn get(
    registry: &Arc<Registry>,
    on: &On,
    digest: &BlobDigest,
    request: &Parts,
) -> Result<Response> {
    let unknown = || Failure::new(Code::BlobUnknown, format!("{digest} is not in {}", on.name));
    // Who asks may rely on it in the manifest that is pushed next.
    if !on.repository.touch_blob(digest)? {
        return Err(unknown());
    }
    if !registry.store.touch(digest)? && !registry.fetch_blob(&on.repository, digest).await? {
        return Err(unknown());
    }
    let file = match File::open(registry.store.blob(digest)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown()),
        Err(error) => return Err(error.into()),
    };
    let length = file.metadata()?.len();
    let mut headers = HeaderMap::new();
    headers.insert("docker-content-digest", header_value(&digest.to_string()));
    headers.insert(header::ETAG, header_value(&format!("\"{digest}\"")));
    headers.insert(header::ACCEPT_RANGES, header_value("bytes"));
    headers.insert(header::CONTENT_TYPE, header_value("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, header_value("max-age=31536000"));
    let range = match request
        .headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok())
    {
        None => None,
        Some(text) => match Range::parse(text, length) {
            Range::All => None,
            Range::Part(first, last) => Some((first, last)),
            Range::Unsatisfiable => {
                let text = format!("the blob has {length} bytes");
                let failure =
                    Failure::new(Code::SizeInvalid, text).with_status(StatusCode::RANGE_NOT_SATISFIABLE);
                let mut response = failure.into_response();
                let range = header_value(&format!("bytes */{length}"));
                response.headers_mut().insert(header::CONTENT_RANGE, range);
                return Ok(response);
            }
        },
    };
    let (status, first, count) = match range {
        None => (StatusCode::OK, 0, length),
        Some((first, last)) => {
            let text = format!("bytes {first}-{last}/{length}");
            headers.insert(header::CONTENT_RANGE, header_value(&text));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
    };
    headers.insert(header::CONTENT_LENGTH, count.into());
    if request.method == Method::HEAD {
        return Ok((status, headers, Body::empty()).into_response());
    }
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(CHUNK_BYTES);
    file.seek(SeekFrom::Start(first)).await?;
    let body = ReaderStream::with_capacity(file.take(count), CHUNK_BYTES);
    Ok((status, headers, Body::from_stream(body)).into_response())
}

pub fn delete(on: &On, digest: &BlobDigest) -> Result<Response> {
    match on.repository.unlink_blob(digest)? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(Failure::new(
            Code::BlobUnknown,
            format!("{digest} is not in {}", on.name),
        )),
    }
}

enum Range {
    /// Not asked for in a way that is known: then all of it is an answer.
    All,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

impl Range {
    fn parse(text: &str, length: u64) -> Range {
        let Some((first, last)) = text
            .strip_prefix("bytes=")
            .and_then(|range| range.split_once('-'))
        else {
            return Range::All;
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        match (number(first), number(last)) {
            (Some(first), _) if first >= length => Range::Unsatisfiable,
            (Some(first), Some(last)) if last >= first => Range::Part(first, last.min(length - 1)),
            (Some(first), None) if last.trim().is_empty() => Range::Part(first, length - 1),
            (None, Some(0)) if first.trim().is_empty() => Range::Unsatisfiable,
            (None, Some(count)) if first.trim().is_empty() && length > 0 => {
                Range::Part(length.saturating_sub(count), length - 1)
            }
            _ => Range::All,
        }
    }
}
