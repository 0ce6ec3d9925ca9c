//! Sends the lines of this host's logs to the cluster's log sinks.
//!
//! The controller's list of sinks is followed and kept on disk: without a controller everything goes on
//! as it was. Each sink has a task, a directory, and nothing in common with the others but the listing
//! of log files, which is made for all of them.
//!
//! ```text
//!  sinks/SINKID/sink.json      what it is
//!               cursors.json   how far it is in each log
//! ```
//!
//! Jobs and those who write logs know nothing of this. What a sink cannot send stays in the files, of
//! which the oldest are removed here once all sinks have taken them, or when there are too many.

mod backlog;
mod connection;
mod framing;
mod listing;
mod position;
mod ship;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use api::{
    Controller, Error,
    sinks::{HostSink, NewSink, SinkStatus, SinkView, Sinks},
};
use async_trait::async_trait;
use daemon::{Shutdown, StateDir, files};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, watch},
    task::JoinHandle,
};
use types::{HostId, Sink, SinkId};

use backlog::Backlog;
use framing::Framer;
use listing::Listing;
pub(crate) use listing::{list, unsent};
pub(crate) use position::Cursors;

/// Between looks at the log files, while something is written and when nothing is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_IDLE: Duration = Duration::from_millis(500);
/// Looks without a change after which nothing is being written.
const IDLE_LOOKS: u32 = 20;
const TRIM_INTERVAL: Duration = Duration::from_secs(2);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Ships this host's logs.
#[derive(Clone)]
pub struct Shipper {
    inner: Arc<Inner>,
}

struct Inner {
    state_dir: StateDir,
    host: HostId,
    controller: Controller,
    running: Mutex<BTreeMap<SinkId, Running>>,
    /// One change of the sinks at a time: it ends and begins tasks and changes files.
    changing: AsyncMutex<()>,
    listing: watch::Sender<Arc<Listing>>,
    /// There are sinks where there were none.
    woken: Notify,
    shutdown: Shutdown,
}

struct Running {
    kept: Kept,
    status: Arc<Mutex<SinkStatus>>,
    taken: watch::Receiver<Arc<Cursors>>,
    stop: Shutdown,
    task: JoinHandle<()>,
}

/// `sink.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    sink: Sink,
    #[serde(default)]
    host_managed: bool,
}

impl Kept {
    fn view(&self) -> SinkView {
        SinkView {
            host_managed: self.host_managed,
            ..SinkView::of(&self.sink)
        }
    }
}

impl Shipper {
    /// Ships while [`crate::Logs::run`] runs.
    pub fn new(state_dir: StateDir, host: HostId, controller: Controller, shutdown: Shutdown) -> Shipper {
        Shipper {
            inner: Arc::new(Inner {
                state_dir,
                host,
                controller,
                running: Mutex::default(),
                changing: AsyncMutex::default(),
                listing: watch::Sender::new(Arc::default()),
                woken: Notify::new(),
                shutdown,
            }),
        }
    }

