//! Who gets a volume, and when it goes: scripts in, what was refused and what is left out.

use std::collections::BTreeMap;

use types::*;

use super::tests::{World, at, id, job};
use crate::*;

fn host(name: &str) -> Host {
    Host {
        id: name.parse().unwrap(),
        addr: format!("{name}:1113"),
        tags: BTreeMap::new(),
        is_draining: false,
        state: HostState::Up,
        memory_bytes: 1 << 30,
        cpu_milli: 1000,
        gateway: None,
        subnet: None,
        underlay: None,
        public_key: None,
        node: None,
        peer_addr: None,
        public_addresses: vec![],
        version: String::new(),
        created_at: at(0),
        started_at: at(0),
        up_since: at(0),
        relapses: 0,
    }
}

fn number(word: &str) -> u128 {
    word[1..].parse().unwrap()
}

fn volume_id(word: &str) -> VolumeId {
    VolumeId(id(2000 + number(word)))
}

fn volume(word: &str, host: &str, for_one_job: bool) -> Volume {
    Volume {
        path: "/data".into(),
        delete_on_stop: for_one_job,
        id: volume_id(word),
        host_id: host.parse().unwrap(),
        kind: VolumeType::Data,
        state: VolumeState::Pending,
        app: Some(AppId(id(1))),
        release: None,
        job: None,
        job_type: "web".into(),
        meta: BTreeMap::new(),
        created_at: at(0),
        updated_at: at(0),
        decommissioned_at: None,
    }
}

/// `j1` is job 1 of the app, `v1` volume 1, `a` and `b` are hosts.
fn change(line: &str) -> Change {
    let words: Vec<_> = line.split_whitespace().collect();
    let of_job = |word: &str, change| Change::Job {
        job: JobId(id(1000 + number(word))),
        change,
    };
    let place = |word: &str, host: &str, volume: &str, new_volumes| {
        let place = JobChange::Place {
            host: host.parse().unwrap(),
            volumes: vec![volume_id(volume)],
            new_volumes,
        };
        of_job(word, place)
    };
    let report = |host: &str, volume: &str, report| Change::Volume {
        host: host.parse().unwrap(),
        volume: volume_id(volume),
        report,
    };
    match words[..] {
        ["job", word] => Change::CreateJob {
            job: job(1000 + number(word), 1, 10, "web"),
        },
        ["put", word, "on", host] => Change::PutVolume {
            volume: volume(word, host, false),
        },
        [word, "on", host, "with", known] => place(word, host, known, vec![]),
        [word, "on", host, "with", "new", new] => place(word, host, new, vec![volume(new, host, false)]),
        [word, "on", host, "with", "own", new] => place(word, host, new, vec![volume(new, host, true)]),
        [word, "ends"] => of_job(word, JobChange::Down { exit: Exit::Code(0) }),
        [host, "made", word] => report(host, word, VolumeReport::Created),
        [host, "removed", word] => report(host, word, VolumeReport::Removed),
        ["decommission", word] => Change::DecommissionVolume {
            app: AppId(id(1)),
            volume: volume_id(word),
        },
        ["destroy", word] => Change::DestroyVolume {
            volume: volume_id(word),
        },
        ["forget", host] => Change::RemoveHost {
            host: host.parse().unwrap(),
        },
        _ => panic!("{line}"),
    }
}

fn told(state: &State) -> Vec<String> {
    let tell = |volume: &std::sync::Arc<Volume>| {
        let number = volume.id.0.as_u128() - 2000;
        let job = volume.job.map(|job| format!(" of j{}", job.0.as_u128() - 1000));
        let kept = volume.decommissioned_at.map(|_| " decommissioned");
        format!(
            "v{number} {:?} on {}{}{}",
            volume.state,
            volume.host_id,
            job.unwrap_or_default(),
            kept.unwrap_or_default()
        )
    };
    state.volumes.values().map(tell).collect()
}

