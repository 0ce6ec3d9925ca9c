//! The cluster's registry of images, as far as commands need it.

use api::{
    Client, ClientError, Endpoint,
    client::{Method, empty_body, escape},
};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Full, StreamBody};

use serde_json::{Value, json};
use types::ReleaseId;

use crate::{
    authority,
    config::Cluster,
    failure::{Failure, Result},
    image_archive::{Blob, Image},
    output,
};

/// An image of another registry, and who may have it.
#[derive(Debug, Clone, Default)]
pub struct Pull {
    pub image: String,
    pub username: String,
    pub password: String,
}

pub struct Images {
    client: Client,
}

/// Where the registry is, without a path.
pub fn url(cluster: &Cluster) -> String {
    if !cluster.image_url.is_empty() {
        return cluster.image_url.trim_end_matches('/').to_owned();
    }
    cluster.controller_url.replacen("://controller.", "://images.", 1)
}

impl Images {
    pub fn new(cluster: &Cluster) -> Result<Images> {
        let client = Client::new(&Endpoint {
            url: url(cluster),
            key: cluster.key.clone(),
            trust: authority::trust(cluster),
        })?;
        Ok(Images { client })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn has(&self, app: &str, blob: &Blob) -> Result<bool> {
        let path = format!("/v2/{app}/blobs/{}", blob.digest);
        match self.client.stream(Method::HEAD, &path, empty_body(), "*/*").await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn push_blob(&self, app: &str, blob: &Blob) -> Result<()> {
        let path = format!("/v2/{app}/blobs/uploads/");
        let begun = self
            .client
            .stream(Method::POST, &path, empty_body(), "*/*")
            .await?;
        let place = begun
            .headers()
            .get("location")
            .and_then(|place| place.to_str().ok());
        let place = place
            .filter(|place| place.starts_with('/'))
            .ok_or_else(|| Failure::new("the registry did not say where to send the layer"))?
            .to_owned();
        let path = format!("{place}?digest={}", escape(&blob.digest));
        let body = StreamBody::new(blob.stream()?.map_ok(hyper_frame)).boxed();
        let answer = self.client.stream(Method::PUT, &path, body, "*/*").await?;
        let _ = answer.into_body().collect().await;
        Ok(())
    }

    /// Pushes an image's manifests; gives the release that the tagged one became, if it is there already.
    pub async fn push_manifests(
        &self,
        app: &str,
        tag: &str,
        process: &str,
        image: &Image,
    ) -> Result<Option<String>> {
        for (digest, media_type, bytes) in &image.children {
            let path = format!("/v2/{app}/manifests/{digest}?type={}", escape(media_type));
            self.put(&path, bytes.clone()).await?;
        }
        let path = format!(
            "/v2/{app}/manifests/{tag}?type={}&process={process}&deploy=client",
            escape(&image.media_type)
        );
        self.put(&path, image.manifest.clone()).await
    }

    /// Has the registry pull an image of another one; gives the release that it became.
    pub async fn pull(&self, app: &str, pull: &Pull) -> Result<ReleaseId> {
        let question = json!({
            "app": app, "image": pull.image, "username": pull.username, "password": pull.password,
            "process": "web", "deploy_by_client": true,
        });
        let body = Full::new(Bytes::from(question.to_string()))
            .map_err(|never| match never {})
            .boxed();
        let answer = self
            .client
            .stream(Method::POST, "/pull", body, "*/*")
            .await
            .map_err(in_words)?;
        let (mut body, mut text) = (answer.into_body(), Vec::new());
        loop {
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).map_err(|error| {
                    Failure::new(format!("the registry's answer cannot be understood: {error}"))
                })?;
                if let Some(error) = line["error"].as_str() {
                    return Err(with_own_hint(Failure::new(error)));
                }
                if let Some(id) = line["release"].as_str().and_then(|id| id.parse().ok()) {
                    return Ok(id);
                }
                tell(&line);
            }
            match body.frame().await {
                Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
                _ => {
                    return Err(Failure::new("the connection broke while the image was pulled")
                        .with_hint("try again"));
                }
            }
        }
    }

    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<Option<String>> {
        let body = Full::new(Bytes::from(bytes))
            .map_err(|never| match never {})
            .boxed();
        let answer = self
            .client
            .stream(Method::PUT, path, body, "*/*")
            .await
            .map_err(in_words)?;
        let release = answer
            .headers()
            .get("flynn-release")
            .and_then(|id| id.to_str().ok());
        Ok(release.map(str::to_owned))
    }
}

fn hyper_frame(bytes: Bytes) -> hyper::body::Frame<Bytes> {
    hyper::body::Frame::data(bytes)
}

/// One thing that a pull did.
fn tell(line: &Value) {
    let id: String = line["digest"]
        .as_str()
        .map(|digest| digest.chars().skip("sha256:".len()).take(12).collect())
        .unwrap_or_default();
    let size = output::size(line["bytes"].as_u64().unwrap_or_default());
    match line["status"].as_str() {
        Some("pulling") => eprintln!("pulling {id} ({size})"),
        Some("exists") => eprintln!("{id} is there already ({size})"),
        Some(status) => eprintln!("{status}"),
        None => {}
    }
}

fn in_words(error: ClientError) -> Failure {
    with_own_hint(Failure::from(error))
}

/// The registry's messages bring their hints along.
fn with_own_hint(failure: Failure) -> Failure {
    match failure.message.split_once(". hint: ") {
        Some((message, hint)) => Failure {
            message: message.to_owned(),
            hint: hint.to_owned(),
            ..failure
        },
        None => failure,
    }
}
