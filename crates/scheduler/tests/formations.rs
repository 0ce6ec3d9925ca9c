//! What is wanted against what is: starts, stops, restarts, hosts that go and come.

mod common;
use common::{check, check_wake};

#[test]
fn what_is_missing_is_started() {
    check(
        "host a; want v1 web=2; job w1 v1/web up a",
        "create web.new1 of v1
         start web.new1 on a",
    );
}

#[test]
fn a_settled_formation_is_left_alone() {
    check(
        "host a; want v1 web=2; job w1 v1/web up a; job w2 v1/web starting a",
        "",
    );
    check_wake("host a; want v1 web=1; job w1 v1/web up a", None);
}

#[test]
fn surplus_is_stopped_pending_first_then_unhealthy_then_starting_then_the_youngest() {
    let jobs = "job old v1/web up a age=900; job young v1/web up a age=100; job begun v1/web starting a age=950; \
                job ill v1/web up a age=990 unhealthy; job wait v1/web pending age=999";
    let order = ["wait", "ill", "begun", "young", "old"];
    for keep in 0..order.len() {
        let mut stopped: Vec<&str> = order[..order.len() - keep].to_vec();
        if keep == 0 {
            // Nothing is wanted of the type at all, so the order does not matter: it is that of the ids.
            continue;
        }
        let expected: String = stopped
            .drain(..)
            .map(|name| format!("stop web.{name}: unwanted\n"))
            .collect();
        check(&format!("host a; want v1 web={keep}; {jobs}"), &expected);
    }
}

#[test]
fn what_nobody_wants_is_stopped() {
    check("host a; job w1 v1/web up a", "stop web.w1: unwanted");
    check(
        "host a; want v1 web=1; drop v1 web; job w1 v1/web up a",
        "stop web.w1: unwanted",
    );
    check("host a; job r1 v1/run up a oneoff", "");
    check(
        "host a; deleted; want v1 web=1; job w1 v1/web up a; job r1 v1/run up a oneoff",
        "stop ?/web.w1: unwanted\nstop ?/run.r1: unwanted",
    );
}

#[test]
fn a_stopping_job_is_replaced_and_not_kept() {
    check(
        "host a; want v1 web=1; job w1 v1/web stopping a killed",
        "create web.new1 of v1
         start web.new1 on a",
    );
}

#[test]
fn a_type_that_the_release_lacks_is_not_started() {
    check("host a; want v1 web=1; drop v1 web", "");
}

#[test]
fn a_crash_is_healed_at_once() {
    check(
        "host a; want v1 web=1; job w1 v1/web down a exit=1 ended=0 up=3",
        "create web.new1 of v1, restart 1
         start web.new1 on a",
    );
    check(
        "host a; want v1 worker=1; job w1 v1/worker down a exit=0 ended=0 up=3",
        "create worker.new1 of v1, restart 1
         start worker.new1 on a",
    );
}

#[test]
fn crashes_in_a_row_wait_longer_and_say_so() {
    let world = "host a; want v1 web=1; job w1 v1/web down a exit=1 ended=1 up=3 restarts=5";
    check(
        world,
        "create web.new1 of v1, restart 6, waits: restarts 4 s after crash 6 (exited with status 1)",
    );
    check_wake(world, Some(3000));
    check(
        "host a; want v1 web=1; job w1 v1/web pending run_in=3",
        "wait web.w1: starts at 2027-01-15T08:00:03Z",
    );
    check(
        "host a; want v1 web=1; job w1 v1/web pending run_in=0",
        "start web.w1 on a",
    );
}

#[test]
fn a_job_that_was_up_for_long_starts_its_count_anew() {
    check(
        "host a; want v1 web=1; job w1 v1/web down a exit=1 ended=1 up=400 restarts=9",
        "create web.new1 of v1
         start web.new1 on a",
    );
}

#[test]
fn kills_and_losses_are_no_crashes() {
    for end in ["killed exit=137", "exit=lost", "unwanted exit=0"] {
        check(
            &format!("host a; want v1 web=1; job w1 v1/web down a {end} ended=1 up=3 restarts=9"),
            "create web.new1 of v1
             start web.new1 on a",
        );
    }
}

#[test]
fn an_ended_job_is_followed_by_one() {
    check(
        "host a; want v1 web=2; job w1 v1/web down a exit=1 ended=9 up=12 restarts=8; job w2 v1/web up a age=9 replaces=w1",
        "create web.new1 of v1
         start web.new1 on a",
    );
}

