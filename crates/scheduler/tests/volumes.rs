//! Data stay with their type: which volumes jobs get, and for what they wait.

mod common;
use common::check;

const NEW: &str = " with a new volume at /data with a new volume at /tmp/x";
const TMP: &str = " with a new volume at /tmp/x";

#[test]
fn the_first_jobs_of_a_type_get_new_volumes() {
    check(
        "host a; want v1 store=1",
        &format!("create store.new1 of v1\nstart store.new1 on a{NEW}"),
    );
}

#[test]
fn a_replacement_goes_to_the_oldest_free_volume_wherever_that_is() {
    let world = "host a; host b; want v1 store=1; volume young store a age=10; volume old store b age=20; \
                 volume older store b age=30 decommissioned; volume other web b age=40";
    check(
        world,
        &format!("create store.new1 of v1\nstart store.new1 on b with volume old{TMP}"),
    );
}

#[test]
fn a_job_waits_for_the_host_of_its_data_and_for_the_job_that_still_has_them() {
    check(
        "host a; host b silent=60; want v1 store=1; volume data store b",
        "create store.new1 of v1, waits: its volume data at /data is on host b: host b does not answer",
    );
    check(
        "host a; host b; want v1 store=1; tags v1 store disk=ssd; volume data store b",
        "create store.new1 of v1, waits: its volume data at /data is on host b: host b has not the tags disk=ssd",
    );
    check(
        "host a; want v1 store=1; job s1 v1/store stopping a killed; volume data store a job=s1",
        "create store.new1 of v1, waits: waits for volume data at /data until job s1 has ended",
    );
    check(
        "host a; want v2 store=1; job s1 v1/store up a; volume data store a job=s1",
        "stop store.s1: unwanted
         create store.new1 of v2, waits: waits for volume data at /data until job s1 has ended",
    );
}

#[test]
fn what_is_more_than_there_are_volumes_for_gets_new_ones() {
    check(
        "host a; host b silent=60; want v1 store=2; volume data store b; job s1 v1/store pending age=5",
        &format!(
            "wait store.s1: its volume data at /data is on host b: host b does not answer
             create store.new1 of v1
             start store.new1 on a{NEW}"
        ),
    );
}

#[test]
fn what_was_on_a_removed_host_is_not_waited_for() {
    check(
        "host a; want v1 store=1; volume data store gone",
        &format!("create store.new1 of v1\nstart store.new1 on a{NEW}"),
    );
}

#[test]
fn a_job_with_data_stays_where_they_are_when_tags_change() {
    check(
        "host a; host b disk=ssd; want v1 store=1; tags v1 store disk=ssd; job s1 v1/store up a; volume data store a job=s1",
        "",
    );
}

#[test]
fn omni_types_have_their_data_on_each_host() {
    check(
        "host a; host b; want v1 local=1; volume data local b",
        &format!(
            "create local.new1 of v1
             start local.new1 on a{NEW}
             create local.new2 of v1
             start local.new2 on b with volume data{TMP}"
        ),
    );
}

#[test]
fn every_strategy_stops_the_old_job_before_the_new_one_gets_its_volume() {
    for strategy in ["all-at-once", "one-by-one", "in-batches", "one-down-one-up"] {
        let world = format!(
            "host a; job s1 v1/store up a; volume data store a job=s1; deploy {strategy} running store=1"
        );
        check(
            &format!("{world}; want v1 store=1"),
            "set formation v1: store=0\nstop store.s1: unwanted",
        );
        let stopped = world.replace("v1/store up a", "v1/store down a unwanted");
        check(
            &format!("{stopped}; want v1 store=0"),
            &format!(
                "set formation v2: store=1
                 create store.new1 of v2
                 start store.new1 on a with volume data{TMP}"
            ),
        );
    }
}
