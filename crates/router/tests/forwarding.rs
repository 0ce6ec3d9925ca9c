//! Ordinary HTTP/1.1 through the router.

mod common;

use common::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_request_reaches_the_app_with_the_forwarding_fields() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    client
        .send(
            "GET /a/b?c=d HTTP/1.1\r\nHost: Shop.test:8080\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
             X-Request-Id: given-id\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
             X-Other: 2\r\nUpgrade: h2c\r\n\r\n",
        )
        .await;
    let answer = client.answer().await;
    let seen = answer.text();
    assert!(
        seen.starts_with("GET /a/b?c=d HTTP/1.1\r\nHost: Shop.test:8080\r\n"),
        "{seen}"
    );
    let port = format!("X-Forwarded-Port: {}\r\n", world.http.port());
    for part in [
        "X-Forwarded-For: 1.2.3.4, 127.0.0.1\r\n",
        "X-Forwarded-Proto: http\r\n",
        &port,
        "X-Request-Id: given-id\r\n",
        "X-Other: 2\r\n",
        "X-Request-Start: ",
    ] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    for part in ["X-Secret", "Keep-Alive", "TE:", "Upgrade", "Connection", "https"] {
        assert!(!seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn clients_of_both_kinds_of_addresses_are_heard_and_named() {
    let four: std::net::SocketAddr = "0.0.0.0:0".parse().unwrap();
    let six: std::net::SocketAddr = "[::]:0".parse().unwrap();
    for (listen, from, expected) in [
        (vec![four, six], "127.0.0.1", "127.0.0.1"),
        (vec![four, six], "::1", "::1"),
        // There is no other for IPv4.
        (vec![six], "127.0.0.1", "127.0.0.1"),
        (vec![six], "::1", "::1"),
    ] {
        let is_last = listen.len() == 2 && from == "::1";
        let world = World::shop(
            router::Config {
                http_listen: listen.clone(),
                ..config()
            },
            &[echo().await],
        )
        .await;
        let place = world.running.http[usize::from(is_last)];
        let to = std::net::SocketAddr::new(from.parse().unwrap(), place.port());
        let mut client = Client::connect(to).await;
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let answer = client.answer().await;
        let line = format!("X-Forwarded-For: {expected}\r\n");
        assert!(
            answer.text().contains(&line),
            "{listen:?} {from}: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_request_id_that_could_forge_a_log_line_is_replaced() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    client
        .send("GET / HTTP/1.1\r\nHost: shop.test\r\nX-Request-Id: a b\r\n\r\n")
        .await;
    let answer = client.answer().await;
    let id = answer
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("X-Request-Id: "))
        .unwrap();
    assert_eq!(id.len(), 36, "{id}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let accepted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = accepted.clone();
    let addr = backend(move |mut stream| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            while read_message(&mut stream, false).await.is_some() {
                stream.get_mut().write_all(&response(b"hi")).await.unwrap();
            }
        }
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        assert_eq!(client.answer().await.text(), "hi");
    }
    assert_eq!(accepted.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    let mut all = String::new();
    for n in 0..10 {
        all.push_str(&format!(
            "POST /{n} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 3\r\n\r\nab{n}"
        ));
    }
    client.send(&all).await;
    for n in 0..10 {
        let answer = client.answer().await;
        assert!(
            answer.text().starts_with(&format!("POST /{n} ")),
            "{}",
            answer.text()
        );
        assert!(answer.text().ends_with(&format!("ab{n}")), "{}", answer.text());
    }
}

#[tokio::test]
async fn chunks_pass_in_both_directions_with_their_trailers() {
    let addr = backend(|mut stream| async move {
        let request = read_message(&mut stream, false).await.unwrap();
        assert_eq!(request.text(), "hello world");
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n";
        for byte in answer {
            stream.get_mut().write_all(&[*byte]).await.unwrap();
        }
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    client.send("6\r\n world\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
    let expected = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(client.read_exactly(expected.len()).await, expected);
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_becomes_chunks() {
    let addr = backend(|mut stream| async move {
        let _ = read_message(&mut stream, false).await;
        stream
            .get_mut()
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nfirst ")
            .await
            .unwrap();
        stream.get_mut().write_all(b"second").await.unwrap();
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        assert_eq!(client.answer().await.text(), "first second");
    }
    let mut old = world.client().await;
    old.send("GET / HTTP/1.0\r\nHost: shop.test\r\n\r\n").await;
    let answer = old.answer().await;
    assert_eq!(
        (answer.header("transfer-encoding"), answer.text()),
        (None, "first second")
    );
}

#[tokio::test]
async fn an_old_client_gets_no_chunks() {
    let addr = answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("GET / HTTP/1.0\r\nHost: shop.test\r\nConnection: keep-alive\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.header("connection"), answer.text()),
        (Some("close"), "abcde")
    );
}

#[tokio::test]
async fn an_old_client_may_keep_its_connection() {
    let world = World::shop(config(), &[saying("hi").await]).await;
    let mut client = world.client().await;
    for _ in 0..3 {
        client
            .send("GET / HTTP/1.0\r\nHost: shop.test\r\nConnection: keep-alive\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.header("connection"), answer.text()),
            (Some("keep-alive"), "hi")
        );
    }
}

#[tokio::test]
async fn heads_and_empty_answers_have_no_body() {
    let addr = answering(|request| match request.head.split(' ').nth(1).unwrap() {
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n".to_vec(),
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ if request.head.starts_with("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec(),
        _ => response(b"body"),
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(
        client.answer_to("HEAD").await.header("content-length"),
        Some("1234")
    );
    client.send("GET /304 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 304);
    client.send("GET /204 HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 204);
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "body");
}

#[tokio::test]
async fn a_big_body_passes_both_ways_and_the_connection_goes_on() {
    const SIZE: usize = 20_000_000;
    let addr = backend(|mut stream| async move {
        while let Some(request) = read_message(&mut stream, false).await {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                request.body.len()
            );
            stream.get_mut().write_all(head.as_bytes()).await.unwrap();
            stream.get_mut().write_all(&request.body).await.unwrap();
        }
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    let body: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    for _ in 0..2 {
        client
            .send(&format!(
                "PUT / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {SIZE}\r\n\r\n"
            ))
            .await;
        client.send_bytes(&body).await;
        assert!(client.answer().await.body == body);
    }
}

#[tokio::test]
async fn a_stream_arrives_piece_by_piece() {
    let (next, pieces) = tokio::sync::mpsc::channel::<&'static str>(1);
    let pieces = std::sync::Arc::new(tokio::sync::Mutex::new(pieces));
    let addr = backend(move |mut stream| {
        let pieces = pieces.clone();
        async move {
            let _ = read_message(&mut stream, false).await;
            let head =
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.get_mut().write_all(head).await.unwrap();
            while let Some(piece) = pieces.lock().await.recv().await {
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                stream.get_mut().write_all(chunk.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .await;
    client.head().await;
    for piece in ["data: 1\n\n", "data: 22\n\n"] {
        next.send(piece).await.unwrap();
        let expected = format!("{:x}\r\n{piece}\r\n", piece.len());
        assert_eq!(client.read_exactly(expected.len()).await, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_silent_stream_takes_its_request_with_it() {
    let (gone, mut is_gone) = tokio::sync::mpsc::channel(1);
    let addr = backend(move |mut stream| {
        let gone = gone.clone();
        async move {
            let _ = read_message(&mut stream, false).await;
            let _ = stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
                .await;
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            gone.send(()).await.unwrap();
        }
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    client.head().await;
    drop(client);
    tokio::time::timeout(PATIENCE, is_gone.recv())
        .await
        .expect("the backend hears of it")
        .unwrap();
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_from_the_app() {
    let addr = backend(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&head).contains("Expect: 100-continue"));
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        stream.get_mut().write_all(&response(&body)).await.unwrap();
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 100 "));
    client.send("hello").await;
    assert_eq!(client.answer().await.text(), "hello");
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let addr = backend(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
        stream.get_mut().write_all(answer).await.unwrap();
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1000000000\r\n\r\nsome")
        .await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status, answer.header("connection"), answer.text()),
        (413, Some("close"), "big")
    );
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel() {
    let addr = backend(|mut stream| async move {
        let request = read_message(&mut stream, false).await.unwrap();
        assert_eq!(request.header("upgrade"), Some("flynn-attach/0"));
        assert_eq!(request.header("connection"), Some("Upgrade"));
        assert_eq!(request.text(), "{}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: flynn-attach/0\r\n\r\nwelcome";
        stream.get_mut().write_all(answer).await.unwrap();
        let mut bytes = [0; 4];
        while stream.read_exact(&mut bytes).await.is_ok() {
            bytes.reverse();
            stream.get_mut().write_all(&bytes).await.unwrap();
        }
        // The client has ended its side; ours is still open.
        stream.get_mut().write_all(b"bye").await.unwrap();
    })
    .await;
    let world = World::shop(config(), &[addr]).await;
    let mut client = world.client().await;
    client
        .send("POST /jobs HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: flynn-attach/0\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Upgrade: flynn-attach/0"), "{head}");
    assert_eq!(client.read_exactly(7).await, b"welcome");
    for word in ["ping", "pong"] {
        client.send(word).await;
        let reversed: String = word.chars().rev().collect();
        assert_eq!(client.read_exactly(4).await, reversed.as_bytes());
    }
    client.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"bye");
}

#[tokio::test]
async fn a_url_in_the_request_line_names_host_and_path() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    client
        .send("GET http://shop.test/x?y HTTP/1.1\r\nHost: other.test\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert!(
        answer
            .text()
            .starts_with("GET /x?y HTTP/1.1\r\nHost: shop.test\r\n"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn tcp_routes_open_their_port_and_close_it() {
    let free = nobody().await.port();
    let addr = backend(|mut stream| async move {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.get_mut().write_all(&bytes).await.unwrap();
    })
    .await;
    let mut world = World::start(config()).await;
    let snapshot = |routes| routing::feed::Snapshot {
        routes,
        services: vec![service("db", &[nobody_now(), addr])],
        ..Default::default()
    };
    world.snapshot(snapshot(vec![tcp_route(free, "db")])).await;
    let mut client = Client::connect(([127, 0, 0, 1], free).into()).await;
    client.send("ping").await;
    assert_eq!(client.read_exactly(4).await, b"ping");
    assert_eq!(client.rest().await, b"");
    world.snapshot(snapshot(vec![])).await;
    let closed = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", free)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("the port closes");
}

/// Of a TCP route as of any other: nothing is read from a client before a backend has taken the connection.
#[tokio::test]
async fn a_tcp_backend_that_answers_nothing_is_not_waited_for_when_there_is_another() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let full = socket.listen(0).unwrap();
    // Its queue is full from now on, so the kernel drops what comes, as where a host is gone.
    let _waiting = tokio::net::TcpStream::connect(full.local_addr().unwrap())
        .await
        .unwrap();
    let addr = backend(|mut stream| async move {
        stream.get_mut().write_all(b"here").await.unwrap();
    })
    .await;
    let mut config = config();
    config.timeouts.connect = Duration::from_secs(3600);
    config.timeouts.connect_first = Duration::from_millis(50);
    let mut world = World::start(config).await;
    let free = nobody().await.port();
    world
        .snapshot(routing::feed::Snapshot {
            routes: vec![tcp_route(free, "db")],
            services: vec![service("db", &[full.local_addr().unwrap(), addr])],
            ..Default::default()
        })
        .await;
    for _ in 0..8 {
        let mut client = Client::connect(([127, 0, 0, 1], free).into()).await;
        assert_eq!(client.read_exactly(4).await, b"here");
    }
}

/// Port 1 of an address that nobody has.
fn nobody_now() -> std::net::SocketAddr {
    ([127, 0, 0, 1], 1).into()
}