#[test]
fn several_crashes_each_have_their_own_restart() {
    check(
        "host a; want v1 web=2; job w1 v1/web down a exit=1 ended=0 restarts=7; job w2 v1/web down a exit=1 ended=1",
        "create web.new1 of v1, restart 8, waits: restarts 16 s after crash 8 (exited with status 1)
         create web.new2 of v1, restart 1
         start web.new2 on a",
    );
}

#[test]
fn a_silent_host_keeps_its_jobs_for_a_while_and_gets_no_new_ones() {
    let world = "host a silent=3; host b; want v1 web=2; job w1 v1/web up a";
    check(world, "create web.new1 of v1\nstart web.new1 on b");
    check_wake(world, Some(2000));
}

#[test]
fn a_host_that_stays_silent_gives_its_jobs_to_the_others() {
    check(
        "host a silent=5; host b; want v1 web=1; job w1 v1/web up a; job w2 v1/web stopping a; job r1 v1/run up a oneoff",
        "lose web.w2: host a was silent for 5 s
         lose web.w1: host a was silent for 5 s
         lose run.r1: host a was silent for 5 s
         create web.new1 of v1
         start web.new1 on b",
    );
}

#[test]
fn with_no_host_up_nothing_is_lost() {
    check("host a silent=60; want v1 web=1; job w1 v1/web up a", "");
    check(
        "host a silent=60; want v1 web=2; job w1 v1/web up a",
        "create web.new1 of v1, waits: no host is up",
    );
}

#[test]
fn a_removed_host_loses_its_jobs_at_once() {
    check(
        "host b; want v1 web=1; job w1 v1/web up a",
        "lose web.w1: host a was removed
         create web.new1 of v1
         start web.new1 on b",
    );
}

#[test]
fn an_omni_type_has_one_job_on_each_host() {
    check(
        "host a; host b; host c silent=1; want v1 agent=1; job x v1/agent up a",
        "create agent.new1 of v1
         start agent.new1 on b",
    );
    check(
        "host a; want v1 agent=3; job x v1/agent up a age=50; job y v1/agent up a age=20; job z v1/agent starting a",
        "stop agent.z: unwanted
         stop agent.y: unwanted",
    );
    check(
        "host a silent=60; want v1 agent=1; job x v1/agent pending for=b",
        "stop agent.x: unwanted",
    );
}

#[test]
fn an_omni_job_restarts_on_its_own_host() {
    check(
        "host a; host b; want v1 agent=1; job x v1/agent up a; job y v1/agent down b exit=1 ended=0 restarts=3",
        "create agent.new1 of v1, restart 4, waits: restarts 1 s after crash 4 (exited with status 1)",
    );
}

#[test]
fn an_omni_type_leaves_hosts_that_lose_its_tags() {
    check(
        "host a disk=ssd; host b; want v1 agent=1; tags v1 agent disk=ssd; job x v1/agent up a; job y v1/agent up b",
        "stop agent.y: unwanted",
    );
}

#[test]
fn a_job_on_a_host_without_its_tags_moves_and_serves_until_the_other_is_up() {
    let world = "host a disk=ssd; host b; want v1 web=1; tags v1 web disk=ssd; job w1 v1/web up b";
    check(world, "create web.new1 of v1\nstart web.new1 on a");
    check(&format!("{world}; job w2 v1/web starting a"), "");
    check(&format!("{world}; job w2 v1/web up a"), "stop web.w1: unwanted");
}

#[test]
fn a_type_that_asks_for_it_is_stopped_when_unhealthy() {
    check(
        "host a; want v1 strict=1; job w1 v1/strict up a unhealthy",
        "stop strict.w1: unhealthy
         create strict.new1 of v1
         start strict.new1 on a",
    );
    check("host a; want v1 web=1; job w1 v1/web up a unhealthy", "");
    check(
        "host a silent=1; want v1 strict=1; job w1 v1/strict up a unhealthy",
        "",
    );
    check_wake(
        "host a; want v1 strict=1; job w1 v1/strict starting a age=4",
        Some(6000),
    );
}

#[test]
fn a_scale_request_is_complete_when_its_jobs_have_followed() {
    let world = "host a; want v1 web=1; scale v1 web=2 to web=1; job w1 v1/web up a";
    check(world, "complete scale request scale");
    check(&format!("{world}; job w2 v1/web stopping a unwanted"), "");
    check(
        "host a; want v1 web=1; scale v1 web=0 to web=1; job w1 v1/web starting a",
        "",
    );
    check("host a; scale v1 web=1 to web=0", "complete scale request scale");
}
