//! Repositories on as many hosts as asked: which version is the valid one, and how others get it.
//!
//! ```text
//!  push ─▶ catch up ─▶ build, deploy ─▶ refs ─▶ another host fetches ─▶ record ─▶ "ok" to the pusher
//! ```
//!
//! A version is named by the digest of its refs, which name all that is in it. The cluster's state has
//! each repository's digest and a serial; a host whose copy has another digest fetches from one whose
//! copy has this one, by git's own protocol, so only what is missing travels.
//!
//! What a reader would get wrong:
//! * Git is told to change refs before the new version is recorded. Until then the pusher is told
//!   nothing, and the app's turn keeps others from taking the copy for an old one.
//! * Of two hosts that take a push at the same time, as one does not know yet that it leads no more,
//!   the one that records first wins. The other's refs go when it catches up.
//! * A version that only lost hosts had is not waited for for ever: [`LOST_AFTER`], then what is
//!   here counts. Whoever pushes has the rest.

pub mod http;
pub mod objects;
mod report;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use api::{
    ClientError, Code,
    contents::{LOST_AFTER, NewContent, keepers},
};
use daemon::Forward;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use types::{AppId, Digest, Host, HostId, HostState, Settings};

use crate::{Builder, failure::Failure, pushes::Turn, refs::RefUpdate, repo::Repo, version::Version};

pub use report::Held;

const ROUND: Duration = Duration::from_secs(5);
/// Of a question that takes no work.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// For another host to fetch a push; it goes on by itself after that.
const HAND_ON_MAX: Duration = Duration::from_secs(120);
/// How long a host is looked for that can record a push.
const RECORD_MAX: Duration = Duration::from_secs(20);
const RECORD_PAUSE: Duration = Duration::from_millis(200);
/// Rounds between looks at repositories that nobody has recorded. The first look is the leader's.
const ADOPTED_EVERY: u32 = 12;

pub struct Copies {
    pub own: HostId,
    /// Where this host's builder listens: git reaches others through it.
    pub address: SocketAddr,
    pub key: String,
    pub forward: Arc<dyn Forward>,
    /// Who changes a repository of an app.
    alone: Mutex<HashMap<AppId, Arc<AsyncMutex<()>>>>,
    /// What this host's copies are known to be at.
    seen: Mutex<HashMap<AppId, Digest>>,
    /// Since when a version is looked for.
    missing: Mutex<HashMap<AppId, Instant>>,
}

/// What a repository is at, as recorded and as it is here.
#[derive(Debug, Clone)]
pub struct Standing {
    serial: u64,
    digest: Digest,
}

