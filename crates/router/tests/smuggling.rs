//! Requests that two servers might read differently are refused, and their connection is closed.

mod common;

use common::*;
use proptest::prelude::*;
use router::Limits;
use router::http1::{Framing, Scratch, parse_request_head};

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let world = World::shop(config(), &[saying("hi").await]).await;
    for (fields, status) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", 400),
        ("Content-Length: 3, 3\r\n", 400),
        ("Content-Length: +3\r\n", 400),
        ("Content-Length: -3\r\n", 400),
        ("Content-Length: 0x3\r\n", 400),
        ("Content-Length: 3 3\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Content-Length : 3\r\n", 400),
        ("Content-Length\t: 3\r\n", 400),
        (" Content-Length: 3\r\n", 400),
        ("X: 1\r\n Content-Length: 3\r\n", 400),
        ("X: 1\r\n\tfolded\r\n", 400),
        ("X: 1\nContent-Length: 3\r\n", 400),
        ("X: 1\rContent-Length: 3\r\n", 400),
        ("X: a\0b\r\n", 400),
        ("X Y: 1\r\n", 400),
        (": 1\r\n", 400),
        ("no colon\r\n", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("Transfer-Encoding: identity, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, identity\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding: chunked;q=1\r\n", 501),
        ("Transfer-Encoding\u{b}: chunked\r\n", 400),
        ("Host: other.test\r\n", 400),
        ("Host: shop.test\r\n", 400),
    ] {
        let mut client = world.client().await;
        client
            .send(&format!("POST / HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\nabc"))
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (status, Some("close")),
            "{fields:?}"
        );
        assert_eq!(client.rest().await, b"", "{fields:?}");
    }
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: shop.test\n\n",
        "GET  / HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: shop.test\r\n\r\n",
        "GET nowhere HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET ftp://shop.test/ HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET http://user@shop.test/ HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: shop.test/x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    ] {
        let mut client = world.client().await;
        client.send(request).await;
        assert_eq!(client.answer().await.status, 400, "{request:?}");
        assert_eq!(client.rest().await, b"", "{request:?}");
    }
}

#[tokio::test]
async fn a_refused_request_takes_nothing_after_it_along() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    client
        .send("POST /1 HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status, 400);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_bad_chunk_in_the_middle_ends_the_request_and_its_backend_connection() {
    let world = World::shop(config(), &[echo().await]).await;
    let mut client = world.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    client.send("zz\r\n").await;
    assert_eq!(client.answer().await.status, 400);
    assert_eq!(world.get("shop.test", "/next").await.status, 200);
}

#[tokio::test]
async fn one_empty_line_before_a_request_is_forgiven() {
    let world = World::shop(config(), &[saying("hi").await]).await;
    let mut client = world.client().await;
    client.send("\r\nGET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "hi");
}

/// Pieces that heads are made of, good and bad.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /x HTTP/1.1\r\n", "Host: a.b\r\n", "Content-Length: 3\r\n", "content-length: 3\r\n",
            "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", "Connection: upgrade\r\n", "Upgrade: websocket\r\n",
            "\r\n", "\n", "\r", " ", "\t", ":", "X: y\r\n", "X:\r\n", "\0", "abc", "HTTP/1.0\r\n", "GET http://a/ HTTP/1.1\r\n",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn a_head_that_is_taken_has_one_meaning(bytes in pieces()) {
        let limits = Limits::default();
        if let Ok(Some((head, length))) = parse_request_head(&bytes, &limits, &mut Scratch::new()) {
            prop_assert!(length <= bytes.len());
            let text = &bytes[..length];
            prop_assert!(text.ends_with(b"\r\n\r\n"));
            // No line feed on its own, no carriage return on its own.
            for (at, byte) in text.iter().enumerate() {
                match byte {
                    b'\n' => prop_assert_eq!(text[at - 1], b'\r'),
                    b'\r' => prop_assert_eq!(text[at + 1], b'\n'),
                    _ => {}
                }
            }
            let count = |wanted: &str| head.headers().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).count();
            let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
            prop_assert!(lengths + codings <= 1);
            prop_assert!(count("host") <= 1);
            prop_assert_eq!(matches!(head.framing, Framing::Chunked(_)), codings == 1);
            prop_assert!(head.target.starts_with('/') || head.target == "*");
            prop_assert!(!head.host.contains(['/', '@', ' ', '?']));
        }
    }

    #[test]
    fn where_a_chunked_body_ends_does_not_depend_on_how_it_arrives(
        bytes in prop::collection::vec(prop::sample::select(b"0123aF;=\r\n: x\t".to_vec()), 0..60),
        cut in 0usize..60,
    ) {
        let mut whole = Framing::chunked();
        let at_once = whole.advance(&bytes);
        let mut parts = Framing::chunked();
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        let in_two = parts.advance(head).and_then(|used| {
            if parts.is_done() { Ok(used) } else { parts.advance(tail).map(|more| used + more) }
        });
        prop_assert_eq!(at_once, in_two);
        if at_once.is_ok() {
            prop_assert_eq!(whole.is_done(), parts.is_done());
        }
    }
}
