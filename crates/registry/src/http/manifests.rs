//! Manifests: taken in, given out, removed. A tagged image becomes a release on the way in.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body as RawBody,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use tracing::warn;

use super::{On, header_value, query};
use crate::{
    Registry,
    error::{Code, Failure, Result},
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    name::{BlobDigest, Reference},
    release::{self, Wish},
};

/// How long a push is kept waiting for its release. The router in front gives an answer 30 s.
const WAIT: Duration = Duration::from_secs(20);
/// Which release a push has become.
pub const RELEASE: &str = "flynn-release";

pub fn get(registry: &Arc<Registry>, on: &On, reference: &Reference, request: &Parts) -> Result<Response> {
    let unknown = || {
        Failure::new(
            Code::ManifestUnknown,
            format!("{}:{reference} is not there", on.name),
        )
    };
    let digest = match reference {
        Reference::Digest(digest) => digest.clone(),
        Reference::Tag(tag) => on.repository.tag(tag)?.ok_or_else(unknown)?,
    };
    let media_type = on.repository.manifest(&digest)?.ok_or_else(unknown)?;
    if on.repository.is_cache() {
        on.repository.touch_manifest(&digest)?;
    }
    let bytes = registry.store.read(&digest)?.ok_or_else(unknown)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, header_value(&media_type));
    headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    headers.insert(header::ETAG, header_value(&format!("\"{digest}\"")));
    headers.insert("docker-content-digest", header_value(&digest.to_string()));
    let body = match request.method == Method::HEAD {
        true => RawBody::empty(),
        false => RawBody::from(bytes),
    };
    Ok((StatusCode::OK, headers, body).into_response())
}

pub async fn put(
    registry: &Arc<Registry>,
    on: On,
    reference: Reference,
    request: &Parts,
    body: RawBody,
) -> Result<Response> {
    // `flynn docker push` says in the query what Docker has no word for: `process` is what the process of a
    // new app is called, and `deploy=client` that the client deploys.
    let content_type = query(request, "type").or_else(|| {
        let value = request.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        Some(value.to_owned())
    });
    let wish = Wish {
        tag: reference.to_string(),
        first_process: query(request, "process").filter(|name| types::check_process_type(name).is_ok()),
        is_deployed_by_client: query(request, "deploy").is_some_and(|who| who == "client"),
        ..Wish::default()
    };
    let bytes = axum::body::to_bytes(body, MANIFEST_BYTES_MAX)
        .await
        .map_err(|_| {
            let text = format!("the manifest broke off, or is longer than {MANIFEST_BYTES_MAX} bytes");
            Failure::new(Code::ManifestInvalid, text).with_status(StatusCode::PAYLOAD_TOO_LARGE)
        })?;
    let digest = match &reference {
        Reference::Digest(named) => {
            let actual = BlobDigest::of_as(named.algorithm(), &bytes);
            if actual != *named {
                let text = format!("the manifest's digest is {actual}, not {named}");
                return Err(Failure::new(Code::DigestInvalid, text));
            }
            actual
        }
        Reference::Tag(_) => BlobDigest::of(&bytes),
    };
    let manifest = Manifest::parse(&bytes, content_type.as_deref())?;
    registry.fetch_parts(&on.repository, &manifest).await?;
    check_parts(registry, &on, &manifest)?;
    registry.uploads.check_disk()?;

    let subject = manifest.subject.as_ref().map(|subject| subject.digest.clone());
    let location = format!("/v2/{}/manifests/{digest}", on.name);
    let mut headers = HeaderMap::new();
    headers.insert(header::LOCATION, header_value(&location));
    headers.insert("docker-content-digest", header_value(&digest.to_string()));
    if let Some(subject) = subject {
        headers.insert("oci-subject", header_value(&subject.to_string()));
    }
    // Carried to its end whether or not the client still listens.
    let taking = Taking {
        registry: registry.clone(),
        on,
        reference,
        digest,
        manifest,
        bytes: bytes.into(),
        wish,
    };
    let mut task = tokio::spawn(taking.run());
    match tokio::time::timeout(WAIT, &mut task).await {
        Ok(Ok(Ok(release))) => {
            if let Some(release) = release {
                headers.insert(RELEASE, header_value(&release.to_string()));
            }
        }
        Ok(Ok(Err(failure))) => return Err(failure),
        Ok(Err(_)) => return Err(Failure::unavailable("the registry is shutting down")),
        // Large layers: the release follows.
        Err(_) => drop(task),
    }
    Ok((StatusCode::CREATED, headers).into_response())
}

