//! A machine of its own for each test: a fresh network namespace, processes that stand for jobs, and an outside.
//!
//! The namespace is entered by the test's own thread, so everything started from it (threads, commands, the runtime's
//! workers) is in there too, and the machine's own network is never touched. Needs root.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use overlay::{Config, Lease, Network, Prefix6};

/// Long enough for a packet on a busy machine; only a packet that is silently dropped takes as long.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub fn in_new_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    run("ip link set lo up");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test());
}

pub fn config(prefix: &str, subnet: &str) -> Config {
    Config {
        router_ports: vec![80],
        ipv6: Some(prefix6()),
        ..Config::new(prefix, format!("flynn_{prefix}"), subnet.parse().unwrap())
    }
}

/// That of all clusters in these tests.
pub fn prefix6() -> Prefix6 {
    "fd12:3456:789a::/96".parse().unwrap()
}

/// A job's other address.
pub fn six(address: Ipv4Addr) -> Ipv6Addr {
    prefix6().address(address)
}

pub async fn open(config: &Config) -> Network {
    Network::open(config.clone(), [], overlay::Map::default())
        .await
        .unwrap()
}

/// Runs a command in the network namespace of the calling thread.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of this namespace that a network could leave behind.
pub fn inventory() -> String {
    let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let forward6 = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
    let commands = [
        "ip -o -4 addr",
        "ip -4 route show table all",
        "ip -o -6 addr show scope global",
        "ip -6 route show table main",
        "nft list ruleset",
    ];
    let mut lines: Vec<String> = commands
        .iter()
        .flat_map(|command| {
            run(command)
                .lines()
                // The kernel's own, which comes when a link has a carrier.
                .filter(|line| !line.starts_with("fe80::"))
                .map(|line| line.replace(" linkdown", ""))
                .collect::<Vec<_>>()
        })
        .collect();
    // Not whether a link has a carrier, which the kernel finds out in its own time.
    lines.extend(
        run("ip -o link")
            .lines()
            .map(|line| format!("link {}", line.split(':').nth(1).unwrap())),
    );
    lines.sort();
    format!("{}\nip_forward {forward}ipv6 {forward6}", lines.join("\n"))
}

/// A process in a network namespace of its own.
pub struct Job {
    process: Child,
}

impl Job {
    pub fn start() -> Job {
        Job::start_with(&["--net"])
    }

    pub fn start_in_user_namespace() -> Job {
        Job::start_with(&["--user", "--map-root-user", "--net"])
    }

    fn start_with(options: &[&str]) -> Job {
        // cat ends when this test does, however it ends: its standard input closes.
        let mut process = Command::new("unshare")
            .args(options)
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Job { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Runs `work` on a thread in the job's network namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    pub fn run(&self, command: &str) -> String {
        self.within(|| run(command))
    }

    pub fn listen(&self, port: u16) -> TcpListener {
        self.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    }

    /// On addresses of both kinds.
    pub fn listen6(&self, port: u16) -> TcpListener {
        self.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
    }

    pub fn connect(&self, address: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
        let address = address.into();
        self.within(|| connect(address, port))
    }

    pub fn udp(&self, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let address = address.into();
        self.within(|| udp(address, port))
    }

    pub fn is_refused(&self, address: impl Into<IpAddr>, port: u16) -> bool {
        matches!(self.connect(address, port), Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn connect(address: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), PATIENCE)
}

pub fn udp(address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address.into(), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A job of `app`, attached.
pub async fn attached(network: &Network, app: &str) -> (Job, Lease) {
    attach(network, app, Job::start()).await
}

pub async fn attach(network: &Network, app: &str, job: Job) -> (Job, Lease) {
    let lease = network.allocate(app).unwrap();
    assert_eq!(
        network.attach(job.pid(), &lease).await.unwrap(),
        overlay::Attached::New
    );
    (job, lease)
}

/// The network beyond the host: 198.51.100.2 in a namespace of its own, the host's uplink 198.51.100.1 with the
/// default route. The uplink takes packets of 1400 bytes, the outside 1500.
pub fn outside() -> Job {
    let outside = Job::start();
    // Else the links' own addresses are not in use for a second, and without them no neighbour is found.
    let without_detection = || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    without_detection();
    outside.within(without_detection);
    run(&format!(
        "ip link add up0 mtu 1400 type veth peer name out0 mtu 1500 netns {}",
        outside.pid()
    ));
    run("ip addr add 198.51.100.1/24 dev up0");
    run("ip link set up0 up");
    outside.run("ip addr add 198.51.100.2/24 dev out0");
    outside.run("ip link set out0 up");
    run("ip route add default via 198.51.100.2");
    outside
}

pub const UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
