//! What clients saw of three real nodes under kills, partitions and loss, and whether one register that nobody
//! shares could have shown them the same.
//!
//! Each client calls a node that it takes for the leader and goes on to the next when that one refuses. Every
//! call and return has its place in one order of time. What a node refuses did not happen; what nobody
//! answered may have happened, or may yet.
//!
//! `FAULTS=100` makes it that many faults; `SEED=n` chooses others.

mod linear;
mod registers;
mod wires;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use linear::{Deed, Operation, is_linearizable};
use registers::{Command, Registers};
use store::{Options, Peer, ReadError, SnapshotPolicy, Start, Store, WriteError};
use wires::{Plug, Wires};

const NODES: std::ops::RangeInclusive<u64> = 1..=3;
const CLIENTS: u64 = 6;
const REGISTERS: u64 = 3;
/// A client that has no answer for so long gives up; what it asked for may still happen.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a client thinks: the check of a register grows with what happened to it at the same time.
const PAUSE: Duration = Duration::from_millis(4);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

struct Group {
    wires: Wires,
    directory: tempfile::TempDir,
}

fn peer(id: u64) -> Peer {
    Peer {
        id,
        address: format!("node-{id}"),
    }
}

impl Group {
    async fn start(&self, id: u64) -> Store<Registers> {
        let start = match id {
            1 => Start::Found(vec![peer(1)]),
            _ => Start::Join,
        };
        let transport = Arc::new(Plug {
            node_id: id,
            wires: self.wires.clone(),
        });
        let mut options = Options::new(self.directory.path().join(id.to_string()), id, start, transport);
        // So that some catch up by snapshot.
        options.snapshots = SnapshotPolicy {
            entries: 300,
            log_bytes: 1 << 20,
            entries_kept: 20,
            log_bytes_kept: 1 << 14,
        };
        options.segment_bytes = 8_000;
        let store = Store::open(options).await.expect("the store opens");
        self.wires.plug_in(id, store.clone());
        store
    }

