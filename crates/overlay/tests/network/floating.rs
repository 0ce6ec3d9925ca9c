//! An address that moves between two hosts on one link, as a third one sees it.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use overlay::floating::{self, FloatingAddress};

use crate::world::*;

const LEASE: Duration = Duration::from_secs(60);

/// Hosts 1 to `count` on one link, at 10.0.0.N and fd00::N, with 02:00:00:00:00:0N.
fn hosts(count: u8) -> Vec<Job> {
    run("ip link add switch type bridge");
    run("ip link set switch up");
    let host = |number: u8| {
        let host = Job::start();
        let port = format!("port{number}");
        run(&format!(
            "ip link add {port} type veth peer name up0 address {} netns {}",
            mac(number),
            host.pid()
        ));
        run(&format!("ip link set {port} master switch up"));
        host.run("ip link set lo up");
        host.run(&format!("ip addr add 10.0.0.{number}/24 dev up0"));
        host.run(&format!("ip addr add fd00::{number}/64 dev up0 nodad"));
        host.run("ip link set up0 up");
        host
    };
    (1..=count).map(host).collect()
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// Waits until `client` sends what is for `address` to the host of that number.
fn follows(client: &Job, address: IpAddr, number: u8) {
    let (show, expected) = (format!("ip neigh show {address} dev up0"), mac(number));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let neighbour = client.run(&show);
        if neighbour.contains(&expected) {
            return;
        }
        assert!(Instant::now() < deadline, "{neighbour} is not {expected}");
        std::thread::yield_now();
    }
}

/// Has the client look for the address.
fn ask(client: &Job, address: IpAddr) {
    let answer = client.within(|| TcpStream::connect_timeout(&(address, 9).into(), PATIENCE));
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

async fn moves(address: &str) {
    let hosts = hosts(3);
    let floating: FloatingAddress = address.parse().unwrap();
    let hold = |host: &Job| host.within(|| floating::hold(floating, "up0", LEASE)).unwrap();
    assert!(hold(&hosts[0]), "it did not have it before");
    assert!(!hold(&hosts[0]), "it has it already");
    ask(&hosts[2], floating.address);
    follows(&hosts[2], floating.address, 1);

    // The first host is cut off, not asked. The client knows its address and asks nobody for another.
    run("ip link set port1 down");
    assert!(hold(&hosts[1]));
    follows(&hosts[2], floating.address, 2);
    ask(&hosts[2], floating.address);

    assert!(hosts[1].within(|| floating::release(floating.address)).unwrap());
    assert!(!hosts[1].within(|| floating::release(floating.address)).unwrap());
    let own: IpAddr = "10.0.0.2".parse().unwrap();
    let interface = hosts[1].within(|| floating::interface_of(own)).unwrap();
    assert_eq!(
        interface.as_deref(),
        Some("up0"),
        "its own address is still there"
    );
    let found = |text: &str| {
        let floating = text.parse().unwrap();
        hosts[1].within(|| floating::interface_for(floating)).unwrap()
    };
    assert_eq!(found(address).as_deref(), Some("up0"), "found by the network");
    assert_eq!(found("10.0.1.100/24"), None, "of no network that the host has");
}

#[test]
fn an_address_moves_and_neighbours_follow() {
    in_new_machine(|| moves("10.0.0.100/24"));
}

#[test]
fn an_ipv6_address_moves_and_neighbours_follow() {
    in_new_machine(|| moves("fd00::100/64"));
}

#[test]
fn an_address_that_nobody_renews_goes_by_itself() {
    in_new_machine(|| async {
        let hosts = hosts(1);
        let floating: FloatingAddress = "10.0.0.100/24".parse().unwrap();
        let hold = |seconds| {
            let lease = Duration::from_secs(seconds);
            hosts[0]
                .within(|| floating::hold(floating, "up0", lease))
                .unwrap()
        };
        hold(60);
        hold(1);
        let is_there = || {
            hosts[0]
                .within(|| floating::interface_of(floating.address))
                .unwrap()
                .is_some()
        };
        let deadline = Instant::now() + PATIENCE;
        while is_there() {
            assert!(Instant::now() < deadline, "the kernel keeps it");
            std::thread::yield_now();
        }
    });
}
