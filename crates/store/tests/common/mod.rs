//! A small state machine, and a group of nodes in one process that can be cut off and killed.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use store::*;
use tempfile::TempDir;

/// Text by key, and how many commands made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    pub notes: OrdMap<String, String>,
    pub commands: u64,
    /// Depends on the order of all commands: equal only after equal histories.
    pub history: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Put { key: String, value: String },
}

pub fn put(key: impl ToString, value: impl ToString) -> Command {
    Command::Put {
        key: key.to_string(),
        value: value.to_string(),
    }
}

impl Machine for Notes {
    type Command = Command;
    type Outcome = u64;

    fn apply(&mut self, index: u64, command: Command) -> u64 {
        let Command::Put { key, value } = command;
        let mix = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        self.history = key.bytes().chain(value.bytes()).fold(self.history ^ index, mix);
        self.notes.insert(key, value);
        self.commands += 1;
        self.commands
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, self)?)
    }

    fn read_snapshot(input: &mut dyn Read) -> io::Result<Self> {
        Ok(serde_json::from_reader(input)?)
    }
}

pub async fn open_single(directory: &Path) -> Store<Notes> {
    Store::open(Options::single(directory))
        .await
        .expect("the store opens")
}

/// Who is on the network, and which ways are cut.
#[derive(Clone, Default)]
pub struct Wires(Arc<Mutex<Plugged>>);

#[derive(Default)]
struct Plugged {
    nodes: BTreeMap<u64, Store<Notes>>,
    isolated: BTreeSet<u64>,
    snapshots_sent: u64,
}

impl Wires {
    fn reach(&self, from: u64, to: u64) -> Result<Store<Notes>, TransportError> {
        let plugged = self.0.lock().unwrap();
        if plugged.isolated.contains(&from) || plugged.isolated.contains(&to) {
            return Err(TransportError("cut off".to_owned()));
        }
        plugged
            .nodes
            .get(&to)
            .cloned()
            .ok_or_else(|| TransportError("not running".to_owned()))
    }
}

/// One node's end of the wires.
struct Plug {
    node_id: u64,
    wires: Wires,
}

impl Transport for Plug {
    fn send(
        &self,
        to: &Peer,
        kind: MessageKind,
        message: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let (from, to, wires) = (self.node_id, to.id, self.wires.clone());
        async move {
            let node = wires.reach(from, to)?;
            let answer = node
                .receive(kind, &message)
                .await
                .map_err(|error| TransportError(error.to_string()))?;
            wires.reach(from, to).map(|_| answer)
        }
        .boxed()
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        snapshot: OutgoingSnapshot,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let (from, to, wires) = (self.node_id, to.id, self.wires.clone());
        async move {
            let node = wires.reach(from, to)?;
            let mut content = Vec::new();
            snapshot
                .file
                .reader()
                .read_to_end(&mut content)
                .map_err(|error| TransportError(error.to_string()))?;
            let answer = node.receive_snapshot(&snapshot.header, content.as_slice()).await;
            wires.0.lock().unwrap().snapshots_sent += 1;
            answer.map_err(|error| TransportError(error.to_string()))
        }
        .boxed()
    }
}

/// Nodes numbered from one, each with a directory that survives it.
pub struct Group {
    pub wires: Wires,
    directory: TempDir,
    policy: SnapshotPolicy,
    segment_bytes: u32,
}

impl Group {
    pub async fn of(count: u64) -> Self {
        Self::with_policy(count, SnapshotPolicy::default(), 1 << 20).await
    }

    /// The first node founds the group, the others join it.
    pub async fn with_policy(count: u64, policy: SnapshotPolicy, segment_bytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let group = Self {
            wires: Wires::default(),
            directory,
            policy,
            segment_bytes,
        };
        let founder = group.start(1).await;
        for id in 2..=count {
            group.start(id).await;
            founder.add_learner(peer(id)).await.unwrap();
        }
        founder.set_voters((1..=count).collect()).await.unwrap();
        group
    }

    pub async fn start(&self, id: u64) -> Store<Notes> {
        self.start_as(
            id,
            if id == 1 {
                Start::Found(vec![peer(1)])
            } else {
                Start::Join
            },
        )
        .await
    }

    pub async fn start_as(&self, id: u64, start: Start) -> Store<Notes> {
        let transport = Arc::new(Plug {
            node_id: id,
            wires: self.wires.clone(),
        });
        let mut options = Options::new(self.directory.path().join(id.to_string()), id, start, transport);
        options.snapshots = self.policy.clone();
        options.segment_bytes = self.segment_bytes;
        let store = Store::open(options).await.unwrap();
        self.wires.0.lock().unwrap().nodes.insert(id, store.clone());
        store
    }

    pub fn directory_of(&self, id: u64) -> std::path::PathBuf {
        self.directory.path().join(id.to_string())
    }

    pub fn node(&self, id: u64) -> Store<Notes> {
        self.wires.0.lock().unwrap().nodes[&id].clone()
    }

    pub fn nodes(&self) -> Vec<Store<Notes>> {
        self.wires.0.lock().unwrap().nodes.values().cloned().collect()
    }

    pub fn snapshots_sent(&self) -> u64 {
        self.wires.0.lock().unwrap().snapshots_sent
    }

    /// Takes a node off the network and stops it without a word to the others.
    pub async fn kill(&self, id: u64) {
        let node = self.wires.0.lock().unwrap().nodes.remove(&id).unwrap();
        node.halt().await;
    }

    pub fn isolate(&self, id: u64) {
        self.wires.0.lock().unwrap().isolated.insert(id);
    }

    pub fn heal(&self) {
        self.wires.0.lock().unwrap().isolated.clear();
    }

    /// Waits until some running node, but these, leads.
    pub async fn leader_but(&self, not: &[u64]) -> Store<Notes> {
        let nodes = self
            .nodes()
            .into_iter()
            .filter(|node| !not.contains(&node.status().node_id));
        let leads = nodes.map(|node| {
            async move {
                node.leadership()
                    .wait_for(|leads| *leads)
                    .await
                    .expect("the node runs");
                node
            }
            .boxed()
        });
        let first = futures::future::select_all(leads);
        tokio::time::timeout(Duration::from_secs(30), first)
            .await
            .expect("a leader within 30 s")
            .0
    }

    pub async fn leader(&self) -> Store<Notes> {
        self.leader_but(&[]).await
    }

    /// Waits until every running node has the same state as this one has now, or a later one.
    pub async fn converge(&self, with: &Store<Notes>) {
        let wanted = with.read().index;
        for node in self.nodes() {
            let mut views = node.watch();
            let reached = views.wait_for(|view| view.index >= wanted);
            tokio::time::timeout(Duration::from_secs(30), reached)
                .await
                .unwrap_or_else(|_| panic!("node {:?} does not reach {wanted:?}", node.status()))
                .expect("the node runs");
        }
    }

    pub async fn stop(self) {
        for node in self.nodes() {
            node.halt().await;
        }
    }
}

pub fn peer(id: u64) -> Peer {
    Peer {
        id,
        address: format!("node-{id}"),
    }
}
