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
