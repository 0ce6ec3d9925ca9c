//! The app's log, once and followed.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use api::logs::Message;
use rustix::process::{Pid, Signal, kill_process};
use types::Timestamp;

use crate::{bench::Bench, fake::Fake};

fn line(stream: &str, millis: i64, text: &str) -> Message {
    Message {
        host_id: "host0".into(),
        job_id: "9d206601-f300-40d4-909b-f3e72168bf1f".into(),
        msg: text.into(),
        process_type: "web".into(),
        source: "app".into(),
        stream: stream.into(),
        timestamp: Timestamp::from_micros(1_800_000_000_000_000 + millis * 1000),
    }
}

#[test]
fn the_log_is_printed_in_the_wanted_form() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    fake.state().logs = vec![vec![
        line("stdout", 1, "hello"),
        line("stderr", 2, "oops"),
        line("init", 3, "exec"),
    ]];
    let mut text = bench.transcript(&[
        "-a shop log",
        "-a shop log -r -s",
        "-a shop log --json -n 2",
        "-a shop log -n 5 -t web -j host0-9d206601-f300-40d4-909b-f3e72168bf1f -i",
        "-a shop log -n 10001",
    ]);
    text.push_str(&fake.state().log_queries.join("\n"));
    insta::assert_snapshot!(text);
}

#[test]
fn a_followed_log_goes_on_where_it_broke_and_ends_by_ctrl_c() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let all = [
        line("stdout", 1, "one"),
        line("stdout", 2, "two"),
        line("stdout", 2, "two"),
        line("stdout", 3, "four"),
    ];
    fake.state().logs = vec![all[..2].to_vec(), all[..3].to_vec(), all.to_vec()];
    let mut child = bench
        .flynn(&["-a", "shop", "log", "-f", "-r", "-n", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap());
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], ["one", "two"]);
    fake.break_streams();
    assert_eq!(lines.next().unwrap(), "two");
    fake.break_streams();
    assert_eq!(lines.next().unwrap(), "four");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr
            .lines()
            .all(|line| line == "The log stream broke; connecting again ..."),
        "{stderr}"
    );
    assert_eq!(
        fake.state().log_queries[0],
        "follow=true&lines=2&stream_types=stdout%2Cstderr"
    );
}
