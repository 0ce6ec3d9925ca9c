//! Images in the cluster's bucket.
//!
//! ```text
//!   blobs/sha256/HEX            a blob or manifest
//!   images/APP/REST/DIGEST.json a version of a repository: its index, and the blobs that it is made of
//! ```
//!
//! A version is written after all that it names, by the first of the hosts that keep it. What no recorded version names
//! is removed by the host that leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use api::{
    contents::keepers,
    objects::{COLLECT_INTERVAL, Collection, GRACE, Objects, Source},
};
use axum::body::Body;
use daemon::Shutdown;
use serde::{Deserialize, Serialize};
use types::{Content, Digest, HostId, HostState};

use super::{Copies, Index, ROUND, index_of};
use crate::{
    Registry,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    name::BlobDigest,
    store::Repository,
};

const BLOBS: &str = "blobs/";
const VERSIONS: &str = "images/";

#[derive(Serialize, Deserialize)]
struct Version {
    index: Index,
    blobs: BTreeSet<BlobDigest>,
}

fn blob_key(digest: &BlobDigest) -> String {
    format!("{BLOBS}{}", digest.to_string().replace(':', "/"))
}

/// Without the `+` of our names: object stores differ in how they list it.
fn version_key(key: &str, digest: &Digest) -> String {
    format!("{VERSIONS}{}/{digest}.json", key.replace('+', "/"))
}

impl Registry {
    fn bucket(&self) -> Option<&Arc<dyn Objects>> {
        self.objects.as_ref().filter(|objects| objects.is_on())
    }

    /// An index of the bucket, if it has the version.
    pub(super) async fn index_in_bucket(&self, key: &str, digest: &Digest) -> Option<Index> {
        let version = self.version_in_bucket(key, digest).await;
        let index = version.map(|version| version.map(|version| version.index));
        match index {
            Ok(index) => index.filter(|index| index.digest() == *digest),
            Err(error) => {
                tracing::debug!(
                    key,
                    error = format!("{error:#}"),
                    "cannot ask the bucket for images"
                );
                None
            }
        }
    }