    async fn leader(&self) -> Store<Registers> {
        let led = async {
            loop {
                for id in NODES {
                    if let Some(node) = self.wires.node(id)
                        && node.read_linearizable().await.is_ok()
                    {
                        return node;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), led)
            .await
            .expect("a leader within 30 s")
    }
}

/// All that clients did, by register.
#[derive(Default)]
struct Histories(Mutex<BTreeMap<u64, Vec<Operation>>>);

struct Client {
    wires: Wires,
    histories: Arc<Histories>,
    clock: Arc<AtomicU64>,
    values: Arc<AtomicU64>,
    random: Random,
    node: u64,
}

impl Client {
    async fn run(mut self, stopped: Arc<AtomicBool>) {
        while !stopped.load(Ordering::Relaxed) {
            self.call_once().await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn call_once(&mut self) {
        let Some(node) = self.wires.node(self.node) else {
            return self.turn_to_the_next();
        };
        let register = self.random.below(REGISTERS);
        let call = self.clock.fetch_add(1, Ordering::SeqCst);
        let kind = self.random.below(4);
        let outcome = if kind < 2 {
            read(&node, register).await
        } else {
            let to = self.values.fetch_add(1, Ordering::Relaxed) + 1;
            let from = node.read().value(register);
            let swaps = kind == 3;
            write(&node, register, swaps.then_some(from), to).await
        };
        let ret = self.clock.fetch_add(1, Ordering::SeqCst);
        match outcome {
            Outcome::Done(deed) => self.note(register, call, Some(ret), deed),
            Outcome::Unknown(deed) => {
                if let Some(deed) = deed {
                    self.note(register, call, None, deed);
                }
                self.turn_to_the_next();
            }
            Outcome::Refused => self.turn_to_the_next(),
        }
    }

    fn note(&self, register: u64, call: u64, ret: Option<u64>, deed: Deed) {
        let mut histories = self.histories.0.lock().unwrap();
        histories
            .entry(register)
            .or_default()
            .push(Operation { call, ret, deed });
    }

    fn turn_to_the_next(&mut self) {
        self.node = self.node % NODES.end() + 1;
    }
}

enum Outcome {
    Done(Deed),
    /// It did not happen.
    Refused,
    Unknown(Option<Deed>),
}

async fn read(node: &Store<Registers>, register: u64) -> Outcome {
    match tokio::time::timeout(ANSWER_TIMEOUT, node.read_linearizable()).await {
        Ok(Ok(view)) => Outcome::Done(Deed::Read(view.value(register))),
        Ok(Err(ReadError::NotLeader { .. } | ReadError::NoQuorum)) => Outcome::Refused,
        Ok(Err(ReadError::Stopped(_))) | Err(_) => Outcome::Unknown(None),
    }
}

async fn write(node: &Store<Registers>, register: u64, from: Option<u64>, to: u64) -> Outcome {
    let command = match from {
        Some(from) => Command::Swap { register, from, to },
        None => Command::Write { register, value: to },
    };
    let deed = |done| match from {
        Some(from) => Deed::Swap { from, to, done },
        None => Deed::Write(to),
    };
    // Its own task: a client that has given up does not take back what it asked for.
    let node = node.clone();
    let asked = tokio::spawn(async move { node.write(command).await });
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(Ok(done))) => Outcome::Done(deed(done)),
        Ok(Ok(Err(WriteError::NotLeader { .. }))) => Outcome::Refused,
        _ => Outcome::Unknown(Some(deed(false))),
    }
}

async fn one_fault(group: &Group, random: &mut Random) -> String {
    let leader = group.leader().await.status().node_id;
    let victim = match random.below(2) {
        0 => leader,
        _ => random.below(*NODES.end()) + 1,
    };
    let others = || NODES.filter(move |other| *other != victim);
    let lasting = Duration::from_millis(300 + random.below(1200));
    match random.below(6) {
        0 => {
            group.wires.unplug(victim).halt().await;
            tokio::time::sleep(lasting).await;
            group.start(victim).await;
            format!("{victim} dead for {lasting:?}")
        }
        1 => {
            for other in others() {
                group.wires.cut(victim, other);
                group.wires.cut(other, victim);
            }
            tokio::time::sleep(lasting).await;
            group.wires.heal();
            format!("{victim} cut off for {lasting:?}")
        }
        2 => {
            others().for_each(|other| group.wires.cut(victim, other));
            tokio::time::sleep(lasting).await;
            group.wires.heal();
            format!("{victim} not heard for {lasting:?}")
        }
        3 => {
            others().for_each(|other| group.wires.cut(other, victim));
            tokio::time::sleep(lasting).await;
            group.wires.heal();
            format!("{victim} deaf for {lasting:?}")
        }
        4 => {
            group.wires.lose(300);
            tokio::time::sleep(lasting).await;
            group.wires.heal();
            format!("30 % lost for {lasting:?}")
        }
        _ => {
            for id in NODES {
                group.wires.unplug(id).halt().await;
            }
            let first = random.below(*NODES.end());
            for id in 0..*NODES.end() {
                group.start((first + id) % NODES.end() + 1).await;
            }
            "all dead at once".to_owned()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_under_faults_is_what_one_register_would_show() {
    let (faults, seed) = (number("FAULTS", 6), number("SEED", 1));
    let group = Group {
        wires: Wires::default(),
        directory: tempfile::tempdir().unwrap(),
    };
    let founder = group.start(1).await;
    for id in NODES.skip(1) {
        group.start(id).await;
        founder.add_learner(peer(id)).await.unwrap();
    }
    founder.set_voters(NODES.collect()).await.unwrap();

    let histories = Arc::new(Histories::default());
    let (clock, values) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let mut random = Random(seed);
    let mut seen = 0;
    for fault in 0..faults {
        let stopped = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let client = Client {
                    wires: group.wires.clone(),
                    histories: histories.clone(),
                    clock: clock.clone(),
                    values: values.clone(),
                    random: Random(seed << 32 | fault << 8 | client),
                    node: client % NODES.end() + 1,
                };
                tokio::spawn(client.run(stopped.clone()))
            })
            .collect();
        let what = one_fault(&group, &mut random).await;
        group.leader().await;
        // Something happens after the fault, too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        stopped.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        seen += check(&group, &histories, &clock, &what).await;
    }
    println!("{seen} operations, {faults} faults");
    assert!(
        seen > faults * 50,
        "a history in which nothing happens is always linearizable"
    );
    for id in NODES {
        group.wires.unplug(id).halt().await;
    }
}

/// Checks what has happened since the last fault. With everything quiet all nodes agree on a value, which is
/// where the next history begins; what nobody heard of can only have happened before.
async fn check(group: &Group, histories: &Histories, clock: &AtomicU64, what: &str) -> u64 {
    // Proposals that clients gave up on are still on their way; this one comes after them.
    tokio::time::sleep(ANSWER_TIMEOUT / 3).await;
    let leader = group.leader().await;
    let view = leader
        .read_linearizable()
        .await
        .expect("nothing is wrong with the group");
    for id in NODES {
        let node = group.wires.node(id).expect("a node that runs");
        let reached = async {
            node.watch()
                .wait_for(|other| other.index >= view.index)
                .await
                .expect("the node runs");
        };
        tokio::time::timeout(Duration::from_secs(30), reached)
            .await
            .expect("the node follows");
    }
    let mut seen = 0;
    let mut histories = histories.0.lock().unwrap();
    for (register, history) in histories.iter_mut() {
        let at = clock.fetch_add(2, Ordering::SeqCst);
        history.push(Operation {
            call: at,
            ret: Some(at + 1),
            deed: Deed::Read(view.value(*register)),
        });
        assert!(
            is_linearizable(history),
            "register {register} after: {what}\n{}",
            in_lines(history)
        );
        seen += history.len() as u64;
        // What is unknown may still happen, as far as we can tell.
        history.retain(|operation| operation.ret.is_none());
        history.push(Operation {
            call: at,
            ret: Some(at + 1),
            deed: Deed::Write(view.value(*register)),
        });
    }
    seen
}

fn in_lines(history: &[Operation]) -> String {
    let mut history = history.to_vec();
    history.sort_by_key(|operation| operation.call);
    let line = |operation: &Operation| {
        let ret = operation.ret.map_or("?".to_owned(), |ret| ret.to_string());
        format!("{}-{ret} {:?}\n", operation.call, operation.deed)
    };
    history.iter().map(line).collect()
}
