//! Runs every target on mutations of its seeds, for as long as `FUZZ_SECONDS` says (2 by itself).
//!
//! A number makes an input, so a failure is a number: it is printed, and `FUZZ_SEED=n` runs that one
//! alone. Each run takes up other numbers than those before it: what one run overlooks a later finds.

mod mutation;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fuzzing::{TARGETS, Target};
use mutation::Dice;

/// One input may take this long. Targets take microseconds; a machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(10);

macro_rules! targets {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

targets! {
    api_bodies
    attach_frames
    chunked_body
    commands
    dns_query
    log_records
    ref_lines
    request_head
    response_head
    routing_feed
    server_sent_events
}

#[test]
fn every_target_is_run() {
    assert_eq!(TESTED, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

fn run(name: &str) {
    let target = fuzzing::target(name).expect("the target exists");
    let seeds = seeds(name);
    if let Some(number) = number("FUZZ_SEED") {
        return run_one(target, &seeds, number);
    }
    for seed in &seeds {
        target(seed);
    }
    let limit = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(2));
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970");
    let (report, reports) = mpsc::channel();
    let first = since_1970.as_nanos() as u64;
    let worker = std::thread::spawn(move || {
        let begin = Instant::now();
        let mut number = first;
        while begin.elapsed() < limit {
            if report.send(number).is_err() {
                return;
            }
            run_one(target, &seeds, number);
            number = number.wrapping_add(1);
        }
    });
    let mut latest = first;
    loop {
        match reports.recv_timeout(PATIENCE) {
            Ok(number) => latest = number,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("FUZZ_SEED={latest} runs without an end"),
        }
    }
    worker.join().unwrap_or_else(|panic| resume_unwind(panic));
    println!("{} inputs", latest.wrapping_sub(first) + 1);
}

fn run_one(target: Target, seeds: &[Vec<u8>], number: u64) {
    let input = mutation::input(&mut Dice(number), seeds);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&input))) {
        eprintln!(
            "\nFUZZ_SEED={number} runs this again:\n{}\n",
            input.escape_ascii()
        );
        resume_unwind(panic);
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seeds", directory.display());
    paths
        .iter()
        .map(|path| fs::read(path).expect("it can be read"))
        .collect()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}
