//! Scaling, listing and killing jobs.

use crate::{bench::Bench, fake::Fake};

/// Without how long it took.
fn stable(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| match line.strip_prefix("scale completed in ") {
            Some(_) => "scale completed in TIME",
            None => line,
        });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_scale_is_followed_until_it_is_complete() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(stable(&bench.transcript(&[
        "-a shop scale",
        "-a shop scale web=2 worker=1",
        "-a shop scale",
        "-a shop scale web=2",
        "-a shop scale web=1",
        "-a shop scale -n web=2,disk=ssd",
        "-a shop scale",
        "-a shop scale --all",
        "-a shop scale --json",
        "-a shop scale bogus=1",
        "-a shop scale web=-1",
        "-a shop scale --all web=1",
    ])));
}

#[test]
fn a_scale_that_takes_too_long_says_what_waits() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().scale_waits_for = "no host has the tag disk=ssd".into();
    insta::assert_snapshot!(stable(
        &bench.transcript(&["-a shop scale --timeout 1 web=1", "-a shop ps"])
    ));
}

#[test]
fn jobs_are_listed_and_killed() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    bench.transcript(&["-a shop scale web=2 worker=1"]);
    let (dead, alive) = {
        let mut state = fake.state();
        state.jobs[0].state = types::JobState::Down;
        state.jobs[0].process_type.clear();
        (state.jobs[0].id.clone(), state.jobs[1].id.clone())
    };
    insta::assert_snapshot!(bench.transcript(&[
        "-a shop ps",
        "-a shop ps -a -c",
        &format!("-a shop kill host0-x {alive} host0-y"),
        &format!("-a shop kill {dead}"),
        "-a shop ps --json",
    ]));
}

#[test]
fn a_scale_that_another_one_replaces_does_not_wait_for_ever() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().is_scaled_by_others = true;
    let text = bench.transcript(&["-a shop scale worker=1"]);
    assert!(
        text.contains("error: the scale was replaced by another one before it was complete"),
        "{text}"
    );
}
