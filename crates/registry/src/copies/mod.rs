//! Images on as many hosts as asked: which version of a repository is the valid one, and how others get it.
//!
//! ```text
//!  manifest ─▶ another host has the version's index and manifests ─▶ record ─▶ "created"
//!                          blobs follow (run), or come when they are asked for (fetch_blob)
//! ```
//!
//! A version is the digest of what a repository's tags and manifests are: its index. Manifests name
//! blobs, so the index names everything that is in it. The cluster's state has the digest and a serial.
//!
//! What a reader would get wrong:
//! * Requests go to the host that leads, which alone changes repositories and records what it changed.
//!   An upload is on that host; another leader knows nothing of it, and the client begins it again.
//! * What builds cache is not recorded and stays where it is: nothing is lost with it.
//! * A blob that a repository has (its link) need not be on this host.

pub mod http;
mod index;
pub mod objects;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use api::{
    ClientError, Code as ApiCode,
    contents::{LOST_AFTER, NewContent, keepers},
};
use daemon::{Forward, Shutdown};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use types::{AppId, Digest, Host, HostId, HostState, Settings};

use self::index::Index;
use crate::{
    Registry,
    error::{Code, Failure, Result},
    manifest::Manifest,
    name::BlobDigest,
    store::Repository,
};

const ROUND: Duration = Duration::from_secs(5);
/// Of a question that takes no work.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// For another host to take over an index with its manifests.
const HAND_ON_MAX: Duration = Duration::from_secs(20);
const RECORD_MAX: Duration = Duration::from_secs(8);
const RECORD_PAUSE: Duration = Duration::from_millis(200);
/// Rounds between looks at repositories that nobody has recorded. The first look is the leader's.
const ADOPTED_EVERY: u32 = 12;

pub struct Copies {
    own: HostId,
    key: String,
    forward: Arc<dyn Forward>,
    /// Who compares, changes or records a repository; and who fetches a blob.
    alone: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// What this host's copy of a repository goes back to, with its serial.
    known: Mutex<HashMap<String, (u64, Digest)>>,
    /// Versions of which this host has all blobs.
    complete: Mutex<HashMap<String, Digest>>,
    /// Since when a version is looked for.
    missing: Mutex<HashMap<String, Instant>>,
}

fn content_name(key: &str) -> String {
    format!("images/{key}")
}

impl Copies {
    pub fn new(own: HostId, key: String, forward: Arc<dyn Forward>) -> Copies {
        Copies {
            own,
            key,
            forward,
            alone: Mutex::default(),
            known: Mutex::default(),
            complete: Mutex::default(),
            missing: Mutex::default(),
        }
    }

    pub fn forward(&self) -> Arc<dyn Forward> {
        self.forward.clone()
    }

    async fn alone(&self, what: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.alone.lock().expect("no panic while held");
            // Those that nobody holds or waits for.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(what.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn known(&self, key: &str) -> Option<(u64, Digest)> {
        self.known.lock().expect("no panic while held").get(key).cloned()
    }

    fn knows(&self, key: &str, serial: u64, digest: &Digest) {
        self.missing.lock().expect("no panic while held").remove(key);
        let mut known = self.known.lock().expect("no panic while held");
        known.insert(key.to_owned(), (serial, digest.clone()));
    }

    fn knows_no_more(&self, key: &str) {
        self.known.lock().expect("no panic while held").remove(key);
    }

    fn is_complete(&self, key: &str, digest: &Digest) -> bool {
        self.complete.lock().expect("no panic while held").get(key) == Some(digest)
    }

    fn missing_for(&self, key: &str) -> Duration {
        let mut missing = self.missing.lock().expect("no panic while held");
        missing
            .entry(key.to_owned())
            .or_insert_with(Instant::now)
            .elapsed()
    }

    /// Members but this one; those that are up first.
    fn others(&self, hosts: Vec<Host>) -> Vec<(u64, Host)> {
        let others = hosts.into_iter().filter(|host| host.id != self.own);
        let mut others: Vec<_> = others.filter_map(|host| Some((host.node?, host))).collect();
        others.sort_by_key(|(_, host)| host.state != HostState::Up);
        others
    }
}

/// Where a repository is taken over from.
#[derive(Clone, Copy)]
enum Place<'a> {
    Host(&'a Copies, u64),
    Bucket,
}

fn of_controller(error: ClientError) -> Failure {
    Failure::unavailable(format!("the controller does not answer: {error}"))
}

async fn index_of(repository: &Repository) -> Result<Index> {
    let repository = repository.clone();
    let read = tokio::task::spawn_blocking(move || Index::of(&repository)).await;
    Ok(read.map_err(|_| Failure::unavailable("the registry is shutting down"))??)
}

