//! Who may talk to whom, tried with real packets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Instant;

use crate::world::*;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, socket, sockopt::TcpMaxSeg,
};
use overlay::{HostPort, Protocol};

#[test]
fn jobs_reach_their_own_app_and_no_other() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (a1, _) = attached(&network, "a").await;
        let (a2, a2_lease) = attach(&network, "a", Job::start_in_user_namespace()).await;
        let (b1, b1_lease) = attach(&network, "b", Job::start_in_user_namespace()).await;
        let (a2_server, b1_server) = (a2.listen(8080), b1.listen(8080));

        let client = a1.connect(a2_lease.address, 8080).unwrap();
        let (_, peer) = a2_server.accept().unwrap();
        assert_eq!(
            peer,
            client.local_addr().unwrap(),
            "a job sees another one's own address"
        );

        assert!(a1.is_refused(b1_lease.address, 8080));
        assert!(a2.is_refused(b1_lease.address, 8080));
        assert!(b1.is_refused(a2_lease.address, 8080));
        let datagram = a1.udp(Ipv4Addr::UNSPECIFIED, 0);
        let receiver = b1.udp(b1_lease.address, 9000);
        datagram.connect((b1_lease.address, 9000)).unwrap();
        datagram.send(b"x").unwrap();
        let refusal = datagram.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refusal.kind(), std::io::ErrorKind::HostUnreachable);

        connect(b1_lease.address, 8080).expect("the host reaches every job");
        let (_, peer) = b1_server.accept().unwrap();
        assert_eq!(
            peer.ip(),
            Ipv4Addr::new(100, 100, 0, 1),
            "and shows the gateway's address"
        );
        drop(receiver);
    });
}

#[test]
fn an_allowed_link_opens_one_way_until_it_is_taken_back() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        network.allow("web", "database").await.unwrap();
        let (web, web_lease) = attached(&network, "web").await;
        let (database, database_lease) = attached(&network, "database").await;
        let (server, _web_server) = (database.listen(5432), web.listen(8080));

        let mut client = web.connect(database_lease.address, 5432).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        assert!(database.is_refused(web_lease.address, 8080));

        network.disallow("web", "database").await.unwrap();
        assert!(web.is_refused(database_lease.address, 5432));
        client.write_all(b"still open").unwrap();
        let mut text = [0; 10];
        accepted.read_exact(&mut text).unwrap();
    });
}

#[test]
fn of_the_host_a_job_reaches_the_open_ports_of_the_gateway_only() {
    in_new_machine(|| async {
        let _outside = outside();
        let mut config = config("t0", "100.100.0.0/24");
        config.discoverd_port = Some(1111);
        config.host_ports = vec![HostPort {
            address: Some(UPLINK),
            protocol: Protocol::Tcp,
            port: 8443,
        }];
        let network = open(&config).await;
        assert_eq!(
            network.mtu(),
            1400,
            "that of the interface with the default route"
        );
        let gateway = config.subnet.gateway();
        let (job, lease) = attach(&network, "a", Job::start_in_user_namespace()).await;
        let _servers: Vec<TcpListener> = [53, 80, 1111, 22, 8443]
            .map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
            .into_iter()
            .collect();

        for port in [53, 80, 1111] {
            job.connect(gateway, port)
                .unwrap_or_else(|error| panic!("port {port}: {error}"));
        }
        job.connect(UPLINK, 8443).unwrap();
        for (address, port) in [
            (gateway, 22),
            (gateway, 8443),
            (UPLINK, 22),
            (UPLINK, 80),
            (UPLINK, 53),
        ] {
            assert!(job.is_refused(address, port), "{address}:{port}");
        }
        let name_server = udp(gateway, 53);
        let client = job.udp(lease.address, 0);
        client.send_to(b"question", (gateway, 53)).unwrap();
        let (_, from) = name_server.recv_from(&mut [0; 16]).unwrap();
        name_server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv_from(&mut [0; 16]).unwrap().0, 6);
    });
}

