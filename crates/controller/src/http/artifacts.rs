//! Artifacts: `/artifacts`.

use std::sync::Arc;

use api::{Error, wire::NewArtifact};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use state::Change;
use types::{Artifact, ArtifactId, Uuid};

use crate::manifests;

use super::{Shared, body::Body, error::Failure, parse_id};

pub async fn list(Extract(controller): Shared) -> Json<Vec<Arc<Artifact>>> {
    let mut artifacts: Vec<_> = controller.state().artifacts.values().cloned().collect();
    artifacts.sort_by_key(|artifact| std::cmp::Reverse((artifact.created_at, artifact.id)));
    Json(artifacts)
}

pub async fn get(
    Extract(controller): Shared,
    Path(id): Path<String>,
) -> Result<Json<Arc<Artifact>>, Failure> {
    let id: ArtifactId = parse_id(&id)?;
    Ok(Json(
        controller
            .state()
            .artifacts
            .get(&id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

/// Gives the stored artifact when the uri is known.
pub async fn create(
    Extract(controller): Shared,
    Body(new): Body<NewArtifact>,
) -> Result<Json<Arc<Artifact>>, Failure> {
    if new.uri.is_empty() {
        return Err(Error::validation("uri", "must be set").into());
    }
    if !is_uri(&new.uri) {
        let message = "must be a URI, with a scheme, as in https://example.com/image.json";
        return Err(Error::validation("uri", message).into());
    }
    let manifest = match new.manifest {
        Some(manifest) => manifest,
        None => {
            let hashes = new.hashes.clone().unwrap_or_default();
            manifests::fetch(&new.uri, new.size.unwrap_or_default(), &hashes).await?
        }
    };
    let artifact = Artifact {
        id: ArtifactId(Uuid::new_v4()),
        kind: new.kind,
        uri: new.uri,
        meta: new.meta.unwrap_or_default(),
        manifest: Some(manifest),
        hashes: new.hashes.unwrap_or_default(),
        size: new.size,
        layer_url_template: new.layer_url_template,
        created_at: controller.now(),
    };
    let applied = controller.write(Change::CreateArtifact { artifact }).await?;
    let id = applied.artifact.ok_or_else(Error::not_found)?;
    Ok(Json(
        controller
            .state()
            .artifacts
            .get(&id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

/// RFC 3986, section 3: `scheme:` and something behind it.
fn is_uri(text: &str) -> bool {
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(is_of_scheme)
            && !rest.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_a_scheme() {
        for text in ["https://example.com/image.json", "flynn://slug/1", "urn:x"] {
            assert!(is_uri(text), "{text}");
        }
        for text in ["text", "://x", "1a:b", "a b:c", "https:", ""] {
            assert!(!is_uri(text), "{text}");
        }
    }
}
