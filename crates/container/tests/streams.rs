//! Logs, attach, terminals and exec.

mod common;

use std::fs;
use std::time::Duration;

use common::*;
use container::{ExecSpec, LogFile, Outcome, StartError, logline};

#[tokio::test]
async fn the_log_has_time_and_stream_of_every_line() {
    let world = World::new();
    let spec = world.spec("echo out; echo err >&2; printf 'no end'");
    world.run(&spec).await;
    let content = fs::read(&spec.log.unwrap().path).unwrap();
    let mut lines: Vec<(&str, String)> = content
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| logline::parse(line).unwrap())
        .map(|line| {
            (
                line.stream.name(),
                String::from_utf8_lossy(line.text).into_owned(),
            )
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            ("stderr", "err".into()),
            ("stdout", "no end".into()),
            ("stdout", "out".into())
        ]
    );
}

#[tokio::test]
async fn a_fast_writer_loses_nothing_within_the_kept_files() {
    let world = World::new();
    let mut spec = world.spec("seq 1 200000");
    spec.log = Some(LogFile {
        path: world.directory.path().join("fast.log"),
        bytes_max: 4 << 20,
        files_max: 9,
    });
    let job = world.start(&spec).await;
    job.end().await;
    let mut numbers = Vec::new();
    for suffix in [".8", ".7", ".6", ".5", ".4", ".3", ".2", ".1", ""] {
        let content = fs::read(world.directory.path().join(format!("fast.log{suffix}"))).unwrap_or_default();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            let line = logline::parse(line).unwrap();
            numbers.push(std::str::from_utf8(line.text).unwrap().parse::<u32>().unwrap());
        }
    }
    assert!(numbers.iter().copied().eq(1..=200_000), "{} lines", numbers.len());
}

#[tokio::test]
async fn attached_clients_see_output_and_can_type() {
    let world = World::new();
    let mut spec = world.spec("while read line; do echo got $line; done; echo end of input; exit 9");
    spec.stdin = true;
    let job = world.start(&spec).await;
    let mut watcher = within("attach", job.control().await.attach(false, true, false))
        .await
        .unwrap();
    let mut typist = job.attach().await;
    typist.writer.stdin(b"one\ntwo\n").await.unwrap();
    read_until(&mut typist, "got two\n").await;
    read_until(&mut watcher, "got two\n").await;
    typist.writer.close_stdin().await.unwrap();
    assert_eq!(
        read_to_end(&mut typist).await,
        (Outcome::Exited { code: 9 }, "end of input\n".into())
    );
    assert_eq!(read_to_end(&mut watcher).await.0, Outcome::Exited { code: 9 });
}

