//! Where foreign code runs during a push: a job of the cluster, followed to its end.

use std::time::Duration;

use api::{
    ClientError, Controller,
    attach::{Frame, Stream},
    wire::NewJob,
};
use async_trait::async_trait;
use bytes::BytesMut;
use daemon::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::{AppId, Exit, HostId, JobState};

use crate::output::{Output, Splitter};

/// Job metadata by which the builder finds its own job among the app's.
const META_RUN: &str = "flynn-builder.run";
/// The end of a job is reported this soon after its process has ended, as a rule.
const REPORT_MAX: Duration = Duration::from_secs(10);
/// How long a killed job may take.
const KILL_MAX: Duration = Duration::from_secs(3);
const SIGKILL: u32 = 9;
/// How long a stopped job may take: its grace of 30 s, and a little.
const STOP_MAX: Duration = Duration::from_secs(40);

#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// `stop` was cancelled; the job is down.
    #[error("stopped")]
    Stopped,
    #[error("it could not be started: {0}")]
    NotStarted(ClientError),
    /// What happens to it is not known; it was told to stop.
    #[error("the connection to it broke")]
    Lost,
}

/// Runs a job of an app, passing on what it says.
#[async_trait]
pub trait Cage: Send + Sync + 'static {
    /// Returns when the job has ended and nothing of it runs any more. `each` gets its output by lines.
    async fn run(
        &self,
        app: AppId,
        job: NewJob,
        each: &(dyn Fn(Vec<u8>) + Send + Sync),
        stop: &Shutdown,
    ) -> Result<Exit, CageError>;
}

pub struct ControllerCage {
    controller: Controller,
    /// Tells this daemon's jobs from those of one that was killed.
    instance: String,
}

impl ControllerCage {
    pub fn new(controller: Controller) -> Self {
        ControllerCage {
            controller,
            instance: uuid::Uuid::new_v4().to_string(),
        }
    }

