//! Errors of every origin as the contract's answers.

use api::{Code, Error};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use state::Rejection;

/// What a handler answers with when it cannot do what was asked.
pub struct Failure(pub Error);

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self.0, "a request failed");
        }
        // The original answers a plain "not found" with an empty body, and its clients know that form.
        if self.0.code == Code::NotFound {
            return status.into_response();
        }
        (status, Json(self.0)).into_response()
    }
}

pub fn of_rejection(rejection: Rejection) -> Error {
    match rejection {
        Rejection::NotFound { .. } => Error::not_found(),
        Rejection::Exists { message } => Error::new(Code::ObjectExists, message),
        Rejection::Conflict { message } => Error::conflict(message),
        Rejection::Stale { message } => Error::new(Code::PreconditionFailed, message),
        Rejection::Invalid { field: "", message } => Error::invalid(message),
        Rejection::Invalid { field, message } => Error::validation(field, message),
    }
}

pub fn of_store(error: store::WriteError) -> Error {
    Error::unavailable(error.to_string()).with_hint(error.hint())
}
