//! An image of a registry outside, made a release of an app as if it had been pushed.
//!
//! `POST /pull` answers with a line of JSON for each thing that is done, and a last one with the release or
//! with what went wrong: a pull takes as long as it takes, and whoever waits wants to see it go on.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use daemon::Principal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    Registry,
    error::{Code, Failure, Result},
    http::{Caller, On, Taking},
    manifest::{Body as Content, Manifest},
    name::{Algorithm, BlobDigest, Reference},
    release::{self, Wish},
    remote::{Credentials, ImageName, Remote},
};

const QUESTION_BYTES_MAX: usize = 64 << 10;

#[derive(Deserialize)]
struct Question {
    app: String,
    image: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// What the process of a new app is called.
    #[serde(default)]
    process: Option<String>,
    /// Only a release, which the client deploys.
    #[serde(default)]
    deploy_by_client: bool,
}

pub async fn pull(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    match begin(registry, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn begin(registry: Arc<Registry>, request: Request) -> Result<Response> {
    let caller = registry.caller(request.headers())?;
    if !matches!(caller, Caller::Cluster(Principal::User | Principal::Internal)) {
        return Err(Failure::new(
            Code::Denied,
            "an app's key does not pull from outside",
        ));
    }
    let invalid =
        |text: String| Failure::new(Code::Unsupported, text).with_status(http::StatusCode::BAD_REQUEST);
    let bytes = axum::body::to_bytes(request.into_body(), QUESTION_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| invalid(error.to_string()))?;
    let question: Question = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let name = ImageName::parse(&question.image)?;
    let repository = question
        .app
        .parse()
        .map_err(|()| Failure::new(Code::NameInvalid, "the app's name is not valid"))?;
    let on = registry.repository(&caller, &repository).await?;
    let (lines, received) = mpsc::channel::<Value>(16);
    tokio::spawn(async move {
        let pulling = Pulling {
            registry,
            on,
            remote: Remote::new(
                name.clone(),
                Credentials {
                    user: question.username,
                    password: question.password,
                },
            ),
            lines: lines.clone(),
        };
        let wish = Wish {
            tag: match &name.reference {
                Reference::Tag(tag) => tag.clone(),
                Reference::Digest(_) => "latest".into(),
            },
            first_process: question
                .process
                .filter(|name| types::check_process_type(name).is_ok()),
            is_deployed_by_client: question.deploy_by_client,
            ..Wish::default()
        };
        let last = match pulling.run(&name.reference, wish).await {
            Ok(Some(release)) => json!({"release": release}),
            Ok(None) => json!({"error": "it is no image that can be run"}),
            Err(failure) => json!({"error": failure.message}),
        };
        let _ = lines.send(last).await;
    });
    let stream = futures::stream::unfold(received, async |mut received| {
        let line = received.recv().await?;
        Some((
            Ok::<_, std::convert::Infallible>(Bytes::from(format!("{line}\n"))),
            received,
        ))
    });
    Ok((
        [(http::header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(stream),
    )
        .into_response())
}

struct Pulling {
    registry: Arc<Registry>,
    on: On,
    remote: Remote,
    lines: mpsc::Sender<Value>,
}

impl Pulling {
    async fn run(mut self, reference: &Reference, wish: Wish) -> Result<Option<types::ReleaseId>> {
        let (mut media_type, mut bytes) = self.remote.manifest(reference).await?;
        let mut manifest = Manifest::parse(&bytes, media_type.as_deref())?;
        // Of an index only what this cluster can run: the rest would take its disk for nothing.
        if let Content::Index { manifests } = &manifest.body {
            let digest = release::choose(manifests)?.digest.clone();
            (media_type, bytes) = self.remote.manifest(&Reference::Digest(digest)).await?;
            manifest = Manifest::parse(&bytes, media_type.as_deref())?;
        }
        for blob in manifest.blobs().cloned().collect::<Vec<_>>() {
            self.blob(&blob.digest, blob.size).await?;
        }
        self.tell(json!({"status": "unpacking"})).await?;
        let taking = Taking {
            registry: self.registry.clone(),
            on: self.on.clone(),
            reference: Reference::Tag(wish.tag.clone()),
            digest: BlobDigest::of(&bytes),
            manifest,
            bytes,
            wish,
        };
        taking.run().await
    }

    async fn blob(&mut self, digest: &BlobDigest, size: u64) -> Result<()> {
        let (registry, repository) = (self.registry.clone(), self.on.repository.clone());
        if registry.store.touch(digest)? {
            repository.link_blob(digest)?;
            return self
                .tell(json!({"status": "exists", "digest": digest, "bytes": size}))
                .await;
        }
        self.tell(json!({"status": "pulling", "digest": digest, "bytes": size}))
            .await?;
        let body = Body::new(self.remote.blob(digest).await?);
        let id = registry.uploads.begin(&repository, Algorithm::Sha256)?;
        let done = registry
            .uploads
            .finish(&repository, id, Some(0), digest, body)
            .await;
        if done.is_err() {
            let _ = registry.uploads.cancel(&repository, id).await;
        }
        done?;
        registry.convert_early(&self.on, digest);
        Ok(())
    }

    /// Fails when nobody listens any more: then nobody wants it either.
    async fn tell(&self, line: Value) -> Result<()> {
        let gone = |_| Failure::new(Code::Unknown, "nobody waits for this pull any more");
        self.lines.send(line).await.map_err(gone)
    }
}
