//! What those do who operate a cluster, and what is asked before something is lost.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use serde_json::json;

use crate::{
    bench::{Bench, shown},
    fake::Fake,
};

#[test]
fn providers_and_resources_come_and_go() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut text = bench.transcript(&[
        "provider",
        "provider add pgtest http://100.100.0.1:9998/databases",
        "provider",
        "provider:add other http://other.test/",
        "-a shop resource",
        "-a shop resource add pgtets",
        "-a shop resource add pgtest",
        "-a shop resource",
        "-a shop env",
        "-a shop resource --json",
        "-a shop resource remove other",
        "-a shop resource remove pgtest",
        "-a shop env",
        "-a shop resource add pgtest",
        "-a shop resource add pgtest",
        "-a shop resource remove pgtest",
    ]);
    let id = fake.state().resources[0]["id"].as_str().unwrap().to_owned();
    text.push_str(&bench.transcript(&[
        &format!("-a shop resource remove -y pgtest {id}"),
        &format!("-a shop resource remove pgtest {id}"),
        "provider --json",
    ]));
    insta::assert_snapshot!(text);
}

#[test]
fn volumes_are_listed_shown_and_decommissioned() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let id = "73cb5039-b336-4d7e-a3a9-80d347494ca0";
    let job = "9d206601-f300-40d4-909b-f3e72168bf1f";
    {
        let mut state = fake.state();
        let (now, app, release) = (state.now(), state.apps[0].id, state.apps[0].release);
        state.volumes.push(json!({
            "id": id, "path": "/data", "host_id": "host0", "type": "data", "state": "created", "app": app,
            "release": release, "job": job, "job_type": "web", "created_at": now, "updated_at": now,
        }));
    }
    insta::assert_snapshot!(bench.transcript(&[
        "volume",
        "-a shop volume",
        &format!("-a shop volume show {id}"),
        &format!("-a shop volume decommission {id}"),
        "-a shop volume",
        &format!("-a shop volume show --json {id}"),
        "-a shop volume show 00000000-0000-4000-8000-000000000099",
    ]));
}

#[test]
fn log_sinks_are_added_listed_and_removed() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let mut text = bench.transcript(&[
        "cluster log-sink",
        "cluster log-sink add syslog syslog://127.0.0.1:5140/ {{.ID}}",
        "cluster:log-sink:add syslog --use-ids --insecure --format prefixed_newline syslog+tls://x.test/ TOKEN",
        "cluster log-sink",
        "cluster log-sink add syslog --format nosuch syslog://127.0.0.1/",
        "cluster log-sink remove nonsense",
    ]);
    let id = fake.state().sinks[0]["id"].as_str().unwrap().to_owned();
    text.push_str(&bench.transcript(&[
        &format!("cluster log-sink remove {id}"),
        &format!("cluster log-sink remove {id}"),
        "cluster log-sink --json",
    ]));
    insta::assert_snapshot!(text);
}

#[test]
fn a_backup_is_one_file() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let text = bench.transcript(&[
        "cluster backup --file backup.tar",
        "cluster backup --file missing/backup.tar",
    ]);
    insta::assert_snapshot!(text);
    assert_eq!(
        std::fs::read(bench.directory.join("backup.tar")).unwrap(),
        vec![7; 100_000]
    );
    assert_eq!(std::fs::read_dir(&bench.directory).unwrap().count(), 1);
    let output = bench.flynn(&["cluster", "backup"]).output().unwrap();
    assert_eq!(output.stdout.len(), 100_000);
}

#[test]
fn a_domain_is_migrated_and_the_configuration_waits_for_the_new_name() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let transcript = bench.transcript(&["cluster migrate-domain new.test"]);
    assert!(
        transcript.contains("the cluster's domain is not known"),
        "{transcript}"
    );
    // Names below localhost lead here, as the new domain's soon would.
    let port = fake.address.port();
    let config = bench.config().replace("127.0.0.1", "controller.old.localhost");
    let config = config.replace("https://git.flynn.test", "");
    bench.write_config(&config);
    let mut text = String::new();
    for (domain, answer) in [
        ("old.localhost", ""),
        ("new.localhost", "no\n"),
        ("new.localhost", "yes\n"),
    ] {
        text.push_str(&shown(&answered(
            &bench,
            &["cluster", "migrate-domain", domain],
            answer,
        )));
    }
    text.push_str(&bench.transcript(&["cluster"]));
    insta::assert_snapshot!(text.replace(&format!(":{port}"), ":PORT"));
}

#[test]
fn what_destroys_asks_for_the_apps_name() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    bench.transcript(&["-a shop env set A=1"]);
    let old = fake.state().releases[1].id.to_string();
    let mut text = String::new();
    for (line, answer) in [
        (vec!["-a", "shop", "release", "delete", &old], "yes\n"),
        (vec!["-a", "shop", "release", "delete", &old], "shop\n"),
        (vec!["-a", "shop", "delete"], "yes\n"),
        (vec!["-a", "shop", "delete"], ""),
        (vec!["-a", "shop", "delete"], "shop\n"),
    ] {
        text.push_str(&format!("$ flynn {} <<< {answer:?}\n", line.join(" ")));
        text.push_str(&shown(&answered(&bench, &line, answer)));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_dry_run_says_what_would_happen_and_asks_for_nothing_more() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let job = |kind: &str| json!({ "type": kind, "host": "host0" });
    fake.state().preview =
        json!({ "starts": [job("web"), job("web")], "stops": [job("web")], "kept": 1, "fits": true });
    let id = fake.state().routes[0].route.formatted_id();
    let mut text = bench.transcript(&[
        "-a shop scale --dry-run web=2",
        "-a shop scale --dry-run --json web=2",
        "-a shop scale --json web=2",
        "-a shop env set --dry-run A=1",
        "-a shop env:unset --dry-run FOO",
        "-a shop limit set --dry-run web memory=2GB",
        "-a shop route add http --dry-run www.example.com",
        "-a shop route add tcp --dry-run",
        &format!("-a shop route remove --dry-run {id}"),
    ]);
    let waiting = "no host has 4 GB of memory free: host0 has 1 GB";
    fake.state().preview =
        json!({ "waits": [{ "type": "web", "waiting": waiting }], "kept": 2, "fits": false });
    text.push_str(&bench.transcript(&["-a shop scale --dry-run web=3"]));
    let error = format!("web was not started within 120 s: {waiting}");
    fake.state().preview = json!({ "error": error, "kept": 2, "fits": false });
    text.push_str(&bench.transcript(&[
        "-a shop limit set --dry-run web memory=4GB",
        "-a shop scale",
        "-a shop env",
    ]));
    let asked: Vec<String> = fake
        .state()
        .requests
        .iter()
        .map(|(path, body)| format!("{path}: {}\n", body["do"].as_str().unwrap_or_default()))
        .collect();
    text.push_str(&asked.concat());
    insta::assert_snapshot!(text);
}

/// Runs a command whose standard input is `answer`.
fn answered(bench: &Bench, arguments: &[&str], answer: &str) -> Output {
    let mut child = bench
        .flynn(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}
