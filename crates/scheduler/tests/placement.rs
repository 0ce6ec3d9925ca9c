//! Which host, or why none.

mod common;
use std::sync::Arc;

use common::{NOW, World, check, release_id};
use scheduler::plan;
use types::ResourceLimit;

#[test]
fn a_group_is_spread_over_the_hosts() {
    check(
        "host a; host b; want v1 web=2 worker=1",
        "create web.new1 of v1
         start web.new1 on a
         create web.new2 of v1
         start web.new2 on b
         create worker.new3 of v1
         start worker.new3 on a",
    );
}

#[test]
fn the_least_loaded_host_is_taken_among_equals() {
    check(
        "host a; host b; want v1 web=1 worker=1; job w v1/worker up a",
        "create web.new1 of v1
         start web.new1 on b",
    );
}

#[test]
fn tags_are_kept_to() {
    check(
        "host a; host b disk=ssd; want v1 web=1; tags v1 web disk=ssd",
        "create web.new1 of v1
         start web.new1 on b",
    );
    check(
        "host a; want v1 web=1; tags v1 web disk=ssd",
        "create web.new1 of v1, waits: no host has the tags disk=ssd",
    );
}

#[test]
fn declared_memory_is_not_overcommitted() {
    check(
        "host a mem=1000; host b mem=600; memory v1 web 512; want v1 web=3",
        "create web.new1 of v1
         start web.new1 on a
         create web.new2 of v1
         start web.new2 on b
         create web.new3 of v1, waits: no host has 512 MB of memory free: a has 488 MB, b has 88 MB",
    );
}

#[test]
fn a_small_machine_runs_many_processes_that_declare_nothing() {
    let lines: String = (1..=20)
        .map(|n| format!("create web.new{n} of v1\nstart web.new{n} on a\n"))
        .collect();
    check("host a mem=2048; want v1 web=20", &lines);
    check("host a mem=2048; memory v1 web 1024; want v1 web=20", &lines);
}

#[test]
fn requests_beyond_all_measure_are_a_load_like_any_other() {
    let mut world = World::draw("host a; host b; want v1 web=2; job w v1/worker up a");
    let release = world.cluster.releases.get_mut(&release_id("v1")).unwrap();
    for process in Arc::make_mut(release).processes.values_mut() {
        let most = ResourceLimit {
            request: Some(i64::MAX),
            limit: None,
        };
        process.resources.0.insert("cpu".into(), most);
    }
    let text = world.read(&plan(&world.cluster, NOW));
    assert!(text.contains("start web.new1 on b"), "{text}");
    assert!(text.contains("start web.new2 on a"), "{text}");
}

#[test]
fn a_request_larger_than_any_host_says_so() {
    check(
        "host a mem=1000; host b mem=2048; memory v1 web 4096; want v1 web=1",
        "create web.new1 of v1, waits: no host has 4 GB of memory at all: b, the largest, has 2 GB",
    );
}

#[test]
fn a_stopping_job_holds_its_memory() {
    check(
        "host a mem=1000; memory v1 web 600; want v1 web=1; job w v1/web stopping a killed",
        "create web.new1 of v1, waits: no host has 600 MB of memory free: a has 400 MB",
    );
}

#[test]
fn a_reason_is_written_when_it_changes() {
    check(
        "host a; want v1 web=1; tags v1 web disk=ssd; job w v1/web pending",
        "wait web.w: no host has the tags disk=ssd",
    );
    check("want v1 web=1; job w v1/web pending", "wait web.w: no host is up");
}

#[test]
fn the_longest_waiting_is_served_first() {
    check(
        "host a mem=1000; memory v1 web 600; memory v1 worker 600; want v1 web=1 worker=1; \
         job w v1/web pending age=5; job x v1/worker pending age=50",
        "start worker.x on a
         wait web.w: no host has 600 MB of memory free: a has 400 MB",
    );
}

#[test]
fn a_one_off_goes_to_the_host_that_it_asks_for() {
    check(
        "host a; host b; job r v1/ pending oneoff for=b",
        "start run.r on b",
    );
    check(
        "host a; host b silent=1; job r v1/ pending oneoff for=b",
        "wait run.r: host b does not answer",
    );
    check(
        "host a; job r v1/ pending oneoff for=b",
        "wait run.r: there is no host b",
    );
    check("host a; job r v1/ pending oneoff", "start run.r on a");
}

#[test]
fn nothing_is_started_on_a_host_that_is_being_drained() {
    check(
        "host a draining; host b; want v1 web=2 agent=1",
        "create agent.new1 of v1
         start agent.new1 on b
         create web.new2 of v1
         start web.new2 on b
         create web.new3 of v1
         start web.new3 on b",
    );
    check(
        "host a draining; want v1 web=1",
        "create web.new1 of v1, waits: every host that is up is being drained",
    );
    check(
        "host a draining; host b; job r v1/ pending oneoff for=a",
        "wait run.r: host a is being drained",
    );
}

#[test]
fn a_drained_host_loses_a_job_when_another_serves_in_its_place() {
    check(
        "host a draining; host b; want v1 web=1; job w v1/web up a",
        "create web.new1 of v1
         start web.new1 on b",
    );
    check(
        "host a draining; host b; want v1 web=1; job w v1/web up a; job x v1/web starting b",
        "",
    );
    check(
        "host a draining; host b; want v1 web=1; job w v1/web up a; job x v1/web up b",
        "stop web.w: unwanted",
    );
}

#[test]
fn a_drained_host_that_is_the_only_one_keeps_its_jobs() {
    check(
        "host a draining; want v1 web=1; job w v1/web up a",
        "create web.new1 of v1, waits: every host that is up is being drained",
    );
}

#[test]
fn a_host_that_is_no_longer_drained_keeps_what_has_not_moved() {
    check(
        "host a; host b; want v1 web=1; job w v1/web up a; job x v1/web starting b",
        "stop web.x: unwanted",
    );
}

#[test]
fn data_stay_on_a_drained_host_and_their_job_with_them() {
    check(
        "host a draining; host b; want v1 store=1; job s v1/store up a; volume d store a job=s",
        "",
    );
    check(
        "host a draining; host b; want v1 store=1; volume d store a",
        "create store.new1 of v1
         start store.new1 on a with volume d with a new volume at /tmp/x",
    );
}