    /// Stops jobs that a daemon on `host` began that was killed: nobody waits for their result.
    pub async fn stop_leftovers(&self, host: &HostId) -> Result<(), ClientError> {
        let jobs: Vec<api::wire::Job> = self.controller.client().get("/active-jobs").await?;
        let is_left_over = |job: &api::wire::Job| {
            let of_other = job
                .meta
                .get(META_RUN)
                .is_some_and(|run| !run.starts_with(&self.instance));
            of_other && job.host_id.as_ref().is_none_or(|id| id == host) && job.state < JobState::Stopping
        };
        for job in jobs.iter().filter(|job| is_left_over(job)) {
            let Some(app) = job.app else { continue };
            tracing::info!(job = %job.uuid, "stopping a build that nobody waits for");
            self.controller
                .stop_job(&app.to_string(), &job.uuid.to_string())
                .await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Cage for ControllerCage {
    async fn run(
        &self,
        app: AppId,
        mut job: NewJob,
        each: &(dyn Fn(Vec<u8>) + Send + Sync),
        stop: &Shutdown,
    ) -> Result<Exit, CageError> {
        let run = format!("{}/{}", self.instance, uuid::Uuid::new_v4());
        job.meta.insert(META_RUN.to_owned(), run.clone());
        let app = app.to_string();
        let followed = self.follow(&app, &job, each, stop).await;
        let patience = match &followed {
            Ok(_) => REPORT_MAX,
            Err(CageError::Stopped) => KILL_MAX,
            // Nothing says that it ends by itself.
            Err(CageError::Lost | CageError::NotStarted(_)) => Duration::ZERO,
        };
        let mut exit = self.wait_for_end(&app, &run, patience).await;
        if exit.is_none() && !matches!(followed, Ok(_) | Err(CageError::NotStarted(_))) {
            self.stop(&app, &run).await;
            exit = self.wait_for_end(&app, &run, STOP_MAX).await;
        }
        match (followed, exit) {
            (Ok(_), Some(exit)) => Ok(exit),
            (Ok(status), None) => Ok(Exit::Code(status)),
            (Err(error), _) => Err(error),
        }
    }
}

impl ControllerCage {
    /// The status that the job ends with. When it is to stop it is killed through its own connection,
    /// and read from to its end: a host waits for somebody to take what a job said last.
    async fn follow(
        &self,
        app: &str,
        job: &NewJob,
        each: &(dyn Fn(Vec<u8>) + Send + Sync),
        stop: &Shutdown,
    ) -> Result<i32, CageError> {
        let mut connection = tokio::select! {
            connection = self.controller.run_job_attached(app, job) => connection.map_err(CageError::NotStarted)?,
            _ = stop.cancelled() => return Err(CageError::Stopped),
        };
        let mut buffer = BytesMut::with_capacity(64 << 10);
        let (mut stdout, mut stderr) = (Splitter::default(), Splitter::default());
        let reading = async {
            let mut is_killed = false;
            loop {
                match Frame::read(&mut buffer) {
                    Ok(Some(Frame::Data(Stream::Stdout, bytes))) => stdout.push(&bytes, each),
                    Ok(Some(Frame::Data(Stream::Stderr, bytes))) => stderr.push(&bytes, each),
                    Ok(Some(Frame::Exit(_))) if is_killed => return Err(CageError::Stopped),
                    Ok(Some(Frame::Exit(status))) => return Ok(status as i32),
                    Ok(Some(Frame::Error(text))) => {
                        tracing::warn!(app, error = text, "an attached job was lost");
                        return Err(CageError::Lost);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        tokio::select! {
                            read = connection.read_buf(&mut buffer) => {
                                if !matches!(read, Ok(1..)) {
                                    return Err(CageError::Lost);
                                }
                            }
                            _ = stop.cancelled(), if !is_killed => {
                                is_killed = true;
                                let _ = connection.write_all(&Frame::Signal(SIGKILL).to_bytes()).await;
                                let _ = connection.flush().await;
                            }
                        }
                    }
                    Err(error) => {
                        tracing::error!(app, %error, "an attached job cannot be understood");
                        return Err(CageError::Lost);
                    }
                }
            }
        };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(KILL_MAX).await;
        };
        let ended = tokio::select! {
            ended = reading => ended,
            _ = late => Err(CageError::Stopped),
        };
        stdout.finish(each);
        stderr.finish(each);
        ended
    }

    async fn find(&self, app: &str, run: &str) -> Result<Option<api::wire::Job>, ClientError> {
        let jobs = self.controller.jobs(app).await?;
        Ok(jobs
            .into_iter()
            .find(|job| job.meta.get(META_RUN).is_some_and(|found| found == run)))
    }

    async fn stop(&self, app: &str, run: &str) {
        if let Ok(Some(job)) = self.find(app, run).await
            && job.state < JobState::Stopping
            && let Err(error) = self.controller.stop_job(app, &job.uuid.to_string()).await
        {
            tracing::warn!(job = %job.uuid, %error, "a build cannot be stopped");
        }
    }

    /// How the job ended; `None` if that is not known by then, or the job is not.
    async fn wait_for_end(&self, app: &str, run: &str, patience: Duration) -> Option<Exit> {
        let mut pause = Duration::from_millis(10);
        let down = async {
            let mut job = None;
            loop {
                match self.find_again(app, run, job).await {
                    Ok(None) => return None,
                    Ok(Some(found)) if found.state == JobState::Down => return found.exit,
                    Ok(Some(found)) => job = Some(found.uuid.to_string()),
                    Err(error) => {
                        tracing::debug!(%error, "the end of a build cannot be seen");
                        job = None;
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
        };
        tokio::time::timeout(patience, down).await.ok().flatten()
    }

    async fn find_again(
        &self,
        app: &str,
        run: &str,
        job: Option<String>,
    ) -> Result<Option<api::wire::Job>, ClientError> {
        match job {
            None => self.find(app, run).await,
            Some(job) => match self.controller.job(app, &job).await {
                Err(error) if error.is_not_found() => Ok(None),
                other => other.map(Some),
            },
        }
    }
}

/// Passes a job's lines to the pusher as they are.
pub fn plain(out: &Output) -> impl Fn(Vec<u8>) + Send + Sync + '_ {
    |line| out.raw(line)
}
