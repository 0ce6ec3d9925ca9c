//! Hosts whose traffic is encrypted in user space: what the jobs notice of it (nothing), and what a listener does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Instant;

use overlay::tunnel::{self, Key};
use overlay::{Encryption, Map};

use crate::hosts::*;
use crate::world::*;

struct Encrypting {
    host: Host,
    key: Key,
    files: tempfile::TempDir,
}

fn hosts(count: u8, is_ipv6: bool) -> Vec<Encrypting> {
    run("ip link add switch type bridge");
    run("ip link set switch up");
    // What a listener on the switch can tell apart.
    run("nft add table bridge listener");
    run("nft add chain bridge listener seen { type filter hook forward priority 0 ; }");
    run("nft add rule bridge listener seen ip saddr 100.100.0.0/16 counter comment clear");
    run("nft add rule bridge listener seen ip6 saddr fd12:3456:789a::/96 counter comment clear6");
    run("nft add rule bridge listener seen udp dport 4789 counter comment vxlan");
    run("nft add rule bridge listener seen udp dport 51820 counter comment encrypted");
    (1..=count)
        .map(|number| Encrypting {
            host: Host::new(number, is_ipv6, Encryption::Userspace),
            key: Key::generate(),
            files: tempfile::tempdir().unwrap(),
        })
        .collect()
}

