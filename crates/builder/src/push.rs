//! One push, from the refs that git was given to the release that runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::Shutdown;
use types::App;

use crate::{
    Builder,
    build::{self, Build},
    copies::Accepted,
    deploy, dockerfile,
    failure::{Failure, Result},
    hook::Question,
    output::Output,
    refs::{self, Decision, RefUpdate},
    release,
    repo::Repo,
};

/// What took how long, for the last line.
#[derive(Default)]
pub struct Phases {
    taken: Vec<(&'static str, Duration)>,
}

impl Phases {
    pub fn add(&mut self, name: &'static str, since: Instant) {
        let taken = since.elapsed();
        tracing::debug!(phase = name, ms = taken.as_millis() as u64, "phase of a push");
        self.taken.push((name, taken));
    }

    fn summary(&self) -> String {
        let all: Duration = self.taken.iter().map(|(_, taken)| *taken).sum();
        let parts = self.taken.iter().filter(|(_, taken)| taken.as_millis() >= 50);
        let parts: Vec<_> = parts
            .map(|(name, taken)| format!("{name} {:.1} s", taken.as_secs_f64()))
            .collect();
        format!("Took {:.1} s: {}", all.as_secs_f64(), parts.join(", "))
    }
}

/// What came of a build.
enum Made {
    Built(Box<build::Built>),
    /// An image that the registry has made a release of.
    Release(Box<types::Release>),
}

impl Made {
    fn has_release_phase(&self) -> bool {
        match self {
            Made::Built(built) => built.outcome.process_types.contains_key(release::RELEASE_PHASE),
            Made::Release(_) => false,
        }
    }
}

pub async fn receive(
    builder: &Arc<Builder>,
    app: &App,
    question: Question,
    out: &Output,
    pusher_left: &Shutdown,
) -> Result<Accepted> {
    let updates = refs::parse_ref_lines(&question.refs)?;
    let (branch, commit, notes) = match refs::decide(&updates) {
        Decision::Deploy {
            branch,
            commit,
            notes,
        } => (branch, commit, notes),
        Decision::OnlyRemovals => {
            let repo = builder.repos.of(app.id).await?;
            return begin(builder, app, &repo, &updates, "a removal of refs").await;
        }
        Decision::Refuse(lines) => return Err(Failure::Refused(lines)),
    };
    let repo = builder
        .repos
        .of(app.id)
        .await?
        .with_quarantine(question.quarantine);
    if !repo.is_commit(commit.as_str()).await? {
        return Err(Failure::refused([format!(
            "{} is no commit: only commits can be deployed.",
            commit.short()
        )]));
    }
    let accepted = begin(builder, app, &repo, &updates, commit.short()).await?;
    notes.iter().for_each(|note| out.detail(note));
    tracing::info!(app = %app.name, commit = commit.short(), branch, "push");

    let mut phases = Phases::default();
    let stop = Stop {
        pusher_left,
        shutdown: &builder.shutdown,
    };
    let build = Build {
        builder,
        app,
        repo: &repo,
        commit: commit.as_str(),
        out,
        stop,
    };
    let made = match dockerfile::choose(app, &build.looks().await?)? {
        Some(path) => Made::Release(Box::new(
            build::run_dockerfile(build, &branch, &path, &mut phases).await?,
        )),
        None => Made::Built(Box::new(build::run(build, &mut phases).await?)),
    };
    stop.check()?;
    builder.check_standing(app.id, &accepted.standing).await?;

    // From here on it goes on without the pusher: half a deployment would help nobody.
    let (builder, app, out) = (builder.clone(), app.clone(), out.clone());
    let deployed = tokio::spawn(async move {
        let since = Instant::now();
        out.step("Creating release...");
        let source = release::Source {
            commit: commit.as_str(),
            branch: &branch,
        };
        let has_release_phase = made.has_release_phase();
        let release = match made {
            Made::Release(release) => *release,
            Made::Built(built) => deploy::create_release(&builder, &app, &built, &source).await?,
        };
        phases.add("release", since);
        let since = Instant::now();
        deploy::run(&builder, &app, &release, has_release_phase, &out).await?;
        phases.add("deploy", since);
        if let Err(error) = repo.set_head(&branch).await {
            tracing::warn!(error = format!("{error:#}"), "HEAD of a repository cannot be set");
        }
        deploy::print_urls(&builder, &app, &release, &out).await;
        out.detail(phases.summary());
        tracing::info!(app = %app.name, release = %release.id, "deployed by a push");
        Ok(accepted)
    });
    tokio::select! {
        deployed = deployed => deployed?,
        _ = stop.shutdown.cancelled() => Err(Failure::Stopping),
    }
}

/// The app's turn, on top of the newest version of its repository.
async fn begin(
    builder: &Builder,
    app: &App,
    repo: &Repo,
    updates: &[RefUpdate],
    what: &str,
) -> Result<Accepted> {
    let turn = builder.pushes.begin(app.id, what).map_err(|active| {
        Failure::refused([
            format!(
                "Another push to {} is being built: {}, since {} s.",
                app.name,
                active.commit,
                active.since.elapsed().as_secs()
            ),
            "Wait for it, or stop it with ctrl-c where it was started; then push again.".into(),
        ])
    })?;
    let standing = builder.stand(app.id, repo).await;
    let standing = standing.map_err(|error| {
        tracing::warn!(app = %app.name, %error, "a push cannot be taken");
        Failure::refused([
            format!("The app's repository cannot be used just now: {error}."),
            "Push again in a moment.".into(),
        ])
    })?;
    if standing.is_some() {
        builder.check_refs(repo, updates).await?;
    }
    Ok(Accepted {
        _turn: turn,
        standing,
    })
}

/// What ends a build early.
#[derive(Clone, Copy)]
pub struct Stop<'a> {
    pusher_left: &'a Shutdown,
    shutdown: &'a Shutdown,
}

impl Stop<'_> {
    /// Waits until the build is to end, and says why.
    pub async fn wanted(&self) -> Failure {
        tokio::select! {
            _ = self.pusher_left.cancelled() => Failure::Cancelled,
            _ = self.shutdown.cancelled() => Failure::Stopping,
        }
    }

    pub fn check(&self) -> Result<()> {
        match (self.pusher_left.is_cancelled(), self.shutdown.is_cancelled()) {
            (true, _) => Err(Failure::Cancelled),
            (_, true) => Err(Failure::Stopping),
            _ => Ok(()),
        }
    }
}
