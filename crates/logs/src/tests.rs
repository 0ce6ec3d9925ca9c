use std::{fs, io::Write, path::Path};

use futures::StreamExt;
use types::{
    Timestamp, Uuid,
    logline::{Record, Stream},
};

use super::*;

struct World {
    dir: tempfile::TempDir,
    logs: Logs,
    app: AppId,
}

fn job(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(StateDir::new(dir.path()), "host0".parse().unwrap());
        let world = World {
            dir,
            logs,
            app: AppId(Uuid::from_u128(1)),
        };
        fs::create_dir_all(world.directory()).unwrap();
        world
    }

    fn directory(&self) -> std::path::PathBuf {
        self.dir.path().join("logs").join(self.app.to_string())
    }

    fn describe(&self, n: u128, process_type: &str) {
        let sidecar = format!(r#"{{"process_type":"{process_type}"}}"#);
        fs::write(self.directory().join(job(n)).with_extension("json"), sidecar).unwrap();
    }

    fn path(&self, n: u128) -> std::path::PathBuf {
        self.directory().join(format!("{}.log", job(n)))
    }

    fn write(&self, n: u128, seconds: i64, stream: Stream, text: &str) {
        append(&self.path(n), seconds, stream, false, text);
    }

    async fn check(&self, query: Query, expected: &str) {
        let messages: Vec<_> = self.logs.query(self.app, query).await.unwrap().collect().await;
        let text: Vec<_> = messages.iter().map(|message| message.msg.as_str()).collect();
        assert_eq!(text.join(" "), expected);
    }
}

fn append(path: &Path, seconds: i64, stream: Stream, is_partial: bool, text: &str) {
    let mut line = vec![];
    let time = Timestamp::from_micros(seconds * 1_000_000);
    Record {
        time,
        stream,
        is_partial,
        text: text.as_bytes(),
    }
    .write(&mut line);
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.write_all(&line).unwrap();
}

fn two_jobs() -> World {
    let world = World::new();
    world.describe(1, "web");
    world.describe(2, "worker");
    world.write(1, 1, Stream::Stdout, "a");
    world.write(2, 2, Stream::Stderr, "b");
    world.write(1, 3, Stream::Stderr, "c");
    world.write(2, 4, Stream::Stdout, "d");
    world
}

#[tokio::test]
async fn jobs_are_merged_by_time_and_filtered() {
    let world = two_jobs();
    let query = Query::default;
    world.check(query(), "a b c d").await;
    world
        .check(
            Query {
                lines: Some(2),
                ..query()
            },
            "c d",
        )
        .await;
    world
        .check(
            Query {
                lines: Some(0),
                ..query()
            },
            "",
        )
        .await;
    world
        .check(
            Query {
                process_type: Some("web".into()),
                ..query()
            },
            "a c",
        )
        .await;
    world
        .check(
            Query {
                job_id: Some(format!("host0-{}", job(2))),
                ..query()
            },
            "b d",
        )
        .await;
    world
        .check(
            Query {
                stream_types: Some("stderr".into()),
                ..query()
            },
            "b c",
        )
        .await;
    world
        .check(
            Query {
                stream_types: Some("stderr".into()),
                lines: Some(1),
                ..query()
            },
            "c",
        )
        .await;
    let unknown = Query {
        stream_types: Some("stdin".into()),
        ..query()
    };
    assert!(world.logs.query(world.app, unknown).await.is_err());
}

#[tokio::test]
async fn pieces_are_joined_and_torn_lines_left_out() {
    let world = World::new();
    append(&world.path(1), 1, Stream::Stdout, true, "one ");
    append(&world.path(1), 2, Stream::Stderr, false, "between");
    append(&world.path(1), 3, Stream::Stdout, false, "line");
    fs::OpenOptions::new()
        .append(true)
        .open(world.path(1))
        .unwrap()
        .write_all(b"2026-11-23T05:2")
        .unwrap();
    world.check(Query::default(), "between one line").await;
}

#[tokio::test]
async fn the_rotated_file_comes_before_the_current_one() {
    let world = World::new();
    for n in 0..5000 {
        world.write(1, n, Stream::Stdout, &n.to_string());
    }
    fs::rename(world.path(1), world.path(1).with_extension("log.1")).unwrap();
    world.write(1, 5000, Stream::Stdout, "5000");
    world
        .check(
            Query {
                lines: Some(3),
                ..Query::default()
            },
            "4998 4999 5000",
        )
        .await;
    let all: Vec<_> = world
        .logs
        .query(world.app, Query::default())
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(all.len(), 5001);
}

#[tokio::test]
async fn following_loses_and_doubles_nothing_through_rotation_and_new_jobs() {
    let world = two_jobs();
    let query = Query {
        follow: true,
        lines: Some(1),
        ..Query::default()
    };
    let mut stream = world.logs.query(world.app, query).await.unwrap();
    let mut next = async || stream.next().await.unwrap().msg;
    assert_eq!(next().await, "d");
    world.write(1, 5, Stream::Stdout, "e");
    assert_eq!(next().await, "e");
    world.write(1, 6, Stream::Stdout, "f");
    fs::rename(world.path(1), world.path(1).with_extension("log.1")).unwrap();
    world.write(1, 7, Stream::Stdout, "g");
    assert_eq!((next().await, next().await), ("f".into(), "g".into()));
    world.write(3, 8, Stream::Stdout, "h");
    assert_eq!(next().await, "h");
}

#[tokio::test]
async fn a_deleted_app_leaves_nothing_and_deleting_again_is_no_error() {
    let world = two_jobs();
    world.logs.forget(world.app).await.unwrap();
    assert!(!world.directory().exists());
    world.logs.forget(world.app).await.unwrap();
    world.check(Query::default(), "").await;
}

#[test]
fn old_logs_go_but_not_those_of_jobs_that_still_write() {
    let world = two_jobs();
    fs::create_dir_all(world.dir.path().join("jobs").join(job(1))).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(8 * 24 * 3600);
    retain::sweep_all(&StateDir::new(world.dir.path()), &[], later).unwrap();
    assert!(world.path(1).exists());
    assert!(!world.path(2).exists());
}
