//! The health check that an image brings along: a command that is run in the job, as the job.
//!
//! It costs a process each time, so it is asked for less often than a port is (see [`crate::health`]).
//! What it prints is of no interest but at its end, when somebody is told why a job is not up.

use std::{path::PathBuf, sync::Arc};

use api::wire::NewExec;
use container::{Event, ExitRecord, Outcome};

use crate::{
    edge::Runtime,
    health::{Check, Probe},
    monitor::Subject,
    probe::{self, Failure},
    streams::exec_spec,
};

/// As much of its output is told.
const SAID_BYTES_MAX: usize = 400;

/// Who asks a job about its health, in whatever way its checks say.
#[derive(Clone)]
pub struct Asker {
    pub runtime: Arc<dyn Runtime>,
    pub job_dir: PathBuf,
}

impl Asker {
    pub async fn ask(&self, subject: Subject, check: &Check) -> Result<(), Failure> {
        let Probe::Command { args } = &check.probe else {
            return probe::probe(subject.address, check).await;
        };
        let named = args.join(" ");
        let run = tokio::time::timeout(check.timeout, self.run(args)).await;
        match run {
            Ok(Ok((record, _))) if matches!(record.outcome, Outcome::Exited { code: 0 }) => Ok(()),
            Ok(Ok((record, said))) => Err(Failure::Answer(format!(
                "`{named}`: {:?}: {said}",
                record.outcome
            ))),
            Ok(Err(error)) => Err(Failure::Answer(format!("`{named}` cannot be run: {error}"))),
            Err(_) => Err(Failure::Answer(format!(
                "`{named}` took longer than {} s",
                check.timeout.as_secs()
            ))),
        }
    }

    /// The end of the command, and the last that it said. Given up, it is hung up on.
    async fn run(&self, args: &[String]) -> Result<(ExitRecord, String), String> {
        let request = NewExec {
            args: args.to_vec(),
            ..NewExec::default()
        };
        let mut spec = exec_spec(&self.job_dir, request).map_err(|error| error.to_string())?;
        spec.stdin = false;
        let mut session = self
            .runtime
            .exec(&self.job_dir, &spec)
            .await
            .map_err(|error| error.to_string())?;
        let mut said: Vec<u8> = Vec::new();
        loop {
            match session.0.reader.next().await.map_err(|error| error.to_string())? {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                    said.extend(bytes);
                    let surplus = said.len().saturating_sub(SAID_BYTES_MAX);
                    said.drain(..surplus);
                }
                Some(Event::Exit(record)) => {
                    return Ok((record, String::from_utf8_lossy(&said).trim().to_owned()));
                }
                None => return Err("its shim is gone".into()),
            }
        }
    }
}
