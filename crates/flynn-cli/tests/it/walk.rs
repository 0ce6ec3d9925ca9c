//! A user's first steps: apps, git remotes, and what is said when something is not there.

use crate::{bench::Bench, fake::Fake};

#[test]
fn apps_are_created_shown_and_deleted() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    insta::assert_snapshot!(bench.transcript(&[
        "create -r '' myapp",
        "create -r '' myapp",
        "create -r '' Bad_Name",
        "create -r ''",
        "apps",
        "apps --json",
        "-a myapp delete -y",
        "-a myapp delete -y",
        "apps",
        "version",
    ]));
}

#[test]
fn an_app_that_does_not_exist_is_named_and_a_near_one_suggested() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let commands = [
        "info",
        "ps",
        "scale",
        "env",
        "log",
        "route",
        "release",
        "deployment",
        "meta",
        "limit",
        "restart",
    ];
    for command in commands {
        insta::allow_duplicates! {
            insta::assert_snapshot!(bench.transcript(&[&format!("-a shpo {command}")]).split_once('\n').unwrap().1, @r#"
            [stderr] error: app "shpo" not found
            [stderr] hint: did you mean shop? `flynn apps` lists all
            [exit 1]
            "#);
        }
    }
    for command in [
        "env set A=1",
        "run true",
        "kill x",
        "delete -y",
        "route remove http/00000000-0000-4000-8000-000000000009",
    ] {
        let transcript = bench.transcript(&[&format!("-a nosuch {command}")]);
        assert!(
            transcript.contains("error: app \"nosuch\" not found"),
            "{transcript}"
        );
        assert!(transcript.ends_with("[exit 1]\n"), "{transcript}");
    }
}

#[test]
fn in_a_checkout_the_app_is_known_by_its_remote() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    bench.git(&["init", "-q"]);
    let mut text = bench.transcript(&[
        "info",
        "create myapp",
        "info",
        "create other",
        "-a myapp remote add staging",
    ]);
    text.push_str(&bench.git(&["remote", "-v"]));
    text.push_str(&bench.transcript(&["delete -y", "info", "-a nosuch remote add", "remote add x"]));
    text.push_str(&bench.git(&["remote"]));
    insta::assert_snapshot!(text.replace(&format!(":{}", fake.address.port()), ":PORT"));
}

#[test]
fn a_command_line_that_cannot_be_understood_exits_with_1() {
    let bench = Bench::empty();
    insta::assert_snapshot!(bench.transcript(&[
        "nosuchcmd",
        "sclae",
        "pg psql",
        "login",
        "install",
        "route nosuchverb",
        "apps --nosuchoption",
        "kill",
        "env set novalue -t web",
    ]));
}

#[test]
fn an_option_may_stand_in_the_environment() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let output = bench
        .flynn(&["env"])
        .env("FLYNN_APP", "shop")
        .env("FLYNN_CLUSTER", "default")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "FOO=bar\n");
    let output = bench
        .flynn(&["env", "--app", "shop", "--cluster", "nosuch"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown cluster \"nosuch\""));
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = bench.flynn(&["apps"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

#[test]
fn completions_know_the_commands() {
    let bench = Bench::empty();
    for shell in ["bash", "zsh", "fish"] {
        let output = bench.flynn(&["completions", shell]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("deployment"),
            "{shell}"
        );
    }
}

#[test]
fn metadata_is_changed_key_by_key() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(bench.transcript(&[
        "-a shop meta set foo=baz bar=qux",
        "-a shop deployment batch-size 2",
        "-a shop meta",
        "-a shop deployment:batch-size",
        "-a shop meta unset foo bar flynn-deploy-batch-size",
        "-a shop meta",
        "-a shop meta --json",
        "-a shop deployment batch-size",
        "-a shop deployment timeout 60",
        "-a shop deployment timeout",
        "-a shop deployment strategy one-by-one",
        "-a shop deployment strategy",
        "-a shop deployment strategy nosuch",
        "-a shop deployment timeout 0",
    ]));
}

#[test]
fn an_app_is_linked_to_others_and_they_are_listed() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(bench.transcript(&[
        "create --remote= database",
        "-a shop link",
        "-a shop link databse",
        "-a shop link shop",
        "-a shop link database",
        "-a shop link",
        "-a database link",
        "-a shop meta set other=kept",
        "-a shop link shop --remove",
        "-a shop link database --remove",
        "-a shop meta",
        "-a shop link --remove",
    ]));
}

#[test]
fn programs_can_read_all_help_and_people_all_manual_pages() {
    let bench = Bench::empty();
    let output = bench.flynn(&["help", "--json"]).output().unwrap();
    let help: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        help["scale"].as_str().unwrap().contains("$ flynn scale web=2"),
        "{help}"
    );
    let text = bench.transcript(&["man --dir man1", "man nosuch", "man route add --nosuch"]);
    assert!(text.contains("pages to man1."), "{text}");
    assert!(
        text.contains("error: there is no command `flynn nosuch`"),
        "{text}"
    );
    for page in ["flynn.1", "flynn-cluster-log-sink-add-syslog.1", "flynn-why.1"] {
        assert!(bench.directory.join("man1").join(page).exists(), "{page}");
    }
}

#[test]
fn what_heroku_calls_otherwise_works() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(
        bench
            .transcript(&[
                "-a shop config",
                "-a shop config:set A=1",
                "-a shop config:get A",
                "-a shop domains:add www.example.com",
                "-a shop domains",
                "apps:info --app shop",
                "-a shop rout:add http x.example.com",
                "-a shop route:ad http x.example.com",
                "-a shop cluster:log-sink:ad",
            ])
            .replace(&format!(":{}", fake.address.port()), ":PORT")
    );
}
