//! A job's other address: everything that holds for the first one, tried with the second.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, getsockopt, sendto, setsockopt,
    socket,
    sockopt::{Ipv6MulticastHops, TcpMaxSeg},
};
use overlay::{Encryption, HostPort, Network, Protocol};
use std::os::fd::AsRawFd;

use crate::hosts::*;
use crate::world::*;

const UPLINK6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// [`outside`], which has IPv6 as well.
fn outside6() -> Job {
    let outside = outside();
    run(&format!("ip addr add {UPLINK6}/64 dev up0 nodad"));
    outside.run(&format!("ip addr add {OUTSIDE6}/64 dev out0 nodad"));
    run(&format!("ip -6 route add default via {OUTSIDE6}"));
    outside
}

#[test]
fn jobs_reach_their_own_app_by_either_address_and_no_other() {
    in_new_machine(|| async {
        let network = open(&config("t0", "100.100.0.0/24")).await;
        network.allow("b", "a").await.unwrap();
        let (a1, a1_lease) = attached(&network, "a").await;
        let (a2, a2_lease) = attach(&network, "a", Job::start_in_user_namespace()).await;
        let (b1, b1_lease) = attach(&network, "b", Job::start_in_user_namespace()).await;
        let [a1_six, a2_six, b1_six] = [&a1_lease, &a2_lease, &b1_lease].map(|lease| six(lease.address));
        assert_eq!(
            a1.run("ip -o -6 addr show dev eth0")
                .split_whitespace()
                .nth(3)
                .unwrap(),
            format!("{a1_six}/128"),
            "in use at once, and the only one: none of the link's own"
        );
        let (a2_server, _a1_server, b1_server) = (a2.listen6(8080), a1.listen6(8080), b1.listen6(8080));

        let client = a1.connect(a2_six, 8080).unwrap();
        let (_, peer) = a2_server.accept().unwrap();
        assert_eq!(peer.ip(), a1_six);
        assert_eq!(client.peer_addr().unwrap().ip(), a2_six);
        assert!(a1.is_refused(b1_six, 8080) && a2.is_refused(b1_six, 8080));
        b1.connect(a2_six, 8080).expect("what links allow holds for both");

        let datagram = a1.udp(Ipv6Addr::UNSPECIFIED, 0);
        let receiver = b1.udp(b1_six, 9000);
        datagram.connect((b1_six, 9000)).unwrap();
        datagram.send(b"x").unwrap();
        // The kernel's word for "forbidden by an administrator" in IPv6.
        let refusal = datagram.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refusal.kind(), std::io::ErrorKind::PermissionDenied);
        drop(receiver);

        connect(b1_six, 8080).expect("the host reaches every job");
        let (_, peer) = b1_server.accept().unwrap();
        assert_eq!(peer.ip(), six(network.config().subnet.gateway()));

        // After a restart the links are found as they are.
        let leases = network.leases();
        drop(network);
        run("ip link del t0");
        let config = config("t0", "100.100.0.0/24");
        let network = Network::open(config, leases, overlay::Map::default())
            .await
            .unwrap();
        connect(b1_six, 8080).expect("before the jobs are looked at again");
        network.attach(a1.pid(), &a1_lease).await.unwrap();
        a1.connect(a2_six, 8080).unwrap();
    });
}

