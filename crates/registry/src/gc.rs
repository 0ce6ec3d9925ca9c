//! Removes images that nobody needs any more.
//!
//! Needed is a manifest that has a tag, that one of the app's releases was made from, that an index or a
//! subject which is needed leads to, or that is younger than the grace; and of blobs what a needed manifest
//! names, and what is younger than the grace: a push brings blobs first. Whoever asks whether a blob is there
//! makes it young, for it will not be sent again.
//!
//! A blob is moved away first and looked at again then, so that one which was made young in between is put
//! back: no lock is held while anything is removed.

use std::{
    collections::BTreeSet,
    fs, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use daemon::Shutdown;
use tracing::{info, warn};
use types::AppId;

use crate::{
    GRACE, INTERVAL, Registry,
    manifest::Manifest,
    name::BlobDigest,
    release::META_IMAGE,
    store::{Repository, Store},
    upload,
};

pub async fn run(registry: &Arc<Registry>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            _ = tokio::time::sleep(INTERVAL) => {}
            _ = shutdown.cancelled() => return,
        }
        match collect(registry, GRACE).await {
            Ok(0) => {}
            Ok(bytes) => info!(bytes, "images that nobody needs are removed"),
            Err(error) => warn!(error = format!("{error:#}"), "cannot remove what is not used"),
        }
    }
}

/// What builds have cached and no build has asked for.
const CACHE_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// One round; gives the bytes that are free again.
pub async fn collect(registry: &Arc<Registry>, grace: Duration) -> anyhow::Result<u64> {
    // The repositories first: one of an app that is created meanwhile must not seem to be nobody's.
    let repositories = registry.store.repositories()?;
    let apps: BTreeSet<AppId> = registry.controller.app_ids().await?.into_iter().collect();
    for repository in repositories {
        let Some(app) = repository.app().filter(|app| apps.contains(app)) else {
            if let Some(app) = repository.app() {
                registry.store.forget(app)?;
            }
            continue;
        };
        let releases = match registry.controller.app_releases(&app.to_string()).await {
            Ok(releases) => releases,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        };
        let released = releases
            .iter()
            .filter_map(|release| release.meta.get(META_IMAGE)?.parse().ok())
            .collect();
        // What is recorded is tidied by the host that leads, and others follow.
        if !repository.is_cache() && (!registry.leads() || registry.catch_up(&repository).await.is_err()) {
            continue;
        }
        let (store, tidied) = (registry.store.clone(), repository.clone());
        tokio::task::spawn_blocking(move || tidy(&store, &tidied, &released, grace)).await??;
        registry.record(&repository).await?;
    }
    let registry = registry.clone();
    Ok(tokio::task::spawn_blocking(move || sweep(&registry, grace)).await??)
}

/// Takes from a repository what it does not need.
fn tidy(
    store: &Store,
    repository: &Repository,
    released: &BTreeSet<BlobDigest>,
    grace: Duration,
) -> io::Result<()> {
    let all = repository.manifests()?;
    let mut needed: BTreeSet<BlobDigest> = all
        .iter()
        .filter(|digest| released.contains(digest) || !is_old(repository.manifest_age(digest), grace))
        .cloned()
        .collect();
    for tag in repository.tags()? {
        let Some(digest) = repository.tag(&tag)? else {
            continue;
        };
        // Every step of every build has a tag of its own there.
        if repository.is_cache() && is_old(repository.manifest_age(&digest), grace.max(CACHE_KEPT)) {
            repository.remove_tag(&tag)?;
            continue;
        }
        needed.insert(digest);
    }
    let mut blobs = BTreeSet::new();
    let mut next: Vec<BlobDigest> = needed.iter().cloned().collect();
    while let Some(digest) = next.pop() {
        let mut more = vec![];
        if let Some(manifest) = read(store, repository, &digest)? {
            blobs.extend(manifest.blobs().map(|blob| blob.digest.clone()));
            more.extend(manifest.children().map(|child| child.digest.clone()));
        }
        more.extend(
            repository
                .referrers(&digest)?
                .into_iter()
                .map(|(digest, _)| digest),
        );
        next.extend(more.into_iter().filter(|digest| needed.insert(digest.clone())));
    }
    for digest in all.iter().filter(|digest| !needed.contains(digest)) {
        if let Some(subject) = read(store, repository, digest)?.and_then(|manifest| manifest.subject) {
            repository.remove_referrer(&subject.digest, digest)?;
        }
        repository.remove_manifest(digest)?;
    }
    for digest in repository.blobs()? {
        if !blobs.contains(&digest) && is_old(repository.blob_age(&digest), grace) {
            repository.unlink_blob(&digest)?;
        }
    }
    Ok(())
}

fn read(store: &Store, repository: &Repository, digest: &BlobDigest) -> io::Result<Option<Manifest>> {
    let (Some(media_type), Some(bytes)) = (repository.manifest(digest)?, store.read(digest)?) else {
        return Ok(None);
    };
    Ok(Manifest::parse(&bytes, Some(&media_type)).ok())
}

/// Removes blobs that no repository has, and uploads that were given up.
fn sweep(registry: &Registry, grace: Duration) -> io::Result<u64> {
    let store = &registry.store;
    let mut needed = BTreeSet::new();
    for repository in store.repositories()? {
        needed.extend(repository.blobs()?);
        needed.extend(repository.manifests()?);
    }
    let mut bytes = 0;
    for digest in store.blobs()? {
        let path = store.blob(&digest);
        let age = || fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        if needed.contains(&digest) || !is_old(age(), grace) {
            continue;
        }
        let aside = store.uploads().join(format!("{}.gone", types::Uuid::new_v4()));
        fs::rename(&path, &aside)?;
        let meta = fs::metadata(&aside)?;
        match is_old(meta.modified().ok(), grace) {
            true => {
                fs::remove_file(&aside)?;
                bytes += meta.len();
            }
            false => fs::rename(&aside, &path)?,
        }
    }
    registry.uploads.sweep(upload::PATIENCE)?;
    registry
        .converter
        .forget_all_but(|digest| store.size(digest).is_some())?;
    Ok(bytes)
}

fn is_old(at: Option<SystemTime>, grace: Duration) -> bool {
    // A clock that was set back makes a file of the future: it stays.
    at.is_some_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= grace))
}
