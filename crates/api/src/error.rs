//! The error envelope: `{"code","message","detail"?,"retry"}`, as the original's clients read it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    NotFound,
    ObjectNotFound,
    ObjectExists,
    Conflict,
    PreconditionFailed,
    SyntaxError,
    ValidationError,
    RequestBodyTooBig,
    Unauthorized,
    /// A known key without the right to this. The original had only keys that open everything.
    Forbidden,
    Ratelimited,
    ServiceUnavailable,
    #[serde(other)]
    UnknownError,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::NotFound => "not_found",
            Code::ObjectNotFound => "object_not_found",
            Code::ObjectExists => "object_exists",
            Code::Conflict => "conflict",
            Code::PreconditionFailed => "precondition_failed",
            Code::SyntaxError => "syntax_error",
            Code::ValidationError => "validation_error",
            Code::RequestBodyTooBig => "request_body_too_big",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::Ratelimited => "ratelimited",
            Code::ServiceUnavailable => "service_unavailable",
            Code::UnknownError => "unknown_error",
        }
    }

    pub fn status(self) -> u16 {
        match self {
            Code::NotFound | Code::ObjectNotFound => 404,
            Code::ObjectExists | Code::Conflict => 409,
            Code::PreconditionFailed => 412,
            Code::SyntaxError | Code::ValidationError | Code::RequestBodyTooBig => 400,
            Code::Unauthorized => 401,
            Code::Forbidden => 403,
            Code::Ratelimited => 429,
            Code::ServiceUnavailable => 503,
            Code::UnknownError => 500,
        }
    }
}

/// What went wrong, for a program (`code`, `retry`) and for a person (`message`, `hint`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Error {
    pub code: Code,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
    /// What the user can do about it. The original had none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retry: bool,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let retry = matches!(code, Code::ServiceUnavailable | Code::Ratelimited);
        Error {
            code,
            message: message.into(),
            detail: None,
            hint: String::new(),
            retry,
        }
    }

    /// A plain "not found", which the controller answers as 404 with an empty body.
    pub fn not_found() -> Self {
        Error::new(Code::NotFound, "resource not found")
    }

    pub fn validation(field: &str, reason: impl std::fmt::Display) -> Self {
        let mut error = Error::new(Code::ValidationError, format!("{field} {reason}"));
        error.detail = Some(serde_json::json!({ "field": field }));
        error
    }

    /// A validation error about no single field.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(Code::ValidationError, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Error::new(Code::Conflict, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Error::new(Code::ServiceUnavailable, message)
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<types::NameError> for Error {
    fn from(error: types::NameError) -> Self {
        Error::validation(error.field, error.reason)
    }
}
