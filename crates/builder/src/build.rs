//! One build: source onto the app's disk, the driver in its cage, the result into layers.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use api::wire::NewJob;
use daemon::Shutdown;
use types::{App, Exit, Layer, Mount, Release, ResourceLimit, Resources};

use crate::{
    Builder,
    cage::CageError,
    disk::Disk,
    failure::{Failure, Result},
    image::{self, Slug},
    output::{Output, size},
    push::{Phases, Stop},
    release::BUILD_TYPE,
    repo::{Archived, Repo},
    stack::{Kind, Packages, Stack},
    workspace::{Needs, Outcome, Workspace},
};

/// The driver has built nothing and asks for packages.
const STATUS_NEEDS: i32 = 75;
/// Compilers run as many processes as they find cores, and test suites more.
const PROCESSES_MAX: i64 = 2048;
/// What placement counts for a build; it is short, and most need little.
const MEMORY_REQUEST_MAX_BYTES: i64 = 512 << 20;

/// Unpacking happens in the cage, too: it is the app's disk, user and time that it takes.
const START: &str = "mkdir -p /tmp/build && tar -xf /tmp/.source.tar -C /tmp/build && \
                     rm -f /tmp/.source.tar && exec /buildpacks/build";
const SOURCE: &str = ".source.tar";
const SUBMODULES: &str = ".submodules";

#[derive(Clone, Copy)]
pub struct Build<'a> {
    pub builder: &'a Builder,
    pub app: &'a App,
    pub repo: &'a Repo,
    pub commit: &'a str,
    pub out: &'a Output,
    pub stop: Stop<'a>,
}

/// A build that went well.
#[derive(Debug)]
pub struct Built {
    pub outcome: Outcome,
    pub slug: Slug,
    pub stack: Stack,
    /// The layer with the packages that the app runs with.
    pub run_packages: Option<Layer>,
}

pub async fn run(build: Build<'_>, phases: &mut Phases) -> Result<Built> {
    let since = Instant::now();
    let builder = build.builder;
    let _slot = build.wait_for_slot().await?;
    let stack = Stack::read(&builder.state)?;
    // Being the app's turn, the disk is in use by nobody but the last build's cleaning, which is short.
    let disk = tokio::select! {
        disk = builder.disks.of(build.app.id) => disk?,
        failure = build.stop.wanted() => return Err(failure),
    };
    if disk.was_damaged {
        build
            .out
            .detail("The build cache was damaged or of another size: it begins anew.");
    }
    let made = build.on_disk(&disk, stack, since, phases).await;
    // The pusher need not wait for files to be deleted.
    let workspace = Workspace::new(disk.root());
    tokio::spawn(async move {
        let cleaned = tokio::task::spawn_blocking(move || {
            let discarded = workspace.discard();
            workspace.empty_trash();
            discarded
        });
        if !matches!(cleaned.await, Ok(Ok(()))) {
            tracing::warn!(disk = %disk.root().display(), "a build disk cannot be cleaned");
        }
        disk.close().await;
    });
    made
}

