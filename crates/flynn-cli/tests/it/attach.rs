//! One-off jobs and commands in running ones, without a terminal.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    bench::{Bench, shown},
    fake::Fake,
};

#[test]
fn a_job_gives_its_output_its_errors_and_its_status() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    insta::assert_snapshot!(bench.transcript(&[
        "-a shop run exit 3",
        "-a shop run -- echo -x -- y",
        "-a shop run echo -a -- --app b",
        "-a shop run -d -- echo z",
        "-a shop run nosuch",
        "-a shop run break",
        "-a shop run --limits memory=2GB,cpu=x true",
        "-a shop run",
    ]));
}

#[test]
fn a_job_is_asked_for_as_the_options_say() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let release = fake.state().releases[0].id;
    bench.transcript(&[
        "-a shop run exit 0",
        "-a shop run -l --limits memory=2GB,cpu=500 exit 0",
        "-a shop run -d exit 0",
        "-a shop run -e /bin/sh exit 0",
    ]);
    let state = fake.state();
    let body = |at: usize| &state.requests[at].1;
    assert_eq!(
        *body(0),
        json!({
            "release": release, "release_env": true, "args": ["exit", "0"], "disable_log": true, "resources": {},
        })
    );
    assert_eq!(body(1).get("disable_log"), None);
    assert_eq!(
        body(1)["resources"]["memory"],
        json!({ "request": 2u64 << 30, "limit": 2u64 << 30 })
    );
    assert_eq!(body(2).get("disable_log"), None);
    assert_eq!(body(3)["args"], json!(["/bin/sh", "exit", "0"]));
}

#[test]
fn input_goes_through_to_its_end_in_any_size() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let input: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let mut child = bench
        .flynn(&["-a", "shop", "run", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let input = input.clone();
        move || stdin.write_all(&input).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == input);
}

#[test]
fn a_signal_goes_to_the_job_and_its_status_comes_back() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1] {
        let mut child = bench
            .flynn(&["-a", "shop", "run", "signal"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        stdout.read_line(&mut text).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("ready\nsignal {}\n", signal.as_raw()));
        let output = child.wait_with_output().unwrap();
        assert_eq!(shown(&output), format!("[exit {}]\n", 128 + signal.as_raw()));
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_job_too() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut child = bench
        .flynn(&["-a", "shop", "run", "flood"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut head = [0; 10_000];
    child.stdout.take().unwrap().read_exact(&mut head).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_command_runs_in_a_job_named_by_id_or_type() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    bench.transcript(&["-a shop scale web=1"]);
    let job = fake.state().jobs[0].id.clone();
    insta::assert_snapshot!(bench.transcript(&[
        &format!("-a shop exec {job} -- exit 4"),
        &format!("-a shop exec {job} echo -x"),
        "-a shop exec -t web -- echo y -- z",
        "-a shop exec -t worker -- echo y",
        "-a shop exec host0-nosuch -- echo y",
        &format!("-a shop exec {job}"),
    ]));
}
