//! The controller about itself and its cluster.

use std::sync::Arc;

use api::wire::{Status, StatusAnswer};
use axum::{
    Json,
    extract::State as Extract,
    response::{IntoResponse, Response},
};
use http::header;
use types::Host;

use super::Shared;
use crate::authority;

pub async fn status(Extract(controller): Shared) -> Response {
    // Indented, with a newline at the end, as the original's were.
    let detail = serde_json::json!({ "revision": controller.state().revision });
    let data = Status {
        status: "healthy".into(),
        version: api::VERSION.into(),
        detail: Some(detail),
    };
    let mut text = serde_json::to_string_pretty(&StatusAnswer { data }).expect("API values always serialise");
    text.push('\n');
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub async fn ca_cert(Extract(controller): Shared) -> Response {
    (
        [(header::CONTENT_TYPE, "application/x-x509-ca-cert")],
        authority::certificate(&controller.state(), &controller.config),
    )
        .into_response()
}

/// The cluster's hosts: an addition, for `flynn-host list`.
pub async fn hosts(Extract(controller): Shared) -> Json<Vec<Arc<Host>>> {
    Json(controller.state().hosts.values().cloned().collect())
}