#[test]
fn of_the_host_a_job_reaches_the_router_only() {
    in_new_machine(|| async {
        let _outside = outside6();
        let mut config = config("t0", "100.100.0.0/24");
        config.discoverd_port = Some(1111);
        let network = open(&config).await;
        let gateway = config.gateway6().unwrap();
        let (job, lease) = attached(&network, "a").await;
        let _servers: Vec<TcpListener> = [53, 80, 1111, 22]
            .map(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
            .into();
        job.connect(gateway, 80).unwrap();
        for (address, port) in [
            (gateway, 22),
            (gateway, 53),
            (gateway, 1111),
            (UPLINK6, 22),
            (UPLINK6, 80),
        ] {
            assert!(job.is_refused(address, port), "[{address}]:{port}");
        }

        // The link's own addresses: not even with all of it set up by hand.
        let host_end = network.config().interface_name(lease.slot);
        let mac = |text: &str| {
            let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
            words.nth(1).unwrap().to_string()
        };
        run(&format!("ip -6 addr add fe80::1/64 dev {host_end} nodad"));
        job.run("ip -6 addr add fe80::2/64 dev eth0 nodad");
        let host_mac = mac(&run(&format!("ip -o link show {host_end}")));
        job.run(&format!("ip -6 neigh add fe80::1 lladdr {host_mac} dev eth0"));
        let receiver = UdpSocket::bind("[::]:9000").unwrap();
        receiver.set_nonblocking(true).unwrap();
        job.within(|| {
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            let scoped = |text: &str| SocketAddrV6::new(text.parse().unwrap(), 9000, 0, index);
            for (own, to) in [("fe80::2", "fe80::1"), ("fe80::2", "ff02::1"), ("::", "ff02::1")] {
                let socket = UdpSocket::bind(SocketAddrV6::new(own.parse().unwrap(), 0, 0, index)).unwrap();
                socket.send_to(b"x", scoped(to)).unwrap();
            }
        });
        // Packets of one link keep their order: when this one is answered, those were judged.
        assert!(job.is_refused(gateway, 22));
        let nothing = receiver.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(job.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    });
}

#[test]
fn a_forged_source_address_gets_nowhere() {
    in_new_machine(|| async {
        let mut config = config("t0", "100.100.0.0/24");
        config.host_ports = vec![HostPort {
            address: None,
            protocol: Protocol::Udp,
            port: 9000,
        }];
        let network = open(&config).await;
        let gateway = config.gateway6().unwrap();
        let (a1, a1_lease) = attached(&network, "a").await;
        let (_a2, a2_lease) = attached(&network, "a").await;
        let (b1, b1_lease) = attached(&network, "b").await;
        let (b2, b2_lease) = attached(&network, "b").await;
        let receivers = [udp(gateway, 9000), b2.udp(six(b2_lease.address), 9000)];
        for forged in [
            six(a2_lease.address),
            six(b1_lease.address),
            six(Ipv4Addr::new(100, 100, 0, 99)),
            gateway,
            OUTSIDE6,
        ] {
            a1.run(&format!("ip addr add {forged}/128 dev eth0 nodad"));
            for to in [gateway, six(b2_lease.address)] {
                let sender = a1.udp(forged, 0);
                // Of its own gateway's address it makes a packet to itself, which the kernel may refuse.
                let _ = sender.send_to(b"forged", (to, 9000));
            }
        }
        a1.run(&format!("ip addr del {gateway}/128 dev eth0"));
        for (job, own, to) in [
            (&a1, a1_lease.address, gateway),
            (&b1, b1_lease.address, six(b2_lease.address)),
        ] {
            job.udp(six(own), 0).send_to(b"honest", (to, 9000)).unwrap();
        }
        for (receiver, own) in receivers.iter().zip([a1_lease.address, b1_lease.address]) {
            let mut text = [0; 16];
            let (length, from) = receiver.recv_from(&mut text).unwrap();
            assert_eq!(
                (&text[..length], from.ip()),
                (&b"honest"[..], IpAddr::from(six(own)))
            );
        }
    });
}

#[test]
fn the_outside_sees_the_host_and_segments_that_fit_the_uplink() {
    in_new_machine(|| async {
        let outside = outside6();
        let mut config = config("t0", "100.100.0.0/24");
        config.blocked = vec!["203.0.113.0/24".parse().unwrap()];
        config.blocked6 = vec!["2001:db8:bad::/48".parse().unwrap()];
        let network = open(&config).await;
        let (job, lease) = attach(&network, "a", Job::start_in_user_namespace()).await;
        let server = outside.listen6(8080);

        let mut client = job.connect(OUTSIDE6, 8080).unwrap();
        let (mut accepted, peer) = server.accept().unwrap();
        assert_eq!(peer.ip(), UPLINK6);
        // 1400 less 60 for the heads and 12 for the time stamps.
        assert_eq!(getsockopt(&accepted, TcpMaxSeg).unwrap(), 1328);
        let sent = vec![7; 100_000];
        client.write_all(&sent).unwrap();
        let mut received = vec![0; sent.len()];
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(sent, received);

        for refused in [
            "2001:db8:bad::1",
            "fd00:ec2::254",
            "64:ff9b::cb00:7105",
            "fd12:3456:789a::808:808",
        ] {
            assert!(
                job.is_refused(refused.parse::<Ipv6Addr>().unwrap(), 80),
                "{refused}"
            );
        }
        assert!(
            job.is_refused(six(Ipv4Addr::new(100, 100, 0, 200)), 80),
            "an address without a job is not sent out"
        );

        // The other way round there is no way, even for one who knows the route.
        outside.run(&format!(
            "ip -6 route add {}/120 via {UPLINK6}",
            six(config.subnet.base())
        ));
        let _server = job.listen6(8080);
        assert!(outside.is_refused(six(lease.address), 8080));
        let _gateway_server = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap();
        assert!(outside.is_refused(config.gateway6().unwrap(), 80));
    });
}

#[test]
fn without_a_route_to_the_outside_every_connection_is_refused_at_once() {
    in_new_machine(|| async {
        let _outside = outside();
        let network = open(&config("t0", "100.100.0.0/24")).await;
        let (job, _) = attached(&network, "a").await;
        // More than the kernel would send messages of its own for.
        for _ in 0..50 {
            assert!(job.is_refused(OUTSIDE6, 443));
        }
    });
}

/// What a router on the link says: that it is one, for half an hour.
fn advertise(router: &Job) {
    router.within(|| {
        let raw = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::IcmpV6,
        )
        .unwrap();
        // Others are not believed, as they could be from elsewhere.
        setsockopt(&raw, Ipv6MulticastHops, &255).unwrap();
        let index = nix::net::if_::if_nametoindex("out0").unwrap();
        let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        let mut advertisement = [0; 16];
        advertisement[0] = 134;
        advertisement[6..8].copy_from_slice(&1800u16.to_be_bytes());
        sendto(
            raw.as_raw_fd(),
            &advertisement,
            &SockaddrIn6::from(all_nodes),
            MsgFlags::empty(),
        )
        .unwrap();
    });
}

#[test]
fn the_machines_own_ipv6_stays_as_it_was() {
    in_new_machine(|| async {
        let router = outside();
        let setting = |path: &str| {
            run(&format!("cat /proc/sys/net/ipv6/conf/{path}"))
                .trim()
                .to_owned()
        };
        let settings = || {
            ["up0", "lo", "default"]
                .map(|name| ["forwarding", "accept_ra"].map(|which| setting(&format!("{name}/{which}"))))
        };
        let learned = || run("ip -6 route show default proto ra");
        let deadline = std::time::Instant::now() + PATIENCE;
        router.run("ip -6 addr add fe80::99/64 dev out0 nodad");
        while learned().is_empty() {
            assert!(std::time::Instant::now() < deadline, "the router is not believed");
            advertise(&router);
        }
        let before = settings();
        let config = config("t0", "100.100.0.0/24");
        let network = open(&config).await;
        assert_eq!(setting("all/forwarding"), "1");
        assert_eq!(settings(), before);
        assert!(learned().contains("dev up0"), "{}", learned());
        assert!(network.diagnose().await.unwrap().is_empty());
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        assert_eq!(network.diagnose().await.unwrap().len(), 1);
        assert!(network.repair().await.unwrap());
        drop(network);

        // Switched off while it is there, what it had is taken back.
        let without = overlay::Config {
            ipv6: None,
            ..config.clone()
        };
        let network = open(&without).await;
        assert_eq!(setting("all/forwarding"), "0");
        assert!(!inventory().contains("fd12"), "{}", inventory());
        drop(network);
        let network = open(&config).await;
        drop(network);
        Network::teardown(&without).await.unwrap();
        assert_eq!(setting("all/forwarding"), "0");
        assert_eq!(settings(), before);
        assert!(learned().contains("dev up0"), "{}", learned());
        assert!(!inventory().contains("fd12"), "{}", inventory());
    });
}

#[test]
fn where_the_kernel_has_none_everything_else_works() {
    for how in ["off", "links too small"] {
        in_new_machine(|| async move {
            let mut config = config("t0", "100.100.0.0/24");
            match how {
                "off" => std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap(),
                _ => config.mtu = Some(1000),
            }
            let before = inventory();
            let network = open(&config).await;
            assert_eq!(network.config().ipv6, None);
            let (a1, _) = attached(&network, "a").await;
            let (a2, a2_lease) = attached(&network, "a").await;
            let _server = a2.listen(8080);
            a1.connect(a2_lease.address, 8080).unwrap();
            drop((a1, a2));
            Network::teardown(&config).await.unwrap();
            assert_eq!(inventory(), before);
        });
    }
}

#[test]
fn between_hosts_the_same_holds_by_either_address() {
    in_new_machine(|| async {
        let hosts = cluster(3);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let (b2, b2_address) = hosts[1].attached("b");
        let (server, _other) = (a2.listen6(8080), b2.listen6(8080));
        assert!(
            a1.is_refused(six(a2_address), 8080),
            "nobody has said that it may"
        );
        hosts[1].apply(map_of(&hosts[1], &hosts, &[("a", a1_address)]));
        let client = a1.connect(six(a2_address), 8080).unwrap();
        assert_eq!(transfer(&client, &server), six(a1_address));
        assert!(a1.is_refused(six(b2_address), 8080));
        let client = hosts[0].machine.connect(six(a2_address), 8080).unwrap();
        assert_eq!(
            transfer(&client, &server),
            six(hosts[0].config.subnet.gateway()),
            "the router, say"
        );
        let _service = hosts[1].machine.listen6(22);
        assert!(a1.is_refused(six(hosts[1].config.subnet.gateway()), 22));

        hosts[1].apply(map_of(&hosts[1], &hosts, &[]));
        assert!(a1.is_refused(six(a2_address), 8080), "taken back");
        hosts[0].apply(map_of(&hosts[0], &hosts[..1], &[]));
        assert!(a1.is_refused(six(a2_address), 8080), "no way leads there");
        assert_eq!(hosts[0].machine.run("ip -6 route show dev t0.peers"), "");
    });
}

#[test]
fn forged_packets_from_other_hosts_do_not_arrive() {
    in_new_machine(|| async {
        let hosts = cluster(3);
        let (a1, a1_address) = hosts[0].attached("a");
        let (a2, a2_address) = hosts[1].attached("a");
        let forger = &hosts[2];
        let (a3, a3_address) = forger.attached("a");
        let admitted = [("a", a1_address), ("a", a3_address)];
        hosts[1].apply(map_of(&hosts[1], &hosts, &admitted));
        let receiver = a2.udp(six(a2_address), 9000);
        let honest = |job: &Job, address: Ipv4Addr| {
            job.udp(six(address), 0)
                .send_to(b"honest", (six(a2_address), 9000))
                .unwrap();
            let mut text = [0; 16];
            let (length, from) = receiver.recv_from(&mut text).unwrap();
            assert_eq!(
                (&text[..length], from.ip()),
                (&b"honest"[..], six(address).into())
            );
        };
        // A host as another host, as one of its jobs, as what ends in the address of a job of its own.
        let own_end = Ipv6Addr::from_bits(0xfd99 << 112 | u128::from(a3_address.to_bits()));
        for forged in [six(hosts[0].config.subnet.gateway()), six(a1_address), own_end] {
            forger
                .machine
                .run(&format!("ip addr add {forged}/128 dev lo nodad"));
            forger
                .machine
                .udp(forged, 0)
                .send_to(b"forged", (six(a2_address), 9000))
                .unwrap();
        }
        honest(&a3, a3_address);

        // A machine that is no host.
        let stranger = Host::new(9, false, Encryption::Off);
        stranger.apply(map_of(&stranger, &hosts, &[]));
        stranger
            .machine
            .run(&format!("ip addr add {}/128 dev lo nodad", six(a1_address)));
        stranger
            .machine
            .udp(six(a1_address), 0)
            .send_to(b"forged", (six(a2_address), 9000))
            .unwrap();
        honest(&a1, a1_address);
    });
}
