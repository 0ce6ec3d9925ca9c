//! Layers of images by digest, the cluster's backup, and what else is too large for one JSON body.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::Method;
use http_body_util::{BodyExt, StreamBody as Frames};
use hyper::body::{Frame, Incoming};
use serde::Deserialize;
use types::{Artifact, Digest, Host};

use crate::{ClientError, Controller, client::empty_body};

type Result<T> = std::result::Result<T, ClientError>;

/// A layer that the cluster has.
#[derive(Debug, Clone, serde::Serialize, Deserialize, schemars::JsonSchema)]
pub struct LayerFile {
    /// SHA-256 of the file.
    pub id: String,
    pub length: u64,
}

impl Controller {
    pub async fn artifacts(&self) -> Result<Vec<Artifact>> {
        self.client().get("/artifacts").await
    }

    pub async fn hosts(&self) -> Result<Vec<Host>> {
        self.client().get("/hosts").await
    }

    /// Whether the cluster has a layer, and how long it is (an addition).
    pub async fn find_layer(&self, digest: &Digest) -> Result<Option<LayerFile>> {
        match self.client().get(&format!("/layers/{digest}?stat=true")).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A layer's bytes (an addition).
    pub async fn layer(&self, digest: &Digest) -> Result<Incoming> {
        let path = format!("/layers/{digest}");
        let response = self
            .client()
            .stream(Method::GET, &path, empty_body(), "*/*")
            .await?;
        Ok(response.into_body())
    }

    /// Gives the cluster a layer; bytes that are not those of the digest are refused (an addition).
    pub async fn put_layer(
        &self,
        digest: &Digest,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Result<()> {
        let body = Frames::new(bytes.map_ok(Frame::data)).boxed();
        let path = format!("/layers/{digest}");
        let response = self
            .client()
            .stream(Method::PUT, &path, body, "application/json")
            .await?;
        // The whole answer, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Ok(())
    }

    /// The cluster's backup, a tar archive.
    pub async fn backup(&self) -> Result<Incoming> {
        let response = self
            .client()
            .stream(Method::GET, "/backup", empty_body(), "application/x-tar")
            .await?;
        Ok(response.into_body())
    }
}
