//! What the controller's users, hosts and routers send as JSON, and what routers are sent.

use api::{host, wire};
use routing::{Load, Model, RequestHead, feed};
use serde::{Serialize, de::DeserializeOwned};

/// Lines of `NAME JSON`: a body for the request of that name.
pub fn api_bodies(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        body(line);
    }
}

/// Whether it is one.
fn body(line: &[u8]) -> bool {
    let Some(at) = line.iter().position(|byte| *byte == b' ') else {
        return false;
    };
    let (name, json) = (&line[..at], &line[at + 1..]);
    match name {
        b"app" => same_again(json, |new: wire::NewApp| drop(types::check_app_name(&new.name))),
        b"update" => same_again(json, |_: wire::AppUpdate| {}),
        b"artifact" => same_again(json, |_: wire::NewArtifact| {}),
        b"release" => same_again(json, release),
        b"formation" => same_again(json, |_: wire::FormationUpdate| {}),
        b"scale" => same_again(json, |_: wire::NewScaleRequest| {}),
        b"job" => same_again(json, |new: wire::NewJob| filled(&new.resources)),
        b"exec" => same_again(json, |_: wire::NewExec| {}),
        b"route" => same_again(json, |_: wire::NewRoute| {}),
        b"instance" => same_again(json, |_: types::Instance| {}),
        b"host" => same_again(json, |_: host::HostReport| {}),
        b"report" => same_again(json, |_: host::JobReport| {}),
        b"router" => same_again(json, |_: host::RouterReport| {}),
        b"assignment" => same_again(json, |_: host::Assignment| {}),
        _ => false,
    }
}

fn release(new: wire::NewRelease) {
    for (key, value) in new.env.iter().flatten() {
        let _ = types::check_env_key(key, value);
    }
    for (name, process) in new.processes.iter().flatten() {
        let _ = types::check_process_type(name);
        filled(&process.resources);
    }
}

fn filled(resources: &types::Resources) {
    let filled = resources.with_defaults();
    assert_eq!(filled.with_defaults(), filled, "defaults were left out");
}

/// Reads it, and once more what was written for it: both must say the same.
fn same_again<T: DeserializeOwned + Serialize>(json: &[u8], look: impl FnOnce(T)) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(json) else {
        return false;
    };
    let written = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!(
        serde_json::to_string(&again).expect("what was read can be written"),
        written
    );
    look(value);
    true
}

struct Idle;

impl Load for Idle {
    fn in_flight(&self, _: usize) -> u32 {
        0
    }
    fn is_ejected(&self, backend: usize) -> bool {
        backend == 0
    }
}

/// Lines of updates: whatever routes there are, each request finds its way or is told that there is
/// none, and a router that starts from the snapshot routes as the one that heard every update.
pub fn routing_feed(bytes: &[u8]) {
    let mut model = Model::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(update) = serde_json::from_slice::<feed::Update>(line) else {
            continue;
        };
        model.apply(update);
    }
    let table = model.table();
    let mut restarted = Model::default();
    restarted.apply(feed::Update::Snapshot(model.snapshot()));
    let table_of_restarted = restarted.table();

    for seed in 0..4 {
        for host in [
            "shop.example.com",
            "a.b.example.com:8080",
            "EXAMPLE.com.",
            "*",
            "",
        ] {
            for path in ["/", "/cart/", "/cart", "*"] {
                for sticky in [None, Some("0123456789abcdef0123456789abcdef")] {
                    let head = RequestHead {
                        port: 0,
                        host,
                        path,
                        sticky,
                    };
                    let decision = format!("{:?}", routing::decide(&table, &head, &Idle, seed));
                    let other = format!("{:?}", routing::decide(&table_of_restarted, &head, &Idle, seed));
                    assert_eq!(decision, other);
                }
            }
        }
        for port in table.tcp_ports() {
            routing::decide_tcp(&table, port, &Idle, seed);
        }
    }
    for name in [None, Some("shop.example.com"), Some("a.b.example.com"), Some("")] {
        if let Some(index) = table.certificate_for(name) {
            assert!(index < table.certificates().len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_seeds_is_read() {
        for line in include_str!("../seeds/api_bodies/all").lines() {
            assert!(body(line.as_bytes()), "{line}");
        }
        for line in include_str!("../seeds/routing_feed/updates").lines() {
            let update = serde_json::from_str::<feed::Update>(line);
            assert!(update.is_ok(), "{update:?}: {line}");
        }
    }
}
