//! Several hosts: each a network namespace, on one switch. Who may talk to whom between them, and what happens when
//! they change.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};

use overlay::{Config, Encryption, Lease, Map, Network, Peer, Underlay};

use crate::world::*;

/// A machine of its own with a network of jobs.
pub struct Host {
    pub machine: Job,
    pub config: Config,
    network: Option<Network>,
}

/// Hosts 1 to `count` at 10.0.0.N or fd00::N, with 100.100.N.0/24 each, who do not know of each other yet.
fn hosts(count: u8, is_ipv6: bool) -> Vec<Host> {
    run("ip link add switch type bridge");
    run("ip link set switch up");
    (1..=count)
        .map(|number| Host::new(number, is_ipv6, Encryption::Off))
        .collect()
}

/// Hosts that know of each other.
pub fn cluster(count: u8) -> Vec<Host> {
    let hosts = hosts(count, false);
    for host in &hosts {
        host.apply(map_of(host, &hosts, &[]));
    }
    hosts
}

/// All others, and who is admitted to which app.
pub fn map_of(host: &Host, hosts: &[Host], admitted: &[(&str, Ipv4Addr)]) -> Map {
    let others = hosts
        .iter()
        .filter(|other| other.config.subnet != host.config.subnet);
    Map {
        hosts: others.map(|other| (other.name(), other.peer())).collect(),
        admitted: admitted
            .iter()
            .map(|(app, address)| (app.to_string(), *address))
            .collect(),
        ..Map::default()
    }
}

impl Host {
    pub fn new(number: u8, is_ipv6: bool, encryption: Encryption) -> Host {
        let machine = Job::start();
        let port = format!("port{number}");
        run(&format!(
            "ip link add {port} mtu 1400 type veth peer name up0 mtu 1400 netns {}",
            machine.pid()
        ));
        run(&format!("ip link set {port} master switch up"));
        machine.run("ip link set lo up");
        let address: IpAddr = match is_ipv6 {
            false => Ipv4Addr::new(10, 0, 0, number).into(),
            true => format!("fd00::{number}").parse().unwrap(),
        };
        match is_ipv6 {
            false => machine.run(&format!("ip addr add {address}/24 dev up0")),
            true => machine.run(&format!("ip addr add {address}/64 dev up0 nodad")),
        };
        machine.run("ip link set up0 up");
        let mut config = config("t0", &format!("100.100.{number}.0/24"));
        config.underlay = Some(Underlay {
            encryption,
            ..Underlay::new(address, "100.100.0.0/16".parse().unwrap())
        });
        let mut host = Host {
            machine,
            config,
            network: None,
        };
        host.open(vec![], Map::default());
        host
    }

    pub fn name(&self) -> String {
        format!("host{}", self.config.subnet)
    }

    pub fn peer(&self) -> Peer {
        Peer {
            subnet: self.config.subnet,
            underlay: self.config.underlay.as_ref().unwrap().address,
            public_key: None,
        }
    }

    fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.gateway()
    }

    /// Runs on a thread in the host's namespace, with which everything that it starts is in there too.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.machine.within(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
    }

    pub fn open(&mut self, leases: Vec<Lease>, map: Map) {
        let config = self.config.clone();
        let network = self.block_on(|| Network::open(config, leases, map));
        self.network = Some(network.unwrap());
    }

    pub fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    pub fn apply(&self, map: Map) {
        self.block_on(|| self.network().apply(map)).unwrap();
    }

    pub fn attached(&self, app: &str) -> (Job, Ipv4Addr) {
        let (job, lease) = self.block_on(|| attached(self.network(), app));
        (job, lease.address)
    }

    fn connect(&self, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        self.machine.connect(address, port)
    }
}

/// Sends a good deal both ways.
pub fn transfer(client: &TcpStream, server: &TcpListener) -> IpAddr {
    let (accepted, from) = server.accept().unwrap();
    let sent: Vec<u8> = (0..400_000u32).map(|number| number as u8).collect();
    for (mut one, mut other) in [(client, &accepted), (&accepted, client)] {
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| one.write_all(&sent).unwrap());
            other.read_exact(&mut received).unwrap();
        });
        assert!(sent == received);
    }
    from.ip()
}