    pub(crate) async fn run(self) {
        let shutdown = self.inner.shutdown.clone();
        tokio::select! {
            _ = self.look() => {}
            _ = self.trim() => {}
            _ = self.follow() => {}
            _ = shutdown.cancelled() => {}
        }
        let _changing = self.inner.changing.lock().await;
        let running: Vec<_> = std::mem::take(&mut *self.running()).into_values().collect();
        for sink in &running {
            sink.stop.cancel();
        }
        for sink in running {
            let _ = sink.task.await;
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<SinkId, Running>> {
        self.inner
            .running
            .lock()
            .expect("nothing panics while it holds this")
    }

    fn directory(&self, id: SinkId) -> PathBuf {
        self.inner.state_dir.sinks().join(id.to_string())
    }

    /// How far every sink is.
    pub(crate) fn taken(&self) -> Vec<Arc<Cursors>> {
        self.running()
            .values()
            .map(|sink| sink.taken.borrow().clone())
            .collect()
    }

    /// Goes on with the sinks of before.
    pub(crate) async fn begin_kept(&self) {
        if let Err(error) = self.read_kept().await {
            tracing::error!(%error, "cannot read the log sinks of before");
        }
    }

    async fn read_kept(&self) -> io::Result<()> {
        let directory = self.inner.state_dir.sinks();
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let _changing = self.inner.changing.lock().await;
        for entry in entries.flatten() {
            let path = entry.path().join("sink.json");
            let kept = files::read_if_exists(&path)?.map(|text| serde_json::from_str::<Kept>(&text));
            match kept {
                Some(Ok(kept)) => self.begin(kept),
                Some(Err(error)) => {
                    tracing::error!(path = %path.display(), %error, "a log sink cannot be read")
                }
                // Begun or removed when the power went.
                None => files::remove_all(&entry.path())?,
            }
        }
        Ok(())
    }

    /// Starts a sink's task.
    fn begin(&self, kept: Kept) {
        let id = kept.sink.id;
        let (url, template) = match kept.sink.config.check() {
            Ok(checked) => checked,
            Err(error) => {
                tracing::error!(sink = %id, %error, "a log sink cannot be used");
                return;
            }
        };
        let cursors_path = self.directory(id).join("cursors.json");
        let cursors = position::read(&cursors_path).unwrap_or_else(|error| {
            tracing::error!(sink = %id, %error, "how far a log sink was cannot be read; sending all that is kept");
            Cursors::new()
        });
        let (taken, taken_by_others) = watch::channel(Arc::new(cursors));
        let status = Arc::new(Mutex::new(SinkStatus::default()));
        let stop = Shutdown::new();
        let framer = Framer::new(&kept.sink.config, template);
        let ship = ship::Ship {
            url,
            insecure: kept.sink.config.insecure,
            backlog: Backlog::new(self.inner.host.to_string(), framer, kept.sink.created_at),
            listing: self.inner.listing.subscribe(),
            taken,
            cursors_path,
            status: status.clone(),
            stop: stop.clone(),
        };
        let running = Running {
            kept,
            status,
            taken: taken_by_others,
            stop,
            task: tokio::spawn(ship.run()),
        };
        self.running().insert(id, running);
        self.inner.woken.notify_one();
    }

    async fn end(&self, id: SinkId) -> Option<Kept> {
        let running = self.running().remove(&id)?;
        running.stop.cancel();
        let _ = running.task.await;
        Some(running.kept)
    }

    /// Makes a sink be as it should; the cursors of one that changed are kept.
    async fn put_kept(&self, kept: Kept) -> io::Result<()> {
        let id = kept.sink.id;
        let is_same = self
            .running()
            .get(&id)
            .is_some_and(|running| running.kept == kept);
        if is_same {
            return Ok(());
        }
        let directory = self.directory(id);
        files::create_private_dir(&directory)?;
        let text = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        files::write_atomic(&directory.join("sink.json"), &text, 0o600)?;
        self.end(id).await;
        self.begin(kept);
        Ok(())
    }

    async fn remove_kept(&self, id: SinkId) -> io::Result<()> {
        self.end(id).await;
        let directory = self.directory(id);
        // What remains after a power cut in between is no sink.
        files::remove_all(&directory.join("sink.json"))?;
        files::remove_all(&directory)
    }

    /// The controller's sinks, for ever.
    async fn follow(&self) {
        loop {
            match self.inner.controller.follow_sinks().await {
                Ok(stream) => self.hear(stream).await,
                Err(error) => tracing::debug!(%error, "cannot follow the list of log sinks"),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn hear(
        &self,
        mut stream: impl futures::Stream<Item = Result<SinkView, api::ClientError>> + Unpin,
    ) {
        let mut named = Some(BTreeSet::new());
        while let Some(Ok(view)) = stream.next().await {
            let _changing = self.inner.changing.lock().await;
            let heard = if view.is_end_of_list() {
                // Those that were not named are gone; in the middle of the list nothing can be said.
                let named = named.take().unwrap_or_default();
                self.remove_unnamed(&named).await
            } else {
                let Ok(id) = view.id.parse::<SinkId>() else {
                    continue;
                };
                if let Some(named) = &mut named {
                    named.insert(id);
                }
                match view.config {
                    None => self.remove_kept(id).await,
                    Some(config) => {
                        let created_at = view.created_at.unwrap_or_default();
                        let sink = Sink {
                            id,
                            config,
                            created_at,
                            updated_at: view.updated_at.unwrap_or(created_at),
                        };
                        self.put_kept(Kept {
                            sink,
                            host_managed: false,
                        })
                        .await
                    }
                }
            };
            if let Err(error) = heard {
                tracing::error!(%error, "cannot write what the log sinks are");
            }
        }
    }

    async fn remove_unnamed(&self, named: &BTreeSet<SinkId>) -> io::Result<()> {
        let gone: Vec<_> = self
            .running()
            .iter()
            .filter(|(id, running)| !running.kept.host_managed && !named.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.remove_kept(id).await?;
        }
        Ok(())
    }

    /// Keeps the listing, while there are sinks.
    async fn look(&self) {
        let directory = self.inner.state_dir.logs();
        let mut unchanged = 0;
        loop {
            if self.running().is_empty() {
                self.inner.woken.notified().await;
            }
            let directory = directory.clone();
            let listed = tokio::task::spawn_blocking(move || listing::list(&directory)).await;
            match listed.expect("listing files does not panic") {
                Ok(listing) => {
                    let is_changed = self.inner.listing.send_if_modified(|known| {
                        let is_changed = **known != listing;
                        if is_changed {
                            *known = Arc::new(listing);
                        }
                        is_changed
                    });
                    unchanged = if is_changed { 0 } else { unchanged + 1 };
                }
                Err(error) => tracing::warn!(%error, "cannot list the logs for the log sinks"),
            }
            let pause = if unchanged > IDLE_LOOKS {
                LOOK_INTERVAL_IDLE
            } else {
                LOOK_INTERVAL
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Removes old files, whether there are sinks or not.
    async fn trim(&self) {
        loop {
            tokio::time::sleep(TRIM_INTERVAL).await;
            let (directory, taken) = (self.inner.state_dir.logs(), self.taken());
            let trimmed = tokio::task::spawn_blocking(move || trim(&directory, &taken)).await;
            if let Err(error) = trimmed.expect("removing files does not panic") {
                tracing::warn!(%error, "cannot remove old logs");
            }
        }
    }
}

fn trim(directory: &Path, taken: &[Arc<Cursors>]) -> io::Result<()> {
    let listing = listing::list(directory)?;
    listing::remove(&listing::to_remove(&listing, taken, listing::BACKLOG_BYTES_MAX));
    Ok(())
}

#[async_trait]
impl Sinks for Shipper {
    fn list(&self) -> Vec<HostSink> {
        let running = self.running();
        let sinks = running.values().map(|running| HostSink {
            sink: running.kept.view(),
            status: running
                .status
                .lock()
                .expect("nothing panics while it holds this")
                .clone(),
        });
        sinks.collect()
    }

    async fn put(&self, id: &str, mut new: NewSink) -> Result<HostSink, Error> {
        let id: SinkId = id
            .parse()
            .map_err(|_| Error::validation("id", format!("{id:?} is not a UUID")))?;
        new.id = id.to_string();
        let mut sink = new.sink(id.0, daemon::now())?;
        let _changing = self.inner.changing.lock().await;
        let known = self.running().get(&id).map(|running| running.kept.clone());
        if let Some(known) = known {
            if !known.host_managed && known.sink.config != sink.config {
                return Err(of_the_cluster(id));
            }
            if known.sink.config == sink.config {
                return Ok(HostSink {
                    sink: known.view(),
                    status: SinkStatus::default(),
                });
            }
            sink.created_at = known.sink.created_at;
        }
        let kept = Kept {
            sink,
            host_managed: true,
        };
        self.put_kept(kept.clone())
            .await
            .map_err(|error| Error::unavailable(format!("cannot keep the sink: {error}")))?;
        Ok(HostSink {
            sink: kept.view(),
            status: SinkStatus::default(),
        })
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let missing = || Error::new(api::Code::ObjectNotFound, "sink with that id couldn't be found");
        let id: SinkId = id.parse().map_err(|_| missing())?;
        let _changing = self.inner.changing.lock().await;
        let is_own = self.running().get(&id).map(|running| running.kept.host_managed);
        match is_own {
            None => Err(missing()),
            Some(false) => Err(of_the_cluster(id)),
            Some(true) => self
                .remove_kept(id)
                .await
                .map_err(|error| Error::unavailable(format!("cannot remove the sink: {error}"))),
        }
    }
}

fn of_the_cluster(id: SinkId) -> Error {
    Error::conflict(format!("sink {id} is the cluster's, and the same on every host")).with_hint(format!(
        "`flynn cluster log-sink remove {id}` removes it everywhere"
    ))
}