#[tokio::test]
async fn a_client_that_has_nothing_more_to_say_still_hears() {
    let world = World::new();
    let mut spec = world.spec("cat; echo over");
    spec.stdin = true;
    let job = world.start(&spec).await;
    let container::Attached {
        mut reader,
        mut writer,
    } = job.attach().await;
    writer.stdin(b"hello\n").await.unwrap();
    drop(writer);
    let mut output = Vec::new();
    loop {
        match within("output", reader.next()).await.unwrap() {
            Some(container::Event::Stdout(bytes)) => output.extend(bytes),
            Some(container::Event::Exit(record)) => {
                break assert_eq!(record.outcome, Outcome::Exited { code: 0 });
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(output, b"hello\nover\n");
}

#[tokio::test]
async fn the_input_ends_when_the_last_typist_goes() {
    let world = World::new();
    let mut spec = world.spec("cat; echo over");
    spec.stdin = true;
    let job = world.start(&spec).await;
    let mut typist = job.attach().await;
    typist.writer.stdin(b"hello\n").await.unwrap();
    read_until(&mut typist, "hello").await;
    drop(typist);
    assert_eq!(job.end().await.outcome, Outcome::Exited { code: 0 });
    assert_eq!(job.log(), "hello\nover\n");
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_dropped_and_the_app_goes_on() {
    let world = World::new();
    let job = world.start(&world.spec("sleep 0.2; i=0; while [ $i -lt 600 ]; do head -c 65536 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo finished")).await;
    let attached = job.attach().await;
    assert_eq!(job.end().await.outcome, Outcome::Exited { code: 0 });
    job.wait_for_log("finished").await;
    drop(attached);
}

#[tokio::test]
async fn without_a_log_output_waits_for_a_slow_reader_and_nothing_is_lost() {
    let world = World::new();
    let mut spec = world.spec("seq 1 300000");
    spec.log = None;
    spec.wait_for_attach_ms = Some(30_000);
    let job = world.start(&spec).await;
    let mut attached = job.attach().await;
    let (outcome, output) = read_to_end(&mut attached).await;
    assert_eq!(outcome, Outcome::Exited { code: 0 });
    assert!(
        output
            .lines()
            .map(|line| line.parse::<u32>().unwrap())
            .eq(1..=300_000)
    );
}

#[tokio::test]
async fn a_terminal_has_a_size_and_control_characters() {
    let world = World::new();
    let mut spec = world.spec("stty size; tty; stat -c %u $(tty); trap 'echo interrupted' INT; trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.05; done");
    spec.process.terminal = Some(size(80, 24));
    spec.wait_for_attach_ms = Some(30_000);
    let job = world.start(&spec).await;
    let mut attached = job.attach().await;
    let output = read_until(&mut attached, "up\r\n").await;
    assert_eq!(output, "24 80\r\n/dev/pts/0\r\n1000\r\nup\r\n");
    attached.writer.stdin(b"\x03").await.unwrap();
    read_until(&mut attached, "interrupted").await;
    attached.writer.resize(size(120, 40)).await.unwrap();
    let (outcome, output) = read_to_end(&mut attached).await;
    assert_eq!((outcome, output.trim()), (Outcome::Exited { code: 3 }, "40 120"));
}

#[tokio::test]
async fn what_is_typed_before_the_terminal_is_there_is_not_lost() {
    let world = World::new();
    for _ in 0..50 {
        let mut spec = world.spec("read line; echo \"<$line>\"; stty size");
        spec.process.terminal = Some(size(80, 24));
        spec.wait_for_attach_ms = Some(30_000);
        let job = world.start(&spec).await;
        // Attaching is what lets the process go: the terminal comes a little later.
        let mut attached = job.attach().await;
        attached.writer.resize(size(100, 30)).await.unwrap();
        attached.writer.resize(size(132, 43)).await.unwrap();
        attached.writer.stdin(b"typed at once\n").await.unwrap();
        let (outcome, output) = read_to_end(&mut attached).await;
        assert_eq!(outcome, Outcome::Exited { code: 0 });
        assert!(output.ends_with("<typed at once>\r\n43 132\r\n"), "{output:?}");
    }
}

#[tokio::test]
async fn hanging_up_on_a_terminal_ends_what_runs_on_it() {
    let world = World::new();
    let mut spec = world.spec("echo up; while :; do sleep 0.05; done");
    spec.process.terminal = Some(size(80, 24));
    let job = world.start(&spec).await;
    let attached = job.attach().await;
    drop(attached);
    assert_eq!(
        job.end().await.outcome,
        Outcome::Signaled { signal: libc::SIGHUP }
    );
}

#[tokio::test]
async fn exec_runs_inside_with_the_same_restrictions() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    let (outcome, output) = job
        .exec_output(&world, "grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs|Uid):' /proc/self/status; hostname; echo e >&2; exit 6")
        .await;
    assert_eq!(outcome, Outcome::Exited { code: 6 });
    let main = fs::read_to_string(format!("/proc/{}/status", main_process(&job))).unwrap();
    for line in [
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Uid:\t1000",
        "job0\n",
        "e\n",
    ] {
        assert!(output.contains(line), "{line:?} in {output}");
    }
    let bounding = main.lines().find(|line| line.starts_with("CapBnd:")).unwrap();
    assert!(output.contains(bounding));
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups(main_process(&job)).contains("job0"));
    let (_, output) = job.exec_output(&world, "cat /proc/self/cgroup").await;
    assert!(
        output.contains("memory:/\n") || output.contains("0::/\n"),
        "{output}"
    );
    job.kill_and_end().await;
    world.check_nothing_left().await;
}

#[tokio::test]
async fn exec_has_input_and_a_terminal_of_its_own() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    let spec = ExecSpec {
        process: process("cat; echo over"),
        stdin: true,
    };
    let mut session = job.exec(&world, &spec).await.unwrap().0;
    session.writer.stdin(b"typed\n").await.unwrap();
    session.writer.close_stdin().await.unwrap();
    assert_eq!(
        read_to_end(&mut session).await,
        (Outcome::Exited { code: 0 }, "typed\nover\n".into())
    );

    let mut spec = ExecSpec {
        process: process("stty size; read x; echo \"<$x>\"; tty"),
        stdin: false,
    };
    spec.process.terminal = Some(size(100, 30));
    let mut session = job.exec(&world, &spec).await.unwrap().0;
    read_until(&mut session, "30 100").await;
    session.writer.stdin(b"abc\n").await.unwrap();
    let (outcome, output) = read_to_end(&mut session).await;
    assert_eq!(outcome, Outcome::Exited { code: 0 });
    assert!(
        output.contains("<abc>") && output.contains("/dev/pts/0"),
        "{output}"
    );
    job.kill_and_end().await;
}

#[tokio::test]
async fn a_failed_exec_says_why_and_does_not_keep_the_container_from_dying() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    for _ in 0..5 {
        let mut spec = ExecSpec {
            process: process(""),
            stdin: false,
        };
        spec.process.args = vec!["nonsense".into()];
        match job.exec(&world, &spec).await {
            Err(StartError::NotStarted(record)) => assert_eq!(record.outcome.exit_code(), 127),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        job.kill_and_end().await.outcome,
        Outcome::Signaled {
            signal: libc::SIGKILL
        }
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn hanging_up_on_an_exec_ends_it_and_nothing_else() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    let spec = ExecSpec {
        process: process("echo here; sleep 2000"),
        stdin: false,
    };
    let mut session = job.exec(&world, &spec).await.unwrap().0;
    read_until(&mut session, "here").await;
    let before = job.cgroup().processes().len();
    drop(session);
    let cgroup = job.cgroup();
    until("the process is gone", || cgroup.processes().len() < before).await;
    assert!(matches!(job.adopt().await, container::Adopted::Running(_)));
    job.kill_and_end().await;
}

#[tokio::test]
async fn exec_into_what_has_ended_is_refused() {
    let world = World::new();
    let job = world.start(&world.spec("true")).await;
    job.end().await;
    let spec = ExecSpec {
        process: process("true"),
        stdin: false,
    };
    assert!(matches!(
        job.exec(&world, &spec).await,
        Err(StartError::NotStarted(_))
    ));
}

#[tokio::test]
async fn a_container_killed_during_an_exec_ends_both() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    let spec = ExecSpec {
        process: process("echo here; sleep 2000"),
        stdin: false,
    };
    let mut session = job.exec(&world, &spec).await.unwrap().0;
    read_until(&mut session, "here").await;
    job.control().await.stop(Duration::ZERO).await.unwrap();
    assert_eq!(
        read_to_end(&mut session).await.0,
        Outcome::Signaled {
            signal: libc::SIGKILL
        }
    );
    job.end().await;
    world.check_nothing_left().await;
}

/// The app itself: the youngest child of pid 1.
fn main_process(job: &Job) -> i32 {
    let pids = job.cgroup().processes();
    pids.into_iter()
        .filter(|pid| *pid != job.pid as i32)
        .min()
        .expect("the app runs")
}