/// What the manifest is made of has to be there, and be as long as it says.
fn check_parts(registry: &Registry, on: &On, manifest: &Manifest) -> Result<()> {
    for blob in manifest.blobs() {
        let size = match on.repository.touch_blob(&blob.digest)? {
            true => registry.store.size(&blob.digest),
            false => None,
        };
        let Some(size) = size else {
            let text = format!(
                "{} is not in {}: push it before the manifest",
                blob.digest, on.name
            );
            return Err(Failure::new(Code::ManifestBlobUnknown, text));
        };
        if size != blob.size {
            let text = format!(
                "{} has {size} bytes, and the manifest says {}",
                blob.digest, blob.size
            );
            return Err(Failure::new(Code::SizeInvalid, text));
        }
    }
    for child in manifest.children() {
        if on.repository.manifest(&child.digest)?.is_none() {
            let text = format!("{} is not in {}: push it before the index", child.digest, on.name);
            return Err(Failure::new(Code::ManifestBlobUnknown, text));
        }
    }
    Ok(())
}

/// A manifest whose parts are there, on its way in.
pub struct Taking {
    pub registry: Arc<Registry>,
    pub on: On,
    pub reference: Reference,
    pub digest: BlobDigest,
    pub manifest: Manifest,
    pub bytes: Vec<u8>,
    pub wish: Wish,
}

impl Taking {
    pub async fn run(self) -> Result<Option<types::ReleaseId>> {
        let result = self.take().await;
        if let Err(failure) = &result {
            warn!(app = %self.on.app.name, reference = %self.reference, error = %failure, "a push was refused");
        }
        result
    }

    async fn take(&self) -> Result<Option<types::ReleaseId>> {
        let Taking {
            registry,
            on,
            digest,
            manifest,
            ..
        } = self;
        let is_release =
            matches!(self.reference, Reference::Tag(_)) && on.name.rest().is_none() && manifest.is_image();
        // Before it is kept: what cannot be run is refused, and nothing of it stays.
        let prepared = match is_release {
            true => Some(
                release::prepare(
                    &registry.store,
                    &on.repository,
                    &registry.converter,
                    digest,
                    manifest,
                )
                .await?,
            ),
            false => None,
        };
        registry.store.put_small(&self.bytes, digest)?;
        on.repository.put_manifest(digest, &manifest.media_type)?;
        if let Some(subject) = &manifest.subject {
            let descriptor = manifest.as_referrer(digest, self.bytes.len() as u64);
            let descriptor = serde_json::to_vec(&descriptor).expect("a descriptor is JSON");
            on.repository.add_referrer(&subject.digest, digest, &descriptor)?;
        }
        if let Reference::Tag(tag) = &self.reference {
            on.repository.set_tag(tag, digest)?;
        }
        registry.record(&on.repository).await?;
        let Some(prepared) = prepared else {
            return Ok(None);
        };
        // One after the other, so that the newest push is the newest release.
        let _turn = registry.publishing.lock().await;
        let release = release::publish(&registry.controller, &on.app, &prepared, &self.wish).await?;
        Ok(Some(release.id))
    }
}

/// A tag is taken away; a manifest goes with all its tags.
pub async fn delete(registry: &Arc<Registry>, on: &On, reference: &Reference) -> Result<Response> {
    let is_gone = match reference {
        Reference::Tag(tag) => on.repository.remove_tag(tag)?,
        Reference::Digest(digest) => {
            let subject = registry
                .store
                .read(digest)?
                .and_then(|bytes| Manifest::parse(&bytes, None).ok()?.subject);
            if let Some(subject) = subject {
                on.repository.remove_referrer(&subject.digest, digest)?;
            }
            on.repository.remove_manifest(digest)?
        }
    };
    match is_gone {
        true => {
            registry.record(&on.repository).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        false => {
            let text = format!("{}:{reference} is not there", on.name);
            Err(Failure::new(Code::ManifestUnknown, text))
        }
    }
}