#[track_caller]
fn check(script: &str, expected: &str) {
    let mut world = World::with_app();
    for name in ["a", "b"] {
        world.ok(Change::PutHost { host: host(name) });
    }
    let mut transcript = vec![];
    for line in script.split(';').map(str::trim) {
        if let Err(refused) = world.apply(change(line)) {
            let refused = refused.to_string();
            let words = refused.split_whitespace().map(|word| match word.parse::<Uuid>() {
                Ok(id) if id.as_u128() >= 2000 => format!("v{}", id.as_u128() - 2000),
                Ok(id) => format!("j{}", id.as_u128() - 1000),
                Err(_) => word.to_owned(),
            });
            transcript.push(format!("{line}: {}", words.collect::<Vec<_>>().join(" ")));
        }
    }
    transcript.extend(told(&world.0));
    assert_eq!(transcript.join("\n"), expected, "{script}");
}

#[test]
fn a_volume_stays_when_its_job_ends_and_the_next_job_gets_it() {
    check(
        "job j1; j1 on a with new v1; a made v1; j1 ends",
        "v1 Created on a",
    );
    check(
        "job j1; j1 on a with new v1; a made v1; j1 ends; job j2; j2 on a with v1",
        "v1 Created on a of j2",
    );
}

#[test]
fn a_volume_is_attached_to_one_job_at_a_time_and_where_it_is() {
    check(
        "job j1; job j2; j1 on a with new v1; a made v1; j2 on a with v1",
        "j2 on a with v1: volume v1 cannot be attached to job j2 on a\nv1 Created on a of j1",
    );
    check(
        "put v1 on a; job j1; j1 on b with v1",
        "j1 on b with v1: volume v1 cannot be attached to job j1 on b\nv1 Pending on a",
    );
    check("job j1; j1 on a with v9", "j1 on a with v9: volume v9 not found");
    // A second placement comes too late, and is nobody's mistake.
    check(
        "job j1; j1 on a with new v1; j1 on b with new v2",
        "v1 Pending on a of j1",
    );
}

#[test]
fn a_decommissioned_volume_stays_with_its_job_and_goes_to_no_other() {
    check(
        "job j1; job j2; j1 on a with new v1; a made v1; decommission v1; decommission v1; j1 ends; j2 on a with v1",
        "j2 on a with v1: volume v1 cannot be attached to job j2 on a\nv1 Created on a decommissioned",
    );
    check("decommission v1", "decommission v1: volume v1 not found");
}

#[test]
fn a_destroyed_volume_is_known_until_its_host_has_removed_it() {
    check("put v1 on a; a made v1; destroy v1", "v1 Destroyed on a");
    check("put v1 on a; a made v1; destroy v1; a removed v1", "");
    // Another host's word counts for nothing, and neither does a host's that was not asked.
    check(
        "put v1 on a; b made v1; destroy v1; b removed v1",
        "v1 Destroyed on a",
    );
    check("put v1 on a; a made v1; a removed v1", "v1 Created on a");
    check("put v1 on a; destroy v1; a made v1", "v1 Destroyed on a");
}

#[test]
fn a_volume_that_a_job_has_is_not_destroyed() {
    let refused =
        "destroy v1: volume v1 is attached to job a-00000000-0000-0000-0000-0000000003e9, which runs";
    check(
        "job j1; j1 on a with new v1; destroy v1",
        &format!("{refused}\nv1 Pending on a of j1"),
    );
    check(
        "job j1; j1 on a with new v1; a made v1; j1 ends; destroy v1; a removed v1",
        "",
    );
}

#[test]
fn a_volume_of_one_job_goes_with_it() {
    check("job j1; j1 on a with own v1; a made v1", "v1 Created on a of j1");
    check(
        "job j1; j1 on a with own v1; a made v1; j1 ends",
        "v1 Destroyed on a",
    );
}

#[test]
fn what_somebody_writes_of_a_volume_changes_neither_its_place_nor_its_user() {
    check(
        "job j1; j1 on a with new v1; a made v1; put v1 on a",
        "v1 Created on a of j1",
    );
    check(
        "put v1 on a; put v1 on b",
        "put v1 on b: volume v1 exists, and stays where and whose it is\nv1 Pending on a",
    );
    check("put v1 on c", "put v1 on c: names no host: c");
}

#[test]
fn the_volumes_of_a_host_that_is_forgotten_are_forgotten_with_it() {
    check("put v1 on a; put v2 on b; a made v1; forget a", "v2 Pending on b");
}