impl Build<'_> {
    async fn wait_for_slot(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let builder = self.builder;
        if let Ok(slot) = builder.slots.try_acquire() {
            return Ok(slot);
        }
        let count = builder.limits.at_once;
        self.out.step(format!(
            "Waiting for a place to build: {count} other builds run on this host"
        ));
        tokio::select! {
            slot = builder.slots.acquire() => Ok(slot.expect("it is never closed")),
            failure = self.stop.wanted() => Err(failure),
        }
    }

    async fn on_disk(&self, disk: &Disk, stack: Stack, since: Instant, phases: &mut Phases) -> Result<Built> {
        let builder = self.builder;
        let workspace = Workspace::new(disk.root());
        let previous = self.current_release().await?;
        let env = previous
            .as_ref()
            .map(|release| release.env.clone())
            .unwrap_or_default();
        blocking({
            let workspace = Workspace::new(disk.root());
            move || Ok(workspace.prepare(&env)?)
        })
        .await?;
        self.place_source(&workspace).await?;
        phases.add("source", since);

        let since = Instant::now();
        let resources = resources(previous.as_ref(), builder.limits.memory_bytes);
        let mut needs = workspace.known_needs().unwrap_or_default();
        let mut exit = self.attempt(disk, &stack, &needs, &resources).await?;
        if exit == Exit::Code(STATUS_NEEDS) {
            needs = workspace.needs()?;
            workspace.set_known_needs(&needs)?;
            self.out.step("Adding packages to the stack");
            self.packages().layer(&stack, Kind::Run, &needs.run).await?;
            self.packages().layer(&stack, Kind::Build, &needs.build).await?;
            phases.add("packages", since);
            workspace.prepare_again()?;
            self.place_source(&workspace).await?;
            exit = self.attempt(disk, &stack, &needs, &resources).await?;
        }
        if exit != Exit::Code(0) {
            return Err(Failure::Refused(self.why(&exit, disk, &resources)));
        }
        phases.add("build", since);

        let since = Instant::now();
        let outcome = workspace.outcome()?;
        let run_packages = self
            .packages()
            .layer(&stack, Kind::Run, &outcome.packages)
            .await?;
        let slug = blocking({
            let (state, keys) = (builder.state.clone(), outcome.layers.clone());
            let workspace = Workspace::new(disk.root());
            move || {
                workspace.adopt_layers(&keys)?;
                Ok(image::make(&state, &workspace, &keys)?)
            }
        })
        .await?;
        phases.add("image", since);
        Ok(Built {
            outcome,
            slug,
            stack,
            run_packages,
        })
    }

    async fn current_release(&self) -> Result<Option<Release>> {
        match self
            .builder
            .controller
            .app_release(&self.app.id.to_string())
            .await
        {
            Ok(release) => Ok(Some(release)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Failure::of_controller(
                "The app's configuration cannot be read",
                error,
            )),
        }
    }

    async fn place_source(&self, workspace: &Workspace) -> Result<()> {
        let work = workspace.work();
        let submodules = self.repo.submodules(self.commit).await?;
        if !submodules.is_empty() {
            std::fs::write(work.join(SUBMODULES), submodules.join("\n") + "\n")?;
        }
        match self.repo.archive(self.commit, &work.join(SOURCE)).await? {
            Archived::Whole => Ok(()),
            Archived::DiskFull => Err(Failure::refused([self.out_of_disk()])),
        }
    }

    /// Runs the driver once. Its own words of a limit that was reached are completed with the limit.
    async fn attempt(
        &self,
        disk: &Disk,
        stack: &Stack,
        needs: &Needs,
        resources: &Resources,
    ) -> Result<Exit> {
        let builder = self.builder;
        let extra = self.packages().layer(stack, Kind::Build, &needs.build).await?;
        let image = stack
            .artifact(&builder.controller, Kind::Build, extra.as_ref())
            .await?;
        let job = self.job(disk, image, resources);
        let (disk_limit, memory_limit) = (self.out_of_disk(), out_of_memory(resources));
        let has_told = AtomicBool::new(false);
        let each = |line: Vec<u8>| {
            let text = line.strip_prefix(b" !     ").unwrap_or_default();
            let told = match text {
                b"The build ran out of disk space." => &disk_limit,
                b"The build ran out of memory." => &memory_limit,
                // What the host says of the end; it is said again in our words.
                _ if line.starts_with(b"flynn: killed: out of memory") => return,
                _ => return self.out.raw(line),
            };
            has_told.store(true, Ordering::Relaxed);
            self.out.warn(told);
        };
        let ending = Shutdown::new();
        let run = builder.cage.run(self.app.id, job, &each, &ending);
        tokio::pin!(run);
        let early = tokio::select! {
            ended = &mut run => return self.ended(ended, has_told.load(Ordering::Relaxed)),
            failure = self.stop.wanted() => failure,
            _ = tokio::time::sleep(builder.limits.timeout) => {
                let minutes = builder.limits.timeout.as_secs_f64() / 60.0;
                Failure::refused([
                    format!("Build took longer than {minutes:.0} min and was stopped."),
                    "What the packs have cached is kept; pushing again continues from there.".into(),
                ])
            }
        };
        ending.cancel();
        let _ = run.await;
        Err(early)
    }

    fn ended(&self, ended: std::result::Result<Exit, CageError>, has_told: bool) -> Result<Exit> {
        match ended {
            Ok(Exit::Code(status)) if has_told && status != 0 => Err(Failure::Refused(vec![])),
            Ok(exit) => Ok(exit),
            Err(CageError::NotStarted(error)) => {
                Err(Failure::of_controller("The build could not be started", error))
            }
            Err(error @ (CageError::Lost | CageError::Stopped)) => Err(Failure::refused([
                format!("The build was stopped from outside: {error}."),
                "Push again to repeat it.".into(),
            ])),
        }
    }

    fn job(&self, disk: &Disk, image: types::ArtifactId, resources: &Resources) -> NewJob {
        let workspace = Workspace::new(disk.root());
        let mount = |location: &std::path::Path, target: &str, writeable| Mount {
            location: location.display().to_string(),
            target: target.to_owned(),
            writeable,
        };
        let mut env: BTreeMap<String, String> = [
            ("BUILD_DIR", "/tmp/build"),
            ("OUT", "/tmp/out"),
            ("CACHE_DIR", "/cache"),
            ("ENV_DIR", "/env"),
            ("LAYERS_DIR", "/layers"),
            ("APP_NAME", &self.app.name),
            ("SOURCE_VERSION", self.commit),
            ("REQUEST_ID", self.commit),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if workspace.work().join(SUBMODULES).exists() {
            env.insert("SUBMODULES".into(), format!("/tmp/{SUBMODULES}"));
        }
        NewJob {
            artifacts: vec![image],
            args: vec!["/bin/bash".into(), "-c".into(), START.into()],
            env,
            disable_log: true,
            resources: resources.clone(),
            process_type: BUILD_TYPE.into(),
            mounts: vec![
                mount(&workspace.work(), "/tmp", true),
                mount(&workspace.home(), "/app", true),
                mount(&workspace.cache(), "/cache", true),
                mount(&workspace.env(), "/env", false),
                mount(&workspace.layers(), "/layers", false),
                mount(&self.builder.buildpacks, "/buildpacks", false),
            ],
            host: Some(self.builder.host.clone()),
            profile: "build".into(),
            ..NewJob::default()
        }
    }

    fn packages(&self) -> Packages<'_> {
        Packages {
            state: &self.builder.state,
            program: &self.builder.package_layer,
            buildpacks: &self.builder.buildpacks,
            out: self.out,
            stop: self.stop,
        }
    }

    /// What the driver could not say itself. It names most causes and this nothing then.
    fn why(&self, exit: &Exit, disk: &Disk, resources: &Resources) -> Vec<String> {
        match exit {
            Exit::OutOfMemory => vec![out_of_memory(resources)],
            _ if disk.is_full() => vec![self.out_of_disk()],
            Exit::Code(_) => vec![],
            other => vec![format!("Build ended unexpectedly: {other}.")],
        }
    }

    fn out_of_disk(&self) -> String {
        format!(
            "Build ran out of disk space (limit {})",
            size(self.builder.disks.size_bytes())
        )
    }
}