impl Registry {
    /// Brings this host's copy of a repository to the newest version, but for its blobs.
    pub async fn catch_up(&self, repository: &Repository) -> Result<()> {
        let Some(copies) = self.copies.as_ref().filter(|_| !repository.is_cache()) else {
            return Ok(());
        };
        let key = repository.key();
        let _alone = copies.alone(key).await;
        let row = self.controller.content(&content_name(key)).await;
        let Some(row) = row.map_err(of_controller)? else {
            copies.knows_no_more(key);
            return Ok(());
        };
        if copies.known(key) == Some((row.serial, row.digest.clone())) {
            return Ok(());
        }
        if index_of(repository).await?.digest() == row.digest {
            copies.knows(key, row.serial, &row.digest);
            return Ok(());
        }
        let mut out_of_reach = vec![];
        for (node, host) in copies.others(self.controller.hosts().await.map_err(of_controller)?) {
            let index = match http::index_at(copies, node, key).await {
                Ok(Some(index)) if index.digest() == row.digest => index,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(key, host = %host.id, error, "cannot ask for images");
                    out_of_reach.push(host.id.to_string());
                    continue;
                }
            };
            match self.take_over(Place::Host(copies, node), repository, index).await {
                Ok(()) => {
                    tracing::info!(key, from = %host.id, serial = row.serial, "took over images");
                    copies.knows(key, row.serial, &row.digest);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(key, from = %host.id, %error, "images cannot be taken over");
                    out_of_reach.push(host.id.to_string());
                }
            }
        }
        if let Some(index) = self.index_in_bucket(key, &row.digest).await {
            match self.take_over(Place::Bucket, repository, index).await {
                Ok(()) => {
                    tracing::info!(key, serial = row.serial, "took over images from the bucket");
                    copies.knows(key, row.serial, &row.digest);
                    return Ok(());
                }
                Err(error) => tracing::warn!(key, %error, "images cannot be taken over from the bucket"),
            }
        }
        if !out_of_reach.is_empty() && copies.missing_for(key) < LOST_AFTER {
            let hosts = out_of_reach.join(", ");
            let text = format!("the newest images are on hosts that cannot be reached just now: {hosts}");
            return Err(Failure::unavailable(text));
        }
        tracing::warn!(
            key,
            serial = row.serial,
            "no host has the newest images of a repository; going on with what is here"
        );
        copies.knows(key, row.serial, &row.digest);
        Ok(())
    }

    /// Whether this host answers for all.
    pub fn leads(&self) -> bool {
        self.copies.as_ref().is_none_or(|copies| copies.forward.leads())
    }

    /// All that there are; what cannot be is left as it is.
    pub async fn catch_up_all(&self) -> Result<()> {
        if self.copies.is_none() {
            return Ok(());
        }
        for row in self.controller.contents().await.map_err(of_controller)? {
            if let Some(repository) = self.repository_of(&row)
                && let Err(error) = self.catch_up(&repository).await
            {
                tracing::debug!(key = repository.key(), %error, "cannot take over images");
            }
        }
        Ok(())
    }

    fn repository_of(&self, row: &types::Content) -> Option<Repository> {
        let key = row.name.strip_prefix("images/")?;
        let repository = self.store.repository_of_key(key);
        (repository.app() == Some(row.app) && !key.contains('/')).then_some(repository)
    }

    /// Makes a repository what an index of another place says.
    async fn take_over(&self, from: Place<'_>, repository: &Repository, index: Index) -> anyhow::Result<()> {
        for digest in index.manifests.keys() {
            if !self.store.touch(digest)? {
                let bytes = match from {
                    Place::Host(copies, node) => http::manifest_at(copies, node, digest).await,
                    Place::Bucket => self.manifest_in_bucket(digest).await,
                };
                self.store
                    .put_small(&bytes.map_err(anyhow::Error::msg)?, digest)?;
            }
        }
        let (store, repository) = (self.store.clone(), repository.clone());
        tokio::task::spawn_blocking(move || {
            index.put_into(&store, &repository)?;
            anyhow::ensure!(
                Index::of(&repository)?.digest() == index.digest(),
                "it has changed meanwhile"
            );
            Ok(())
        })
        .await?
    }

    /// Has this host take over a version that another has.
    async fn copy(&self, copies: &Copies, key: &str, node: u64, wanted: &Digest) -> anyhow::Result<()> {
        let repository = self.store.repository_of_key(key);
        anyhow::ensure!(repository.app().is_some(), "it is of no app");
        let _alone = copies.alone(key).await;
        if index_of(&repository).await?.digest() == *wanted {
            return Ok(());
        }
        let index = http::index_at(copies, node, key)
            .await
            .map_err(anyhow::Error::msg)?;
        let index = index.filter(|index| index.digest() == *wanted);
        let index = index.ok_or_else(|| anyhow::anyhow!("it has changed meanwhile"))?;
        copies.knows_no_more(key);
        self.take_over(Place::Host(copies, node), &repository, index)
            .await
    }

    /// Sees to it that what has changed in a repository outlives this host.
    pub async fn record(&self, repository: &Repository) -> Result<()> {
        let Some(copies) = self.copies.as_ref().filter(|_| !repository.is_cache()) else {
            return Ok(());
        };
        let (key, Some(app)) = (repository.key(), repository.app()) else {
            return Ok(());
        };
        let _alone = copies.alone(key).await;
        let digest = index_of(repository).await?.digest();
        let (serial, before) = match copies.known(key) {
            Some((serial, before)) => (serial, Some(before)),
            None => (0, None),
        };
        if before.as_ref() == Some(&digest) {
            return Ok(());
        }
        self.hand_on(copies, key, &digest).await;
        let new = NewContent {
            name: content_name(key),
            app,
            after: serial,
            digest: digest.clone(),
        };
        let began = Instant::now();
        loop {
            match self.controller.put_content(&new).await {
                Ok(content) => {
                    copies.knows(key, content.serial, &digest);
                    return Ok(());
                }
                Err(error) if error.code() == Some(ApiCode::PreconditionFailed) => {
                    copies.knows_no_more(key);
                    let text = "another host of the cluster has taken a push of this repository meanwhile. hint: push again";
                    return Err(Failure::unavailable(text));
                }
                // The app was deleted meanwhile.
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if began.elapsed() > RECORD_MAX => {
                    return Err(Failure::unavailable(format!(
                        "the push cannot be recorded: {error}"
                    )));
                }
                Err(_) => tokio::time::sleep(RECORD_PAUSE).await,
            }
        }
    }

    /// To one other host at once, but for blobs; [`run`] sees to the rest.
    async fn hand_on(&self, copies: &Copies, key: &str, digest: &Digest) {
        let Ok(hosts) = self.controller.hosts().await else {
            return tracing::warn!(key, "a push has no copy on another host yet");
        };
        let own = hosts.iter().find(|host| host.id == copies.own);
        let Some(own) = own.and_then(|host| host.node) else {
            return;
        };
        let others = copies.others(hosts);
        let mut up: Vec<_> = others
            .iter()
            .filter(|(_, host)| host.state == HostState::Up)
            .collect();
        let ids: Vec<_> = up.iter().map(|(_, host)| host.id.clone()).collect();
        let name = content_name(key);
        let copies_wanted = self.controller.copies().await.unwrap_or(Settings::COPIES_DEFAULT);
        if copies_wanted < 2 {
            return;
        }
        let chosen = keepers(&name, &ids, copies_wanted);
        up.sort_by_key(|(_, host)| !chosen.contains(&&host.id));
        for (node, host) in up {
            let asked = http::have_copied(copies, *node, key, own, digest);
            match tokio::time::timeout(HAND_ON_MAX, asked).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::debug!(key, to = %host.id, error, "a push cannot be handed on"),
                Err(_) => tracing::debug!(key, to = %host.id, "a push takes long to be handed on"),
            }
        }
        if !others.is_empty() {
            tracing::warn!(key, "a push has no copy on another host yet");
        }
    }

    /// Gets a blob that a repository has from another host; whether it is here now.
    pub async fn fetch_blob(&self, repository: &Repository, digest: &BlobDigest) -> Result<bool> {
        let Some(copies) = &self.copies else {
            return Ok(false);
        };
        let _alone = copies.alone(&digest.to_string()).await;
        if self.store.touch(digest)? {
            return Ok(true);
        }
        for (node, host) in copies.others(self.controller.hosts().await.map_err(of_controller)?) {
            let body = match http::blob_at(copies, node, digest).await {
                Ok(Some(body)) => body,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(%digest, host = %host.id, error, "cannot ask for a blob");
                    continue;
                }
            };
            match self.take_blob(repository, digest, body).await {
                Ok(()) => return Ok(true),
                Err(error) => tracing::warn!(%digest, from = %host.id, %error, "a blob cannot be fetched"),
            }
        }
        let Some(body) = self.blob_in_bucket(digest).await else {
            return Ok(false);
        };
        self.take_blob(repository, digest, body).await?;
        Ok(true)
    }

    /// Keeps what a body brings, if it is that of the digest.
    async fn take_blob(
        &self,
        repository: &Repository,
        digest: &BlobDigest,
        body: axum::body::Body,
    ) -> Result<()> {
        let id = self.uploads.begin(repository, digest.algorithm())?;
        let taken = self.uploads.finish(repository, id, Some(0), digest, body).await;
        if taken.is_err() {
            let _ = self.uploads.cancel(repository, id).await;
        }
        taken
    }

    /// Gets what a manifest is made of, and those in it, where it is on other hosts only. What no host has
    /// is told by who needs it.
    pub async fn fetch_parts(&self, repository: &Repository, manifest: &Manifest) -> Result<()> {
        if self.copies.is_none() {
            return Ok(());
        }
        let mut blobs: BTreeSet<BlobDigest> = manifest.blobs().map(|blob| blob.digest.clone()).collect();
        for child in manifest.children() {
            let child = self.store.read(&child.digest)?;
            let child = child.and_then(|bytes| Manifest::parse(&bytes, None).ok());
            blobs.extend(
                child
                    .iter()
                    .flat_map(|child| child.blobs().map(|blob| blob.digest.clone())),
            );
        }
        for digest in blobs {
            if repository.has_blob(&digest) && self.store.size(&digest).is_none() {
                self.fetch_blob(repository, &digest).await?;
            }
        }
        Ok(())
    }

    /// Every blob of a repository; whether all are here now.
    async fn fetch_all(&self, repository: &Repository) -> Result<bool> {
        let mut is_complete = true;
        for digest in repository.manifests()? {
            let bytes = self.store.read(&digest)?;
            let Some(manifest) = bytes.and_then(|bytes| Manifest::parse(&bytes, None).ok()) else {
                continue;
            };
            for blob in manifest.blobs() {
                let is_here = self.store.size(&blob.digest).is_some();
                is_complete &= is_here || self.fetch_blob(repository, &blob.digest).await?;
            }
        }
        Ok(is_complete)
    }

    /// Of those that this host was chosen for, and their indexes of all that are here.
    async fn keep_copies(
        &self,
        copies: &Copies,
        missing: Vec<(&types::Content, Repository)>,
    ) -> anyhow::Result<()> {
        let hosts = self.controller.hosts().await?;
        let up = hosts.iter().filter(|host| host.state == HostState::Up);
        let up: Vec<_> = up.map(|host| host.id.clone()).collect();
        let wanted = self.controller.copies().await?;
        for (row, repository) in missing {
            let is_chosen = keepers(&row.name, &up, wanted).contains(&&copies.own);
            if !is_chosen && !repository.exists() {
                continue;
            }
            self.catch_up(&repository).await?;
            if is_chosen && self.fetch_all(&repository).await? {
                tracing::info!(key = repository.key(), "keeps a copy of images");
                let mut complete = copies.complete.lock().expect("no panic while held");
                complete.insert(repository.key().to_owned(), row.digest.clone());
            }
        }
        Ok(())
    }

    async fn round(&self, copies: &Copies, rounds: u32) -> anyhow::Result<()> {
        let here = self.store.repositories()?;
        let rows = self.controller.contents().await?;
        let (mut recorded, mut missing) = (BTreeSet::new(), vec![]);
        for row in &rows {
            let Some(repository) = self.repository_of(row) else {
                continue;
            };
            recorded.insert(repository.key().to_owned());
            if !copies.is_complete(repository.key(), &row.digest) {
                missing.push((row, repository));
            }
        }
        if !missing.is_empty() {
            self.keep_copies(copies, missing).await?;
        }
        let is_time = rounds.is_multiple_of(ADOPTED_EVERY) && (copies.forward.leads() || rounds > 0);
        if !is_time {
            return Ok(());
        }
        let known: BTreeSet<AppId> = self.controller.app_ids().await?.into_iter().collect();
        for repository in here {
            let is_of_app = repository.app().is_some_and(|app| known.contains(&app));
            if is_of_app && !recorded.contains(repository.key()) && !repository.manifests()?.is_empty() {
                // Another host may be first.
                let _ = self.record(&repository).await;
            }
        }
        Ok(())
    }
}

/// Keeps copies of what this host was chosen for.
pub async fn run(registry: &Arc<Registry>, shutdown: Shutdown) {
    let Some(copies) = &registry.copies else {
        return;
    };
    for rounds in 0.. {
        tokio::select! {
            _ = tokio::time::sleep(ROUND) => {}
            _ = shutdown.cancelled() => return,
        }
        tokio::select! {
            done = registry.round(copies, rounds) => if let Err(error) = done {
                tracing::debug!(error = format!("{error:#}"), "cannot look after copies of images");
            },
            _ = shutdown.cancelled() => return,
        }
    }
}

/// The answer where nobody leads.
pub fn no_leader() -> Failure {
    Failure::new(
        Code::Unknown,
        "no host leads the cluster just now. hint: try again in a moment",
    )
    .with_status(::http::StatusCode::SERVICE_UNAVAILABLE)
}
