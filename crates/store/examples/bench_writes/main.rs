//! Acknowledged, fsynced writes per second: this store with one and with three nodes, and etcd
//! beside it in the same run when it is installed.
//!
//! `bench_writes DIRECTORY [SECONDS]`: the directory must be on the disk to be measured. Our three
//! nodes share a process and talk by TCP on loopback; etcd's three are processes of their own. Our
//! clients call the leader as the controller does, in its process; etcd's come by gRPC, which is the
//! only way to it. Both hold the same keys and values.

mod etcd;
mod tcp;

use std::future::Future;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use store::{Machine, Options, Peer, Start, Store};

const VALUE_BYTES: usize = 256;
const KEYS: u64 = 10_000;
const CLIENTS: [usize; 3] = [1, 64, 256];

#[derive(Clone, Default)]
pub struct Table(OrdMap<String, String>);

impl Machine for Table {
    type Command = (String, String);
    type Outcome = ();

    fn apply(&mut self, _: u64, (key, value): (String, String)) {
        self.0.insert(key, value);
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let rows: Vec<(&str, &str)> = self
            .0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        Ok(serde_json::to_writer(out, &rows)?)
    }

    fn read_snapshot(input: &mut dyn Read) -> io::Result<Self> {
        let rows: Vec<(String, String)> = serde_json::from_reader(io::BufReader::new(input))?;
        Ok(Self(rows.into_iter().collect()))
    }
}

/// What client number `client` writes in its turn `turn`.
fn row(client: usize, turn: u64) -> (String, String) {
    let number = (client as u64 * 7919 + turn * 104_729) % KEYS;
    (format!("/registry/jobs/{number:08}"), "v".repeat(VALUE_BYTES))
}

/// One who writes a row and waits until it is acknowledged.
pub trait Client: Send + 'static {
    fn write(&mut self, key: String, value: String) -> impl Future<Output = ()> + Send;
}

impl Client for Store<Table> {
    async fn write(&mut self, key: String, value: String) {
        Store::write(self, (key, value))
            .await
            .expect("the write is acknowledged");
    }
}

/// Lets the clients write for `length`, each its next row when the last is acknowledged.
async fn measure<C: Client>(name: &str, clients: Vec<C>, length: Duration) {
    let count = clients.len();
    let warm = Instant::now() + Duration::from_millis(500);
    let end = warm + length;
    let running: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                for turn in 0.. {
                    let (key, value) = row(number, turn);
                    let started = Instant::now();
                    if started >= end {
                        break;
                    }
                    client.write(key, value).await;
                    if started >= warm {
                        latencies.push(started.elapsed());
                    }
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for client in running {
        latencies.extend(client.await.expect("a client does not panic"));
    }
    latencies.sort_unstable();
    let quantile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:<20} {count:>4} clients  {:>7.0} writes/s   p50 {:>7.2} ms   p99 {:>7.2} ms",
        latencies.len() as f64 / length.as_secs_f64(),
        quantile(0.5),
        quantile(0.99)
    );
}

async fn bench_one(directory: &Path, length: Duration) {
    let store = Store::<Table>::open(Options::single(directory.join("one")))
        .await
        .expect("opens");
    for count in CLIENTS {
        measure("store, one node", vec![store.clone(); count], length).await;
    }
    store.shutdown().await;
}

async fn bench_three(directory: &Path, length: Duration) {
    let mut ends = Vec::new();
    for _ in 0..3 {
        ends.push(tcp::listen().await.expect("a port is free"));
    }
    let peers: Vec<Peer> = (1..)
        .zip(&ends)
        .map(|(id, end)| Peer {
            id,
            address: end.address.to_string(),
        })
        .collect();
    let mut stores: Vec<Store<Table>> = Vec::new();
    for (end, peer) in ends.into_iter().zip(peers) {
        let start = match stores.is_empty() {
            true => Start::Found(vec![peer.clone()]),
            false => Start::Join,
        };
        let transport = Arc::new(tcp::Connections::default());
        let options = Options::new(
            directory.join(format!("three-{}", peer.id)),
            peer.id,
            start,
            transport,
        );
        let store = Store::<Table>::open(options).await.expect("opens");
        tokio::spawn(end.serve(store.clone()));
        if let Some(founder) = stores.first() {
            founder.add_learner(peer).await.expect("it follows");
        }
        stores.push(store);
    }
    let leader = stores[0].clone();
    leader.set_voters([1, 2, 3].into()).await.expect("three vote");
    let term = leader.status().term;
    for count in CLIENTS {
        measure("store, three nodes", vec![leader.clone(); count], length).await;
    }
    let started = Instant::now();
    for _ in 0..1000 {
        leader.read_linearizable().await.expect("the leader reads");
    }
    println!(
        "store, three nodes      1 client   {:>7.0} linearizable reads/s",
        1000.0 / started.elapsed().as_secs_f64()
    );
    println!(
        "store, three nodes: the leader stayed the same: {}",
        term == leader.status().term
    );
    for store in &stores {
        store.halt().await;
    }
}

async fn bench_etcd(directory: &Path, length: Duration, nodes: usize) {
    let cluster = match etcd::Cluster::start(&directory.join(format!("etcd-{nodes}")), nodes).await {
        Ok(cluster) => cluster,
        Err(problem) => return println!("etcd is left out: {problem}"),
    };
    let name = if nodes == 1 {
        "etcd, one node"
    } else {
        "etcd, three nodes"
    };
    for count in CLIENTS {
        let clients = cluster
            .clients(count)
            .await
            .expect("the leader takes connections");
        measure(name, clients, length).await;
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().expect("usage: bench_writes DIRECTORY [SECONDS]"));
    let seconds = arguments
        .next()
        .map_or(5, |seconds| seconds.parse().expect("SECONDS is a number"));
    let length = Duration::from_secs(seconds);
    let directory = directory.join(format!("bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("the directory can be made");
    println!(
        "values of {VALUE_BYTES} bytes, {KEYS} keys, {seconds} s each, in {}",
        directory.display()
    );
    bench_one(&directory, length).await;
    bench_etcd(&directory, length, 1).await;
    bench_three(&directory, length).await;
    bench_etcd(&directory, length, 3).await;
    std::fs::remove_dir_all(&directory).expect("the directory can be removed");
}