#[test]
fn jobs_of_one_app_reach_each_other_on_any_host_and_no_other_app() {
    in_new_machine(|| async {
        let hosts = cluster(3);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let (a3, a3_address) = hosts[2].attached("a");
        let (b2, b2_address) = hosts[1].attached("b");
        let servers = [&a1, &a2, &a3, &b2].map(|job| job.listen(8080));
        assert!(a1.is_refused(a2_address, 8080), "nobody has said that it may");
        for (index, others) in [
            (0, [a2_address, a3_address]),
            (1, [a1_address, a3_address]),
            (2, [a1_address, a2_address]),
        ] {
            let admitted = others.map(|other| ("a", other));
            hosts[index].apply(map_of(&hosts[index], &hosts, &admitted));
        }
        for (job, others) in [
            (&a1, [(a2_address, &servers[1]), (a3_address, &servers[2])]),
            (&a3, [(a1_address, &servers[0]), (a2_address, &servers[1])]),
        ] {
            for (address, server) in others {
                let client = job.connect(address, 8080).unwrap();
                let own = client.local_addr().unwrap().ip();
                assert_eq!(
                    transfer(&client, server),
                    own,
                    "a job sees another one's own address"
                );
            }
        }
        assert!(a1.is_refused(b2_address, 8080));
        assert!(a3.is_refused(b2_address, 8080));
        assert!(b2.is_refused(a1_address, 8080));

        hosts[1].apply(map_of(&hosts[1], &hosts, &[("a", a3_address)]));
        assert!(a1.is_refused(a2_address, 8080), "taken back");
        a3.connect(a2_address, 8080).unwrap();
    });
}

#[test]
fn a_host_reaches_jobs_everywhere_by_its_gateway_and_no_host_by_its_jobs() {
    in_new_machine(|| async {
        let hosts = cluster(2);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let server = a2.listen(8080);
        let client = hosts[0].connect(a2_address, 8080).unwrap();
        assert_eq!(transfer(&client, &server), hosts[0].gateway(), "the router, say");

        // Services of the host: on all its addresses, DNS and router among them.
        let _services = hosts[1].machine.within(|| {
            [22, 53, 80, 1115].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        });
        let underlay = Ipv4Addr::new(10, 0, 0, 2);
        for port in [22, 53, 80, 1115] {
            assert!(a1.is_refused(hosts[1].gateway(), port), "gateway, {port}");
            assert!(
                hosts[0].machine.is_refused(hosts[1].gateway(), port),
                "gateway from the host, {port}"
            );
        }
        for port in [22, 53, 1115] {
            assert!(a1.is_refused(underlay, port), "underlay, {port}");
        }
        a1.connect(underlay, 80).expect("the router is everybody's");
        hosts[0]
            .connect(underlay, 22)
            .expect("hosts talk to each other on the underlay");
        // Nor does a host lead others to the outside: what arrives first is what host 2 sends after.
        let outside = Job::start();
        let outside_address = Ipv4Addr::new(10, 9, 9, 9);
        hosts[1].machine.run(&format!(
            "ip link add out0 type veth peer name in0 netns {}",
            outside.pid()
        ));
        hosts[1].machine.run("ip addr add 10.9.9.1/24 dev out0");
        hosts[1].machine.run("ip link set out0 up");
        outside.run("ip addr add 10.9.9.9/24 dev in0");
        outside.run("ip link set in0 up");
        outside.run("ip route add default via 10.9.9.1");
        hosts[0]
            .machine
            .run("ip route add 10.9.9.0/24 via 100.100.2.1 dev t0.peers src 100.100.1.1 onlink");
        let receiver = outside.udp(outside_address, 9000);
        for host in &hosts {
            let sender = host.machine.udp(Ipv4Addr::UNSPECIFIED, 0);
            sender.send_to(b"x", (outside_address, 9000)).unwrap();
        }
        let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip(), Ipv4Addr::new(10, 9, 9, 1));
        // An address of the cluster that is nobody's.
        let nobody = a1.connect(Ipv4Addr::new(100, 100, 77, 7), 80).unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::HostUnreachable);
        assert_eq!(a1_address, Ipv4Addr::new(100, 100, 1, 2));
    });
}

