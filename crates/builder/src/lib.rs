//! Turns a `git push` into a running release.
//!
//! ```text
//!  git ──▶ http ──▶ git receive-pack ──▶ hook ──▶ pushes ──▶ push ──▶ build ──▶ cage (a job)
//!                                                             │         ├─▶ disk, workspace
//!                                                             │         └─▶ image (layers)
//!                                                             └─▶ release ──▶ deploy ──▶ controller
//! ```
//!
//! What a reader would get wrong:
//! * The build happens *inside* git's pre-receive hook, while git keeps the pushed objects apart. A
//!   push that is refused leaves neither refs nor objects, so pushing the same again builds again.
//! * The pusher's connection is the build's life line: git, hook, socket, build and job end together.
//!   From the moment a deployment has begun it is carried to its end whoever is watching.
//! * Nothing that a build wrote is trusted: paths in it may be links to anywhere on the host.
//!
//! It does not know languages (the packs in `buildpacks/` do) and starts no containers (it asks the
//! controller for jobs).

mod build;
mod bundle;
mod cage;
mod copies;
mod deploy;
mod disk;
mod dockerfile;
mod failure;
mod gzip;
pub mod hook;
mod http;
mod image;
mod output;
mod process;
mod push;
mod pushes;
mod refs;
mod release;
mod repo;
mod stack;
mod version;
mod workspace;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use api::{Controller, Endpoint};
use daemon::{Keys, Shutdown, StateDir, files};
use tokio::{net::TcpListener, net::UnixListener, sync::Semaphore};
use types::{AppId, HostId};

pub use cage::{Cage, CageError, ControllerCage};
pub use output::Output;
pub use refs::{Decision, ObjectId, RefLineError, RefUpdate, decide, parse_ref_lines};

/// Largest pack that is taken; what is larger does not belong into an app's source.
const PACK_BYTES_MAX: u64 = 1 << 30;
/// How long running pushes may take to end when the daemon stops.
const WIND_DOWN_MAX: Duration = Duration::from_secs(2);
/// Between questions to a controller that does not answer: it starts at the same time as this.
const CONTROLLER_PAUSE: Duration = Duration::from_millis(500);

pub struct Config {
    pub host: HostId,
    pub state: StateDir,
    /// Where the controller's API is, with the internal key.
    pub controller: Endpoint,
    /// Whose keys may push.
    pub keys: Keys,
    /// The registry of images, as this host reaches it; with the controller's key.
    pub registry_url: String,
    /// The registry's name for jobs, `images.DOMAIN:PORT`.
    pub registry_host: String,
    /// The directory of packs, with the driver `build` in it.
    pub buildpacks: PathBuf,
    /// The program that makes a layer of Debian packages.
    pub package_layer: PathBuf,
    /// The program that git's hook becomes, called with `git-hook`; see [`hook::main`].
    pub hook: PathBuf,
    /// Builds at the same time; others wait.
    pub at_once: usize,
    /// For one build; an app's own limit for its type `slugbuilder` comes first.
    pub memory_bytes: i64,
    /// For one app's sources, results and cache.
    pub disk_bytes: u64,
    /// For one build.
    pub timeout: Duration,
    /// Ports that users' URLs need to name; 80 and 443 need not be named.
    pub http_port: u16,
    pub https_port: u16,
    /// Passes pushes on to the host that leads: those of one app come one after the other, there.
    pub forward: Option<Arc<dyn daemon::Forward>>,
    /// The cluster's bucket, where it has one.
    pub objects: Option<Arc<dyn api::objects::Objects>>,
}

#[derive(Debug, Clone)]
struct Limits {
    pack_bytes_max: u64,
    memory_bytes: i64,
    timeout: Duration,
    at_once: usize,
}

/// What all pushes share.
struct Builder {
    host: HostId,
    state: StateDir,
    controller: Controller,
    cage: Arc<dyn Cage>,
    registry: dockerfile::Registry,
    keys: Keys,
    limits: Limits,
    buildpacks: PathBuf,
    package_layer: PathBuf,
    https_port: u16,
    repos: repo::Repos,
    disks: disk::Disks,
    pushes: pushes::Pushes,
    slots: Semaphore,
    tidying: Semaphore,
    /// Where the hook finds the builder, and where git finds the hook.
    socket: PathBuf,
    hooks: PathBuf,
    shutdown: Shutdown,
    forward: Option<Arc<dyn daemon::Forward>>,
    /// Where there may be other hosts.
    copies: Option<copies::Copies>,
    objects: Option<Arc<dyn api::objects::Objects>>,
}

/// Serves pushes until `shutdown`, then stops the builds that run.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<()> {
    let cage = Arc::new(ControllerCage::new(Controller::new(&config.controller)?));
    let host = config.host.clone();
    let stopping = tokio::spawn({
        let (cage, shutdown) = (cage.clone(), shutdown.clone());
        async move {
            while let Err(error) = cage.stop_leftovers(&host).await {
                tracing::debug!(%error, "the controller does not tell which builds were left over");
                tokio::select! {
                    _ = tokio::time::sleep(CONTROLLER_PAUSE) => {}
                    _ = shutdown.cancelled() => return,
                }
            }
        }
    });
    let served = run_with(config, cage, listener, shutdown).await;
    stopping.abort();
    served
}

