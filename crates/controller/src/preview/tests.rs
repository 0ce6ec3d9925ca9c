//! Worlds in a line; and the law that what is foreseen is what then happens.

use std::collections::BTreeMap;

use proptest::prelude::*;
use types::{
    App, Artifact, ArtifactId, Deployment, DeploymentId, Host, HostId, ProcessType, Processes, Release,
    ReleaseId, ResourceLimit, Resources, ScaleRequestId, Tags, Uuid,
};

use super::*;

const GB: i64 = 1 << 30;

/// A cluster with one app, whose web and worker jobs need `memory` bytes each.
struct World {
    state: State,
    now: Timestamp,
    app: AppId,
    ids: u128,
}

impl World {
    fn new(hosts: &[i64], memory: i64, counts: &[(&str, u32)], strategy: &str) -> World {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let mut world = World {
            state: State::default(),
            now,
            app: AppId(Uuid::from_u128(1)),
            ids: 10,
        };
        for (number, memory_bytes) in hosts.iter().enumerate() {
            let host = serde_json::json!({
                "id": format!("host{number}"), "addr": "127.0.0.1:1", "state": "up", "memory_bytes": memory_bytes,
                "cpu_milli": 4000, "version": "v0", "created_at": now, "started_at": now,
            });
            let host: Host = serde_json::from_value(host).unwrap();
            world.change(Change::PutHost { host });
        }
        let app: App = serde_json::from_value(serde_json::json!({
            "id": world.app, "name": "shop", "meta": { "flynn-deploy-batch-size": "2" }, "strategy": strategy,
            "deploy_timeout": 120, "created_at": now, "updated_at": now,
        }))
        .unwrap();
        world.change(Change::CreateApp { app, route: None });
        let artifact: Artifact = serde_json::from_value(serde_json::json!({
            "id": ArtifactId(Uuid::from_u128(2)), "type": "flynn", "uri": "x", "created_at": now,
        }))
        .unwrap();
        world.change(Change::CreateArtifact { artifact });
        let release = world.release(memory);
        world.change(Change::SetAppRelease {
            app: world.app,
            release,
        });
        world.scale(counts);
        follow(&mut world.state, world.app, world.now);
        world.now = world.now + Duration::from_secs(10_000);
        world
    }

    fn uuid(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn change(&mut self, change: Change) {
        let (index, at) = (self.state.revision + 1, self.now);
        self.state.apply(index, Command { at, change }).unwrap();
    }

    fn release(&mut self, memory: i64) -> ReleaseId {
        let limit = ResourceLimit {
            request: Some(memory),
            limit: Some(memory),
        };
        let process = ProcessType {
            resources: Resources([("memory".to_owned(), limit)].into()).with_defaults(),
            ..ProcessType::default()
        };
        let processes: BTreeMap<_, _> = ["web", "worker"]
            .map(|name| (name.to_owned(), process.clone()))
            .into();
        let release = Release {
            id: ReleaseId(self.uuid()),
            app_id: self.app,
            artifacts: vec![ArtifactId(Uuid::from_u128(2))],
            env: BTreeMap::new(),
            meta: BTreeMap::new(),
            processes,
            created_at: self.now,
        };
        let id = release.id;
        self.change(Change::CreateRelease { release });
        id
    }

    fn scale(&mut self, counts: &[(&str, u32)]) {
        let release = self.state.apps[&self.app].release.unwrap();
        let processes: Processes = counts
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        let request = ScaleRequestId(self.uuid());
        self.change(Change::Scale {
            request,
            app: self.app,
            release,
            processes: Some(processes),
            tags: None,
        });
    }

    fn deploy(&mut self, memory: i64) {
        let new_release = self.release(memory);
        let app = self.state.apps[&self.app].clone();
        let deployment = Deployment {
            id: DeploymentId(self.uuid()),
            app: app.id,
            old_release: None,
            new_release,
            strategy: app.strategy,
            status: DeploymentStatus::Pending,
            processes: Processes::new(),
            tags: Tags::new(),
            deploy_timeout: app.deploy_timeout,
            deploy_batch_size: app.deploy_batch_size(),
            error: String::new(),
            created_at: self.now,
            finished_at: None,
        };
        self.change(Change::CreateDeployment { deployment });
    }
}

/// What comes of a change, in words.
fn check(world: World, change: impl FnOnce(&mut World), expected: &str) {
    let before = world.state.clone();
    let mut world = world;
    change(&mut world);
    let seen = preview(&before, world.state, world.app, world.now);
    assert_eq!(in_words(&seen), expected);
}

fn in_words(preview: &Preview) -> String {
    let mut parts = vec![];
    for (verb, jobs) in [
        ("start", &preview.starts),
        ("stop", &preview.stops),
        ("wait", &preview.waits),
    ] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for job in jobs {
            *counts.entry(&job.process_type).or_default() += 1;
        }
        parts.extend(
            counts
                .iter()
                .map(|(name, count)| format!("{verb} {count} {name}")),
        );
    }
    parts.push(format!("keep {}", preview.kept));
    parts.push(if preview.fits { "fits" } else { "does not fit" }.into());
    if !preview.error.is_empty() {
        parts.push(preview.error.clone());
    }
    parts.join("; ")
}

#[test]
fn scaling_starts_and_stops_only_the_difference() {
    let world = || World::new(&[8 * GB], GB / 2, &[("web", 2), ("worker", 1)], "all-at-once");
    check(world(), |w| w.scale(&[("web", 4)]), "start 2 web; keep 3; fits");
    check(world(), |w| w.scale(&[("web", 0)]), "stop 2 web; keep 1; fits");
    check(
        world(),
        |w| w.scale(&[("web", 1), ("worker", 2)]),
        "start 1 worker; stop 1 web; keep 2; fits",
    );
    check(world(), |w| w.scale(&[("web", 2)]), "keep 3; fits");
}