#[test]
fn a_forged_source_address_gets_nowhere() {
    in_new_machine(|| async {
        let config = config("t0", "100.100.0.0/24");
        let network = open(&config).await;
        let (a1, a1_lease) = attached(&network, "a").await;
        let (_a2, a2_lease) = attached(&network, "a").await;
        let (b1, b1_lease) = attached(&network, "b").await;
        let (b2, b2_lease) = attached(&network, "b").await;

        // As another job, as nobody's address of the subnet, as the outside, as the host: then as itself. Packets of
        // one link keep their order, so the first that arrives must be the honest one.
        let receiver = udp(config.subnet.gateway(), 53);
        for forged in [
            a2_lease.address,
            b1_lease.address,
            Ipv4Addr::new(100, 100, 0, 99),
            OUTSIDE,
        ] {
            a1.run(&format!("ip addr add {forged}/32 dev eth0"));
            a1.udp(forged, 0)
                .send_to(b"forged", (config.subnet.gateway(), 53))
                .unwrap();
        }
        a1.udp(a1_lease.address, 0)
            .send_to(b"honest", (config.subnet.gateway(), 53))
            .unwrap();
        let mut text = [0; 16];
        let (length, from) = receiver.recv_from(&mut text).unwrap();
        assert_eq!(
            (&text[..length], from.ip()),
            (&b"honest"[..], a1_lease.address.into())
        );

        // And towards a job of the app whose address was forged.
        let receiver = b2.udp(b2_lease.address, 9000);
        a1.udp(b1_lease.address, 0)
            .send_to(b"forged", (b2_lease.address, 9000))
            .unwrap();
        b1.udp(b1_lease.address, 0)
            .send_to(b"honest", (b2_lease.address, 9000))
            .unwrap();
        let (length, _) = receiver.recv_from(&mut text).unwrap();
        assert_eq!(&text[..length], b"honest");
    });
}

#[test]
fn the_outside_sees_the_host_and_segments_that_fit_the_uplink() {
    in_new_machine(|| async {
        let outside = outside();
        let mut config = config("t0", "100.100.0.0/24");
        config.mtu = Some(1500);
        config.blocked = vec!["203.0.113.0/24".parse().unwrap()];
        let network = open(&config).await;
        let (job, lease) = attach(&network, "a", Job::start_in_user_namespace()).await;
        let server = outside.listen(8080);

        let mut client = job.connect(OUTSIDE, 8080).unwrap();
        let (mut accepted, peer) = server.accept().unwrap();
        assert_eq!(peer.ip(), UPLINK);
        // 1400 less 40 for the heads and 12 for the time stamps, where 1448 would be without the clamp.
        assert_eq!(getsockopt(&accepted, TcpMaxSeg).unwrap(), 1348);
        assert_eq!(getsockopt(&client, TcpMaxSeg).unwrap(), 1348, "the way back");
        let sent = vec![7; 100_000];
        client.write_all(&sent).unwrap();
        let mut received = vec![0; sent.len()];
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(sent, received);

        // What has the machine's credentials, and what was configured, is refused and not sent out.
        assert!(job.is_refused(Ipv4Addr::new(169, 254, 169, 254), 80));
        assert!(job.is_refused(Ipv4Addr::new(203, 0, 113, 5), 80));
        let nobody = job.connect(Ipv4Addr::new(100, 100, 0, 200), 80).unwrap_err();
        assert_eq!(
            nobody.kind(),
            std::io::ErrorKind::HostUnreachable,
            "an address without a job is not sent out"
        );

        // The other way round there is no way, even for one who knows the route.
        outside.run(&format!("ip route add {} via {UPLINK}", config.subnet));
        let _server = job.listen(8080);
        assert!(outside.is_refused(lease.address, 8080));
        connect(lease.address, 8080).unwrap();
        let _gateway_server = TcpListener::bind((config.subnet.gateway(), 80)).unwrap();
        assert!(outside.is_refused(config.subnet.gateway(), 80));
    });
}