/// [`run`] with another cage than jobs of the cluster.
pub async fn run_with(
    config: Config,
    cage: Arc<dyn Cage>,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<()> {
    let state = config.state;
    let (hooks, socket) = install_hook(&state, &config.hook)?;
    let hook_listener = listen_for_hooks(&socket)?;
    let disks = disk::Disks::open(&state, config.disk_bytes)
        .await
        .context("cannot prepare the disks of builds")?;
    let address = listener.local_addr()?;
    let copies = config.forward.clone().map(|forward| {
        copies::Copies::new(
            config.host.clone(),
            address,
            config.controller.key.clone(),
            forward,
        )
    });
    let builder = Arc::new(Builder {
        copies,
        objects: config.objects,
        host: config.host,
        controller: Controller::new(&config.controller)?,
        registry: dockerfile::Registry {
            client: api::Client::new(&Endpoint {
                url: config.registry_url,
                ..config.controller.clone()
            })?,
            host: config.registry_host,
            tokens: daemon::AppTokens::new(&config.controller.key),
        },
        cage,
        keys: config.keys,
        limits: Limits {
            pack_bytes_max: PACK_BYTES_MAX,
            memory_bytes: config.memory_bytes,
            timeout: config.timeout,
            at_once: config.at_once.max(1),
        },
        buildpacks: config.buildpacks,
        package_layer: config.package_layer,
        https_port: config.https_port,
        repos: repo::Repos::open(&state).context("cannot open the repositories")?,
        disks,
        pushes: pushes::Pushes::default(),
        slots: Semaphore::new(config.at_once.max(1)),
        tidying: Semaphore::new(1),
        state,
        socket,
        hooks,
        shutdown: shutdown.clone(),
        forward: config.forward,
    });
    let served = tokio::join!(
        daemon::server::serve(listener, http::router(builder.clone()), shutdown.clone()),
        pushes::serve(builder.clone(), hook_listener),
        builder.forget_unknown_apps(),
        copies::run(builder.clone()),
        copies::objects::run(builder.clone()),
    );
    let ((), (), (), (), ()) = served;
    if tokio::time::timeout(WIND_DOWN_MAX, builder.pushes.none_left())
        .await
        .is_err()
    {
        tracing::warn!("builds are still ending; their disks are freed at the next start");
    }
    builder.disks.close().await;
    Ok(())
}

/// Removes all that is kept for an app: its repository and its build disk.
pub async fn forget(state: &StateDir, app: AppId) -> Result<()> {
    let state = state.clone();
    tokio::task::spawn_blocking(move || {
        disk::remove(&state, app).context("cannot remove the build disk")?;
        repo::remove(&state, app).context("cannot remove the repository")
    })
    .await?
}

/// Undoes the mounts that a daemon left that was killed; nothing may be building.
pub async fn unmount_all(state: &StateDir) -> Result<()> {
    let builds = state.builds();
    tokio::task::spawn_blocking(move || disk::unmount_below(&builds))
        .await?
        .context("cannot unmount build disks")
}

/// A directory with the only hook there is, and the path of the socket that it talks to.
fn install_hook(state: &StateDir, program: &Path) -> Result<(PathBuf, PathBuf)> {
    let hooks = state.run().join("git-hooks");
    files::create_private_dir(&hooks)?;
    let quoted = program.display().to_string().replace('\'', r"'\''");
    let hook = hooks.join("pre-receive");
    files::write_atomic(
        &hook,
        format!("#!/bin/sh\nexec '{quoted}' git-hook\n").as_bytes(),
        0o700,
    )?;
    Ok((hooks, state.run().join("git-hook.sock")))
}

fn listen_for_hooks(socket: &Path) -> Result<UnixListener> {
    files::remove_all(socket)?;
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Builder {
    /// Deletes what pushes of the app left that were cut off.
    fn sweep(&self, app: AppId, repo: &repo::Repo) {
        let trash = self
            .pushes
            .while_idle(app, || repo.take_quarantines())
            .unwrap_or_default();
        if !trash.is_empty() {
            tokio::task::spawn_blocking(move || trash.iter().for_each(|path| drop(files::remove_all(path))));
        }
    }

    /// Lets git pack a repository's objects when nobody waits for it.
    fn tidy_later(self: &Arc<Self>, repo: repo::Repo) {
        let builder = self.clone();
        tokio::spawn(async move {
            let Ok(_alone) = builder.tidying.acquire().await else {
                return;
            };
            tokio::select! {
                tidied = repo.tidy() => {
                    if let Err(error) = tidied {
                        tracing::warn!(error = format!("{error:#}"), "a repository cannot be tidied");
                    }
                }
                _ = builder.shutdown.cancelled() => {}
            }
        });
    }

    /// Apps that were deleted while this host was down.
    async fn forget_unknown_apps(&self) {
        let (kept, known) = loop {
            // What is kept first: an app that is created meanwhile must not seem unknown.
            let mut kept = self.repos.apps().unwrap_or_default();
            kept.extend(self.disks.apps().unwrap_or_default());
            match self.controller.app_ids().await {
                Ok(known) => break (kept, known),
                Err(error) => tracing::debug!(%error, "the controller does not tell which apps there are"),
            }
            tokio::select! {
                _ = tokio::time::sleep(CONTROLLER_PAUSE) => {}
                _ = self.shutdown.cancelled() => return,
            }
        };
        for app in kept.into_iter().filter(|app| !known.contains(app)) {
            self.forget_app(app).await;
        }
    }

    async fn forget_app(&self, app: AppId) {
        match forget(&self.state, app).await {
            Ok(()) => tracing::info!(%app, "removed what was kept for an app that is gone"),
            Err(error) => {
                tracing::warn!(%app, error = format!("{error:#}"), "cannot remove what is kept")
            }
        }
    }
}
