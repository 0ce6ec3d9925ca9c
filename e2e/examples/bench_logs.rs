//! What a log sink takes from one host. `script/bench-logs` builds what this needs and calls it with the
//! seconds and the lines per second of the steady run.
//!
//! Two runs on one cluster. *Steady*: two jobs write at a given rate for longer than their rotated files
//! could hold what is written, so that keeping up is shown and not buffering. *At once*: two jobs write
//! what their files can hold as fast as they can, and the rate is that of what arrives.
//!
//! Everything runs on this machine: what the jobs, their shims and the receiver take is not there for
//! the daemon.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use e2e::{
    Cluster, Process,
    measure::{self, memory_kb, processor_time},
};
use serde_json::json;

const JOBS: u32 = 2;
/// Of each job at once; with what the log adds it is less than what 16 files of 10 MiB hold.
const LINES_AT_ONCE: u64 = 1_000_000;
/// Characters after each line's number, so that a line has about a hundred.
const PADDING: usize = 80;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (seconds, rate) = (number(20)?, number(250_000)?);
    println!("{}", measure::machine());
    let cluster = Cluster::start()?;
    let listener = cluster.net.within(|| TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port();
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let for_receiver = seen.clone();
    std::thread::spawn(move || receive(&listener, &for_receiver));
    cluster.api(
        "POST",
        "/sinks",
        Some(&json!({"kind": "syslog", "config": {
            "url": format!("syslog://127.0.0.1:{port}"), "format": "newline",
        }})),
    )?;
    let per_job = rate / u64::from(JOBS);
    let steady = Process::worker(&steady(per_job, per_job * seconds));
    run(&cluster, "steady", steady, per_job * seconds, &seen)?;
    let at_once = Process::worker(&format!(
        "seq -f '%.0f {}' 1 {LINES_AT_ONCE}; exec sleep 1000000",
        "x".repeat(PADDING)
    ));
    run(&cluster, "atonce", at_once, LINES_AT_ONCE, &seen)?;
    cluster.finish()
}

/// Writes in steps of ten milliseconds; behind its time it writes more at a step.
fn steady(lines_per_second: u64, lines: u64) -> String {
    format!(
        r#"exec python3 -c '
import sys, time
n, began, pad = 0, time.monotonic(), " " + "x" * {PADDING} + "\n"
while n < {lines}:
    wanted = min({lines}, int((time.monotonic() - began) * {lines_per_second}))
    sys.stdout.write("".join([str(i) + pad for i in range(n + 1, wanted + 1)]))
    sys.stdout.flush()
    n = wanted
    time.sleep(0.01)
time.sleep(1000000)
'"#
    )
}

/// What came of one job: its last number, how many were missing before it, how many came again.
#[derive(Default, Clone)]
struct Seen {
    last: u64,
    missing: u64,
    again: u64,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
}

type AllSeen = Arc<Mutex<HashMap<Vec<u8>, Seen>>>;

fn run(cluster: &Cluster, app: &str, process: Process, lines: u64, seen: &AllSeen) -> Result<()> {
    let daemon = cluster.pid("daemon")?;
    let before = (processor_time(daemon)?, memory_kb(daemon)?);
    cluster.app(app, &[process], JOBS)?;
    let mut peak_kb = 0;
    let began = Instant::now();
    let mut progress = (0, Instant::now());
    let jobs = loop {
        std::thread::sleep(Duration::from_millis(100));
        peak_kb = peak_kb.max(memory_kb(daemon)?);
        let jobs: Vec<Seen> = {
            let seen = seen.lock().expect("the receiver does not panic");
            let is_of_app = |process: &&Vec<u8>| process.starts_with(app.as_bytes());
            seen.keys()
                .filter(is_of_app)
                .map(|process| seen[process].clone())
                .collect()
        };
        let arrived: u64 = jobs.iter().map(|job| job.last).sum();
        if arrived > progress.0 {
            progress = (arrived, Instant::now());
        }
        let is_over = jobs.len() == JOBS as usize && jobs.iter().all(|job| job.last == lines);
        if is_over || progress.1.elapsed() > Duration::from_secs(30) {
            break jobs;
        }
    };
    let first = jobs
        .iter()
        .filter_map(|job| job.first_at)
        .min()
        .context("nothing arrived")?;
    let last = jobs
        .iter()
        .filter_map(|job| job.last_at)
        .max()
        .context("nothing arrived")?;
    let taken = last - first;
    let (wanted, arrived) = (
        lines * u64::from(JOBS),
        jobs.iter().map(|job| job.last - job.missing).sum::<u64>(),
    );
    let busy = processor_time(daemon)?.saturating_sub(before.0);
    println!(
        "{app:7} {:.0} lines/s: {arrived} of {wanted} in {:.1} s, {} lost, {} twice; daemon {:.1} µs of processor \
         per line, {} kB before, {peak_kb} kB at most; load average {}, whole run {:.0} s",
        arrived as f64 / taken.as_secs_f64(),
        taken.as_secs_f64(),
        wanted - arrived,
        jobs.iter().map(|job| job.again).sum::<u64>(),
        busy.as_secs_f64() * 1e6 / arrived as f64,
        before.1,
        measure::load_average(),
        began.elapsed().as_secs_f64(),
    );
    let bytes: u64 = fs::read_dir(cluster.dir.path().join("state/logs"))?
        .flatten()
        .flat_map(|app| fs::read_dir(app.path()).into_iter().flatten().flatten())
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    println!("        log files on disk afterwards: {} MB", bytes / 1_000_000);
    cluster.flynn(&["-a", app, "scale", "worker=0"])?;
    Ok(())
}

fn receive(listener: &TcpListener, seen: &AllSeen) {
    for stream in listener.incoming().flatten() {
        let seen = seen.clone();
        std::thread::spawn(move || read(stream, &seen));
    }
}

/// Counts messages; one line's number is all that is looked at besides where it comes from.
fn read(mut stream: TcpStream, seen: &AllSeen) {
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    while let Ok(count) = stream.read(&mut buffer[length..]) {
        if count == 0 {
            return;
        }
        length += count;
        let end = buffer[..length]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let mut seen = seen.lock().expect("nobody panics");
        for message in buffer[..end]
            .split(|byte| *byte == b'\n')
            .filter(|message| !message.is_empty())
        {
            note(message, &mut seen);
        }
        drop(seen);
        buffer.copy_within(end..length, 0);
        length -= end;
    }
}

/// `<14>1 TIME HOST APP PROCID ID1 - NUMBER xxx`
fn note(message: &[u8], seen: &mut HashMap<Vec<u8>, Seen>) {
    let mut words = message.splitn(9, |byte| *byte == b' ').skip(3);
    let (Some(app), Some(process), Some(text)) = (words.next(), words.next(), words.nth(2)) else {
        return;
    };
    let Some(number) = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
    else {
        return;
    };
    let key = [app, b" ", process].concat();
    let job = seen.entry(key).or_default();
    let now = Instant::now();
    job.first_at.get_or_insert(now);
    job.last_at = Some(now);
    if number <= job.last {
        job.again += 1;
    } else {
        job.missing += number - job.last - 1;
        job.last = number;
    }
}