/// Packets that the listener saw.
fn seen(kind: &str) -> u64 {
    let text = run("nft list table bridge listener");
    let line = text
        .lines()
        .find(|line| line.contains(&format!("comment \"{kind}\"")))
        .unwrap();
    let mut words = line.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

impl Encrypting {
    fn map(&self, hosts: &[Encrypting], admitted: &[(&str, Ipv4Addr)]) -> Map {
        let mut map = map_of(&self.host, &[], admitted);
        for other in hosts.iter().filter(|other| other.host.name() != self.host.name()) {
            let mut peer = other.host.peer();
            peer.public_key = Some(other.key.public());
            map.hosts.insert(other.host.name(), peer);
        }
        map
    }

    fn path(&self) -> PathBuf {
        self.files.path().join("network.json")
    }

    /// As the daemon does it.
    fn apply(&self, map: Map) {
        let new = self.files.path().join("new");
        std::fs::write(&new, serde_json::to_vec(&map).unwrap()).unwrap();
        std::fs::rename(new, self.path()).unwrap();
        self.host.apply(map);
    }

    fn start_tunnel(&self) {
        let settings = tunnel::Settings {
            network: self.host.config.clone(),
            key: self.key.clone(),
            map: self.path(),
        };
        let begin = Instant::now();
        self.host.machine.within(|| {
            assert!(tunnel::is_ready(&self.host.config));
            std::thread::spawn(move || tunnel::run(settings))
        });
        while self
            .host
            .machine
            .run("ip -o link show t0.peers")
            .contains("NO-CARRIER")
        {
            assert!(begin.elapsed() < PATIENCE, "nobody has taken the interface");
            std::thread::yield_now();
        }
    }
}

fn ping(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn jobs_reach_each_other_by_the_tunnel_and_a_listener_sees_nothing_of_it() {
    for (is_ipv6, segment) in [(false, 1400 - 60 - 52), (true, 1400 - 80 - 52)] {
        in_new_machine(|| async move {
            let hosts = hosts(2, is_ipv6);
            let (a1, a1_address) = hosts[0].host.attached("a");
            let (a2, a2_address) = hosts[1].host.attached("a");
            let (b2, b2_address) = hosts[1].host.attached("b");
            hosts[0].apply(hosts[0].map(&hosts, &[("a", a2_address)]));
            hosts[1].apply(hosts[1].map(&hosts, &[("a", a1_address)]));
            let (server, _other) = (a2.listen(8080), b2.listen(8080));
            // No tunnel yet: what is sent is lost rather than seen.
            let sender = a1.udp(a1_address, 0);
            for _ in 0..10 {
                let _ = sender.send_to(b"in the clear?", (a2_address, 9000));
            }
            let _ = hosts[0]
                .host
                .machine
                .udp(Ipv4Addr::UNSPECIFIED, 0)
                .send_to(b"x", (a2_address, 9000));

            for host in &hosts {
                host.start_tunnel();
            }
            let client = a1.connect(a2_address, 8080).unwrap();
            let size = nix::sys::socket::getsockopt(&client, nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
            assert_eq!(size, segment);
            assert_eq!(transfer(&client, &server), a1_address);
            assert!(a1.is_refused(b2_address, 8080), "the same rules hold");
            let client = hosts[0].host.machine.connect(a2_address, 8080).unwrap();
            assert_eq!(transfer(&client, &server), hosts[0].host.config.subnet.gateway());
            let client = a2.connect(a1_address, 8080);
            assert!(client.is_err(), "nobody listens there");

            // All of it by IPv6.
            let (server6, _other6) = (a2.listen6(8081), b2.listen6(8081));
            let client = a1.connect(six(a2_address), 8081).unwrap();
            assert_eq!(transfer(&client, &server6), six(a1_address));
            assert!(a1.is_refused(six(b2_address), 8081), "the same rules hold");
            let client = hosts[0].host.machine.connect(six(a2_address), 8081).unwrap();
            let gateway = six(hosts[0].host.config.subnet.gateway());
            assert_eq!(transfer(&client, &server6), gateway);

            assert_eq!((seen("clear"), seen("clear6"), seen("vxlan")), (0, 0, 0));
            assert!(seen("encrypted") > 100, "{}", seen("encrypted"));
        });
    }
}

#[test]
fn peers_come_go_and_move_while_connections_go_on() {
    in_new_machine(|| async {
        let mut hosts = hosts(3, false);
        let (a1, a1_address) = hosts[0].host.attached("a");
        let (a2, a2_address) = hosts[1].host.attached("a");
        let (a3, a3_address) = hosts[2].host.attached("a");
        let admitted = [("a", a1_address)];
        // Host 3 is not known yet.
        let known = |host: &Encrypting, hosts: &[Encrypting], admitted: &[(&str, Ipv4Addr)]| {
            host.apply(host.map(hosts, admitted));
        };
        known(&hosts[0], &hosts[..2], &[]);
        known(&hosts[1], &hosts[..2], &admitted);
        known(&hosts[2], &hosts, &admitted);
        for host in &hosts {
            host.start_tunnel();
        }
        let (server2, server3) = (a2.listen(8080), a3.listen(8080));
        let mut to2 = a1.connect(a2_address, 8080).unwrap();
        let mut accepted2 = server2.accept().unwrap().0;
        let unknown = a1.connect(a3_address, 8080).unwrap_err();
        assert_eq!(unknown.kind(), std::io::ErrorKind::HostUnreachable);

        // It comes.
        known(&hosts[0], &hosts, &[]);
        let deadline = Instant::now() + PATIENCE;
        let mut to3 = loop {
            // Until the tunnel has looked at the map, packets for it are lost.
            match a1.connect(a3_address, 8080) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let mut accepted3 = server3.accept().unwrap().0;
        ping(&mut to3, &mut accepted3);
        ping(&mut to2, &mut accepted2);

        // The daemon of host 2 starts anew; its tunnel goes on.
        let (leases, map) = (hosts[1].host.network().leases(), hosts[1].map(&hosts, &admitted));
        hosts[1].host.open(leases, map);
        ping(&mut to2, &mut accepted2);

        // Host 3 goes, and what it sends is not taken any more.
        known(&hosts[0], &hosts[..2], &[]);
        let gone = a1.connect(a3_address, 8080).unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::HostUnreachable);
        ping(&mut to2, &mut accepted2);
    });
}

#[test]
fn an_interface_of_the_other_kind_is_replaced() {
    in_new_machine(|| async {
        let mut hosts = hosts(1, false);
        let host = &mut hosts[0].host;
        let kind = |host: &Host| {
            let text = host.machine.run("ip -d -o link show t0.peers");
            ["vxlan", "tun "]
                .into_iter()
                .find(|kind| text.contains(kind))
                .map(str::to_owned)
        };
        assert_eq!(kind(host).as_deref(), Some("tun "));
        host.config.underlay.as_mut().unwrap().encryption = Encryption::Off;
        host.open(vec![], Map::default());
        assert_eq!(kind(host).as_deref(), Some("vxlan"));
        let config = host.config.clone();
        host.block_on(|| overlay::Network::teardown(&config)).unwrap();
        host.config.underlay.as_mut().unwrap().encryption = Encryption::Auto;
        host.open(vec![], Map::default());
        let config = host.config.clone();
        host.block_on(|| overlay::Network::teardown(&config)).unwrap();
        assert!(!host.machine.run("ip -o link").contains("t0"));
    });
}
