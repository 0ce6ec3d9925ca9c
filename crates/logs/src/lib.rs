//! Reads the logs of apps: what their jobs wrote, and what the platform wrote about them.
//!
//! Nobody sends lines here. A job's shim and the router append to files, one per job, under one
//! directory per app; this crate merges those files by time. So output is never lost for want of a
//! reader, and reading costs nothing while nobody reads.
//!
//! ```text
//!  logs/APPID/JOBID.log      what the job wrote, and JOBID.log.1 before it (rotated)
//!            JOBID.json      what the job was: its type and host
//!            router.log      requests
//! ```
//!
//! [`Shipper`] sends what comes to log sinks outside of the cluster, reading the same files.

mod follow;
mod read;
mod retain;
mod sinks;
mod source;

use std::{path::PathBuf, sync::Arc};

use api::{
    Error,
    logs::{LogSource, Message, Query},
};
use async_trait::async_trait;
use daemon::{Shutdown, StateDir, files};
use futures::stream::BoxStream;
use types::{AppId, HostId, JobRef};

pub use sinks::Shipper;

/// The logs kept on this host.
#[derive(Clone)]
pub struct Logs {
    state_dir: Arc<StateDir>,
    host: HostId,
}

/// Which lines of an app's log are asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub job: Option<String>,
    pub process_type: Option<String>,
    pub streams: Option<Vec<String>>,
}

impl Logs {
    pub fn new(state_dir: StateDir, host: HostId) -> Self {
        Logs {
            state_dir: Arc::new(state_dir),
            host,
        }
    }

    /// Ships what is to be shipped and keeps what is kept within bounds, until `shutdown`.
    pub async fn run(self, shipper: Shipper, shutdown: Shutdown) {
        // Before anything is removed it is known who has not taken it.
        shipper.begin_kept().await;
        tokio::join!(
            retain::run(&self.state_dir, &shipper, shutdown),
            shipper.clone().run()
        );
    }

    fn directory(&self, app: AppId) -> PathBuf {
        self.state_dir.app_logs(app)
    }
}

#[async_trait]
impl LogSource for Logs {
    async fn query(&self, app: AppId, query: Query) -> Result<BoxStream<'static, Message>, Error> {
        let filter = Filter::of(&query)?;
        let (directory, host) = (self.directory(app), self.host.to_string());
        if query.follow {
            return Ok(Box::pin(follow::follow(
                directory,
                host,
                filter,
                query.lines,
                query.mark,
            )));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(256);
        tokio::task::spawn_blocking(move || {
            read::past(&directory, &host, &filter, query.lines, |message| {
                sender.blocking_send(message).is_ok()
            });
        });
        Ok(Box::pin(futures::stream::unfold(
            receiver,
            |mut receiver| async move { Some((receiver.recv().await?, receiver)) },
        )))
    }

    async fn forget(&self, app: AppId) -> Result<(), Error> {
        let directory = self.directory(app);
        tokio::task::spawn_blocking(move || files::remove_all(&directory))
            .await
            .expect("removing files does not panic")
            .map_err(|error| Error::unavailable(format!("cannot remove the app's logs: {error}")))
    }
}

impl Filter {
    fn of(query: &Query) -> Result<Self, Error> {
        let streams = query.stream_types.as_deref().filter(|list| !list.is_empty());
        let streams: Option<Vec<String>> = streams.map(|list| list.split(',').map(str::to_owned).collect());
        for stream in streams.iter().flatten() {
            if !["stdout", "stderr", "init"].contains(&stream.as_str()) {
                return Err(Error::validation(
                    "stream_types",
                    format!("has no stream {stream:?}"),
                ));
            }
        }
        // A job is named by its UUID or by its whole id; one that is neither has no lines.
        let job = query
            .job_id
            .as_deref()
            .filter(|id| !id.is_empty())
            .map(|id| match id.parse::<JobRef>() {
                Ok(reference) => reference.job.to_string(),
                Err(_) => id.to_owned(),
            });
        Ok(Filter {
            job,
            process_type: query.process_type.clone().filter(|name| !name.is_empty()),
            streams,
        })
    }
}

#[cfg(test)]
mod tests;
