//! Log sinks: every line of every job arrives, whoever dies in between.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Process};
use serde_json::json;

/// Numbers its lines, about 500 of them a second.
const COUNTING: &str = r#"exec python3 -u -c '
import time
n = 0
while True:
    n += 1
    print("line", n)
    time.sleep(0.002)
'"#;

/// What a receiver has read: whole messages in their order.
type Messages = Arc<Mutex<Vec<String>>>;

/// A syslog receiver that splits at newlines, in the cluster's network.
struct Receiver {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Receiver {
    fn start(cluster: &Cluster, port: u16, messages: &Messages) -> Result<Receiver> {
        // The port may be in the state in which the kernel keeps those of connections that were cut.
        let listener = cluster.wait("the receiver's port", || {
            Ok(Some(
                cluster.net.within(|| TcpListener::bind(("127.0.0.1", port)))?,
            ))
        })?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, messages) = (is_over.clone(), messages.clone());
        let thread = std::thread::spawn(move || serve(&listener, &over, &messages));
        Ok(Receiver {
            port,
            is_over,
            thread,
        })
    }

    /// Ends as a killed process does: at once, whatever is in its socket's buffer.
    fn die(self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().expect("the receiver does not panic");
    }
}

fn serve(listener: &TcpListener, is_over: &Arc<AtomicBool>, messages: &Messages) {
    let mut readers = vec![];
    while !is_over.load(Ordering::SeqCst) {
        if let Ok((stream, _)) = listener.accept() {
            let kept = stream.try_clone().expect("a socket can be named twice");
            let (messages, over) = (messages.clone(), is_over.clone());
            let reader = std::thread::spawn(move || read(stream, &over, &messages));
            readers.push((kept, reader));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for (stream, reader) in readers {
        let _ = stream.shutdown(Shutdown::Both);
        reader.join().expect("the reader does not panic");
    }
}

fn read(stream: TcpStream, is_over: &AtomicBool, messages: &Messages) {
    stream.set_nonblocking(false).expect("a socket may block");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 0) && !is_over.load(Ordering::SeqCst) {
        // Half a message is what the other side did not get out; it will say it again.
        if line.ends_with('\n') {
            messages
                .lock()
                .expect("nobody panics")
                .push(line.trim_end().to_owned());
        }
        line.clear();
    }
}

/// By job, the numbers of lines in the order in which each came first.
fn lines(messages: &Messages) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut jobs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for message in messages.lock().expect("nobody panics").iter() {
        let Some((head, number)) = message.split_once("] line ") else {
            continue;
        };
        let process = head
            .split(' ')
            .nth(4)
            .with_context(|| format!("no PROCID in {message:?}"))?;
        let number = number
            .parse()
            .with_context(|| format!("no line of ours: {message:?}"))?;
        let seen = jobs.entry(process.to_owned()).or_default();
        if seen.last().is_none_or(|last| *last < number) {
            seen.push(number);
        }
    }
    Ok(jobs)
}

/// Waits until every one of `count` jobs has its line `last`, and looks whether any is missing before.
fn all_arrive(cluster: &Cluster, messages: &Messages, count: usize, more: u64) -> Result<()> {
    let goals: BTreeMap<String, u64> = cluster.wait("lines of every job", || {
        let jobs = lines(messages)?;
        let goals = jobs
            .into_iter()
            .map(|(job, seen)| (job, seen.last().unwrap_or(&0) + more));
        let goals: BTreeMap<_, _> = goals.collect();
        Ok((goals.len() == count).then_some(goals))
    })?;
    cluster.wait("more lines of every job", || {
        let jobs = lines(messages)?;
        let arrived = |(job, goal): (&String, &u64)| jobs.get(job).and_then(|seen| seen.last()) >= Some(goal);
        Ok(goals.iter().all(arrived).then_some(()))
    })?;
    for (job, seen) in lines(messages)? {
        let missing = (1..).zip(&seen).find(|(expected, number)| expected != *number);
        ensure!(
            missing.is_none(),
            "{job}: after line {:?} came line {:?}",
            missing.map(|(expected, _)| expected - 1),
            missing.map(|(_, number)| number)
        );
    }
    Ok(())
}

