//! `cargo run --release -p overlay --example bench_overlay [SECONDS [ROUNDS]]`: throughput and round trips between two
//! hosts directly, by VXLAN and encrypted, one after the other in each round. See `script/bench-overlay`.
//!
//! Two network namespaces on one veth pair are the hosts; a job in each. Everything is in namespaces of this program's
//! own and ends with it. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use overlay::tunnel::{self, Key};
use overlay::{Config, Encryption, Map, Network, Peer, Underlay};

const ROUND_TRIPS: usize = 2_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments
        .next()
        .map_or(3.0, |text| text.parse().expect("seconds"));
    let rounds: usize = arguments.next().map_or(5, |text| text.parse().expect("rounds"));
    unshare(CloneFlags::CLONE_NEWNET).expect("this needs root");
    let mut ways: Vec<(&str, Vec<f64>, Vec<f64>)> = ["direct", "VXLAN", "encrypted"]
        .map(|name| (name, vec![], vec![]))
        .into();
    for round in 1..=rounds {
        for (name, throughput, trip) in &mut ways {
            let encryption = match *name {
                "VXLAN" => Encryption::Off,
                _ => Encryption::Userspace,
            };
            let pair = Pair::new(encryption);
            let (from, to, address) = match *name {
                "direct" => (&pair.hosts[0].space, &pair.hosts[1].space, pair.hosts[1].underlay),
                _ => (&pair.hosts[0].job, &pair.hosts[1].job, pair.hosts[1].job_address),
            };
            let (bits, microseconds) = measure(from, to, address, seconds);
            println!(
                "round {round} {name}: {:.2} Gbit/s, {microseconds:.0} us",
                bits / 1e9
            );
            throughput.push(bits / 1e9);
            trip.push(microseconds);
        }
    }
    println!(
        "\n| | Gbit/s, one stream (median of {rounds}) | of direct | round trip p50, us |\n|---|---|---|---|"
    );
    let direct = median(&mut ways[0].1.clone());
    for (name, throughput, trip) in &mut ways {
        let bits = median(throughput);
        println!(
            "| {name} | {bits:.2} | {:.2} | {:.0} |",
            bits / direct,
            median(trip)
        );
    }
    // The tunnel's threads wait for packets that do not come any more.
    std::process::exit(0);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bits a second of one stream, and the median round trip of one byte in microseconds.
fn measure(from: &Space, to: &Space, address: Ipv4Addr, seconds: f64) -> (f64, f64) {
    let listener = to.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    let server = std::thread::spawn(move || {
        let (mut echo, _) = listener.accept().unwrap();
        echo.set_nodelay(true).unwrap();
        let mut byte = [0];
        for _ in 0..ROUND_TRIPS {
            echo.read_exact(&mut byte).unwrap();
            echo.write_all(&byte).unwrap();
        }
        let (mut sink, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 18];
        let (mut bytes, start) = (0u64, Instant::now());
        loop {
            match sink.read(&mut buffer).unwrap() {
                0 => return bytes as f64 * 8.0 / start.elapsed().as_secs_f64(),
                count => bytes += count as u64,
            }
        }
    });
    let connect = || {
        let address = SocketAddr::from((address, 8080));
        from.within(move || TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap())
    };
    let mut echo = connect();
    echo.set_nodelay(true).unwrap();
    let mut trips: Vec<f64> = (0..ROUND_TRIPS)
        .map(|_| {
            let start = Instant::now();
            echo.write_all(&[1]).unwrap();
            echo.read_exact(&mut [0]).unwrap();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    let mut stream = connect();
    let data = vec![7; 1 << 18];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        stream.write_all(&data).unwrap();
    }
    drop(stream);
    (server.join().unwrap(), median(&mut trips))
}

struct Pair {
    hosts: [Host; 2],
}

struct Host {
    space: Space,
    underlay: Ipv4Addr,
    job: Space,
    job_address: Ipv4Addr,
    _network: Network,
    _files: tempfile::TempDir,
}

impl Pair {
    fn new(encryption: Encryption) -> Pair {
        let spaces = [Space::new(), Space::new()];
        run(&format!(
            "ip link add up0 mtu 1500 netns {} type veth peer name up0 mtu 1500 netns {}",
            spaces[0].pid(),
            spaces[1].pid()
        ));
        let keys = [Key::generate(), Key::generate()];
        let underlay = |number: usize| Ipv4Addr::new(10, 0, 0, number as u8 + 1);
        let subnet = |number: usize| format!("100.100.{}.0/24", number + 1).parse().unwrap();
        let mut number = 0;
        let hosts = spaces.map(|space| {
            let (own, other) = (number, 1 - number);
            number += 1;
            let config = Config {
                underlay: Some(Underlay {
                    encryption,
                    ..Underlay::new(underlay(own).into(), "100.100.0.0/16".parse().unwrap())
                }),
                ..Config::new("t0", "bench", subnet(own))
            };
            let peer = Peer {
                subnet: subnet(other),
                underlay: underlay(other).into(),
                public_key: (encryption != Encryption::Off).then(|| keys[other].public()),
            };
            let map = Map {
                hosts: [("other".to_string(), peer)].into(),
                admitted: [(
                    "app".to_string(),
                    format!("100.100.{}.2", other + 1).parse().unwrap(),
                )]
                .into(),
                ..Map::default()
            };
            space.within(|| {
                run(&format!("ip addr add {}/24 dev up0", underlay(own)));
                run("ip link set up0 up");
                run("ip link set lo up");
            });
            let files = tempfile::tempdir().unwrap();
            let path = files.path().join("network.json");
            std::fs::write(&path, serde_json::to_vec(&map).unwrap()).unwrap();
            let job = Space::new();
            let (network, job_address) = space.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let network = Network::open(config.clone(), [], map).await.unwrap();
                    let lease = network.allocate("app").unwrap();
                    network.attach(job.pid(), &lease).await.unwrap();
                    (network, lease.address)
                })
            });
            if encryption != Encryption::Off {
                let settings = tunnel::Settings {
                    network: config,
                    key: keys[own].clone(),
                    map: path,
                };
                space.within(|| std::thread::spawn(move || tunnel::run(settings)));
            }
            Host {
                space,
                underlay: underlay(own),
                job,
                job_address,
                _network: network,
                _files: files,
            }
        });
        Pair { hosts }
    }
}

/// A network namespace, held by a process that ends with this one.
struct Space {
    process: Child,
}

impl Space {
    fn new() -> Space {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        Space { process }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}