#[test]
fn what_finds_no_place_is_said_to_wait_and_why() {
    let world = World::new(&[2 * GB, GB], GB / 2, &[("web", 2)], "all-at-once");
    let before = world.state.clone();
    let mut world = world;
    world.scale(&[("web", 9)]);
    let seen = preview(&before, world.state, world.app, world.now);
    assert_eq!(in_words(&seen), "start 4 web; wait 3 web; keep 2; does not fit");
    assert_eq!(
        seen.waits[0].waiting,
        "no host has 512 MB of memory free: host0 has 0 bytes, host1 has 0 bytes"
    );
    let hosts: Vec<String> = seen
        .starts
        .iter()
        .flat_map(|job| &job.host)
        .map(HostId::to_string)
        .collect();
    assert_eq!(hosts.len(), 4);
}

#[test]
fn what_waits_already_is_told_and_is_not_the_changes_fault() {
    let world = World::new(&[2 * GB], GB / 2, &[("web", 6)], "all-at-once");
    check(world, |w| w.scale(&[("worker", 0)]), "wait 2 web; keep 4; fits");
    let world = World::new(&[2 * GB], GB / 2, &[("web", 6)], "all-at-once");
    check(
        world,
        |w| w.scale(&[("worker", 1)]),
        "wait 2 web; wait 1 worker; keep 4; does not fit",
    );
    let world = World::new(&[2 * GB], GB / 2, &[("web", 3), ("worker", 2)], "all-at-once");
    check(
        world,
        |w| w.scale(&[("web", 2)]),
        "start 1 worker; stop 1 web; keep 3; fits",
    );
}

#[test]
fn a_deployment_replaces_everything_and_needs_room_for_both() {
    let world = |strategy| World::new(&[2 * GB], GB / 2, &[("web", 2)], strategy);
    check(
        world("all-at-once"),
        |w| w.deploy(GB / 2),
        "start 2 web; stop 2 web; keep 0; fits",
    );
    let full = |strategy| World::new(&[2 * GB], GB / 2, &[("web", 4)], strategy);
    check(
        full("all-at-once"),
        |w| w.deploy(GB / 2),
        "keep 4; does not fit; web was not started within 120 s: no host has 512 MB of memory free: \
         host0 has 0 bytes",
    );
    // It makes room first.
    check(
        full("one-down-one-up"),
        |w| w.deploy(GB / 2),
        "start 4 web; stop 4 web; keep 0; fits",
    );
    check(
        world("one-by-one"),
        |w| w.deploy(4 * GB),
        "keep 2; does not fit; web was not started within 120 s: no host has 4 GB of memory at all: \
         host0, the largest, has 2 GB",
    );
}

#[test]
fn nothing_is_foreseen_for_an_app_that_runs_nothing() {
    let world = World::new(&[2 * GB], GB / 2, &[("web", 0)], "all-at-once");
    check(world, |w| w.deploy(GB / 2), "keep 0; fits");
}

/// The same change carried out by hosts that take their time, each its own: what [`follow`] does all
/// at once happens here piece by piece, with a plan in between.
fn really(state: &mut State, app: AppId, start: Timestamp, choices: &mut impl Iterator<Item = u8>) {
    let mut now = start;
    for _ in 0..20_000 {
        let plan = scheduler::plan(&planner::cluster(state), now);
        let wake_at = plan.wake_at;
        if !plan.is_empty() {
            let changes = plan.actions.into_iter().map(planner::change).collect();
            write(state, now, changes);
            continue;
        }
        let mut changes = reports(state);
        if !changes.is_empty() {
            let first = choices.next().unwrap() as usize % changes.len();
            changes.drain(..first);
            let count = 1 + choices.next().unwrap() as usize % changes.len();
            changes.truncate(count);
            now = now + Duration::from_millis(1 + u64::from(choices.next().unwrap()) * 10);
            write(state, now, changes);
            continue;
        }
        match wake_at.filter(|_| !is_settled(state, app)) {
            Some(at) => now = at,
            None => return,
        }
    }
    panic!("it does not settle");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_a_dry_run_says_is_what_then_happens(
        hosts in prop::collection::vec(1i64..6, 1..4),
        before in (0u32..5, 0u32..4),
        after in (0u32..9, 0u32..6),
        strategy in prop::sample::select(vec!["all-at-once", "one-by-one", "one-down-one-up", "in-batches"]),
        deploys in any::<bool>(),
        choices in prop::collection::vec(any::<u8>(), 64),
    ) {
        let hosts: Vec<i64> = hosts.into_iter().map(|count| count * GB / 2).collect();
        let counts = |counts: (u32, u32)| [("web", counts.0), ("worker", counts.1)];
        let mut world = World::new(&hosts, GB / 2, &counts(before), strategy);
        let was = world.state.clone();
        if deploys {
            world.deploy(GB / 2);
        } else {
            world.scale(&counts(after));
        }
        let foreseen = preview(&was, world.state.clone(), world.app, world.now);
        prop_assert_eq!(foreseen.unfinished_after_s, None);
        really(&mut world.state, world.app, world.now, &mut choices.into_iter().cycle());
        let happened = compare(&was, &world.state, world.app, None);
        // Which of equal jobs finds which place is decided by who is quicker; how many do is not.
        prop_assert_eq!(in_words(&foreseen), in_words(&happened));
        prop_assert_eq!(
            foreseen.stops.iter().map(|job| &job.id).collect::<Vec<_>>(),
            happened.stops.iter().map(|job| &job.id).collect::<Vec<_>>()
        );
    }
}