fn out_of_memory(resources: &Resources) -> String {
    format!(
        "Build ran out of memory (limit {})",
        size(resources.limit("memory").max(0) as u64)
    )
}

/// The owner's limits for builds, or the platform's.
fn resources(previous: Option<&Release>, memory_bytes: i64) -> Resources {
    let own = previous.and_then(|release| release.processes.get(BUILD_TYPE));
    let mut resources = own.map(|process| process.resources.clone()).unwrap_or_default();
    let set = |name: &str, limit: i64, resources: &mut Resources| {
        let given = resources.0.entry(name.to_owned()).or_default();
        let limit = given.limit.unwrap_or(limit);
        *given = ResourceLimit {
            request: given.request,
            limit: Some(limit),
        };
    };
    set("memory", memory_bytes, &mut resources);
    set("max_processes", PROCESSES_MAX, &mut resources);
    if let Some(memory) = resources.0.get_mut("memory") {
        memory.request = memory.limit.map(|limit| limit.min(MEMORY_REQUEST_MAX_BYTES));
    }
    resources
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_has_the_platforms_limits() {
        let limits = resources(None, 2 << 30);
        assert_eq!(
            (limits.limit("memory"), limits.request("memory")),
            (2 << 30, 512 << 20)
        );
        assert_eq!(limits.limit("max_processes"), PROCESSES_MAX);
        assert_eq!(out_of_memory(&limits), "Build ran out of memory (limit 2 GB)");
    }
}
