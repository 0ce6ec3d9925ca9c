//! The network between nodes of one process, which can be cut one way or both, and lose messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use store::{MessageKind, OutgoingSnapshot, Peer, Store, Transport, TransportError};

use super::registers::Registers;

#[derive(Clone, Default)]
pub struct Wires(Arc<Inner>);

#[derive(Default)]
struct Inner {
    nodes: Mutex<BTreeMap<u64, Store<Registers>>>,
    /// From, to.
    cuts: Mutex<BTreeSet<(u64, u64)>>,
    /// Of a thousand messages.
    lost: AtomicU64,
    random: AtomicU64,
}

impl Wires {
    pub fn plug_in(&self, id: u64, node: Store<Registers>) {
        self.0.nodes.lock().unwrap().insert(id, node);
    }

    pub fn unplug(&self, id: u64) -> Store<Registers> {
        self.0
            .nodes
            .lock()
            .unwrap()
            .remove(&id)
            .expect("a node that runs")
    }

    pub fn node(&self, id: u64) -> Option<Store<Registers>> {
        self.0.nodes.lock().unwrap().get(&id).cloned()
    }

    pub fn cut(&self, from: u64, to: u64) {
        self.0.cuts.lock().unwrap().insert((from, to));
    }

    pub fn lose(&self, of_a_thousand: u64) {
        self.0.lost.store(of_a_thousand, Ordering::Relaxed);
    }

    pub fn heal(&self) {
        self.0.cuts.lock().unwrap().clear();
        self.lose(0);
    }

    /// Whether one message passes now.
    fn pass(&self, from: u64, to: u64) -> Result<(), TransportError> {
        let is_cut = self.0.cuts.lock().unwrap().contains(&(from, to));
        let dice = self.0.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let dice = (dice ^ (dice >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
        match is_cut || dice % 1000 < self.0.lost.load(Ordering::Relaxed) {
            true => Err(TransportError("nothing came".to_owned())),
            false => Ok(()),
        }
    }

    fn reach(&self, from: u64, to: u64) -> Result<Store<Registers>, TransportError> {
        self.pass(from, to)?;
        self.node(to)
            .ok_or_else(|| TransportError("not running".to_owned()))
    }
}

/// One node's end of the wires.
pub struct Plug {
    pub node_id: u64,
    pub wires: Wires,
}

fn failed(error: impl std::fmt::Display) -> TransportError {
    TransportError(error.to_string())
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
            let answer = node.receive(kind, &message).await.map_err(failed)?;
            // What was done stays done though the answer is lost.
            wires.pass(to, from).map(|()| answer)
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
            snapshot.file.reader().read_to_end(&mut content).map_err(failed)?;
            let answer = node.receive_snapshot(&snapshot.header, content.as_slice()).await;
            wires.pass(to, from)?;
            answer.map_err(failed)
        }
        .boxed()
    }
}
