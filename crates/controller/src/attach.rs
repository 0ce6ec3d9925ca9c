//! Attached sessions: the controller joins a client's connection to the host that runs the job.

use std::time::Duration;

use api::{
    Error,
    attach::{self, flag},
    controller::Attached,
    host::AttachReq,
    peers::Part,
    wire::NewExec,
};
use axum::response::Response;
use http::{StatusCode, header};
use hyper_util::rt::TokioIo;
use state::{Change, JobChange};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use types::{Exit, Job, JobId, JobState, StopReason};

use crate::Controller;

/// How long a job that somebody waits for may lack a place.
const PLACEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the answer to who does not attach waits for the job's place, which is part of its id.
const DETACHED_PLACEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a host may take until the job's streams are there.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The host's side of a session, past its `success` byte.
pub struct Session {
    host: Attached,
}

impl Session {
    /// Waits until the job has a host, and attaches to it there.
    pub async fn of_job(controller: &Controller, id: JobId) -> Result<Session, Error> {
        let placed = tokio::time::timeout(PLACEMENT_TIMEOUT, wait_for_host(controller, id)).await;
        let job = match placed {
            Ok(job) => job?,
            Err(_) => {
                let waiting = controller
                    .state()
                    .jobs
                    .get(&id)
                    .map(|job| job.waiting.clone())
                    .unwrap_or_default();
                let message = format!("the job was not started within {} s", PLACEMENT_TIMEOUT.as_secs());
                return Err(Error::unavailable(message).with_hint(waiting));
            }
        };
        let tty = job.one_off.as_ref().and_then(|one_off| one_off.tty);
        let request = AttachReq {
            job_id: job.reference().to_string(),
            flags: flag::STDIN | flag::STDOUT | flag::STDERR | flag::STREAM,
            height: tty.map_or(0, |tty| tty.lines),
            width: tty.map_or(0, |tty| tty.columns),
        };
        Session::open(controller, &job, "/attach", &request).await
    }

    pub async fn of_exec(controller: &Controller, job: &Job, exec: &NewExec) -> Result<Session, Error> {
        let path = format!("/host/jobs/{}/exec", job.reference());
        Session::open(controller, job, &path, exec).await
    }

    async fn open(
        controller: &Controller,
        job: &Job,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<Session, Error> {
        let host = job
            .host
            .as_ref()
            .and_then(|host| controller.state().hosts.get(host).cloned());
        let host = host.ok_or_else(|| Error::unavailable("the job's host is not known"))?;
        let failed = |error: api::ClientError| match error {
            api::ClientError::Api(error) => error,
            other => Error::unavailable(format!("host {} cannot be reached: {other}", host.id)),
        };
        let client = controller.client_of(&host, Part::Host).map_err(failed)?;
        let open = async {
            let mut connection = client.attach(path, request).await.map_err(failed)?;
            read_state(&mut connection).await?;
            Ok(Session { host: connection })
        };
        tokio::time::timeout(START_TIMEOUT, open)
            .await
            .map_err(|_| Error::unavailable(format!("host {} did not start the job in time", host.id)))?
    }

    /// Switches the client's connection to the attach protocol and joins both sides until one ends.
    /// A one-off job whose client goes away is stopped: nobody would read what it says.
    pub fn answer(
        mut self,
        controller: Controller,
        upgrade: hyper::upgrade::OnUpgrade,
        one_off: Option<JobId>,
    ) -> Response {
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let mut client = TokioIo::new(upgraded);
                    let _ = copy_bidirectional(&mut client, &mut self.host).await;
                }
                Err(error) => tracing::debug!(%error, "the client left before the session began"),
            }
            if let Some(job) = one_off {
                let change = JobChange::Stop {
                    reason: StopReason::Killed,
                };
                let is_running = controller
                    .state()
                    .jobs
                    .get(&job)
                    .is_some_and(|job| job.state < JobState::Stopping);
                if is_running {
                    // The host's report of a normal end may still be on its way: give it a moment, or
                    // every job that ended by itself would count as killed.
                    wait_for_end(&controller, job).await;
                    let _ = controller.write(Change::Job { job, change }).await;
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, attach::PROTOCOL)
            .body(axum::body::Body::empty())
            .expect("constant headers are valid")
    }
}

/// The job, once it is placed; an error if it ended before.
async fn wait_for_host(controller: &Controller, id: JobId) -> Result<std::sync::Arc<Job>, Error> {
    let mut changes = controller.changes();
    loop {
        let job = controller.state().jobs.get(&id).cloned();
        let job = job.ok_or_else(|| Error::conflict("the job was deleted before it started"))?;
        match (&job.exit, job.state) {
            (Some(Exit::NotStarted(why)), _) => {
                return Err(Error::invalid(format!("could not start: {why}")));
            }
            (_, JobState::Stopping | JobState::Down) if job.host.is_none() => {
                return Err(Error::conflict("the job was stopped before it started"));
            }
            (_, JobState::Pending) => {}
            _ => return Ok(job),
        }
        changes
            .changed()
            .await
            .map_err(|_| Error::unavailable("the controller is stopping"))?;
    }
}

/// Waits until the job has a host, or it is known that there is none for it now.
pub async fn wait_for_place(controller: &Controller, id: JobId) {
    let mut changes = controller.changes();
    let is_decided = |job: &Job| job.state != JobState::Pending || !job.waiting.is_empty();
    let placed = async {
        while !controller.state().jobs.get(&id).is_none_or(|job| is_decided(job)) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DETACHED_PLACEMENT_TIMEOUT, placed).await;
}

async fn wait_for_end(controller: &Controller, id: JobId) {
    let mut changes = controller.changes();
    let ended = async {
        loop {
            let state = controller.state().jobs.get(&id).map(|job| job.state);
            if state.is_none_or(|state| state == JobState::Down) || changes.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), ended).await;
}

/// Reads the host's state bytes up to `success`, or its error.
async fn read_state(connection: &mut Attached) -> Result<(), Error> {
    loop {
        let byte = connection
            .read_u8()
            .await
            .map_err(|_| Error::unavailable("the host closed the session"))?;
        match byte {
            attach::SUCCESS => return Ok(()),
            attach::WAITING => {}
            _ => {
                let length = connection.read_u32().await.unwrap_or(0).min(64 << 10);
                let mut text = vec![0; length as usize];
                let _ = connection.read_exact(&mut text).await;
                return Err(Error::invalid(String::from_utf8_lossy(&text)));
            }
        }
    }
}
