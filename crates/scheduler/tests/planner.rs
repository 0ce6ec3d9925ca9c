//! A planner that has made plans before gives the same ones as one that has not.

mod common;
use std::{sync::Arc, time::Duration};

use common::*;
use scheduler::{Planner, plan};
use types::*;

/// Plans for each world in turn, expects what a new planner gives, and carries it out.
fn follow(world: &mut World, planner: &mut Planner, after: Duration) -> String {
    let now = NOW + after;
    let made = planner.plan(&world.cluster, now);
    assert_eq!(made, plan(&world.cluster, now));
    for action in &made.actions {
        apply(&mut world.cluster, action, now);
    }
    world.read(&made)
}

#[test]
fn a_settled_formation_is_looked_at_again_when_its_host_has_been_silent_for_long() {
    let mut world = World::draw("host a; host b; want v1 web=1; job w v1/web up a");
    let mut planner = Planner::default();
    assert_eq!(follow(&mut world, &mut planner, Duration::ZERO), "");
    let host = world
        .cluster
        .hosts
        .get_mut(&"a".parse::<HostId>().unwrap())
        .unwrap();
    Arc::make_mut(host).state = HostState::Silent { since: NOW };
    assert_eq!(follow(&mut world, &mut planner, Duration::from_secs(4)), "");
    assert_eq!(
        follow(&mut world, &mut planner, Duration::from_secs(5)),
        "lose web.w: host a was silent for 5 s\ncreate web.new1 of v1\nstart web.new1 on b\n"
    );
}

#[test]
fn a_plan_that_was_not_carried_out_is_made_again() {
    let world = World::draw("host a; want v1 web=2; job w v1/web up a; job x v1/web pending");
    let mut planner = Planner::default();
    let first = planner.plan(&world.cluster, NOW);
    assert!(!first.is_empty());
    assert_eq!(planner.plan(&world.cluster, NOW), first);
    assert_eq!(planner.plan(&world.cluster, NOW), first);
}

#[test]
fn a_release_that_asks_for_more_memory_is_noticed_under_its_jobs() {
    let mut world = World::draw("host a mem=1000; want v1 web=1; job w v1/web up a");
    let mut planner = Planner::default();
    follow(&mut world, &mut planner, Duration::ZERO);
    let row = Arc::make_mut(world.cluster.releases.get_mut(&release_id("v1")).unwrap());
    let limit = ResourceLimit {
        request: Some(600 << 20),
        limit: None,
    };
    row.processes
        .get_mut("web")
        .unwrap()
        .resources
        .0
        .insert("memory".into(), limit);
    let key = (app_id(), release_id("v1"));
    Arc::make_mut(world.cluster.formations.get_mut(&key).unwrap()).processes = [("web".to_owned(), 2)].into();
    assert_eq!(
        follow(&mut world, &mut planner, Duration::ZERO),
        "create web.new1 of v1, waits: no host has 600 MB of memory free: a has 400 MB\n"
    );
}
