//! The state that the log describes, and the one who applies the log to it.
//!
//! [`Machine`] is what a user of this crate writes: a value that commands change. What a reader
//! would get wrong: `apply` runs on every node and again at every start, so it must give the same
//! result everywhere and forever. No clock, no randomness, no I/O, no iteration over hash maps;
//! whoever proposes a command puts times and ids into it.

use std::any::Any;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::consensus::{Answer, LogId, Proposal, RaftSnapshot, SnapshotMeta, StoredMembership, Types};
use crate::snapshots::{self, SnapshotFile, Snapshots};

/// A state and how commands change it. Cloning must be cheap: it happens after every batch.
pub trait Machine: Clone + Default + Send + Sync + 'static {
    type Command: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the proposer of a command is told, refusals included.
    type Outcome: Send + Sync + 'static;

    /// Carries out the command at `index` of the log.
    ///
    /// Refusing is a normal outcome and leaves the state as it was. A panic stops the store.
    fn apply(&mut self, index: u64, command: Self::Command) -> Self::Outcome;

    /// Writes everything that [`Machine::read_snapshot`] needs. Neighbouring versions read it.
    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()>;

    fn read_snapshot(input: &mut dyn Read) -> io::Result<Self>;
}

/// The state after an entry of the log.
#[derive(Debug)]
pub struct View<M> {
    /// The last entry that is in it; none before the first.
    pub index: Option<u64>,
    pub state: Arc<M>,
}

impl<M> Clone for View<M> {
    fn clone(&self) -> Self {
        Self {
            index: self.index,
            state: self.state.clone(),
        }
    }
}

impl<M> std::ops::Deref for View<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.state
    }
}

/// A machine of any type, seen from below.
pub(crate) trait AnyMachine: Send + Sync + 'static {
    fn apply(&mut self, index: u64, command: &Proposal) -> Result<Answer, serde_json::Error>;
    fn restore(&mut self, input: &mut dyn Read) -> io::Result<()>;
    /// Shows the state to readers, and returns it for a snapshot.
    fn publish(&mut self, index: Option<u64>) -> Arc<dyn Frozen>;
}

/// A state that does not change any more.
pub(crate) trait Frozen: Send + Sync + 'static {
    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl<M: Machine> Frozen for M {
    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        Machine::write_snapshot(self, out)
    }
}

/// A machine with the channel on which its states are shown.
pub(crate) struct Shown<M> {
    machine: M,
    views: watch::Sender<View<M>>,
}

impl<M: Machine> Shown<M> {
    pub(crate) fn new() -> (Self, watch::Receiver<View<M>>) {
        let machine = M::default();
        let (views, receiver) = watch::channel(View {
            index: None,
            state: Arc::new(machine.clone()),
        });
        (Self { machine, views }, receiver)
    }
}

impl<M: Machine> AnyMachine for Shown<M> {
    fn apply(&mut self, index: u64, command: &Proposal) -> Result<Answer, serde_json::Error> {
        let outcome: Box<dyn Any + Send + Sync> = Box::new(self.machine.apply(index, command.decode()?));
        Ok(Answer(Some(outcome)))
    }

    fn restore(&mut self, input: &mut dyn Read) -> io::Result<()> {
        self.machine = M::read_snapshot(input)?;
        Ok(())
    }

    fn publish(&mut self, index: Option<u64>) -> Arc<dyn Frozen> {
        let state = Arc::new(self.machine.clone());
        self.views.send_replace(View {
            index,
            state: state.clone(),
        });
        state
    }
}

/// Everything a snapshot needs, as of the last applied batch.
#[derive(Clone)]
pub(crate) struct Applied {
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: Arc<dyn Frozen>,
}

impl Applied {
    /// Index after the last applied entry.
    pub(crate) fn next(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |id| id.index() + 1)
    }
}

/// The last applied batch, for whoever writes snapshots.
#[derive(Clone)]
pub(crate) struct SharedApplied(Arc<Mutex<Applied>>);

impl SharedApplied {
    pub(crate) fn get(&self) -> Applied {
        self.0.lock().expect("no panic under this lock").clone()
    }
}

/// Applies committed entries: openraft's state machine.
pub(crate) struct Applier {
    machine: Box<dyn AnyMachine>,
    last: Option<LogId>,
    membership: StoredMembership,
    applied: SharedApplied,
    /// Index after the last applied entry; wakes the compaction.
    progress: watch::Sender<u64>,
    snapshots: Arc<Snapshots>,
}

impl Applier {
    pub(crate) fn new(
        mut machine: Box<dyn AnyMachine>,
        snapshots: Arc<Snapshots>,
    ) -> (Self, SharedApplied, watch::Receiver<u64>) {
        let state = machine.publish(None);
        let applied = SharedApplied(Arc::new(Mutex::new(Applied {
            meta: SnapshotMeta::default(),
            state,
        })));
        let (progress, receiver) = watch::channel(0);
        let membership = StoredMembership::default();
        let applier = Self {
            machine,
            last: None,
            membership,
            applied: applied.clone(),
            progress,
            snapshots,
        };
        (applier, applied, receiver)
    }

    fn publish(&mut self) {
        let state = self.machine.publish(self.last.map(|id| id.index()));
        let meta = SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        };
        let applied = Applied { meta, state };
        self.progress.send_replace(applied.next());
        *self.applied.0.lock().expect("no panic under this lock") = applied;
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index();
            let answer = match entry.payload {
                EntryPayload::Blank => Answer(None),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Answer(None)
                }
                // Skipping a command that others carry out would let the states drift apart.
                EntryPayload::Normal(command) => self.machine.apply(index, &command).map_err(|problem| {
                    io::Error::other(format!(
                        "the command at log index {index} cannot be understood: {problem}; was it written by \
                         a newer version of this program?"
                    ))
                })?,
            };
            self.last = Some(entry.log_id);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        // First show the state, then answer: who has an answer must be able to read what he wrote.
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            applied: self.applied.get(),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let snapshots = self.snapshots.clone();
        let wanted = meta.clone();
        let installed = blocking(move || snapshots.install(&wanted, snapshot)).await?;
        // Here and not on another thread: the machine cannot leave. Installing is rare.
        let mut state = snapshots::state_reader(&installed)?;
        self.machine.restore(&mut state)?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        Ok(self.snapshots.current())
    }
}

/// Tells openraft about the snapshot that the compaction wrote, or writes one.
pub(crate) struct Builder {
    applied: Applied,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        if let Some(news) = self.snapshots.take_news() {
            return Ok(news);
        }
        let (snapshots, applied) = (self.snapshots.clone(), self.applied.clone());
        blocking(move || snapshots.write(&applied.meta, |out| applied.state.write_snapshot(out))).await
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
