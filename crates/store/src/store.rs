//! The store as its users see it.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::watch;

use crate::consensus::Proposal;
use crate::engine::{Engine, Status};
use crate::errors::{OpenError, ReadError, WriteError};
use crate::machine::{Machine, Shown, View};
use crate::network::{MessageKind, Peer, ReceiveError};
use crate::options::Options;

/// A command is at most this large as JSON: every one passes through the memory of every node.
pub const COMMAND_BYTES_MAX: usize = 8 << 20;

/// The replicated state; clones share it.
///
/// Call [`Store::shutdown`] in the end: dropping the last clone leaves the directory locked until
/// the runtime has ended.
pub struct Store<M> {
    engine: Arc<Engine>,
    views: watch::Receiver<View<M>>,
}

impl<M> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            views: self.views.clone(),
        }
    }
}

impl<M: Machine> Store<M> {
    /// Opens or founds the store. The only voter of its group leads when this returns.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let (machine, views) = Shown::<M>::new();
        let engine = Engine::open(options, Box::new(machine)).await?;
        Ok(Self {
            engine: Arc::new(engine),
            views,
        })
    }

    /// Carries out a command on every node, and returns when it is on the disks of most voters and
    /// visible in [`Store::read`] here.
    pub async fn write(&self, command: impl Borrow<M::Command>) -> Result<M::Outcome, WriteError> {
        let proposal = Proposal::encode(command.borrow())?;
        if proposal.bytes() > COMMAND_BYTES_MAX {
            return Err(WriteError::TooLarge {
                bytes: proposal.bytes(),
                bytes_max: COMMAND_BYTES_MAX,
            });
        }
        drop(command);
        let outcome = self
            .engine
            .write(proposal)
            .await?
            .0
            .expect("a command has an outcome");
        Ok(*outcome.downcast().expect("the outcome is that of this machine"))
    }

    /// This node's state, without asking others: perhaps behind the leader's. Costs nothing.
    pub fn read(&self) -> View<M> {
        self.views.borrow().clone()
    }

    /// The state with everything in it that was acknowledged before this call. Leader only.
    pub async fn read_linearizable(&self) -> Result<View<M>, ReadError> {
        self.engine.linearize().await?;
        Ok(self.read())
    }

    /// Wakes after each batch of applied commands; shows the newest state, not each one between.
    pub fn watch(&self) -> watch::Receiver<View<M>> {
        self.views.clone()
    }

    /// Whether this node leads and its state has everything that earlier leaders acknowledged.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.engine.leadership()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> watch::Receiver<Option<u64>> {
        self.engine.leader()
    }

    pub fn status(&self) -> Status {
        self.engine.status()
    }

    /// Waits until the store does not work any more (a full disk, say), and returns why. Reading
    /// still works then; a restart is what helps.
    pub async fn stopped(&self) -> String {
        self.engine.stopped().await
    }

    /// Writes a snapshot now. It happens by itself as the log grows.
    pub async fn snapshot(&self) -> Result<(), String> {
        self.engine.snapshot().await
    }

    /// Lets a node follow; returns when it has caught up. Leader only.
    pub async fn add_learner(&self, peer: Peer) -> Result<(), WriteError> {
        self.engine.add_learner(peer).await
    }

    /// Lets a node follow that may not be there yet, or notes where it is now. Leader only.
    pub async fn put_follower(&self, peer: Peer) -> Result<(), WriteError> {
        self.engine.put_follower(peer).await
    }

    /// Lets go of nodes; a voter is refused. Leader only.
    pub async fn remove_followers(&self, nodes: BTreeSet<u64>) -> Result<(), WriteError> {
        self.engine.remove_followers(nodes).await
    }

    /// Gives the lead to another voter, where there is one that can take it.
    pub async fn hand_over(&self) {
        self.engine.hand_over(|_| true).await
    }

    /// The same, to one of these.
    pub async fn hand_over_to(&self, nodes: &BTreeSet<u64>) {
        self.engine.hand_over(|node| nodes.contains(&node)).await
    }

    /// Gives the vote to exactly these followers. Leader only.
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), WriteError> {
        self.engine.set_voters(voters).await
    }

    /// Answers a message that a peer's transport sent.
    pub async fn receive(&self, kind: MessageKind, message: &[u8]) -> Result<Vec<u8>, ReceiveError> {
        self.engine.receive(kind, message).await
    }

    /// Takes a snapshot that a peer's transport sent.
    pub async fn receive_snapshot(
        &self,
        header: &[u8],
        content: impl AsyncRead + Unpin,
    ) -> Result<Vec<u8>, ReceiveError> {
        self.engine.receive_snapshot(header, content).await
    }

    /// Hands the lead over where somebody can take it, and stops.
    pub async fn shutdown(&self) {
        self.engine.hand_over(|_| true).await;
        self.engine.halt().await;
    }

    /// Stops without handing over, as a crash would.
    pub async fn halt(&self) {
        self.engine.halt().await;
    }
}
