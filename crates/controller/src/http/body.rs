//! Request bodies: JSON, of a limited size, with the contract's errors.

use api::{Code, Error};
use axum::{
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
};
use bytes::BytesMut;
use futures::StreamExt;
use http::{header, request::Parts};
use serde::de::DeserializeOwned;

use super::error::Failure;

/// Longest request body. Environments are the largest things in one, and the kernel starts no
/// process with more than about 2 MiB of those.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// A JSON body. `serde_json` refuses what is nested more than 128 deep.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request).await?;
        // No body is a list, but for serde one is a struct whose fields have lost their names.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(syntax_error());
        }
        let value = serde_json::from_slice(&bytes).map_err(|_| syntax_error())?;
        Ok(Body(value))
    }
}

/// A body that means nothing is read all the same, up to the limit: a client that still sends it when
/// the answer comes and the connection closes would not get to read the answer.
pub struct Ignored;

impl<S: Send + Sync> FromRequest<S> for Ignored {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let _ = to_bytes(request.into_body(), BODY_BYTES_MAX).await;
        Ok(Ignored)
    }
}

/// What stands behind the `?`, with the contract's error where it makes no sense.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Query(value) = Query::<T>::try_from_uri(&parts.uri)
            .map_err(|error| Error::invalid(format!("the query is invalid: {}", error.body_text())))?;
        Ok(Parameters(value))
    }
}

/// The same for handlers that look at the raw value first.
pub async fn read(request: Request) -> Result<bytes::Bytes, Failure> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| value.contains("application/json")) {
        return Err(Error::invalid("Content-Type must be application/json").into());
    }
    let mut bytes = BytesMut::new();
    let mut length = 0;
    let mut chunks = request.into_body().into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Error::new(Code::SyntaxError, "the request body broke off"))?;
        length += chunk.len();
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&chunk);
        } else if length > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if length > BODY_BYTES_MAX {
        let message = format!("the request body is longer than {BODY_BYTES_MAX} bytes");
        return Err(Failure(Error::new(Code::RequestBodyTooBig, message)));
    }
    Ok(bytes.freeze())
}

/// Of a body that is too long this much is read and thrown away: a client that still sends it when the
/// connection closes would not get to read why.
const DISCARDED_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;

pub fn syntax_error() -> Failure {
    Failure(Error::new(
        Code::SyntaxError,
        "The provided JSON input is invalid",
    ))
}
