//! Programs that one host gives to another, which puts them in place: parts of a host's own API, for
//! `flynn-host update` only.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::Method;
use http_body_util::{BodyExt, StreamBody as Frames};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use types::{Digest, Uuid};

use crate::{Client, ClientError};

/// `POST /host/update/:set`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpdateRequest {
    pub to: UpdateTo,
    /// How long each part may take to come up.
    pub timeout_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateTo {
    /// The programs of the set.
    Set,
    /// Those before the last update.
    Previous,
}

/// `GET /host/update/:set`: how far it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpdateState {
    /// What it has said so far.
    pub said: String,
    /// Once it has ended: empty where it has succeeded, else why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Of the host API of the host that is updated.
pub struct Updates<'a>(pub &'a Client);

impl Updates<'_> {
    /// A program of a set; bytes that are not those of the digest are refused.
    pub async fn put(
        &self,
        set: Uuid,
        name: &str,
        digest: &Digest,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Result<(), ClientError> {
        let body = Frames::new(bytes.map_ok(Frame::data)).boxed();
        let path = format!("/host/update/{set}/{name}?sha256={digest}");
        let response = self.0.stream(Method::PUT, &path, body, "*/*").await?;
        drop(response);
        Ok(())
    }

    pub async fn begin(&self, set: Uuid, request: &UpdateRequest) -> Result<(), ClientError> {
        let path = format!("/host/update/{set}");
        self.0.send(Method::POST, &path, Some(request)).await
    }

    pub async fn state(&self, set: Uuid) -> Result<UpdateState, ClientError> {
        self.0.get(&format!("/host/update/{set}")).await
    }
}
