//! The OpenAPI documents of the platform's APIs, made from the types that the handlers use.
//!
//! `docs/api/*.json` are these documents, written by `cargo run -p openapi`; the controller serves
//! them. Each API's own tests compare its router with [`operations`](document::Api::operations), so
//! that no path is served that is not described, and its document with what is committed.
//!
//! Nothing that is shipped contains this crate.

pub mod check;
mod controller;
mod discoverd;
mod document;
mod example;
mod host;
mod operation;

use std::path::PathBuf;

pub use document::{Api, path_parameters};
pub use operation::{Access, Operation, Parameter, Shape, Success};

pub use controller::api as controller;
pub use discoverd::api as discoverd;
pub use host::api as host;

/// Name of the committed file and the API that it describes.
pub fn all() -> [(&'static str, Api); 3] {
    [
        ("controller.json", controller()),
        ("host.json", host()),
        ("discoverd.json", discoverd()),
    ]
}

/// Where the documents are committed.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/api")
}

/// A document as it is committed: one key per line, so that a change reads well as a difference.
pub fn text(api: &Api) -> String {
    let mut text = serde_json::to_string_pretty(&api.document()).expect("it is JSON");
    text.push('\n');
    text
}
