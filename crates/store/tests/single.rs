//! A group of one: what is acknowledged stays, whatever happens to the process.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use common::*;
use store::*;

#[tokio::test]
async fn a_write_is_visible_when_it_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_single(directory.path()).await;
    assert!(*store.leadership().borrow());
    let mut watch = store.watch();
    watch.mark_unchanged();
    assert_eq!(store.write(put("a", 1)).await.unwrap(), 1);
    assert_eq!(store.read().notes["a"], "1");
    assert!(watch.has_changed().unwrap());
    assert_eq!(store.write(&put("a", 2)).await.unwrap(), 2);
    assert_eq!(store.read_linearizable().await.unwrap().notes["a"], "2");
    store.shutdown().await;
    assert!(!*store.leadership().borrow());
    let error = store.write(put("a", 3)).await.unwrap_err();
    assert!(matches!(error, WriteError::Stopped(_)), "{error}");
    assert_eq!(store.read().notes["a"], "2", "reading goes on");
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused_and_hurts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_single(directory.path()).await;
    let error = store
        .write(put("a", "x".repeat(COMMAND_BYTES_MAX)))
        .await
        .unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    store
        .write(put("a", "x".repeat(COMMAND_BYTES_MAX / 2)))
        .await
        .unwrap();
    store.halt().await;
    let store = open_single(directory.path()).await;
    assert_eq!(store.read().notes["a"].len(), COMMAND_BYTES_MAX / 2);
    store.shutdown().await;
}

#[tokio::test]
async fn a_directory_is_open_once_and_for_one_node() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_single(directory.path()).await;
    let error = Store::<Notes>::open(Options::single(directory.path()))
        .await
        .err()
        .unwrap();
    let by = format!("is in use by process {}", std::process::id());
    assert!(error.to_string().ends_with(&by), "{error}");
    assert!(error.hint().contains("running already"));
    store.shutdown().await;

    let mut options = Options::single(directory.path());
    options.node_id = 2;
    let error = Store::<Notes>::open(options).await.err().unwrap();
    assert!(
        matches!(
            error,
            OpenError::OtherNode {
                found: 1,
                wanted: 2,
                ..
            }
        ),
        "{error}"
    );
    open_single(directory.path()).await.shutdown().await;
}

fn small() -> SnapshotPolicy {
    SnapshotPolicy {
        entries: 100,
        log_bytes: 1 << 20,
        entries_kept: 10,
        log_bytes_kept: 1 << 20,
    }
}

#[tokio::test]
async fn a_restart_after_snapshots_and_purges_gives_the_same_state() {
    let directory = tempfile::tempdir().unwrap();
    let options = || {
        let mut options = Options::single(directory.path());
        options.snapshots = small();
        options.segment_bytes = 2000;
        options
    };
    let mut store = Store::<Notes>::open(options()).await.unwrap();
    for round in 0..4 {
        for number in 0..150 {
            store.write(put(number, format!("round {round}"))).await.unwrap();
        }
        store.snapshot().await.unwrap();
        for number in 0..7 {
            store.write(put(number, "after the snapshot")).await.unwrap();
        }
        let status = store.status();
        assert!(status.purged_index > Some(round * 150), "{status:?}");
        assert!(status.log_bytes < 20_000, "{status:?}");
        let before = store.read();
        match round % 2 {
            0 => store.shutdown().await,
            _ => store.halt().await,
        }
        store = Store::open(options()).await.unwrap();
        assert_eq!(*store.read(), *before);
        assert_eq!(
            std::fs::read_dir(directory.path().join("snapshots"))
                .unwrap()
                .count(),
            1
        );
    }
    store.shutdown().await;
}

#[tokio::test]
async fn the_log_is_shortened_by_itself_by_entries_and_by_bytes() {
    for (text_bytes, count) in [(10, 400), (20_000, 80)] {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::single(directory.path());
        options.snapshots = SnapshotPolicy {
            entries: 300,
            log_bytes: 1 << 20,
            entries_kept: 10,
            log_bytes_kept: 1 << 16,
        };
        options.segment_bytes = 10_000;
        let store = Store::<Notes>::open(options).await.unwrap();
        for number in 0..count {
            store
                .write(put(number % 3, "x".repeat(text_bytes)))
                .await
                .unwrap();
        }
        let shortened = async {
            while store.status().purged_index.is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), shortened)
            .await
            .expect("the log is shortened");
        store.shutdown().await;
    }
}

