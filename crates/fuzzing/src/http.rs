//! What clients and backends of the router send.

use router::{
    Limits,
    http1::{Framing, Scratch, head::HeadScan, head::parse_whole_response_head, parse_request_head},
};

/// The same verdict, and the same head, however a request arrives.
pub fn request_head(bytes: &[u8]) {
    let limits = Limits {
        head_bytes: 1024,
        headers: 20,
        target_bytes: 256,
        ..Limits::default()
    };
    let mut scan = HeadScan::default();
    let mut seen = 0;
    let mut found = Ok(None);
    for piece in crate::pieces(bytes) {
        seen += piece.len();
        found = scan.find(&bytes[..seen], &limits);
        if found != Ok(None) {
            break;
        }
    }
    let mut scratch = Scratch::new();
    let (head, length) = match parse_request_head(bytes, &limits, &mut scratch) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return assert_eq!(found, Ok(None)),
        // What the scan takes may still be refused by the parser, and only the reason may differ
        // where one piece more would have shown another.
        Err(_) => return,
    };
    assert_eq!(
        found,
        Ok(Some(length)),
        "the head ends elsewhere when it comes in pieces"
    );
    assert!(length <= limits.head_bytes && bytes[..length].ends_with(b"\r\n\r\n"));
    assert!(
        head.target.starts_with('/') || head.target == "*",
        "{:?}",
        head.target
    );
    assert!(head.target.len() <= limits.target_bytes);
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(
        visible(head.method) && visible(head.host),
        "{:?} {:?}",
        head.method,
        head.host
    );
    assert!(!head.path().contains('?'));
    for (name, value) in head.headers() {
        assert!(
            !name.is_empty() && visible(name) && !name.contains([':', ' ']),
            "{name:?}"
        );
        assert!(
            !value.iter().any(|byte| b"\r\n\0".contains(byte)),
            "a value would end its line"
        );
    }
    let lengths = head
        .headers()
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .count();
    let codings = head
        .headers()
        .filter(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"))
        .count();
    assert!(lengths + codings <= 1, "two ways to read where the body ends");
    assert_eq!(codings == 1, matches!(head.framing, Framing::Chunked(_)));
    let host = routing::normal_host(head.host);
    assert!(!host.bytes().any(|byte| byte.is_ascii_uppercase()), "{host:?}");
}

pub fn response_head(bytes: &[u8]) {
    let limits = Limits {
        head_bytes: 1024,
        ..Limits::default()
    };
    let Ok(Some(length)) = HeadScan::default().find(bytes, &limits) else {
        return;
    };
    for is_answer_to_head in [false, true] {
        let mut scratch = Scratch::new();
        let Ok(head) = parse_whole_response_head(&bytes[..length], is_answer_to_head, &mut scratch) else {
            continue;
        };
        assert!((100..=999).contains(&head.status));
        assert!(
            !head.keeps_alive || head.framing != Framing::UntilClose,
            "the next response would be body"
        );
        for (_, value) in head.headers() {
            assert!(!value.iter().any(|byte| b"\r\n\0".contains(byte)));
        }
    }
}

/// The same content and the same end, however a chunked body arrives.
pub fn chunked_body(bytes: &[u8]) {
    let (mut whole, mut content) = (Framing::chunked(), vec![]);
    let read = whole.advance_with(bytes, |data| content.extend_from_slice(data));
    let (mut cut, mut content_of_pieces, mut used) = (Framing::chunked(), vec![], 0);
    for piece in crate::pieces(bytes) {
        match cut.advance_with(piece, |data| content_of_pieces.extend_from_slice(data)) {
            Ok(count) => {
                assert!(
                    count == piece.len() || cut.is_done(),
                    "bytes are left over in the middle"
                );
                used += count;
            }
            Err(bad) => return assert_eq!(read, Err(bad)),
        }
    }
    assert_eq!(read, Ok(used));
    assert_eq!(whole, cut);
    assert_eq!(content, content_of_pieces);
    assert!(content.len() <= used);
}
