//! What happens when something is missing, broken, slow or gone.

mod common;

use common::*;
use router::{Config, Timeouts};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn an_unknown_host_is_told_so_in_the_form_it_asks_for() {
    let world = World::shop(config(), &[saying("hi").await]).await;
    let answer = world.get("nope.test", "/").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("nope.test"), "{}", answer.text());
    for (accept, content_type) in [
        ("text/html", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
    ] {
        let mut client = world.client().await;
        client
            .send(&format!(
                "GET / HTTP/1.1\r\nHost: nope.test\r\nAccept: {accept}\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (404, Some(content_type))
        );
    }
}

#[tokio::test]
async fn an_app_without_processes_says_how_to_start_it() {
    let world = World::shop(config(), &[]).await;
    let answer = world.get("shop.test", "/").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains("flynn -a shop scale web=1"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn the_router_says_whether_it_should_be_sent_requests() {
    const PATH: &str = "/.well-known/flynn/health";
    let mut world = World::start(config()).await;
    assert_eq!(world.get("127.0.0.1", PATH).await.status, 503);
    assert_eq!(world.get("shop.test", "/").await.status, 503);
    let routes = vec![route("shop.test", "/", "s"), route("*", "/", "s")];
    let services = vec![service("s", &[echo().await])];
    world.set(routes.clone(), services.clone()).await;
    // By whatever name, also where an app has all names.
    for host in ["127.0.0.1", "shop.test", "other.test"] {
        assert_eq!(world.get(host, PATH).await.status, 200, "{host}");
    }
    let other = world.get("shop.test", "/.well-known/flynn/other").await;
    assert!(
        other.text().starts_with("GET /.well-known"),
        "other paths are the app's"
    );

    world
        .snapshot(routing::feed::Snapshot {
            is_draining: true,
            routes: routes.into_iter().map(routing::feed::Route::Http).collect(),
            services,
            ..Default::default()
        })
        .await;
    let answer = world.get("127.0.0.1", PATH).await;
    assert_eq!(
        (answer.status, answer.text().starts_with("Draining")),
        (503, true)
    );
    assert_eq!(
        world.get("shop.test", "/").await.status,
        200,
        "it goes on serving"
    );
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_backend_for_every_method() {
    let world = World::shop(config(), &[nobody().await, saying("alive").await]).await;
    let mut client = world.client().await;
    for _ in 0..20 {
        client
            .send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        assert_eq!(client.answer().await.text(), "alive");
    }
}

#[tokio::test]
async fn nobody_at_home_is_a_503() {
    let world = World::shop(config(), &[nobody().await, nobody().await]).await;
    for _ in 0..3 {
        assert_eq!(world.get("shop.test", "/").await.status, 503);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_an_answer_is_tried_again_only_if_that_is_harmless() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let broken = backend(move |mut stream| {
        let count = count.clone();
        async move {
            if read_message(&mut stream, false).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let world = World::shop(config(), &[broken]).await;
    assert_eq!(world.get("shop.test", "/").await.status, 502);
    assert_eq!(seen.swap(0, Ordering::SeqCst), 1, "there is no other backend");
    let mut client = world.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    assert_eq!(client.answer().await.status, 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1, "a POST is sent once");

    let two = World::shop(config(), &[broken, saying("alive").await]).await;
    for _ in 0..20 {
        assert_eq!(two.get("shop.test", "/").await.text(), "alive");
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_app_has_closed_does_not_fail_a_request() {
    // Closes each connection after its second request, without saying so.
    let addr = backend(|mut stream| async move {
        for _ in 0..2 {
            if read_message(&mut stream, false).await.is_none() {
                return;
            }
            stream.get_mut().write_all(&response(b"hi")).await.unwrap();
        }
    })
    .await;
    let world = World::shop(
        Config {
            worker_threads: 1,
            ..config()
        },
        &[addr],
    )
    .await;
    let mut client = world.client().await;
    for _ in 0..50 {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        assert_eq!(client.answer().await.text(), "hi");
    }
}

#[tokio::test]
async fn a_response_cut_short_is_not_passed_off_as_whole() {
    let addr = backend(|mut stream| async move {
        let _ = read_message(&mut stream, false).await;
        let _ = stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            .await;
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.rest().await, b"short");
}

#[tokio::test]
async fn nonsense_from_the_app_is_a_502() {
    for nonsense in [
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let addr = answering(move |_| nonsense.as_bytes().to_vec()).await;
        let world = World::shop(config(), &[addr]).await;
        assert_eq!(world.get("shop.test", "/").await.status, 502, "{nonsense:?}");
    }
}

fn quick() -> Config {
    let short = Duration::from_millis(60);
    Config {
        timeouts: Timeouts {
            head: short,
            idle: short,
            stall: short,
            response: short,
            ..Timeouts::default()
        },
        ..config()
    }
}

/// Takes requests and never answers.
async fn silent() -> std::net::SocketAddr {
    backend(|mut stream| async move {
        while matches!(stream.read(&mut [0; 1024]).await, Ok(count) if count > 0) {}
    })
    .await
}

#[tokio::test]
async fn a_slow_app_is_a_504_unless_its_service_may_take_its_time() {
    let mut world = World::shop(quick(), &[silent().await]).await;
    assert_eq!(world.get("shop.test", "/").await.status, 504);
    let slow = backend(|mut stream| async move {
        let _ = read_message(&mut stream, false).await;
        // Several times the limit of the router.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _ = stream.get_mut().write_all(&response(b"built")).await;
    })
    .await;
    let mut patient = service("shop-web", &[slow]);
    patient.response_timeout_ms = Some(0);
    world.set_service(patient).await;
    assert_eq!(world.get("shop.test", "/").await.text(), "built");
}

#[tokio::test]
async fn slow_clients_are_sent_away() {
    let world = World::shop(quick(), &[silent().await]).await;
    let mut idle = world.client().await;
    assert_eq!(
        idle.rest().await,
        b"",
        "a connection that says nothing is just closed"
    );

    let mut drip = world.client().await;
    drip.send("GET / HTTP/1.1\r\nHost: sh").await;
    assert_eq!(drip.answer().await.status, 408, "a head that does not end");

    let mut stalled = world.client().await;
    stalled
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    assert_eq!(stalled.answer().await.status, 408, "a body that does not come");
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused() {
    let world = World::shop(config(), &[saying("hi").await]).await;
    let long = |bytes: usize| "a".repeat(bytes);
    let many: String = (0..101).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nHost: shop.test\r\n\r\n", long(20_000)),
            414,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX: {}\r\n\r\n", long(70_000)),
            431,
        ),
        (format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{many}\r\n"), 431),
        (
            "CONNECT shop.test:80 HTTP/1.1\r\nHost: shop.test\r\n\r\n".into(),
            405,
        ),
        ("GET / HTTP/2.0\r\nHost: shop.test\r\n\r\n".into(), 505),
        (
            format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX: {}\r\n\r\n", long(60_000)),
            200,
        ),
    ] {
        let mut client = world.client().await;
        client.send(&request).await;
        assert_eq!(client.answer().await.status, status, "{:.60}", request);
    }
}

#[tokio::test]
async fn a_removed_backend_finishes_its_request_and_then_counts_as_drained() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let (arrived, mut has_arrived) = tokio::sync::mpsc::channel(1);
    let slow = backend(move |mut stream| {
        let (mut gate, arrived) = (gate.clone(), arrived.clone());
        async move {
            if read_message(&mut stream, false).await.is_some() {
                arrived.send(()).await.unwrap();
                gate.wait_for(|go| *go).await.unwrap();
                stream.get_mut().write_all(&response(b"old")).await.unwrap();
            }
        }
    })
    .await;
    let mut world = World::shop(config(), &[slow]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    has_arrived.recv().await.unwrap();
    world
        .set_service(service("shop-web", &[saying("new").await]))
        .await;
    let during = world.acknowledged(|answer| answer.generation == 2).await;
    assert_eq!(during.in_flight.get(&slow), Some(&1));
    assert_eq!(world.get("shop.test", "/").await.text(), "new");
    go.send(true).unwrap();
    assert_eq!(client.answer().await.text(), "old");
    world.acknowledged(|answer| answer.in_flight.is_empty()).await;
}

#[tokio::test]
async fn the_last_table_is_served_without_a_feed_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let state_file = directory.path().join("table.json");
    let with_file = || Config {
        state_file: Some(state_file.clone()),
        ..config()
    };
    let addr = saying("hi").await;
    let world = World::shop(with_file(), &[addr]).await;
    let (running, http) = world.without_feed();
    let mut client = Client::connect(http).await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "hi");
    let saved = async {
        while !state_file.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, saved)
        .await
        .expect("the table is saved");
    running.stop().await.unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&state_file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let again = World::start(with_file()).await;
    assert_eq!(again.get("shop.test", "/").await.text(), "hi");
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_ends_idle_connections() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let (arrived, mut has_arrived) = tokio::sync::mpsc::channel(1);
    let slow = backend(move |mut stream| {
        let (mut gate, arrived) = (gate.clone(), arrived.clone());
        async move {
            let _ = read_message(&mut stream, false).await;
            arrived.send(()).await.unwrap();
            gate.wait_for(|go| *go).await.unwrap();
            stream.get_mut().write_all(&response(b"done")).await.unwrap();
        }
    })
    .await;
    let world = World::shop(config(), &[slow]).await;
    let mut idle = world.client().await;
    let mut busy = world.client().await;
    busy.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    has_arrived.recv().await.unwrap();
    let http = world.http;
    let stopping = tokio::spawn(world.running.stop());
    assert_eq!(idle.rest().await, b"");
    go.send(true).unwrap();
    let answer = busy.answer().await;
    assert_eq!(
        (answer.text(), answer.header("connection")),
        ("done", Some("close"))
    );
    stopping.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(http).await.is_err());
}

#[tokio::test]
async fn sticky_clients_come_back_to_their_backend() {
    let mut sticky = route("shop.test", "/", "s");
    sticky.sticky = true;
    let mut world = World::start(config()).await;
    let backends = [saying("one").await, saying("two").await, saying("three").await];
    world.set(vec![sticky], vec![service("s", &backends)]).await;
    let first = world.get("shop.test", "/").await;
    let cookie = first
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_string();
    assert!(cookie.starts_with("_backend="), "{cookie}");
    for _ in 0..20 {
        let mut client = world.client().await;
        client
            .send(&format!(
                "GET / HTTP/1.1\r\nHost: shop.test\r\nCookie: a=b; {cookie}\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.text(), answer.header("set-cookie")), (first.text(), None));
    }
}

#[tokio::test]
async fn routes_by_wildcard_path_and_leader() {
    let mut leader = route("db.test", "/", "db");
    leader.leader = true;
    let (one, two) = (saying("one").await, saying("two").await);
    let mut db = service("db", &[one, two]);
    db.leader = Some(format!("b{}", two.port()));
    let mut world = World::start(config()).await;
    let routes = vec![
        route("*.shop.test", "/", "all"),
        route("a.shop.test", "/", "a"),
        route("a.shop.test", "/api/", "api"),
        leader,
    ];
    let services = vec![
        service("all", &[saying("all").await]),
        service("a", &[saying("a").await]),
        service("api", &[saying("api").await]),
        db,
    ];
    world.set(routes, services).await;
    for (host, path, expected) in [
        ("b.shop.test", "/", "all"),
        ("a.shop.test", "/x", "a"),
        ("a.shop.test", "/api", "api"),
        ("a.shop.test", "/api/x?y=/", "api"),
        ("db.test", "/", "two"),
        ("db.test", "/", "two"),
    ] {
        assert_eq!(world.get(host, path).await.text(), expected, "{host}{path}");
    }
}

#[tokio::test]
async fn each_request_leaves_a_line_in_its_apps_log() {
    let directory = tempfile::tempdir().unwrap();
    let with_log = Config {
        access_log_directory: Some(directory.path().into()),
        ..config()
    };
    let addr = saying("hello").await;
    let mut world = World::shop(with_log, &[addr]).await;
    world.get("shop.test", "/a\"b?c").await;
    world.set_service(service("shop-web", &[])).await;
    world.get("shop.test", "/").await;
    world.running.stop().await.unwrap();
    let log = std::fs::read_to_string(directory.path().join("shop-web-id/router.log")).unwrap();
    let mut lines: Vec<&str> = log
        .lines()
        .map(|line| line.split_once(" stdout F ").unwrap().1)
        .collect();
    lines.sort();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].starts_with(
            "at=error code=H14 desc=\"Nothing running\" method=GET path=\"/\" host=shop.test request_id="
        ),
        "{log}"
    );
    let job = format!(" dyno=web.j{} connect=", addr.port());
    assert!(
        lines[1].starts_with("at=info method=GET path=\"/a%22b?c\" host=shop.test request_id="),
        "{log}"
    );
    assert!(
        lines[1].contains(&job) && lines[1].contains(" fwd=\"127.0.0.1\" "),
        "{log}"
    );
    assert!(lines[1].ends_with(" status=200 bytes=5"), "{log}");
}