#[test]
fn a_job_can_fill_its_own_share_of_connections_only() {
    in_new_machine(|| async {
        let outside = outside();
        let server = outside.listen(8080);
        let mut config = config("t0", "100.100.0.0/24");
        config.connections_per_job_max = 3;
        let network = open(&config).await;
        let (greedy, greedy_lease) = attached(&network, "a").await;
        let (other, _) = attached(&network, "a").await;
        let mut held: Vec<_> = (0..3).map(|_| greedy.connect(OUTSIDE, 8080).unwrap()).collect();
        assert!(greedy.is_refused(OUTSIDE, 8080));
        assert!(greedy.is_refused(config.subnet.gateway(), 80));
        other.connect(OUTSIDE, 8080).unwrap();
        let _own_server = greedy.listen(8080);
        connect(greedy_lease.address, 8080).expect("what comes in does not count");
        // Ended for good: both sides have closed.
        held.pop();
        held.pop();
        for _ in 0..3 {
            let (mut accepted, _) = server.accept().unwrap();
            if held
                .iter()
                .all(|kept| kept.local_addr().unwrap().port() != accepted.peer_addr().unwrap().port())
            {
                assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
            } else {
                held.push(accepted);
            }
        }
        // The kernel looks for ended ones at most once a tick.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = greedy.connect(OUTSIDE, 8080) {
            assert!(Instant::now() < deadline, "{error}");
        }
    });
}

#[test]
fn a_job_without_privileges_may_listen_on_port_80_and_ping() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (job, _) = attach(&network, "a", Job::start_in_user_namespace()).await;
        assert_eq!(
            job.run("cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
                .trim(),
            "0"
        );
        let range = job.run("cat /proc/sys/net/ipv4/ping_group_range");
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
        assert!(
            run("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").trim() != "0",
            "the host's is left alone"
        );

        let echo = job.within(|| {
            let socket = socket(
                AddressFamily::Inet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Icmp,
            )
            .unwrap();
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // Echo request; the kernel fills in identifier and checksum.
            socket
                .send_to(&[8, 0, 0, 0, 0, 0, 0, 1], (network.config().subnet.gateway(), 0))
                .unwrap();
            let mut reply = [0; 64];
            socket.recv(&mut reply).unwrap();
            reply[0]
        });
        assert_eq!(echo, 0, "the gateway answers with an echo reply");
    });
}

#[test]
fn ipv6_is_no_way_around_the_rules() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (job, lease) = attached(&network, "a").await;
        let host_end = network.config().interface_name(lease.slot);
        assert_eq!(
            run(&format!("ip -6 addr show dev {host_end}")),
            "",
            "the host's end has no address by itself"
        );
        run(&format!("ip -6 addr add fd00::1/64 dev {host_end} nodad"));
        job.run("ip -6 addr add fd00::2/64 dev eth0 nodad");
        let receiver = std::net::UdpSocket::bind("[::]:9000").unwrap();
        receiver.set_nonblocking(true).unwrap();
        // Static neighbours: else nothing would be sent at all, for the question who has fd00::1 is dropped as well.
        let mac = |text: &str| {
            text.split_whitespace()
                .skip_while(|w| *w != "link/ether")
                .nth(1)
                .unwrap()
                .to_string()
        };
        let host_mac = mac(&run(&format!("ip -o link show dev {host_end}")));
        job.run(&format!("ip -6 neigh add fd00::1 lladdr {host_mac} dev eth0"));
        job.within(|| {
            let socket = std::net::UdpSocket::bind("[fd00::2]:0").unwrap();
            socket.send_to(b"x", "[fd00::1]:9000").unwrap();
        });
        // A round trip by IPv4 on the same link, after which the packet above has been judged.
        assert!(job.is_refused(network.config().subnet.gateway(), 9001));
        assert_eq!(
            receiver.recv(&mut [0; 8]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    });
}

#[test]
fn the_recorded_ruleset_is_one_that_nft_takes() {
    in_new_machine(|| async {
        run(&format!(
            "nft -f {}/tests/ruleset.nft",
            env!("CARGO_MANIFEST_DIR")
        ));
        run(&format!(
            "nft -f {}/tests/ruleset.nft",
            env!("CARGO_MANIFEST_DIR")
        ));
    });
}
