//! Turns the feed's changes into tables for all threads, and tells the feed what has become of them.

use crate::live::{LiveTable, Shared};
use crate::state_file;
use crate::tls::Certificates;
use routing::Model;
use routing::feed::{Acknowledgement, Snapshot, Update};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

pub struct Control {
    model: Model,
    version: u64,
    /// The newest table that all threads use, as it was acknowledged.
    acknowledged: u64,
    is_loaded: bool,
    /// Anything of the feed.
    has_heard: bool,
    shared: Arc<Shared>,
    certificates: Arc<Certificates>,
    tables: watch::Sender<Arc<LiveTable>>,
    saves: Option<watch::Sender<Option<Arc<Snapshot>>>>,
}

impl Control {
    /// Starts from what is on disk. The first table is in the returned channel.
    pub fn start(
        shared: Arc<Shared>,
        certificates: Arc<Certificates>,
        state_file: Option<PathBuf>,
    ) -> anyhow::Result<(Control, watch::Receiver<Arc<LiveTable>>)> {
        let mut model = Model::default();
        let mut is_loaded = false;
        match state_file.as_deref().map(state_file::load) {
            Some(Ok(Some(snapshot))) => {
                is_loaded = true;
                tracing::info!(generation = snapshot.generation, "table loaded from disk");
                model.apply(Update::Snapshot(snapshot));
            }
            Some(Ok(None)) | None => {}
            Some(Err(error)) => tracing::warn!(%error, "table on disk not readable, waiting for a new one"),
        }
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        let model = model.with_sticky_key(hex::encode(key));
        let live = Arc::new(shared.live(1, is_loaded, model.table()));
        certificates.take_over(live.clone());
        let (tables, receiver) = watch::channel(live);
        let saves = state_file.map(|path| {
            let (sender, receiver) = watch::channel(None);
            tokio::spawn(save_changes(path, receiver));
            sender
        });
        let control = Control {
            model,
            version: 1,
            acknowledged: 0,
            is_loaded,
            has_heard: false,
            shared,
            certificates,
            tables,
            saves,
        };
        Ok((control, receiver))
    }

    /// Runs until dropped.
    pub async fn run(mut self, mut updates: mpsc::Receiver<Update>, answers: watch::Sender<Acknowledgement>) {
        let mut is_fed = true;
        loop {
            self.acknowledge(&answers);
            tokio::select! {
                update = updates.recv(), if is_fed => match update {
                    Some(update) => self.take(update, &mut updates),
                    // Nobody tells us anything any more; what we know stays good.
                    None => is_fed = false,
                },
                () = self.shared.changed.notified() => {}
            }
        }
    }

    /// Applies this and all that wait behind it, then makes one table.
    fn take(&mut self, first: Update, updates: &mut mpsc::Receiver<Update>) {
        let mut next = Some(first);
        let mut has_changed = false;
        while let Some(update) = next {
            has_changed |= self.model.apply(update) == routing::Applied::Changed;
            next = updates.try_recv().ok();
        }
        // The first that is heard makes a table even when it is the one on disk: it is waited for.
        if !has_changed && self.has_heard {
            return;
        }
        self.has_heard = true;
        self.is_loaded = true;
        self.version += 1;
        let live = Arc::new(self.shared.live(self.version, true, self.model.table()));
        // Certificates first: a name must not be routed before it can be spoken to.
        self.certificates.take_over(live.clone());
        self.tables.send_replace(live);
        if let Some(saves) = &self.saves {
            saves.send_replace(Some(Arc::new(self.model.snapshot())));
        }
    }

    fn acknowledge(&mut self, answers: &watch::Sender<Acknowledgement>) {
        if self.shared.applied_everywhere() == self.version && self.is_loaded {
            self.acknowledged = self.model.generation();
        }
        let now = Acknowledgement {
            generation: self.acknowledged,
            in_flight: self.shared.draining(),
        };
        answers.send_if_modified(|before| {
            let is_new = *before != now;
            *before = now.clone();
            is_new
        });
    }
}

/// Writes the newest snapshot; those that come while it writes are skipped but for the last.
async fn save_changes(path: PathBuf, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
    while snapshots.changed().await.is_ok() {
        let Some(snapshot) = snapshots.borrow_and_update().clone() else {
            continue;
        };
        let path = path.clone();
        let saved = tokio::task::spawn_blocking(move || state_file::save(&path, &snapshot)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "table not saved");
        }
    }
}
