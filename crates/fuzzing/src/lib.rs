//! Everything that reads what strangers send, as functions of any bytes.
//!
//! A target must come to an end soon, must not panic, and checks laws on what was accepted: the same
//! however the bytes are cut, the same after writing and reading again. Two things run the targets:
//! `tests/mutated.rs`, for a few seconds with every run of the tests, and the `fuzz` directory, with
//! cargo-fuzz and a nightly compiler, for as long as one likes.
//!
//! Each target has a directory under `seeds` with inputs that are accepted, so that mutations of them
//! reach what lies behind the first check.

mod cluster;
mod dns;
mod git;
mod http;
mod json;
mod streams;

pub type Target = fn(&[u8]);

/// By the name of its directory of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("api_bodies", json::api_bodies),
    ("attach_frames", streams::attach_frames),
    ("chunked_body", http::chunked_body),
    ("commands", cluster::commands),
    ("dns_query", dns::query),
    ("log_records", streams::log_records),
    ("ref_lines", git::ref_lines),
    ("request_head", http::request_head),
    ("response_head", http::response_head),
    ("routing_feed", json::routing_feed),
    ("server_sent_events", streams::server_sent_events),
];

pub fn target(name: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}

/// Sizes of pieces that the input itself chooses, so that every way to cut it can come up.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let mut turn = bytes.len();
    std::iter::from_fn(move || {
        turn = turn.wrapping_mul(31).wrapping_add(7);
        let length = (1 + turn % 9).min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
