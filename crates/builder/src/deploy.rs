//! From a build to a release that runs, through the controller's API.
//!
//! A first deployment has nothing to fall back to, which makes it special: when its web process does
//! not come up, the push is refused, the release stays the app's (so that `flynn env set` and `flynn
//! scale web=1` can mend it), and it is as if it had never been scaled: the next push tries again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::{
    ClientError,
    logs::{Message, Query},
    wire::{self, NewJob, NewScaleRequest},
};
use daemon::Shutdown;
use futures::StreamExt;
use types::{
    App, Deployment, DeploymentId, DeploymentStatus, Exit, JobState, Release, ReleaseId, Resources, RouteKind,
};

use crate::{
    Builder,
    build::Built,
    cage::{CageError, plain},
    failure::{Failure, Result},
    output::Output,
    release::{self, RELEASE_PHASE},
    stack::{Kind, create_artifact, manifest},
};

/// Another deployment of the app (`flynn env set`) may be under way when a build is done.
const OTHER_DEPLOYMENT_MAX: Duration = Duration::from_secs(300);
/// Events tell at once; asking now and then makes up for a stream that broke.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const LOG_LINES: usize = 10;
const LOG_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an app's release command may run.
const RELEASE_PHASE_MAX: Duration = Duration::from_secs(3600);

pub async fn create_release(
    builder: &Builder,
    app: &App,
    built: &Built,
    source: &release::Source<'_>,
) -> Result<Release> {
    let controller = &builder.controller;
    let run_image = built
        .stack
        .artifact(controller, Kind::Run, built.run_packages.as_ref())
        .await?;
    let meta = BTreeMap::from([
        ("blobstore".to_owned(), "true".to_owned()),
        (
            "slugbuilder.process_types".to_owned(),
            serde_json::to_string(&built.outcome.process_types)?,
        ),
    ]);
    let uri = format!("flynn://slug/{}", built.slug.digest());
    let slug = create_artifact(controller, uri, manifest(built.slug.layers.clone(), None), meta).await?;
    // Read now and not before the build: what was configured meanwhile is not to be undone.
    let previous = match controller.app_release(&app.id.to_string()).await {
        Ok(release) => Some(release),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(Failure::of_controller("The app's release cannot be read", error)),
    };
    let new = release::make(
        app,
        previous.as_ref(),
        &built.outcome,
        vec![run_image, slug],
        source,
    );
    controller
        .create_release(&new)
        .await
        .map_err(|error| Failure::of_controller("The release was not accepted", error))
}

pub async fn run(
    builder: &Builder,
    app: &App,
    release: &Release,
    has_release_phase: bool,
    out: &Output,
) -> Result<()> {
    let deploying = Deploying {
        builder,
        app,
        id: app.id.to_string(),
        release,
        out,
    };
    if has_release_phase {
        deploying.run_release_phase().await?;
    }
    let was_scaled = deploying.was_scaled().await?;
    let deployment = deploying.begin().await?;
    deploying.follow(deployment).await?;
    out.done("Application deployed");
    if !was_scaled && release.processes.contains_key("web") {
        deploying.scale_first().await?;
    }
    Ok(())
}

/// Where the app can be visited.
pub async fn print_urls(builder: &Builder, app: &App, release: &Release, out: &Output) {
    const SHOWN_MAX: usize = 5;
    let Ok(routes) = builder.controller.app_routes(&app.id.to_string()).await else {
        return;
    };
    let services: Vec<_> = release
        .processes
        .values()
        .map(|process| process.service.as_str())
        .collect();
    let routes = routes.iter().map(|view| &view.route);
    let own =
        routes.filter(|route| route.kind == RouteKind::Http && services.contains(&route.service.as_str()));
    for route in own.take(SHOWN_MAX) {
        out.done(url(&route.domain, builder.https_port, &route.path));
    }
}

fn url(domain: &str, port: u16, path: &str) -> String {
    let port = if port == 443 {
        String::new()
    } else {
        format!(":{port}")
    };
    let path = if path.is_empty() { "/" } else { path };
    format!("https://{domain}{port}{path}")
}

struct Deploying<'a> {
    builder: &'a Builder,
    app: &'a App,
    id: String,
    release: &'a Release,
    out: &'a Output,
}

