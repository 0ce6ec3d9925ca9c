//! How a new release takes over, and what happens when it does not work.

mod common;
use common::{check, check_wake};

#[test]
fn all_at_once_starts_everything_new_first() {
    check(
        "host a; want v1 web=2; job o1 v1/web up a; job o2 v1/web up a; deploy all-at-once pending web=2",
        "run deployment deployment
         set formation v2: web=2
         create web.new1 of v2
         start web.new1 on a
         create web.new2 of v2
         start web.new2 on a",
    );
}

#[test]
fn all_at_once_stops_the_old_when_all_new_are_up() {
    let world = "host a; want v1 web=2; want v2 web=2; job o1 v1/web up a; job o2 v1/web up a age=50; \
                 deploy all-at-once running web=2; job n1 v2/web up a age=5";
    check(&format!("{world}; job n2 v2/web starting a age=5"), "");
    check(&format!("{world}; job n2 v2/web up a age=5 unhealthy"), "");
    check(
        &format!("{world}; job n2 v2/web up a age=5"),
        "delete formation v1
         set release of shop to v2
         complete deployment deployment
         stop web.o1: unwanted
         stop web.o2: unwanted",
    );
}

#[test]
fn a_type_that_the_new_release_lacks_goes_with_the_old_one() {
    check(
        "host a; drop v2 worker; want v1 web=1 worker=1; want v2 web=1; job o1 v1/web up a; job o2 v1/worker up a; \
         job n1 v2/web up a age=5; deploy all-at-once running web=1 worker=1",
        "delete formation v1
         set release of shop to v2
         complete deployment deployment
         stop web.o1: unwanted
         stop worker.o2: unwanted",
    );
}

#[test]
fn a_deployment_of_nothing_is_complete_at_once() {
    check(
        "host a; deploy all-at-once pending",
        "run deployment deployment
         set release of shop to v2
         complete deployment deployment",
    );
    check(
        "host a; want v1 web=0; deploy one-by-one pending web=0",
        "run deployment deployment
         delete formation v1
         set release of shop to v2
         complete deployment deployment",
    );
}

#[test]
fn a_job_without_a_port_is_trusted_after_a_second() {
    let world = "host a; want v2 worker=1; deploy all-at-once running from=none worker=1";
    check(&format!("{world}; job n1 v2/worker up a age=0.4"), "");
    check_wake(&format!("{world}; job n1 v2/worker up a age=0.4"), Some(600));
    check(
        &format!("{world}; job n1 v2/worker up a age=1"),
        "set release of shop to v2
         complete deployment deployment",
    );
}

#[test]
fn one_by_one_starts_one_and_then_stops_one() {
    let old = "host a; job o1 v1/web up a; job o2 v1/web up a age=50; deploy one-by-one running web=2";
    check(
        &format!("{old}; want v1 web=2"),
        "set formation v2: web=1
         create web.new1 of v2
         start web.new1 on a",
    );
    let new = format!("{old}; want v2 web=1; job n1 v2/web up a age=5");
    check(
        &format!("{new}; want v1 web=2"),
        "set formation v1: web=1
         stop web.o2: unwanted",
    );
    check(
        &format!("{new}; want v1 web=1; job o2 v1/web stopping a unwanted"),
        "",
    );
    check(
        &format!("{new}; want v1 web=1; job o2 v1/web down a unwanted"),
        "set formation v2: web=2
         create web.new1 of v2
         start web.new1 on a",
    );
    check(
        &format!(
            "{new}; want v1 web=1; want v2 web=2; job o2 v1/web down a unwanted; job n2 v2/web up a age=4"
        ),
        "set formation v1: web=0
         delete formation v1
         set release of shop to v2
         complete deployment deployment
         stop web.o1: unwanted",
    );
}

#[test]
fn one_down_one_up_goes_the_other_way_round() {
    let world = "host a; job o1 v1/web up a; deploy one-down-one-up running web=2";
    check(
        &format!("{world}; want v1 web=2; job o2 v1/web up a age=50"),
        "set formation v1: web=1
         stop web.o2: unwanted",
    );
    check(
        &format!("{world}; want v1 web=1; job o2 v1/web stopping a unwanted"),
        "",
    );
    check(
        &format!("{world}; want v1 web=1; job o2 v1/web down a unwanted"),
        "set formation v2: web=1
         create web.new1 of v2
         start web.new1 on a",
    );
}

#[test]
fn batches_are_as_large_as_the_app_says_or_one_per_host() {
    let world = "host a; host b; want v1 web=4; job o1 v1/web up a; job o2 v1/web up a; job o3 v1/web up b; job o4 v1/web up b";
    let two = "set formation v2: web=2
               create web.new1 of v2
               start web.new1 on a
               create web.new2 of v2
               start web.new2 on b";
    check(&format!("{world}; deploy in-batches running web=4"), two);
    check(&format!("{world}; deploy in-batches running web=4 batch=2"), two);
    check(
        &format!("{world}; deploy in-batches running web=4 batch=1"),
        "set formation v2: web=1
         create web.new1 of v2
         start web.new1 on a",
    );
}

