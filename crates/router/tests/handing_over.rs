//! One router takes another's place on the same sockets.

mod common;

use common::*;
use router::{Config, Kind, Sockets, Timeouts};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// As the process does that serves: over a channel.
fn received_from(sockets: &Sockets) -> Sockets {
    let (one, other) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockets.send(&one).unwrap();
    Sockets::receive(&other).unwrap()
}

/// Requests on kept connections until told to stop; each has to be answered.
async fn load(addr: SocketAddr, answers: Arc<AtomicUsize>, is_over: Arc<AtomicBool>) {
    let mut client = Client::connect(addr).await;
    while !is_over.load(Ordering::Relaxed) {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text()), (200, "hi"));
        answers.fetch_add(1, Ordering::Relaxed);
        if answer.header("connection") == Some("close") {
            client = Client::connect(addr).await;
        }
    }
}

async fn reached(answers: &AtomicUsize, count: usize) {
    let wait = async {
        while answers.load(Ordering::Relaxed) < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("answers in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_one_router_takes_the_place_of_another() {
    let backend = saying("hi").await;
    let keeper = Sockets::open(&config()).unwrap();
    let addr = keeper.addresses(Kind::Http)[0];
    let mut serving = World::start_on(received_from(&keeper), config()).await;
    let routes = || vec![route("shop.test", "/", "shop-web")];
    serving.set(routes(), vec![service("shop-web", &[backend])]).await;

    let (answers, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| tokio::spawn(load(addr, answers.clone(), is_over.clone())))
        .collect();
    for _ in 0..3 {
        reached(&answers, answers.load(Ordering::Relaxed) + 200).await;
        let mut next = World::start_on(received_from(&keeper), config()).await;
        next.set(routes(), vec![service("shop-web", &[backend])]).await;
        serving.running.stop().await.unwrap();
        serving = next;
    }
    reached(&answers, answers.load(Ordering::Relaxed) + 200).await;
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    serving.running.stop().await.unwrap();
}

#[tokio::test]
async fn who_waits_on_a_kept_connection_is_answered_and_told_that_it_was_the_last() {
    let config = Config {
        timeouts: Timeouts {
            drain_idle: PATIENCE,
            ..config().timeouts
        },
        ..config()
    };
    let world = World::shop(config, &[saying("hi").await]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.header("connection"), None);
    let (running, addr) = world.without_feed();
    let stopping = tokio::spawn(running.stop());
    // The socket is closed when stopping has begun.
    let refused = async { while tokio::net::TcpStream::connect(addr).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("it stops to listen");
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    tokio::time::timeout(Duration::from_secs(5), stopping)
        .await
        .expect("it stops when the last has gone")
        .unwrap()
        .unwrap();
}

#[test]
fn addresses_that_the_configuration_lacks_are_closed_and_new_ones_opened() {
    let one: SocketAddr = ([127, 0, 0, 1], 0).into();
    let other: SocketAddr = ([127, 0, 0, 2], 0).into();
    let listening_on = |http: Vec<SocketAddr>, https: Vec<SocketAddr>| Config {
        http_listen: http,
        https_listen: https,
        ..config()
    };
    let mut sockets = Sockets::open(&listening_on(vec![one], vec![])).unwrap();
    let kept = sockets.addresses(Kind::Http);
    sockets
        .change(&listening_on(vec![one, other], vec![one]))
        .unwrap();
    assert_eq!(sockets.addresses(Kind::Http)[0], kept[0]);
    assert_eq!(sockets.addresses(Kind::Https).len(), 1);
    let taken = std::net::TcpListener::bind(one).unwrap();
    let impossible = listening_on(vec![taken.local_addr().unwrap()], vec![]);
    assert!(sockets.change(&impossible).is_err());
    assert_eq!(
        sockets.addresses(Kind::Http).len(),
        2,
        "after an error all is as it was"
    );
    sockets.change(&listening_on(vec![other], vec![])).unwrap();
    assert_eq!(sockets.addresses(Kind::Https).len(), 0);
    assert!(std::net::TcpStream::connect(kept[0]).is_err());
}

#[tokio::test]
async fn connections_wait_for_the_first_table_instead_of_being_answered_from_an_old_one() {
    let config = Config {
        timeouts: Timeouts {
            first_table: PATIENCE,
            ..config().timeouts
        },
        ..config()
    };
    let mut world = World::start(config).await;
    let mut early = world.client().await;
    early.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    let backend = saying("hi").await;
    let routes = vec![route("shop.test", "/", "shop-web")];
    world.set(routes, vec![service("shop-web", &[backend])]).await;
    assert_eq!(early.answer().await.text(), "hi");
}
