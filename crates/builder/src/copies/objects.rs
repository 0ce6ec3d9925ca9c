//! Repositories in the cluster's bucket.
//!
//! ```text
//!   git/APP/DIGEST.bundle     all refs of a version with all that they name, as `git bundle` writes it
//!   git/APP/DIGEST.json       the version; written after the bundle
//! ```
//!
//! What a reader would get wrong: a bundle says nothing of where a shallow repository ends, so the version does.
//! Whether what was fetched is the version is known from its refs, as with copies of other hosts.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use api::{
    ClientError,
    contents::keepers,
    objects::{COLLECT_INTERVAL, Collection, GRACE, Objects, Source},
};
use daemon::files;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use types::{AppId, Digest, HostId, HostState};

use super::{Copies, ROUND, content_name};
use crate::{Builder, repo::Repo, version::Version};

const PREFIX: &str = "git/";
/// A version's description is its refs and little else.
const VERSION_BYTES_MAX: usize = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: Version,
    /// The commits whose parents are not there, as git writes them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    shallow: String,
}

fn key(app: AppId, digest: &Digest, kind: &str) -> String {
    format!("{PREFIX}{app}/{digest}.{kind}")
}

/// A file that is gone when nobody needs it any more. A daemon that starts removes it by its name.
struct Draft(PathBuf);

impl Draft {
    fn beside(repo: &Repo) -> Draft {
        Draft(
            repo.path()
                .with_extension(format!("new-{}", uuid::Uuid::new_v4())),
        )
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Builder {
    fn bucket(&self) -> Option<&Arc<dyn Objects>> {
        self.objects.as_ref().filter(|objects| objects.is_on())
    }

    /// Makes a repository what a version in the bucket is; whether the bucket has it. Nobody else may change it
    /// meanwhile.
    pub(super) async fn take_from_bucket(&self, app: AppId, repo: &Repo, wanted: &Digest) -> Result<bool> {
        let Some(objects) = self.bucket() else {
            return Ok(false);
        };
        let Some(bytes) = objects.get(&key(app, wanted, "json")).await? else {
            return Ok(false);
        };
        let bytes = axum::body::to_bytes(axum::body::Body::from_stream(bytes), VERSION_BYTES_MAX).await?;
        let kept: Kept = serde_json::from_slice(&bytes).context("its version cannot be read")?;
        anyhow::ensure!(kept.version.digest == *wanted, "it is another version");
        let draft = Draft::beside(repo);
        if !kept.version.refs.is_empty() {
            let bundle = objects.get(&key(app, wanted, "bundle")).await?;
            let mut bundle = bundle.context("its bundle is missing")?;
            let mut file = tokio::fs::File::create(&draft.0).await?;
            while let Some(bytes) = bundle.try_next().await? {
                file.write_all(&bytes).await?;
            }
            file.flush().await?;
        }
        repo.take_bundle(&draft.0, &kept.version, &kept.shallow).await?;
        let now = repo.version().await?.digest;
        anyhow::ensure!(now == *wanted, "what the bucket has is another version");
        Ok(true)
    }

    /// Whether the version is there now.
    async fn bring(&self, objects: &dyn Objects, app: AppId, wanted: &Digest) -> Result<bool> {
        if objects.has(&key(app, wanted, "json")).await? {
            return Ok(true);
        }
        let Some(repo) = self.repos.existing(app) else {
            return Ok(false);
        };
        let draft = Draft::beside(&repo);
        let version = repo.version().await?;
        let shallow = files::read_if_exists(&repo.path().join("shallow"))?.unwrap_or_default();
        if version.digest != *wanted {
            return Ok(false);
        }
        if !version.refs.is_empty() {
            repo.bundle(&draft.0).await?;
        }
        // No push waits for this; one that came in between makes another version.
        if repo.version().await?.digest != *wanted {
            return Ok(false);
        }
        if !version.refs.is_empty() {
            objects
                .keep(&key(app, wanted, "bundle"), Source::File(&draft.0))
                .await?;
        }
        let kept = serde_json::to_vec(&Kept { version, shallow })?;
        objects
            .keep(&key(app, wanted, "json"), Source::Bytes(kept.into()))
            .await?;
        tracing::info!(%app, "a repository is in the bucket");
        Ok(true)
    }

    /// How many repositories are still not there of those that this host has to bring.
    async fn bring_all(&self, copies: &Copies, objects: &dyn Objects) -> Result<usize, ClientError> {
        let hosts = self.controller.hosts().await?;
        let up = hosts.iter().filter(|host| host.state == HostState::Up);
        let up: Vec<HostId> = up.map(|host| host.id.clone()).collect();
        let (mut waiting, mut is_down) = (0, false);
        for (app, digest) in self.recorded().await? {
            if keepers(&content_name(app), &up, 1) != [&copies.own] {
                continue;
            }
            if is_down {
                waiting += 1;
                continue;
            }
            match self.bring(objects, app, &digest).await {
                Ok(true) => {}
                Ok(false) => waiting += 1,
                Err(error) => {
                    tracing::debug!(%app, error = format!("{error:#}"), "cannot bring a repository");
                    waiting += 1;
                    is_down = true;
                }
            }
        }
        Ok(waiting)
    }

    async fn collect_objects(&self, objects: &dyn Objects, collection: &mut Collection) -> Result<()> {
        let rows: HashMap<AppId, Digest> = self.recorded().await?.into_iter().collect();
        let keys = rows
            .iter()
            .flat_map(|(app, digest)| ["json", "bundle"].map(|kind| key(*app, digest, kind)));
        let needed: BTreeSet<String> = keys.collect();
        let mut is_complete = true;
        for (app, digest) in &rows {
            is_complete &= objects.has(&key(*app, digest, "json")).await?;
        }
        // What is there of the version before is all there is until then.
        if !is_complete {
            return Ok(());
        }
        let removed = collection
            .round(objects, &[PREFIX], |key| needed.contains(key), GRACE)
            .await?;
        if removed > 0 {
            tracing::info!(objects = removed, "old repositories removed from the bucket");
        }
        Ok(())
    }
}

pub async fn run(builder: Arc<Builder>) {
    let Some(copies) = &builder.copies else {
        return;
    };
    let (mut collection, mut collected_at) = (Collection::new(), Instant::now());
    loop {
        tokio::select! {
            _ = tokio::time::sleep(ROUND) => {}
            _ = builder.shutdown.cancelled() => return,
        }
        let Some(objects) = builder.bucket().cloned() else {
            continue;
        };
        let work = async {
            match builder.bring_all(copies, &*objects).await {
                Ok(waiting) => objects.note("repositories", waiting),
                Err(error) => tracing::debug!(%error, "cannot look after repositories in the bucket"),
            }
            if copies.forward.leads() && collected_at.elapsed() >= COLLECT_INTERVAL {
                collected_at = Instant::now();
                if let Err(error) = builder.collect_objects(&*objects, &mut collection).await {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "cannot remove repositories from the bucket"
                    );
                }
            }
        };
        tokio::select! {
            () = work => {}
            _ = builder.shutdown.cancelled() => return,
        }
    }
}