#[test]
fn forged_packets_do_not_arrive() {
    in_new_machine(|| async {
        let hosts = cluster(3);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let forger = &hosts[2];
        let (a3, a3_address) = forger.attached("a");
        let admitted = [("a", a1_address), ("a", a3_address)];
        hosts[1].apply(map_of(&hosts[1], &hosts, &admitted));
        let receiver = a2.udp(a2_address, 9000);
        let honest = |job: &Job, address: Ipv4Addr| {
            job.udp(address, 0)
                .send_to(b"honest", (a2_address, 9000))
                .unwrap();
            let mut text = [0; 16];
            let (length, from) = receiver.recv_from(&mut text).unwrap();
            assert_eq!((&text[..length], from.ip()), (&b"honest"[..], address.into()));
        };

        // A job that makes such packets itself: nothing of the cluster's hosts but the routers can be reached by it.
        let packet = a3.udp(a3_address, 0);
        packet.connect((Ipv4Addr::new(10, 0, 0, 2), 4789)).unwrap();
        packet.send(&[8, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        let refusal = packet.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refusal.kind(), std::io::ErrorKind::HostUnreachable);

        // A job as its host, and as a job of another host.
        for forged in [forger.gateway(), hosts[0].gateway(), a1_address] {
            a3.run(&format!("ip addr add {forged}/32 dev eth0"));
            a3.udp(forged, 0).send_to(b"forged", (a2_address, 9000)).unwrap();
        }
        honest(&a3, a3_address);

        // A host as another host, or as one of its jobs: its own table does not keep it from it.
        for forged in [hosts[0].gateway(), a1_address] {
            forger.machine.run(&format!("ip addr add {forged}/32 dev lo"));
            forger
                .machine
                .udp(forged, 0)
                .send_to(b"forged", (a2_address, 9000))
                .unwrap();
        }
        honest(&a3, a3_address);

        // A machine that is no host sends what looks like a host's: the outer address is not known.
        let stranger = Host::new(9, false, Encryption::Off);
        stranger.apply(map_of(&stranger, &hosts, &[]));
        stranger
            .machine
            .run(&format!("ip addr add {a1_address}/32 dev lo"));
        stranger
            .machine
            .udp(a1_address, 0)
            .send_to(b"forged", (a2_address, 9000))
            .unwrap();
        honest(&a1, a1_address);
    });
}

#[test]
fn packets_fit_the_underlay_when_they_are_wrapped_up() {
    for (is_ipv6, expected) in [(false, 1350), (true, 1330)] {
        in_new_machine(|| async move {
            let mut hosts = hosts(2, is_ipv6);
            for index in 0..2 {
                let map = map_of(&hosts[index], &hosts, &[]);
                // One whose jobs are too big for the way between hosts.
                hosts[index].config.mtu = (index == 0).then_some(1400);
                hosts[index].open(vec![], map);
            }
            let (a1, a1_address) = hosts[0].attached("a");
            let (a2, a2_address) = hosts[1].attached("a");
            hosts[1].apply(map_of(&hosts[1], &hosts, &[("a", a1_address)]));
            assert_eq!(hosts[1].network().mtu(), expected);
            assert!(
                a2.run("ip -o link show eth0")
                    .contains(&format!("mtu {expected} "))
            );
            // Clamped to the way: 40 bytes for heads, 12 for time stamps.
            let server = a2.listen(8080);
            let client = a1.connect(a2_address, 8080).unwrap();
            let segment =
                nix::sys::socket::getsockopt(&client, nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
            assert_eq!(segment, expected - 52);
            transfer(&client, &server);
            // A datagram that is too big is answered with what fits, and arrives when it is sent again.
            let receiver = a2.udp(a2_address, 9000);
            let sender = a1.udp(a1_address, 0);
            sender.connect((a2_address, 9000)).unwrap();
            let datagram = vec![7; expected as usize - 28 + 1];
            sender.send(&datagram).unwrap();
            let mut received = vec![0; 2000];
            while sender.send(&datagram).is_ok() {
                receiver
                    .set_read_timeout(Some(std::time::Duration::from_millis(20)))
                    .unwrap();
                if let Ok(length) = receiver.recv(&mut received) {
                    assert_eq!(length, datagram.len(), "in two pieces by then");
                    return;
                }
            }
            receiver.set_read_timeout(Some(PATIENCE)).unwrap();
            sender.send(&datagram[1..]).unwrap();
            assert_eq!(receiver.recv(&mut received).unwrap(), datagram.len() - 1);
        });
    }
}

#[test]
fn a_peer_that_changes_leaves_the_others_alone() {
    in_new_machine(|| async {
        let mut hosts = cluster(3);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let (a3, a3_address) = hosts[2].attached("a");
        let admitted = [("a", a1_address)];
        for host in &hosts[1..] {
            host.apply(map_of(host, &hosts, &admitted));
        }
        let (server2, server3) = (a2.listen(8080), a3.listen(8080));
        let mut to2 = a1.connect(a2_address, 8080).unwrap();
        let mut to3 = a1.connect(a3_address, 8080).unwrap();
        let (mut accepted2, mut accepted3) = (server2.accept().unwrap().0, server3.accept().unwrap().0);
        let events = Events::of(&hosts[0].machine);

        // Host 3 moves to another address.
        hosts[2].machine.run("ip addr del 10.0.0.3/24 dev up0");
        hosts[2].machine.run("ip addr add 10.0.0.33/24 dev up0");
        hosts[2].config.underlay.as_mut().unwrap().address = "10.0.0.33".parse().unwrap();
        let (leases, map) = (hosts[2].network().leases(), map_of(&hosts[2], &hosts, &admitted));
        hosts[2].open(leases, map);
        for index in 0..2 {
            let admitted: &[_] = if index == 1 { &admitted } else { &[] };
            hosts[index].apply(map_of(&hosts[index], &hosts, admitted));
        }
        for (client, accepted) in [(&mut to2, &mut accepted2), (&mut to3, &mut accepted3)] {
            client.write_all(b"ping").unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            accepted.read_exact(&mut [0; 4]).expect("open connections go on");
        }

        // Host 3 leaves: nobody sends anything there any more, and what it sends is not taken.
        let all = hosts.len();
        hosts[0].apply(map_of(&hosts[0], &hosts[..all - 1], &[]));
        let gone = a1.connect(a3_address, 8080).unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::HostUnreachable);
        to2.write_all(b"ping").unwrap();
        accepted2.read_exact(&mut [0; 4]).unwrap();

        let seen = events.stop(&hosts[0].machine);
        assert!(seen.contains("100.100.3."), "{seen}");
        assert!(!seen.contains("100.100.2."), "host 2 was not touched: {seen}");
    });
}

/// What the kernel says about routes and neighbours of a machine. It says so some time after the change, so a mark that
/// is put at either end tells when the listener is there and when it has heard everything.
struct Events {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Events {
    const BEGIN: &str = "198.51.100.1";
    const END: &str = "198.51.100.2";

    fn of(machine: &Job) -> Events {
        let mut process = machine.within(|| {
            std::process::Command::new("ip")
                .args(["monitor", "route", "neigh"])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        });
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let begun = std::time::Instant::now();
        loop {
            machine.run(&format!("ip route add {} dev up0", Events::BEGIN));
            machine.run(&format!("ip route del {} dev up0", Events::BEGIN));
            match lines.recv_timeout(std::time::Duration::from_millis(20)) {
                Ok(_) => return Events { process, lines },
                Err(_) => assert!(begun.elapsed() < PATIENCE, "ip monitor says nothing"),
            }
        }
    }

    fn stop(mut self, machine: &Job) -> String {
        machine.run(&format!("ip route add {} dev up0", Events::END));
        let mut seen = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("the end is heard");
            if line.starts_with(Events::END) {
                break;
            }
            seen = seen + &line + "\n";
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        seen
    }
}

#[test]
fn opening_again_with_the_last_map_keeps_connections_between_hosts() {
    in_new_machine(|| async {
        let mut hosts = cluster(2);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let map = map_of(&hosts[1], &hosts, &[("a", a1_address)]);
        hosts[1].apply(map.clone());
        let server = a2.listen(8080);
        let mut client = a1.connect(a2_address, 8080).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        let leases = hosts[1].network().leases();

        hosts[1].open(leases.clone(), map.clone());
        client.write_all(b"ping").unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        accepted.read_exact(&mut [0; 4]).unwrap();
        a1.connect(a2_address, 8080).expect("new ones too");

        // Taken away by something else.
        hosts[1].machine.run("ip link del t0.peers");
        hosts[1].machine.run("nft flush ruleset");
        assert!(hosts[1].block_on(|| hosts[1].network().repair()).unwrap());
        assert!(!hosts[1].block_on(|| hosts[1].network().repair()).unwrap());
        a1.connect(a2_address, 8080).unwrap();

        // Half of it: what is not as it should be is found.
        hosts[1]
            .machine
            .run("ip route replace 100.100.1.0/24 via 100.100.1.9 dev t0.peers onlink");
        hosts[1]
            .machine
            .run("ip route add 100.100.9.0/24 via 100.100.9.1 dev t0.peers onlink");
        hosts[1].open(leases, map);
        let routes = hosts[1].machine.run("ip route show dev t0.peers");
        assert_eq!(
            routes.trim(),
            "100.100.1.0/24 via 100.100.1.1 proto static src 100.100.2.1 onlink"
        );
        a1.connect(a2_address, 8080).unwrap();
    });
}

#[test]
fn teardown_leaves_a_host_of_a_cluster_as_it_was() {
    in_new_machine(|| async {
        let hosts = hosts(2, false);
        for host in &hosts {
            let config = host.config.clone();
            host.block_on(|| Network::teardown(&config)).unwrap();
        }
        let empty = hosts[0].machine.within(inventory);
        let config = hosts[0].config.clone();
        let network = hosts[0].block_on(|| Network::open(config.clone(), [], map_of(&hosts[0], &hosts, &[])));
        assert!(
            hosts[0]
                .machine
                .within(inventory)
                .contains("100.100.2.0/24 via 100.100.2.1")
        );
        drop(network.unwrap());
        hosts[0].block_on(|| Network::teardown(&config)).unwrap();
        assert_eq!(hosts[0].machine.within(inventory), empty);
        assert!(!empty.contains("t0"), "{empty}");
    });
}

#[test]
fn clusters_on_one_machine_have_numbers_of_their_own() {
    in_new_machine(|| async {
        let hosts = cluster(2);
        let mut other = config("t1", "100.101.1.0/24");
        other.underlay = Some(Underlay {
            encryption: Encryption::Off,
            ..Underlay::new("10.0.0.1".parse().unwrap(), "100.101.0.0/16".parse().unwrap())
        });
        let refused = hosts[0].block_on(|| Network::open(other.clone(), [], Map::default()));
        assert!(matches!(
            refused.err().unwrap(),
            overlay::Error::NetworkNumberInUse { vni: 1, .. }
        ));
        other.underlay.as_mut().unwrap().vni = 2;
        let second = hosts[0]
            .block_on(|| Network::open(other.clone(), [], Map::default()))
            .unwrap();
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        hosts[0].apply(map_of(&hosts[0], &hosts, &[("a", a2_address)]));
        let _server = a1.listen(8080);
        a2.connect(a1_address, 8080)
            .expect("the rules of the other cluster do not stand in the way");
        drop(second);
        hosts[0].block_on(|| Network::teardown(&other)).unwrap();
        a2.connect(a1_address, 8080).unwrap();
    });
}
