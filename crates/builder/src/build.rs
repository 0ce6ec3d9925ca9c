//! One build: source onto the app's disk, the driver in its cage, the result into layers.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use api::wire::NewJob;
use daemon::Shutdown;
use types::{App, Exit, Layer, Mount, Release, ResourceLimit, Resources};

use crate::{
    Builder,
    cage::CageError,
    disk::Disk,
    dockerfile,
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
    tokio::spawn(clean(disk));
    made
}

/// Leaves what the next build can use, and no more than leaves it room.
async fn clean(disk: Disk) {
    let cleaned = tokio::task::spawn_blocking(move || {
        let workspace = Workspace::new(disk.root());
        let cleaned = workspace
            .discard()
            .map_err(anyhow::Error::from)
            .and_then(|()| workspace.empty_trash());
        let cleaned = match disk.is_crowded() {
            true => cleaned.and_then(|()| workspace.forget_kept()),
            false => cleaned,
        };
        (disk, cleaned)
    });
    let Ok((disk, cleaned)) = cleaned.await else {
        return;
    };
    if let Err(error) = cleaned {
        tracing::warn!(disk = %disk.root().display(), error = format!("{error:#}"), "a build disk cannot be cleaned");
    }
    disk.close().await;
}

/// Builds with a Dockerfile, and has the registry make a release of it.
pub async fn run_dockerfile(
    build: Build<'_>,
    branch: &str,
    path: &str,
    phases: &mut Phases,
) -> Result<Release> {
    let since = Instant::now();
    let builder = build.builder;
    let _slot = build.wait_for_slot().await?;
    let stack = Stack::read(&builder.state)?;
    let disk = tokio::select! {
        disk = builder.disks.of(build.app.id) => disk?,
        failure = build.stop.wanted() => return Err(failure),
    };
    let made = build.in_image_cage(&disk, &stack, path, since, phases).await;
    tokio::spawn(clean(disk));
    made?;
    let since = Instant::now();
    let procfile = build
        .repo
        .text(build.commit, "Procfile")
        .await?
        .unwrap_or_default();
    let release = dockerfile::publish(
        &build,
        &builder.registry,
        branch,
        &dockerfile::procfile(&procfile),
    )
    .await?;
    phases.add("image", since);
    Ok(release)
}