impl Deploying<'_> {
    /// The Procfile's `release` command: migrations and the like, before anything is replaced.
    async fn run_release_phase(&self) -> Result<()> {
        self.out.step("Running release command...");
        let job = NewJob {
            release: Some(self.release.id),
            release_env: true,
            args: vec!["/runner/init".into(), "start".into(), RELEASE_PHASE.into()],
            process_type: RELEASE_PHASE.into(),
            resources: Resources::default(),
            ..NewJob::default()
        };
        let stop = Shutdown::new();
        let each = plain(self.out);
        let run = self.builder.cage.run(self.app.id, job, &each, &stop);
        tokio::pin!(run);
        let how = tokio::select! {
            ended = &mut run => match ended {
                Ok(Exit::Code(0)) => return Ok(()),
                Ok(exit) => exit.to_string(),
                Err(CageError::NotStarted(error)) => format!("could not be started: {error}"),
                Err(error) => error.to_string(),
            },
            _ = tokio::time::sleep(RELEASE_PHASE_MAX) => {
                stop.cancel();
                let _ = run.await;
                format!("ran longer than {} min", RELEASE_PHASE_MAX.as_secs() / 60)
            }
        };
        if let Err(error) = self
            .builder
            .controller
            .delete_release(&self.id, self.release.id)
            .await
        {
            tracing::warn!(release = %self.release.id, %error, "a release that was refused cannot be deleted");
        }
        Err(Failure::refused([
            format!("Release command failed: {how}."),
            "Nothing was deployed.".to_owned(),
        ]))
    }

    /// Whether anybody has ever said how many processes the app has.
    async fn was_scaled(&self) -> Result<bool> {
        let formations = self.builder.controller.formations(&self.id).await;
        let formations =
            formations.map_err(|error| Failure::of_controller("The app's scale cannot be read", error))?;
        Ok(formations.iter().any(|formation| !formation.processes.is_empty()))
    }

    /// Begins the deployment, after any other that is under way.
    async fn begin(&self) -> Result<Deployment> {
        let began = Instant::now();
        let mut has_told = false;
        loop {
            let error = match self.builder.controller.deploy(&self.id, self.release.id).await {
                Ok(deployment) => return Ok(deployment),
                Err(error) => error,
            };
            let others = self
                .builder
                .controller
                .deployments(&self.id)
                .await
                .unwrap_or_default();
            let is_busy = others.iter().any(|deployment| !deployment.status.is_finished());
            // It may have ended since.
            let was_busy = error.to_string().contains("already one in progress");
            if !(is_busy || was_busy || error.may_retry()) || began.elapsed() > OTHER_DEPLOYMENT_MAX {
                return Err(Failure::of_controller("The release cannot be deployed", error));
            }
            if is_busy && !std::mem::replace(&mut has_told, true) {
                self.out.step("Waiting for another deployment of this app to end");
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn follow(&self, mut deployment: Deployment) -> Result<()> {
        let controller = &self.builder.controller;
        if !deployment.status.is_finished() {
            let wanted = deployment.processes.iter().filter(|(_, count)| **count > 0);
            let wanted: Vec<_> = wanted.map(|(name, count)| format!("{name}={count}")).collect();
            self.out.detail(format!("Replacing {}", wanted.join(" ")));
            // From now on, then what is: nothing falls in between.
            let mut events = controller
                .events(Some(&self.id), &["deployment"], None)
                .await
                .ok();
            deployment = self.read(deployment.id, deployment).await;
            while !deployment.status.is_finished() {
                let event = async {
                    match &mut events {
                        Some(stream) => match stream.next().await {
                            Some(Ok(event)) => event,
                            _ => {
                                events = None;
                                std::future::pending().await
                            }
                        },
                        None => std::future::pending().await,
                    }
                };
                let is_end = match tokio::time::timeout(ASK_AGAIN, event).await {
                    Ok(event) => {
                        let data = serde_json::from_value::<wire::DeploymentEvent>((*event.data).clone());
                        data.is_ok_and(|data| {
                            data.deployment == Some(deployment.id)
                                && matches!(data.status.as_str(), "complete" | "failed")
                        })
                    }
                    Err(_) => true,
                };
                if is_end {
                    deployment = self.read(deployment.id, deployment).await;
                }
            }
        }
        if deployment.status == DeploymentStatus::Complete {
            return Ok(());
        }
        // The controller's words: one line, and the end of the log below it where it had read one.
        let (why, log) = deployment
            .error
            .split_once('\n')
            .unwrap_or((&deployment.error, ""));
        match log.is_empty() {
            true => self.show_log_of_failed().await,
            false => log.lines().for_each(|line| self.out.detail(line)),
        }
        let why = if why.is_empty() {
            "it did not come up"
        } else {
            why.trim_end_matches('.')
        };
        let mut lines = vec![format!("Deploy failed: {why}.")];
        lines.push(match deployment.old_release {
            Some(_) => "The release before it keeps running.".into(),
            None => "Nothing else was running.".into(),
        });
        Err(Failure::Refused(lines))
    }

    async fn read(&self, id: DeploymentId, last_known: Deployment) -> Deployment {
        self.builder.controller.deployment(id).await.unwrap_or(last_known)
    }

    async fn scale_first(&self) -> Result<()> {
        self.out.done("Scaling initial release to web=1");
        let controller = &self.builder.controller;
        let refused = |error: ClientError| Failure::of_controller("The release cannot be scaled", error);
        let mut events = controller.events(Some(&self.id), &["job"], None).await.ok();
        let request = NewScaleRequest {
            new_processes: Some([("web".to_owned(), 1)].into()),
            new_tags: None,
        };
        controller
            .scale(&self.id, self.release.id, &request)
            .await
            .map_err(refused)?;
        let patience = Duration::from_secs(self.app.deploy_timeout.max(1) as u64);
        let began = Instant::now();
        let mut told = String::new();
        let why = loop {
            let jobs = controller.jobs(&self.id).await.unwrap_or_default();
            let mut jobs: Vec<_> = jobs
                .into_iter()
                .filter(|job| is_web_of(job, self.release.id))
                .collect();
            jobs.sort_by_key(|job| std::cmp::Reverse(job.created_at));
            if jobs.iter().any(|job| job.state == JobState::Up) {
                return Ok(());
            }
            if let Some(down) = jobs.iter().find(|job| job.state == JobState::Down) {
                break how_it_ended(down);
            }
            let waiting = jobs.first().map(|job| job.waiting.clone()).unwrap_or_default();
            if !waiting.is_empty() && waiting != told {
                self.out.detail(format!("Waiting: {waiting}"));
                told = waiting.clone();
            }
            if began.elapsed() >= patience {
                break match waiting.is_empty() {
                    true => format!("it did not open its port within {} s", patience.as_secs()),
                    false => format!("it was not started within {} s: {waiting}", patience.as_secs()),
                };
            }
            let change = async {
                match &mut events {
                    Some(stream) => {
                        if stream.next().await.is_none_or(|event| event.is_err()) {
                            events = None;
                        }
                    }
                    None => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(ASK_AGAIN.min(patience), change).await;
        };
        self.show_log_of_failed().await;
        let path = format!("/apps/{}/formations/{}", self.id, self.release.id);
        if let Err(error) = controller.client().delete(&path).await {
            tracing::warn!(app = %self.app.name, %error, "a first release that failed cannot be scaled down");
        }
        Err(Failure::refused([
            format!("The web process did not come up: {why}."),
            "It was stopped. Mend it and push again; or, if it only lacks configuration, set it with".into(),
            "flynn env set NAME=VALUE, then start it with flynn scale web=1.".into(),
        ]))
    }

    /// The last words of the newest job of the release that failed.
    async fn show_log_of_failed(&self) {
        let jobs = self.builder.controller.jobs(&self.id).await.unwrap_or_default();
        let of_release = jobs
            .into_iter()
            .filter(|job| job.release == Some(self.release.id) && !job.id.is_empty());
        // Those that ended tell more than one that still tries.
        let failed =
            of_release.max_by_key(|job| (job.state == JobState::Down && job.exit.is_some(), job.created_at));
        let Some(job) = failed else { return };
        let query = Query {
            job_id: Some(job.uuid.to_string()),
            lines: Some(LOG_LINES),
            ..Query::default()
        };
        let read = async {
            let mut chunks = self.builder.controller.log(&self.id, &query).await?;
            let mut lines = Vec::new();
            while let Some(chunk) = chunks.next().await {
                let message = chunk?
                    .data
                    .and_then(|data| serde_json::from_value::<Message>(data).ok());
                lines.extend(message.map(|message| message.msg));
            }
            Ok::<_, ClientError>(lines)
        };
        let Ok(Ok(lines)) = tokio::time::timeout(LOG_TIMEOUT, read).await else {
            return;
        };
        if lines.is_empty() {
            return;
        }
        self.out
            .step(format!("The last lines of {} {}:", job.process_type, job.id));
        lines.iter().for_each(|line| self.out.detail(line.trim_end()));
    }
}

fn is_web_of(job: &wire::Job, release: ReleaseId) -> bool {
    job.release == Some(release) && job.process_type == "web"
}

fn how_it_ended(job: &wire::Job) -> String {
    match (&job.exit, &job.host_error) {
        (Some(exit), _) => format!("it {exit}"),
        (None, Some(error)) => error.clone(),
        (None, None) => "it was stopped".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_only_what_they_need_to() {
        assert_eq!(url("shop.example.com", 443, ""), "https://shop.example.com/");
        assert_eq!(
            url("shop.localhost", 8443, "/api/"),
            "https://shop.localhost:8443/api/"
        );
    }
}