    async fn version_in_bucket(&self, key: &str, digest: &Digest) -> anyhow::Result<Option<Version>> {
        let Some(objects) = self.bucket() else {
            return Ok(None);
        };
        let Some(bytes) = objects.get(&version_key(key, digest)).await? else {
            return Ok(None);
        };
        let bytes = axum::body::to_bytes(Body::from_stream(bytes), super::http::INDEX_BYTES_MAX).await?;
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    pub(super) async fn manifest_in_bucket(&self, digest: &BlobDigest) -> Result<Vec<u8>, String> {
        let body = self.blob_in_bucket(digest).await;
        let body = body.ok_or_else(|| format!("the bucket does not have {digest}"))?;
        let bytes = axum::body::to_bytes(body, MANIFEST_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        match BlobDigest::of_as(digest.algorithm(), &bytes) == *digest {
            true => Ok(bytes.into()),
            false => Err(format!("what the bucket has is not {digest}")),
        }
    }

    pub(super) async fn blob_in_bucket(&self, digest: &BlobDigest) -> Option<Body> {
        match self.bucket()?.get(&blob_key(digest)).await {
            Ok(bytes) => bytes.map(Body::from_stream),
            Err(error) => {
                tracing::debug!(%digest, %error, "cannot ask the bucket for a blob");
                None
            }
        }
    }

    /// Brings a version there with all that it is made of; whether it is there now.
    async fn bring(
        &self,
        objects: &dyn Objects,
        repository: &Repository,
        row: &Content,
    ) -> anyhow::Result<bool> {
        let key = version_key(repository.key(), &row.digest);
        if objects.has(&key).await? {
            return Ok(true);
        }
        let index = index_of(repository)
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        if index.digest() != row.digest {
            return Ok(false);
        }
        let mut blobs: BTreeSet<BlobDigest> = index.manifests.keys().cloned().collect();
        for digest in index.manifests.keys() {
            let bytes = self.store.read(digest)?;
            let manifest = bytes.and_then(|bytes| Manifest::parse(&bytes, None).ok());
            let parts = manifest.iter().flat_map(Manifest::blobs);
            blobs.extend(parts.map(|blob| blob.digest.clone()));
        }
        for digest in &blobs {
            if self.store.size(digest).is_none() {
                return Ok(false);
            }
            objects
                .keep(&blob_key(digest), Source::File(&self.store.blob(digest)))
                .await?;
        }
        let version = serde_json::to_vec(&Version { index, blobs })?;
        objects.keep(&key, Source::Bytes(version.into())).await?;
        tracing::info!(
            key = repository.key(),
            serial = row.serial,
            "images are in the bucket"
        );
        Ok(true)
    }

    /// How many versions are still not there of those that this host has to bring.
    async fn bring_all(&self, copies: &Copies, objects: &dyn Objects) -> anyhow::Result<usize> {
        let rows = self.controller.contents().await?;
        let hosts = self.controller.hosts().await?;
        let up = hosts.iter().filter(|host| host.state == HostState::Up);
        let up: Vec<HostId> = up.map(|host| host.id.clone()).collect();
        let (mut waiting, mut is_down) = (0, false);
        for row in &rows {
            let is_first = keepers(&row.name, &up, 1) == [&copies.own];
            let Some(repository) = self.repository_of(row).filter(|_| is_first) else {
                continue;
            };
            if is_down {
                waiting += 1;
                continue;
            }
            match self.bring(objects, &repository, row).await {
                Ok(true) => {}
                Ok(false) => waiting += 1,
                Err(error) => {
                    tracing::debug!(
                        key = repository.key(),
                        error = format!("{error:#}"),
                        "cannot bring images"
                    );
                    waiting += 1;
                    is_down = true;
                }
            }
        }
        Ok(waiting)
    }

    async fn collect(&self, objects: &dyn Objects, collection: &mut Collection) -> anyhow::Result<()> {
        let mut needed = BTreeSet::new();
        let rows = self.controller.contents().await?;
        let mut repositories = BTreeMap::new();
        for row in &rows {
            if let Some(repository) = self.repository_of(row) {
                repositories.insert(repository.key().to_owned(), row.digest.clone());
            }
        }
        for (key, digest) in repositories {
            // As long as one is on its way, nobody knows what it needs.
            let Some(version) = self.version_in_bucket(&key, &digest).await? else {
                return Ok(());
            };
            needed.insert(version_key(&key, &digest));
            needed.extend(version.blobs.iter().map(blob_key));
        }
        let is_needed = |key: &str| needed.contains(key);
        let removed = collection
            .round(objects, &[VERSIONS, BLOBS], is_needed, GRACE)
            .await?;
        if removed > 0 {
            tracing::info!(objects = removed, "unused images removed from the bucket");
        }
        Ok(())
    }
}

pub async fn run(registry: &Arc<Registry>, shutdown: Shutdown) {
    let Some(copies) = &registry.copies else {
        return;
    };
    let (mut collection, mut collected_at) = (Collection::new(), Instant::now());
    loop {
        tokio::select! {
            _ = tokio::time::sleep(ROUND) => {}
            _ = shutdown.cancelled() => return,
        }
        let Some(objects) = registry.bucket().cloned() else {
            continue;
        };
        let work = async {
            match registry.bring_all(copies, &*objects).await {
                Ok(waiting) => objects.note("images", waiting),
                Err(error) => tracing::debug!(
                    error = format!("{error:#}"),
                    "cannot look after images in the bucket"
                ),
            }
            if registry.leads() && collected_at.elapsed() >= COLLECT_INTERVAL {
                collected_at = Instant::now();
                if let Err(error) = registry.collect(&*objects, &mut collection).await {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "cannot remove images from the bucket"
                    );
                }
            }
        };
        tokio::select! {
            () = work => {}
            _ = shutdown.cancelled() => return,
        }
    }
}