impl Build<'_> {
    /// What the commit and the app's environment tell about how to build it.
    pub async fn looks(&self) -> Result<dockerfile::Looks> {
        let previous = self.current_release().await?;
        let names_one = previous.is_some_and(|release| release.env.contains_key("BUILDPACK_URL"));
        Ok(dockerfile::Looks {
            has_dockerfile: self.repo.text(self.commit, "Dockerfile").await?.is_some(),
            names_buildpacks: names_one || self.repo.text(self.commit, ".buildpacks").await?.is_some(),
            heroku_yml: self.repo.text(self.commit, "heroku.yml").await?,
        })
    }

    async fn in_image_cage(
        &self,
        disk: &Disk,
        stack: &Stack,
        path: &str,
        since: Instant,
        phases: &mut Phases,
    ) -> Result<()> {
        let builder = self.builder;
        self.out.step(format!("Building with {path}..."));
        let (workspace, previous) = self.workspace(disk).await?;
        phases.add("source", since);
        let since = Instant::now();
        let tools = dockerfile::PACKAGES.map(str::to_owned);
        let tools = self.packages().trusted_layer(stack, Kind::Build, &tools).await?;
        let image = stack.image_builder(&builder.controller, &tools).await?;
        let mut resources = resources(previous.as_ref(), builder.limits.memory_bytes);
        // Images are put together on the job's own disk.
        let disk_bytes = ResourceLimit {
            request: None,
            limit: Some(i64::try_from(builder.disks.size_bytes()).unwrap_or(i64::MAX)),
        };
        resources.0.insert("temp_disk".into(), disk_bytes);
        let job = dockerfile::job(
            self,
            &builder.registry,
            &workspace,
            image,
            path,
            resources.clone(),
        );
        let each = |line: Vec<u8>| {
            if !is_farewell(&line) {
                self.out.raw(line);
            }
        };
        let exit = self.in_time(job, &each).await?;
        phases.add("build", since);
        match self.ended(exit, false)? {
            Exit::Code(0) => Ok(()),
            exit => Err(Failure::Refused(self.why(&exit, disk, &resources))),
        }
    }

    /// A job to its end, its own or an early one.
    async fn in_time(
        &self,
        job: NewJob,
        each: &(dyn Fn(Vec<u8>) + Send + Sync),
    ) -> Result<std::result::Result<Exit, CageError>> {
        let builder = self.builder;
        let ending = Shutdown::new();
        let run = builder.cage.run(self.app.id, job, each, &ending);
        tokio::pin!(run);
        let early = tokio::select! {
            ended = &mut run => return Ok(ended),
            failure = self.stop.wanted() => failure,
            _ = tokio::time::sleep(builder.limits.timeout) => {
                let minutes = builder.limits.timeout.as_secs_f64() / 60.0;
                Failure::refused([
                    format!("Build took longer than {minutes:.0} min and was stopped."),
                    "What has been cached is kept; pushing again continues from there.".into(),
                ])
            }
        };
        ending.cancel();
        let _ = run.await;
        Err(early)
    }

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

    /// The place to build in, with the sources and the environment of the release that runs.
    async fn workspace(&self, disk: &Disk) -> Result<(Workspace, Option<Release>)> {
        let workspace = Workspace::new(disk.root());
        let previous = self.current_release().await?;
        let env = previous
            .as_ref()
            .map(|release| release.env.clone())
            .unwrap_or_default();
        blocking({
            let workspace = Workspace::new(disk.root());
            move || {
                let prepared = workspace.prepare(&env);
                match prepared {
                    // The daemon was killed before it could clean up after a hog.
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                        workspace.empty_trash()?;
                        workspace.forget_kept()?;
                        Ok(workspace.prepare(&env)?)
                    }
                    other => Ok(other?),
                }
            }
        })
        .await?;
        self.place_source(&workspace).await?;
        Ok((workspace, previous))
    }

    async fn on_disk(&self, disk: &Disk, stack: Stack, since: Instant, phases: &mut Phases) -> Result<Built> {
        let builder = self.builder;
        let (workspace, previous) = self.workspace(disk).await?;
        phases.add("source", since);

        let since = Instant::now();
        let resources = resources(previous.as_ref(), builder.limits.memory_bytes);
        let mut needs = workspace.known_needs().unwrap_or_default();
        let said = Said::default();
        let mut exit = self.attempt(disk, &stack, &needs, &resources, &said).await?;
        if exit == Exit::Code(STATUS_NEEDS) {
            needs = workspace.needs()?;
            workspace.set_known_needs(&needs)?;
            self.out.step("Adding packages to the stack");
            self.packages().layer(&stack, Kind::Run, &needs.run).await?;
            self.packages().layer(&stack, Kind::Build, &needs.build).await?;
            phases.add("packages", since);
            workspace.prepare_again()?;
            self.place_source(&workspace).await?;
            said.begin_again();
            exit = self.attempt(disk, &stack, &needs, &resources, &said).await?;
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
            workspace.give(SUBMODULES)?;
        }
        match self.repo.archive(self.commit, &work.join(SOURCE)).await? {
            Archived::Whole => Ok(workspace.give(SOURCE)?),
            Archived::DiskFull => Err(Failure::refused([self.out_of_disk()])),
        }
    }

    /// Runs the driver once.
    async fn attempt(
        &self,
        disk: &Disk,
        stack: &Stack,
        needs: &Needs,
        resources: &Resources,
        said: &Said,
    ) -> Result<Exit> {
        let builder = self.builder;
        let extra = self.packages().layer(stack, Kind::Build, &needs.build).await?;
        let image = stack
            .artifact(&builder.controller, Kind::Build, extra.as_ref())
            .await?;
        let job = self.job(disk, image, resources);
        let has_told = AtomicBool::new(false);
        let each = |line: Vec<u8>| {
            // What the host says of the end is said again in our words.
            if said.is_repeated(&line) || is_farewell(&line) {
                return;
            }
            match self.with_limit(&line, resources) {
                Some(told) => {
                    has_told.store(true, Ordering::Relaxed);
                    self.out.warn(told);
                }
                None => self.out.raw(line),
            }
        };
        let ended = self.in_time(job, &each).await?;
        self.ended(ended, has_told.load(Ordering::Relaxed))
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

    /// The driver's words for a limit that was reached, completed with the limit.
    fn with_limit(&self, line: &[u8], resources: &Resources) -> Option<String> {
        match line.strip_prefix(b" !     ")? {
            b"The build ran out of disk space." => Some(self.out_of_disk()),
            b"The build ran out of memory." => Some(out_of_memory(resources)),
            b"The build ran out of processes." => Some(format!(
                "Build ran out of processes (limit {})",
                resources.limit("max_processes")
            )),
            b"A process of the build was killed, most likely because it ran out of memory." => Some(format!(
                "A process was killed. {}, most likely",
                out_of_memory(resources)
            )),
            _ => None,
        }
    }

    fn out_of_disk(&self) -> String {
        format!(
            "Build ran out of disk space (limit {})",
            size(self.builder.disks.size_bytes())
        )
    }
}

/// What the host says of a job's end; see [`Exit`].
fn is_farewell(line: &[u8]) -> bool {
    let words = line.strip_prefix(b"flynn: ").unwrap_or_default();
    [&b"killed: "[..], b"could not start: ", b"lost: "]
        .iter()
        .any(|start| words.starts_with(start))
}

/// What an attempt has said, which the next one need not say again: both begin alike.
#[derive(Default)]
struct Said {
    state: Mutex<SaidState>,
}

#[derive(Default)]
struct SaidState {
    first: Vec<Vec<u8>>,
    /// How much of it the second attempt has repeated; none while the first goes on.
    repeated: Option<usize>,
}

impl Said {
    fn begin_again(&self) {
        self.state.lock().expect("no panic while locked").repeated = Some(0);
    }

    fn is_repeated(&self, line: &[u8]) -> bool {
        const LINES_MAX: usize = 100;
        let mut state = self.state.lock().expect("no panic while locked");
        match state.repeated {
            None => {
                if state.first.len() < LINES_MAX {
                    state.first.push(line.to_vec());
                }
                false
            }
            Some(at) => {
                let is_repeated = state.first.get(at).is_some_and(|said| said == line);
                // The first difference ends it.
                state.repeated = Some(if is_repeated { at + 1 } else { LINES_MAX });
                is_repeated
            }
        }
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
    fn a_second_attempt_does_not_repeat_how_the_first_began() {
        let said = Said::default();
        assert!(
            !["Building", "Ruby app detected"]
                .iter()
                .any(|line| said.is_repeated(line.as_bytes()))
        );
        said.begin_again();
        let repeated = ["Building", "Ruby app detected", "Installing", "Building"]
            .map(|line| said.is_repeated(line.as_bytes()));
        assert_eq!(repeated, [true, true, false, false]);
    }

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