/// A push that git may carry out: it keeps its turn until that is recorded.
pub struct Accepted {
    pub _turn: Turn,
    pub standing: Option<Standing>,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the controller does not tell which version is the newest: {0}")]
    Controller(#[from] ClientError),
    #[error("its newest version is on hosts that cannot be reached just now: {}", names(.0))]
    OutOfReach(Vec<HostId>),
    #[error("{0:#}")]
    Broken(#[from] anyhow::Error),
}

fn names(hosts: &[HostId]) -> String {
    let names: Vec<_> = hosts.iter().map(|host| host.as_str()).collect();
    names.join(", ")
}

fn content_name(app: AppId) -> String {
    format!("git/{app}")
}

impl Copies {
    pub fn new(own: HostId, address: SocketAddr, key: String, forward: Arc<dyn Forward>) -> Copies {
        Copies {
            own,
            address,
            key,
            forward,
            alone: Mutex::default(),
            seen: Mutex::default(),
            missing: Mutex::default(),
        }
    }

    async fn alone(&self, app: AppId) -> OwnedMutexGuard<()> {
        let turns = self.alone.lock().expect("no panic while held").clone_of(app);
        turns.lock_owned().await
    }

    fn saw(&self, app: AppId, digest: &Digest) {
        self.missing.lock().expect("no panic while held").remove(&app);
        let mut seen = self.seen.lock().expect("no panic while held");
        seen.insert(app, digest.clone());
    }

    fn has_seen(&self, app: AppId, digest: &Digest) -> bool {
        self.seen.lock().expect("no panic while held").get(&app) == Some(digest)
    }

    fn missing_for(&self, app: AppId) -> Duration {
        let mut missing = self.missing.lock().expect("no panic while held");
        missing.entry(app).or_insert_with(Instant::now).elapsed()
    }

    pub fn forget(&self, app: AppId) {
        self.alone.lock().expect("no panic while held").remove(&app);
        self.seen.lock().expect("no panic while held").remove(&app);
        self.missing.lock().expect("no panic while held").remove(&app);
    }

    /// Members but this one; those that are up first.
    fn others(&self, hosts: Vec<Host>) -> Vec<(u64, Host)> {
        let others = hosts.into_iter().filter(|host| host.id != self.own);
        let mut others: Vec<_> = others.filter_map(|host| Some((host.node?, host))).collect();
        others.sort_by_key(|(_, host)| host.state != HostState::Up);
        others
    }
}

trait CloneOf {
    fn clone_of(&mut self, app: AppId) -> Arc<AsyncMutex<()>>;
}

impl CloneOf for HashMap<AppId, Arc<AsyncMutex<()>>> {
    fn clone_of(&mut self, app: AppId) -> Arc<AsyncMutex<()>> {
        self.entry(app).or_default().clone()
    }
}

impl Builder {
    /// Brings this host's copy to the newest version, unless a push is just changing it.
    pub async fn catch_up(&self, app: AppId, repo: &Repo) -> Result<(), CopyError> {
        let Some(copies) = &self.copies else {
            return Ok(());
        };
        let _alone = copies.alone(app).await;
        if self.pushes.is_active(app) {
            return Ok(());
        }
        self.catch_up_alone(copies, app, repo).await?;
        Ok(())
    }

    /// [`Builder::catch_up`] for a push that has its turn: what it starts from.
    pub async fn stand(&self, app: AppId, repo: &Repo) -> Result<Option<Standing>, CopyError> {
        let Some(copies) = &self.copies else {
            return Ok(None);
        };
        let _alone = copies.alone(app).await;
        Ok(Some(self.catch_up_alone(copies, app, repo).await?))
    }

    async fn catch_up_alone(&self, copies: &Copies, app: AppId, repo: &Repo) -> Result<Standing, CopyError> {
        let row = self.controller.content(&content_name(app)).await?;
        let own = repo.version().await?.digest;
        let Some(row) = row else {
            return Ok(Standing {
                serial: 0,
                digest: own,
            });
        };
        let standing = |digest| Standing {
            serial: row.serial,
            digest,
        };
        if own == row.digest {
            copies.saw(app, &own);
            return Ok(standing(own));
        }
        let mut out_of_reach = vec![];
        for (node, host) in copies.others(self.controller.hosts().await?) {
            let found = match http::version_at(copies, node, app).await {
                Ok(Some(version)) if version.digest == row.digest => version,
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%app, host = %host.id, error, "cannot ask for a repository");
                    out_of_reach.push(host.id);
                    continue;
                }
            };
            match self.take_over(copies, node, app, repo, &found).await {
                Ok(()) => {
                    tracing::info!(%app, from = %host.id, serial = row.serial, "fetched a repository");
                    copies.saw(app, &row.digest);
                    return Ok(standing(row.digest.clone()));
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(%app, from = %host.id, error, "a repository cannot be fetched");
                    out_of_reach.push(host.id);
                }
            }
        }
        match self.take_from_bucket(app, repo, &row.digest).await {
            Ok(true) => {
                tracing::info!(%app, serial = row.serial, "fetched a repository from the bucket");
                copies.saw(app, &row.digest);
                return Ok(standing(row.digest.clone()));
            }
            Ok(false) => {}
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(%app, error, "a repository cannot be fetched from the bucket");
            }
        }
        if !out_of_reach.is_empty() && copies.missing_for(app) < LOST_AFTER {
            return Err(CopyError::OutOfReach(out_of_reach));
        }
        tracing::warn!(%app, serial = row.serial, "no host has the newest version of a repository; going on with what is here");
        Ok(standing(own))
    }

    async fn take_over(
        &self,
        copies: &Copies,
        node: u64,
        app: AppId,
        repo: &Repo,
        wanted: &Version,
    ) -> anyhow::Result<()> {
        let url = format!("http://{}/.cluster/from/{node}/repos/{app}", copies.address);
        repo.fetch(&url, &copies.key).await?;
        repo.put_head(&wanted.head)?;
        let now = repo.version().await?.digest;
        anyhow::ensure!(now == wanted.digest, "it has changed meanwhile");
        Ok(())
    }

    /// Has this host fetch a version that another has.
    async fn copy(&self, copies: &Copies, app: AppId, node: u64, wanted: &Version) -> Result<(), Failure> {
        let repo = self.repos.of(app).await?;
        let _alone = copies.alone(app).await;
        if self.pushes.is_active(app) {
            return Err(Failure::refused(["a push of this app is under way here"]));
        }
        if repo.version().await?.digest != wanted.digest {
            self.take_over(copies, node, app, &repo, wanted).await?;
        }
        copies.saw(app, &wanted.digest);
        Ok(())
    }

    /// Refuses a push whose refs are others by now.
    pub async fn check_refs(&self, repo: &Repo, updates: &[RefUpdate]) -> Result<(), Failure> {
        let refs = repo.version().await?.refs;
        for update in updates {
            let now = refs.get(&update.name).map(String::as_str);
            if now != update.before() {
                return Err(Failure::refused([
                    format!("{} has changed since this push began: fetch first.", update.name),
                    "git fetch flynn, then push again.".into(),
                ]));
            }
        }
        Ok(())
    }

    /// Refuses a push, before anything is deployed, when another host has taken one meanwhile.
    pub async fn check_standing(&self, app: AppId, standing: &Option<Standing>) -> Result<(), Failure> {
        let Some(standing) = standing else {
            return Ok(());
        };
        let row = self.controller.content(&content_name(app)).await;
        let row = row.map_err(|error| Failure::of_controller("The push cannot be recorded", error))?;
        match row.map_or(0, |row| row.serial) == standing.serial {
            true => Ok(()),
            false => Err(Failure::Refused(overtaken())),
        }
    }

    /// Sees to it that what git has taken outlives this host; lines for the pusher where it does not.
    pub async fn settle(&self, app: AppId, repo: &Repo, accepted: Accepted) -> Result<(), Vec<String>> {
        let (Some(copies), Some(standing)) = (&self.copies, &accepted.standing) else {
            return Ok(());
        };
        let broken = |error: String| {
            tracing::error!(%app, error, "a push cannot be recorded");
            vec![
                format!("The push could not be recorded: {error}"),
                "Push again in a moment.".into(),
            ]
        };
        let version = repo
            .version()
            .await
            .map_err(|error| broken(format!("{error:#}")))?;
        // Git did not carry it out in the end.
        if version.digest == standing.digest {
            return Ok(());
        }
        self.hand_on(copies, app, &version).await;
        let new = NewContent {
            name: content_name(app),
            app,
            after: standing.serial,
            digest: version.digest.clone(),
        };
        let began = Instant::now();
        loop {
            match self.controller.put_content(&new).await {
                Ok(_) => break,
                Err(error) if error.code() == Some(Code::PreconditionFailed) => return Err(overtaken()),
                // The app was deleted meanwhile.
                Err(error) if error.is_not_found() => break,
                Err(error) if began.elapsed() > RECORD_MAX => return Err(broken(error.to_string())),
                Err(error) => {
                    tracing::debug!(%app, %error, "a push cannot be recorded yet");
                    tokio::time::sleep(RECORD_PAUSE).await;
                }
            }
        }
        copies.saw(app, &version.digest);
        Ok(())
    }

    /// To one other host at once; [`run`] sees to the rest.
    async fn hand_on(&self, copies: &Copies, app: AppId, version: &Version) {
        let hosts = match self.controller.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => return tracing::warn!(%app, %error, "a push has no copy on another host yet"),
        };
        let Some(own) = hosts.iter().find(|host| host.id == copies.own) else {
            return;
        };
        let own = own.node;
        let others = copies.others(hosts);
        let mut up: Vec<_> = others
            .iter()
            .filter(|(_, host)| host.state == HostState::Up)
            .collect();
        let ids: Vec<_> = up.iter().map(|(_, host)| host.id.clone()).collect();
        let name = content_name(app);
        let copies_wanted = self.controller.copies().await.unwrap_or(Settings::COPIES_DEFAULT);
        if copies_wanted < 2 {
            return;
        }
        let chosen = keepers(&name, &ids, copies_wanted);
        up.sort_by_key(|(_, host)| !chosen.contains(&&host.id));
        let Some(own) = own else { return };
        for (node, host) in up {
            let asked = http::have_copied(copies, *node, app, own, version);
            match tokio::time::timeout(HAND_ON_MAX, asked).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::debug!(%app, to = %host.id, error, "a push cannot be handed on"),
                Err(_) => tracing::debug!(%app, to = %host.id, "a push takes long to be handed on"),
            }
        }
        if !others.is_empty() {
            tracing::warn!(%app, "a push has no copy on another host yet");
        }
    }

    /// Brings every repository that there is to its newest version here; those that could not be.
    async fn catch_up_all(&self) -> Result<Vec<String>, ClientError> {
        let mut failed = vec![];
        for (app, digest) in self.recorded().await? {
            if self
                .copies
                .as_ref()
                .is_some_and(|copies| copies.has_seen(app, &digest))
            {
                continue;
            }
            let caught_up = async { self.catch_up(app, &self.repos.of(app).await?).await };
            if let Err(error) = caught_up.await {
                failed.push(format!("{app}: {error}"));
            }
        }
        Ok(failed)
    }

    async fn recorded(&self) -> Result<Vec<(AppId, Digest)>, ClientError> {
        let rows = self.controller.contents().await?.into_iter();
        Ok(rows
            .filter(|row| row.name == content_name(row.app))
            .map(|row| (row.app, row.digest))
            .collect())
    }

    /// Of those repositories that this host was chosen for.
    async fn keep_copies(
        self: &Arc<Self>,
        copies: &Copies,
        missing: Vec<(&AppId, &Digest)>,
    ) -> Result<(), ClientError> {
        let hosts = self.controller.hosts().await?;
        let up = hosts.iter().filter(|host| host.state == HostState::Up);
        let up: Vec<_> = up.map(|host| host.id.clone()).collect();
        let wanted = self.controller.copies().await?;
        for (app, _) in missing {
            if !keepers(&content_name(*app), &up, wanted).contains(&&copies.own) {
                continue;
            }
            match self.repos.of(*app).await {
                Ok(repo) => match self.catch_up(*app, &repo).await {
                    Ok(()) => self.tidy_later(repo),
                    Err(error) => tracing::debug!(%app, %error, "cannot keep a copy of a repository"),
                },
                Err(error) => tracing::warn!(%app, error = format!("{error:#}"), "no repository"),
            }
        }
        Ok(())
    }

    async fn round(self: &Arc<Self>, copies: &Copies, rounds: u32) -> Result<(), ClientError> {
        // What is here first: an app that is created meanwhile must not seem unknown.
        let here: BTreeSet<AppId> = self.repos.apps().unwrap_or_default().into_iter().collect();
        let rows: HashMap<AppId, Digest> = self.recorded().await?.into_iter().collect();
        let missing: Vec<_> = rows
            .iter()
            .filter(|(app, digest)| !here.contains(app) || !copies.has_seen(**app, digest))
            .collect();
        if !missing.is_empty() {
            self.keep_copies(copies, missing).await?;
        }
        let unrecorded: Vec<_> = here.iter().filter(|app| !rows.contains_key(app)).collect();
        if unrecorded.is_empty() {
            return Ok(());
        }
        let known = self.controller.app_ids().await?;
        for app in unrecorded {
            if !known.contains(app) {
                copies.forget(*app);
                self.forget_app(*app).await;
            } else if rounds.is_multiple_of(ADOPTED_EVERY) && (copies.forward.leads() || rounds > 0) {
                self.adopt(copies, *app).await?;
            }
        }
        Ok(())
    }

    /// Records a repository as it is here that was never recorded: it is of a time before that was done.
    async fn adopt(&self, copies: &Copies, app: AppId) -> Result<(), ClientError> {
        let _alone = copies.alone(app).await;
        let Ok(repo) = self.repos.of(app).await else {
            return Ok(());
        };
        let version = match repo.version().await {
            Ok(version) if !version.refs.is_empty() && !self.pushes.is_active(app) => version,
            _ => return Ok(()),
        };
        let new = NewContent {
            name: content_name(app),
            app,
            after: 0,
            digest: version.digest.clone(),
        };
        match self.controller.put_content(&new).await {
            Ok(_) => copies.saw(app, &version.digest),
            // Another host was first, or the app is going.
            Err(error) if error.code() == Some(Code::PreconditionFailed) || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn overtaken() -> Vec<String> {
    vec![
        "Another host of the cluster has taken a push to this app meanwhile: fetch first.".into(),
        "git fetch flynn, then push again.".into(),
    ]
}

/// Keeps copies of what this host was chosen for, and removes what nobody needs.
pub async fn run(builder: Arc<Builder>) {
    let Some(copies) = &builder.copies else {
        return;
    };
    for rounds in 0.. {
        tokio::select! {
            _ = tokio::time::sleep(ROUND) => {}
            _ = builder.shutdown.cancelled() => return,
        }
        tokio::select! {
            done = builder.round(copies, rounds) => if let Err(error) = done {
                tracing::debug!(%error, "cannot look after copies of repositories");
            },
            _ = builder.shutdown.cancelled() => return,
        }
    }
}