#[tokio::test]
async fn a_damaged_snapshot_or_log_refuses_to_open_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_single(directory.path()).await;
    for number in 0..50 {
        store.write(put(number, "text")).await.unwrap();
    }
    store.snapshot().await.unwrap();
    for number in 0..50 {
        store.write(put(number, "text")).await.unwrap();
    }
    store.shutdown().await;
    for (folder, at) in [("snapshots", 60), ("snapshots", 800), ("log", 400), ("log", 5000)] {
        let path = std::fs::read_dir(directory.path().join(folder))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let sound = std::fs::read(&path).unwrap();
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let error = Store::<Notes>::open(Options::single(directory.path()))
            .await
            .err()
            .unwrap();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(folder), "{error}");
        std::fs::write(&path, sound).unwrap();
    }
    open_single(directory.path()).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_leads_again_at_once_even_with_a_log_as_long_as_it_gets() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_single(directory.path()).await;
    let entries = SnapshotPolicy::default().entries - 100;
    let clients = (0..64).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..entries / 64 {
                store
                    .write(put(format!("{client}-{number}"), "text ".repeat(40)))
                    .await
                    .unwrap();
            }
        })
    });
    futures::future::join_all(clients).await;
    assert_eq!(store.status().snapshot_index, None);
    store.halt().await;
    let started = Instant::now();
    let store = open_single(directory.path()).await;
    let took = started.elapsed();
    assert_eq!(store.read().commands, entries / 64 * 64);
    store.write(put("a", 1)).await.unwrap();
    println!("led again after {took:?}");
    // Several times what it takes in a debug build on a busy machine.
    assert!(took < Duration::from_secs(2), "{took:?}");
    store.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::single(directory.path());
    options.snapshots = small();
    let store = Store::<Notes>::open(options).await.unwrap();
    let snapshots = directory.path().join("snapshots");
    std::fs::remove_dir(&snapshots).unwrap();
    for number in 0..250 {
        store.write(put(number, "text")).await.unwrap();
    }
    store.snapshot().await.unwrap_err();
    assert_eq!(store.status().snapshot_index, None);
    std::fs::create_dir(&snapshots).unwrap();
    store.snapshot().await.unwrap();
    assert!(store.status().snapshot_index.is_some());
    store.shutdown().await;
}

/// Runs the ignored test `name` of this file as a process of its own.
fn child(name: &str, directory: &std::path::Path, shell_before: &str) -> std::process::Child {
    Process::new("sh")
        .args([
            "-c",
            &format!("{shell_before} exec \"$0\" --exact {name} --ignored --nocapture"),
        ])
        .arg(std::env::current_exe().unwrap())
        .env("STORE_TEST_DIRECTORY", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn child_directory() -> std::path::PathBuf {
    std::env::var_os("STORE_TEST_DIRECTORY")
        .expect("run by another test")
        .into()
}

/// Writes forever with sixteen clients and prints each key when it is acknowledged.
#[test]
#[ignore = "the process that other tests kill"]
fn child_writes_until_killed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut options = Options::single(child_directory());
        // Small, so that kills also hit snapshots, rotations and purges.
        options.snapshots = small();
        options.segment_bytes = 20_000;
        let store = Store::<Notes>::open(options).await.unwrap();
        let clients = (0..16).map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0.. {
                    let key = format!("{}-{client}-{number}", std::process::id());
                    if let Err(error) = store.write(put(&key, "text ".repeat(number % 40))).await {
                        println!("failed {error}");
                        return;
                    }
                    println!("acknowledged {key}");
                }
            })
        });
        futures::future::join_all(clients).await;
        assert!(store.read().commands > 0);
        println!("stopped {}", store.stopped().await);
    });
}

#[tokio::test]
async fn killed_at_any_moment_it_keeps_every_acknowledged_write() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut process = child("child_writes_until_killed", directory.path(), "");
        let mut before_kill: u32 = 37 * (round + 1) % 301 + round * 20;
        for line in BufReader::new(process.stdout.take().unwrap()).lines() {
            // After the kill, what is still in the pipe was acknowledged, too.
            if let Some(key) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged.push(key.to_owned());
            }
            if before_kill == 0 {
                process.kill().unwrap();
            }
            before_kill = before_kill.saturating_sub(1);
        }
        process.wait().unwrap();
        let started = Instant::now();
        let store = open_single(directory.path()).await;
        let took = started.elapsed();
        let state = store.read();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|key| !state.notes.contains_key(*key))
            .collect();
        assert!(
            lost.is_empty(),
            "round {round}: {} of {} lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
        println!(
            "round {round}: {} acknowledged, opened in {took:?}",
            acknowledged.len()
        );
        store.write(put(round, "after the kill")).await.unwrap();
        store.halt().await;
    }
    assert!(acknowledged.len() > 1000);
}

#[tokio::test]
async fn a_full_disk_stops_writes_with_a_reason_and_a_restart_with_space_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    // The limit on the size of a file stands in for the disk: the write fails half-way, the same.
    let process = child(
        "child_writes_until_killed",
        directory.path(),
        "trap '' XFSZ; ulimit -f 20;",
    );
    let output = process.wait_with_output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let lines = |start: &'static str| output.lines().filter_map(move |line| line.strip_prefix(start));
    let stopped = lines("stopped ").next().unwrap_or_else(|| panic!("{output}"));
    assert!(
        stopped.contains("cannot write to") && stopped.contains("File too large"),
        "{stopped}"
    );
    assert!(lines("failed ").count() == 16, "{output}");
    let store = open_single(directory.path()).await;
    assert!(lines("acknowledged ").count() > 10);
    for key in lines("acknowledged ") {
        assert!(store.read().notes.contains_key(key), "{key} is lost");
    }
    store.write(put("a", 1)).await.unwrap();
    store.shutdown().await;
}
