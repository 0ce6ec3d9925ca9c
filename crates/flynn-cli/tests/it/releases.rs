//! What makes and deploys releases: environment, limits, rollback, update, restart.

use crate::{bench::Bench, fake::Fake, state::Deploys};

#[test]
fn the_environment_is_changed_by_releases() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().deploys = Deploys::ByEvents;
    insta::assert_snapshot!(bench.transcript(&[
        "-a shop env set BAZ=qux=1 EMPTY=",
        "-a shop env",
        "-a shop env --json",
        "-a shop env get BAZ",
        "-a shop env get NOPE",
        "-a shop env unset BAZ EMPTY",
        "-a shop env:set -t web ONLY=web",
        "-a shop env -t web",
        "-a shop env get -t web ONLY",
        "-a shop env -t nosuch",
        "-a shop env",
        "-a shop env set =x",
    ]));
}

#[test]
fn an_app_that_was_never_deployed_has_an_environment_too() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    insta::assert_snapshot!(bench.transcript(&[
        "create -r '' new",
        "-a new env",
        "-a new scale",
        "-a new run true",
        "-a new env set -t web A=1",
        "-a new env set A=1",
        "-a new env",
        "-a new scale web=1",
    ]));
}

#[test]
fn limits_are_shown_and_set() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(bench.transcript(&[
        "-a shop limit",
        "-a shop limit set web memory=512MB max_fd=12000 cpu=500",
        "-a shop limit",
        "-a shop limit -t worker --json",
        "-a shop limit set web nosuch=1",
        "-a shop limit set web memory=lots",
        "-a shop limit set nosuch memory=1GB",
    ]));
}

#[test]
fn releases_are_shown_updated_rolled_back_and_deleted() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().deploys = Deploys::ByEvents;
    std::fs::write(
        bench.directory.join("update.json"),
        r#"{"env": {"FOO": null, "NEW": "1"}, "processes": {"web": {"omni": true}}}"#,
    )
    .unwrap();
    std::fs::write(bench.directory.join("bad.json"), "{").unwrap();
    let first = fake.state().releases[0].id.to_string();
    let mut text = bench.transcript(&[
        "-a shop release",
        "-a shop release update update.json",
        "-a shop release update bad.json",
        "-a shop release update missing.json",
        "-a shop release show",
        "-a shop release -q",
        "-a shop release rollback -y",
        "-a shop release rollback -y",
        &format!("-a shop release rollback -y {first}"),
        &format!("-a shop release delete -y {first}"),
    ]);
    let second = fake.state().releases[0].id.to_string();
    text.push_str(&bench.transcript(&[
        &format!("-a shop release delete -y {second}"),
        &format!("-a shop release delete -y {second}"),
        &format!("-a shop release show {second}"),
        "-a shop release show --json",
        "-a shop deployment",
    ]));
    insta::assert_snapshot!(text);
}

#[test]
fn a_deployment_that_fails_says_why_and_exits_with_1() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let reason = "web did not come up in 120 seconds\n  starting ...\n  panic: no database";
    fake.state().deploys = Deploys::Fail(reason.into());
    insta::assert_snapshot!(bench.transcript(&["-a shop env set A=1", "-a shop restart", "-a shop env"]));
}

#[test]
fn a_deployment_is_followed_over_a_broken_connection() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().deploys = Deploys::BreakBeforeTheEnd;
    insta::assert_snapshot!(bench.transcript(&["-a shop env set A=1", "-a shop env"]));
}