#[test]
fn omni_types_are_replaced_on_every_host() {
    let world = "host a; host b; want v1 agent=1; want v2 agent=1; job o1 v1/agent up a; job o2 v1/agent up b; \
                 deploy all-at-once running agent=1; job n1 v2/agent up a age=5";
    check(&format!("{world}; job n2 v2/agent starting b age=5"), "");
    check(
        &format!("{world}; job n2 v2/agent up b age=5"),
        "delete formation v1
         set release of shop to v2
         complete deployment deployment
         stop agent.o1: unwanted
         stop agent.o2: unwanted",
    );
}

#[test]
fn a_release_that_keeps_crashing_is_taken_back() {
    let world = "host a; want v1 web=1; want v2 web=1; job o1 v1/web up a; deploy all-at-once running web=1; \
                 job n1 v2/web down a exit=1 age=6 ended=5; job n2 v2/web down a exit=1 age=5 ended=4 replaces=n1 restarts=1";
    check(
        world,
        "create web.new1 of v2, restart 2
         start web.new1 on a",
    );
    check(
        &format!("{world}; job n3 v2/web down a exit=2 age=4 ended=3 replaces=n2 restarts=2"),
        "delete formation v2
         fail deployment deployment: web job a-n3 exited with status 2 (3 times)",
    );
}

#[test]
fn crashes_before_the_deployment_and_losses_do_not_count() {
    check(
        "host a; want v1 web=1; want v2 web=1; job o1 v1/web up a; deploy all-at-once running web=1 age=10; \
         job n1 v2/web down a exit=1 age=60 ended=50; job n2 v2/web down a exit=1 age=50 ended=40 replaces=n1; \
         job n3 v2/web down a exit=lost age=9 ended=8; job n4 v2/web down a exit=1 age=8 ended=2; job n5 v2/web starting a age=2 replaces=n4",
        "",
    );
}

#[test]
fn what_cannot_even_start_fails_on_the_second_try() {
    check(
        "host a; want v1 web=1; want v2 web=1; job o1 v1/web up a; deploy all-at-once running web=1; \
         job n1 v2/web down exit=notstarted age=6 ended=5; job n2 v2/web down a exit=notstarted age=5 ended=4 replaces=n1 restarts=1",
        "delete formation v2
         fail deployment deployment: web job a-n2 could not start: no such file: ./run (2 times)",
    );
}

#[test]
fn a_release_that_is_not_up_in_time_is_taken_back() {
    let world =
        "host a; want v1 web=1; want v2 web=1; job o1 v1/web up a; deploy all-at-once running web=1 age=200";
    check_wake(
        &format!("{world}; job n1 v2/web starting a age=100"),
        Some(20_000),
    );
    check(
        &format!("{world}; job n1 v2/web starting a age=120"),
        "delete formation v2
         fail deployment deployment: web was not up on port 8080 within 120 s
         stop web.n1: unwanted",
    );
    check(
        "host a; want v1 strict=1; want v2 strict=1; job o1 v1/strict up a; deploy all-at-once running strict=1 age=200;
         job n1 v2/strict pending age=120",
        "delete formation v2
         fail deployment deployment: strict was not started within 120 s: it waits for a host
         stop strict.n1: unwanted",
    );
}

#[test]
fn a_failed_deployment_gives_the_old_release_its_jobs_back() {
    check(
        "host a; want v1 web=1; want v2 web=1; job o1 v1/web up a; deploy one-by-one running web=2 age=200; \
         job n1 v2/web starting a age=150",
        "set formation v1: web=2
         delete formation v2
         fail deployment deployment: web was not up on port 8080 within 120 s
         stop web.n1: unwanted
         create web.new1 of v1
         start web.new1 on a",
    );
}

#[test]
fn scaling_during_a_deployment_moves_its_target() {
    check(
        "host a; want v1 web=3; want v2 web=1; job o1 v1/web up a; job o2 v1/web up a; job o3 v1/web up a; \
         job n1 v2/web starting a age=5; deploy all-at-once running web=1; scale v1 web=1 worker=0 to web=3 worker=0",
        "retarget deployment deployment: web=3
         set formation v2: web=3
         create web.new1 of v2
         start web.new1 on a
         create web.new2 of v2
         start web.new2 on a",
    );
}

#[test]
fn scaling_to_zero_during_a_deployment_ends_it_with_zero() {
    check(
        "host a; want v1 web=0; want v2 web=1; job n1 v2/web starting a age=5; deploy one-by-one running web=1; \
         scale v1 web=1 to web=0",
        "retarget deployment deployment: web=0
         set formation v2: web=0
         delete formation v1
         set release of shop to v2
         complete deployment deployment
         stop web.n1: unwanted
         complete scale request scale",
    );
}

#[test]
fn the_strategy_for_databases_is_refused_for_other_apps() {
    check(
        "host a; want v1 web=1; job o1 v1/web up a; deploy sirenia pending web=1",
        "run deployment deployment
         fail deployment deployment: the strategy sirenia is for replicated databases, and shop has no process named by SIRENIA_PROCESS; use all-at-once, one-by-one, one-down-one-up or in-batches",
    );
}

#[test]
fn a_deployment_of_a_deleted_app_fails() {
    check(
        "host a; deleted; deploy all-at-once running web=1",
        "fail deployment deployment: the app was deleted",
    );
}
