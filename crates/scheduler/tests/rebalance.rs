//! Jobs that move to hosts that have few: when, which, and what becomes of a move that something comes between.

mod common;
use common::{check, check_wake};

const HOSTS: &str = "host a up=900; host b up=900; host c up=90";

fn three_on_two_hosts(more: &str) -> String {
    format!(
        "{HOSTS}; want v1 web=3; job w1 v1/web up a age=900; job w2 v1/web up b age=800; \
         job w3 v1/web up b age=700; {more}"
    )
}

fn four_on_two_hosts(hosts: &str, more: &str) -> String {
    format!(
        "{hosts}; want v1 web=4; job w1 v1/web up a age=900; job w2 v1/web up b age=800; \
         job w3 v1/web up b age=700; job w4 v1/web up a age=950; {more}"
    )
}

const ONE_MOVE: &str = "create web.new1 of v1\nstart web.new1 on c";

#[test]
fn the_youngest_of_a_host_that_has_two_more_moves() {
    let (move_, in_flight) = (three_on_two_hosts(""), "job n v1/web starting c age=1 moves=w3");
    check(&move_, ONE_MOVE);
    check(&three_on_two_hosts(in_flight), "");
    let up = "job n v1/web up c age=3 moves=w3";
    check(&three_on_two_hosts(up), "stop web.w3: unwanted");
}

#[test]
fn one_more_is_even_and_stays() {
    let even = "host a up=900; host b up=900; want v1 web=3; job w1 v1/web up a age=900; \
                job w2 v1/web up b age=800; job w3 v1/web up b age=700";
    check(even, "");
    check_wake(even, None);
}

#[test]
fn a_host_that_has_just_come_is_waited_for() {
    let hosts = "host a up=900; host b up=900; host c up=50";
    check(&four_on_two_hosts(hosts, ""), "");
    check_wake(&four_on_two_hosts(hosts, ""), Some(10_000));
    let relapsed = "host a up=900; host b up=900; host c up=50 relapses=2";
    check_wake(&four_on_two_hosts(relapsed, ""), Some(190_000));
}

#[test]
fn a_better_host_that_has_just_come_is_waited_for_unless_it_comes_and_goes() {
    let want = "want v1 web=6; job w1 v1/web up a age=900; job w2 v1/web up a age=800; job w3 v1/web up a age=700; \
                job w4 v1/web up a age=600; job w5 v1/web up a age=500; job w6 v1/web up b age=500";
    check(&format!("host a up=900; host b up=900; host c up=50; {want}"), "");
    check(
        &format!("host a up=900; host b up=900; host c up=50 relapses=1; {want}"),
        "create web.new1 of v1\nstart web.new1 on b",
    );
}

#[test]
fn hosts_that_are_drained_silent_full_or_without_the_tags_get_none() {
    for c in ["draining", "silent=1", "mem=63"] {
        let hosts = format!("host a up=900; host b up=900; host c up=900 {c}");
        check(&four_on_two_hosts(&hosts, ""), "");
    }
    let hosts = "host a up=900 disk=ssd; host b up=900 disk=ssd; host c up=900";
    check(&four_on_two_hosts(hosts, "tags v1 web disk=ssd"), "");
}

#[test]
fn a_type_that_is_not_at_rest_does_not_move() {
    for trouble in [
        "job w4 v1/web up a age=950 unhealthy",
        "job w4 v1/web starting a age=950",
        "job w4 v1/web up a age=59",
        "job e v1/web down a age=950 ended=59 exit=1",
        "job s v1/web stopping a age=950 unwanted",
    ] {
        check(&four_on_two_hosts(HOSTS, trouble), "");
    }
    let calm = "job e v1/web down a age=950 ended=60 exit=1";
    check(&four_on_two_hosts(HOSTS, calm), ONE_MOVE);
    // A move is followed by the next one sooner.
    check(&four_on_two_hosts(HOSTS, "job w4 v1/web up a age=9 moves=x"), "");
    check(
        &four_on_two_hosts(HOSTS, "job w4 v1/web up a age=10 moves=x"),
        ONE_MOVE,
    );
}

#[test]
fn what_has_data_stays() {
    check(
        &format!(
            "{HOSTS}; want v1 store=2; job s1 v1/store up b age=900; job s2 v1/store up b age=900; \
             volume d1 store b job=s1; volume d2 store b job=s2"
        ),
        "",
    );
}

#[test]
fn a_move_ends_as_what_it_was_when_something_comes_between() {
    let begun = |job: &str| three_on_two_hosts(&format!("job n v1/web {job} moves=w3"));
    // It ended: what was to move has never been gone, and the type has rest first.
    check(&begun("down c ended=1 exit=1"), "");
    // Another ended meanwhile: there is nothing too many any more.
    let other = "job n v1/web up c age=3 moves=w3; job w1 v1/web down a ended=1 exit=1";
    check(&three_on_two_hosts(other), "");
    // Fewer are wanted: what serves nobody yet goes first.
    check(
        &format!("{}; want v1 web=2", begun("starting c age=1")),
        "stop web.n: unwanted\nstop web.w3: unwanted",
    );
    // It was created and could not be placed before whoever planned it was gone.
    check(&begun("pending age=1"), "stop web.n: unwanted");
    // Its host is drained.
    let drained = begun("up c age=3").replace("host c up=90", "host c up=90 draining");
    check(&drained, "stop web.n: unwanted");
    // Others do not serve: both stay until they do.
    let ill = "job n v1/web up c age=3 moves=w3; job w2 v1/web up b age=800 unhealthy";
    check(&three_on_two_hosts(ill), "");
}

#[test]
fn a_host_gets_one_at_a_time() {
    check(
        &three_on_two_hosts(
            "want v1 web=3 worker=3; job k1 v1/worker up a age=900; job k2 v1/worker up b age=900; \
             job k3 v1/worker up b age=900; job n v1/web starting c age=1 moves=w3",
        ),
        "",
    );
}

#[test]
fn a_host_with_much_less_to_do_gets_one_of_a_loaded_one() {
    let all_on_a = "want v1 web=1 worker=1 strict=1; job w v1/web up a age=900; \
                    job k v1/worker up a age=900; job s v1/strict up a age=900";
    let plan = "create strict.new1 of v1\nstart strict.new1 on b";
    check(&format!("host a up=900; host b up=900; {all_on_a}"), plan);
    check(&format!("host a up=900; host b up=59; {all_on_a}"), "");
    // Two and one: a move would only turn it round.
    check(
        "host a up=900; host b up=900; want v1 web=1 worker=1 strict=1; job w v1/web up a age=900; \
         job k v1/worker up a age=900; job s v1/strict up b age=900",
        "",
    );
}