#[test]
fn every_line_reaches_a_sink_whoever_dies_in_between() -> Result<()> {
    let cluster = Cluster::start()?;
    let messages = Messages::default();
    let receiver = Receiver::start(&cluster, 0, &messages)?;
    let port = receiver.port;
    let sink = cluster.api(
        "POST",
        "/sinks",
        Some(&json!({"kind": "syslog", "config": {
            "url": format!("syslog://127.0.0.1:{port}"),
            "format": "newline",
            "structured_data": true,
        }})),
    )?;
    let id = sink["id"].as_str().context("a sink has an id")?.to_owned();
    cluster.app("shop", &[Process::worker(COUNTING)], 2)?;
    all_arrive(&cluster, &messages, 2, 200)?;
    let message = messages.lock().expect("nobody panics")[0].clone();
    let words: Vec<_> = message.split(' ').collect();
    ensure!(
        words[0] == "<14>1" && words[2..4] == ["host0", "shop"] && words[4].starts_with("worker.host0-"),
        "{message}"
    );

    // The daemon, in the midst of it.
    for _ in 0..2 {
        e2e::kill(cluster.pid("daemon")?);
        all_arrive(&cluster, &messages, 2, 1_000)?;
    }

    // The receiver, for a while: nobody else notices.
    receiver.die();
    let behind = cluster.wait("the host to say that the receiver is gone", || {
        let table = cluster.flynn_host(&["log-sink", "list", "--json"])?;
        let list: serde_json::Value = serde_json::from_str(&table)?;
        let status = &list[0]["status"];
        let is_gone = status["connected"] == false && status["behind_bytes"].as_u64() > Some(50_000);
        Ok(is_gone.then(|| status.clone()))
    })?;
    ensure!(
        behind["last_error"]
            .as_str()
            .is_some_and(|error| !error.is_empty()),
        "{behind}"
    );
    ensure!(cluster.jobs("shop", "up")?.len() == 2, "a job suffered");
    e2e::kill(cluster.pid("daemon")?);
    let receiver = Receiver::start(&cluster, port, &messages)?;
    all_arrive(&cluster, &messages, 2, 1_000)?;
    cluster.wait("the sink to be up to date", || {
        let table = cluster.flynn_host(&["log-sink", "list"])?;
        let row = table.lines().nth(1).unwrap_or_default();
        Ok((row.starts_with(&id) && row.contains("  true  ")).then_some(()))
    })?;

    // A sink that is removed leaves nothing and hears nothing.
    let directory = cluster.dir.path().join("state/sinks").join(&id);
    ensure!(directory.join("cursors.json").exists(), "there are no cursors");
    let deleted = cluster.api("DELETE", &format!("/sinks/{id}"), None)?;
    ensure!(deleted == sink, "{deleted}");
    cluster.wait("the sink's cursors to go", || {
        Ok((!directory.exists()).then_some(()))
    })?;
    let events = cluster.api("GET", "/sinks", None)?;
    ensure!(events == json!([]), "{events}");
    receiver.die();
    cluster.finish()
}

#[test]
fn a_sink_that_was_away_for_too_long_is_told_how_much_it_missed() -> Result<()> {
    // More than the files of one job hold.
    const LINES: u64 = 1_600_000;
    let cluster = Cluster::start()?;
    let listener = cluster.net.within(|| TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port();
    drop(listener);
    cluster.api(
        "POST",
        "/sinks",
        Some(&json!({"kind": "syslog", "config": {
            "url": format!("syslog://127.0.0.1:{port}"), "format": "newline", "structured_data": true,
        }})),
    )?;
    let script = format!(
        "seq -f 'line %.0f {}' 1 {LINES}; echo all written; exec sleep 1000000",
        "x".repeat(80)
    );
    cluster.app("shop", &[Process::worker(&script)], 1)?;
    // The job is not held up by a receiver that is not there.
    cluster.wait("the job to have written everything", || {
        let last = cluster.flynn(&["-a", "shop", "log", "-n", "1", "-r"])?;
        Ok(last.contains("all written").then_some(()))
    })?;

    let listener = cluster.net.within(|| TcpListener::bind(("127.0.0.1", port)))?;
    let (stream, _) = listener.accept()?;
    let (mut lost, mut arrived, mut expected) = (0, 0, 1);
    for message in BufReader::new(stream).lines() {
        let message = message?;
        if let Some((_, rest)) = message.split_once("[flynn lost=\"") {
            let count: u64 = rest.split('"').next().unwrap_or_default().parse()?;
            lost += count;
            expected += count;
        } else if let Some((head, number)) = message.split_once("] line ") {
            let number: u64 = number.split(' ').next().unwrap_or_default().parse()?;
            ensure!(number == expected, "line {number} came where {expected} belongs");
            ensure!(
                head.ends_with(&format!("seq=\"{number}\"")),
                "line {number} is numbered {head}"
            );
            (arrived, expected) = (arrived + 1, number + 1);
        } else if message.ends_with("all written") {
            break;
        }
    }
    ensure!(
        arrived + lost == LINES,
        "{arrived} came and {lost} were told to be lost"
    );
    ensure!(
        lost > 0 && arrived > LINES / 2,
        "{arrived} came, {lost} were lost"
    );
    let sinks = cluster.flynn_host(&["log-sink", "list", "--json"])?;
    let sinks: serde_json::Value = serde_json::from_str(&sinks)?;
    ensure!(sinks[0]["status"]["lines_lost"] == lost, "{sinks}");
    cluster.finish()
}
