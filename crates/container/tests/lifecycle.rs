//! From the start to the exit record, in all the ways it can end.

mod common;

use std::time::{Duration, Instant};

use common::*;
use container::{Adopted, Outcome, Started};

#[tokio::test]
async fn the_exit_code_is_reported_and_nothing_is_left() {
    let world = World::new();
    let (record, output) = world.run(&world.spec("echo hello; echo oops >&2; exit 7")).await;
    assert_eq!(record.outcome, Outcome::Exited { code: 7 });
    assert!(!record.oom_killed);
    assert!(record.started_at.unwrap() <= record.ended_at);
    assert!(
        output.contains("hello\n") && output.contains("oops\n"),
        "{output:?}"
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit_code() {
    let world = World::new();
    let (record, _) = world.run(&world.spec("kill -SEGV $$")).await;
    assert_eq!(
        record.outcome,
        Outcome::Signaled {
            signal: libc::SIGSEGV
        }
    );
    assert!(!record.oom_killed);
}

#[tokio::test]
async fn a_program_that_is_not_there_or_not_executable_is_a_clear_failure() {
    let world = World::new();
    let check = async |program: &str, cwd: &str, code: i32, text: &str| {
        let mut spec = world.spec("");
        spec.process.args = vec![program.into()];
        spec.process.cwd = cwd.into();
        let record = world.start_failure(&spec).await;
        assert_eq!(
            record.outcome,
            Outcome::NotStarted {
                code,
                error: text.into()
            }
        );
        assert_eq!(record.started_at, None);
    };
    check(
        "nonsense",
        "/",
        127,
        "exec: \"nonsense\": executable file not found in $PATH",
    )
    .await;
    check(
        "/no/such",
        "/",
        127,
        "exec: \"/no/such\": no such file or directory",
    )
    .await;
    check(
        "/etc/passwd",
        "/",
        126,
        "exec: \"/etc/passwd\": permission denied",
    )
    .await;
    check(
        "true",
        "/nowhere",
        126,
        "cannot change to directory \"/nowhere\": No such file or directory (os error 2)",
    )
    .await;
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_layer_that_is_missing_is_a_clear_failure() {
    let world = World::new();
    let mut spec = world.spec("true");
    spec.layers.push("/no/such/layer.erofs".into());
    let record = world.start_failure(&spec).await;
    let Outcome::NotStarted { error, .. } = record.outcome else {
        panic!("{record:?}")
    };
    assert_eq!(
        error,
        "layer /no/such/layer.erofs: No such file or directory (os error 2)"
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_a_clear_failure() {
    let world = World::new();
    let mut spec = world.spec("true");
    spec.log.as_mut().unwrap().path = "/no/such/log".into();
    let record = world.start_failure(&spec).await;
    let Outcome::NotStarted { error, .. } = record.outcome else {
        panic!("{record:?}")
    };
    assert_eq!(
        error,
        "log file /no/such/log: No such file or directory (os error 2)"
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn stop_is_polite_first() {
    let world = World::new();
    let job = world
        .start(&world.spec("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"))
        .await;
    job.wait_for_log("up").await;
    job.control().await.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(job.end().await.outcome, Outcome::Exited { code: 3 });
    assert!(job.log().contains("bye"));
}

#[tokio::test]
async fn what_ignores_the_polite_signal_is_killed_after_the_grace() {
    let world = World::new();
    let job = world
        .start(&world.spec("trap '' TERM; echo up; while :; do sleep 1; done"))
        .await;
    job.wait_for_log("up").await;
    let begun = Instant::now();
    job.control()
        .await
        .stop(Duration::from_millis(300))
        .await
        .unwrap();
    assert_eq!(
        job.end().await.outcome,
        Outcome::Signaled {
            signal: libc::SIGKILL
        }
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_child_of_a_shell_gets_its_grace_though_the_shell_dies_at_once() {
    let world = World::new();
    let child = "trap 'sleep 0.2; echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let job = world
        .start(&world.spec(&format!("sh -c \"{child}\" & wait; echo not here")))
        .await;
    job.wait_for_log("up").await;
    job.control().await.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(
        job.end().await.outcome,
        Outcome::Signaled {
            signal: libc::SIGTERM
        }
    );
    assert!(job.log().ends_with("drained\n"), "{:?}", job.log());
}

#[tokio::test]
async fn signals_reach_the_main_process() {
    let world = World::new();
    let job = world
        .start(&world.spec("trap 'echo got it' USR1; echo up; while :; do sleep 0.02; done"))
        .await;
    job.wait_for_log("up").await;
    job.control().await.signal(libc::SIGUSR1).await.unwrap();
    job.wait_for_log("got it").await;
    assert!(job.control().await.signal(77).await.is_err());
    job.kill_and_end().await;
}

#[tokio::test]
async fn pid_1_reaps_orphans() {
    let world = World::new();
    let script = "for i in 1 2 3 4 5 6 7 8; do (sh -c 'exit 0' &) ; done; \
                  n=1; while [ $n != 0 ]; do n=$(ps | grep -c ' Z ' ); n=$(ps -o stat | grep -c Z); done; echo clean; ps -o pid,ppid,args";
    let output = world.output(script).await;
    assert!(output.contains("clean"), "{output}");
    assert!(output.contains("1     0 flynn-init"), "{output}");
}

#[tokio::test]
async fn a_shim_killed_hard_takes_its_container_along() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000")).await;
    job.wait_for_log("up").await;
    let shim = parent_of(job.pid);
    unsafe { libc::kill(shim, libc::SIGKILL) };
    let cgroup = job.cgroup();
    until("the container is dead", || cgroup.processes().is_empty()).await;
    assert!(matches!(job.adopt().await, Adopted::Lost));
    container::cleanup(&job.directory).unwrap();
    container::cleanup(&job.directory).unwrap();
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_shim_killed_at_any_moment_of_its_start_leaves_nothing() {
    let world = World::new();
    for step in 0..40 {
        let spec = world.spec("echo up; sleep 1000");
        let directory = world.directory.path().join(&spec.id);
        let marker = directory.to_str().unwrap().to_owned();
        let starting = async {
            let created = world.shim.create(&directory, &spec).await?;
            created.start().await
        };
        // The moment is what varies here; whatever has come of the start by then is fine.
        let moment = tokio::time::sleep(Duration::from_micros(700 * step));
        let killing = async {
            moment.await;
            // The shim is the eldest of what has its arguments.
            if let Some(pid) = processes_with_argument(&marker).into_iter().min() {
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        };
        let _ = within("start", async { tokio::join!(starting, killing) }).await;
        container::cleanup(&directory).unwrap();
        assert!(processes_with_argument(&marker).is_empty());
    }
    world.check_nothing_left().await;
}

/// Shims, and what they have forked and not yet renamed.
fn processes_with_argument(argument: &str) -> Vec<i32> {
    let has_argument = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|part| part == argument.as_bytes())
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(has_argument)
        .collect()
}

#[tokio::test]
async fn pid_1_killed_from_outside_is_the_end_of_the_container() {
    let world = World::new();
    let job = world.start(&world.spec("echo up; sleep 1000 & sleep 1000")).await;
    job.wait_for_log("up").await;
    unsafe { libc::kill(job.pid as i32, libc::SIGKILL) };
    assert_eq!(
        job.end().await.outcome,
        Outcome::Signaled {
            signal: libc::SIGKILL
        }
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_daemon_gone_before_the_start_is_the_end() {
    let world = World::new();
    let (job, created) = world.create(&world.spec("echo never")).await;
    drop(created);
    let record = job.end().await;
    let error = "the daemon went away before the start".to_owned();
    assert_eq!(record.outcome, Outcome::NotStarted { code: 125, error });
    assert_eq!(job.log(), "");
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_daemon_gone_after_the_start_changes_nothing() {
    let world = World::new();
    let job = world
        .start(&world.spec("echo up; while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 4"))
        .await;
    job.wait_for_log("up").await;
    let Adopted::Running(state) = job.adopt().await else {
        panic!("not running")
    };
    assert_eq!(state.pid, job.pid);
    assert_eq!(
        job.exec_output(&world, "touch /tmp/go").await.0,
        Outcome::Exited { code: 0 }
    );
    assert_eq!(job.end().await.outcome, Outcome::Exited { code: 4 });
    let Adopted::Ended(record) = job.adopt().await else {
        panic!("not ended")
    };
    assert_eq!(record.outcome, Outcome::Exited { code: 4 });
}

#[tokio::test]
async fn the_process_waits_for_an_attach_and_loses_no_output() {
    let world = World::new();
    let mut spec = world.spec("echo first; exit 5");
    spec.log = None;
    spec.wait_for_attach_ms = Some(30_000);
    let (job, created) = world.create(&spec).await;
    assert_eq!(
        within("start", created.start()).await.unwrap(),
        Started::WaitingForAttach
    );
    let mut attached = job.attach().await;
    assert_eq!(
        read_to_end(&mut attached).await,
        (Outcome::Exited { code: 5 }, "first\n".into())
    );
}

#[tokio::test]
async fn nobody_attaching_in_time_is_the_end() {
    let world = World::new();
    let mut spec = world.spec("echo never");
    spec.wait_for_attach_ms = Some(100);
    let job = world.start(&spec).await;
    let record = job.end().await;
    assert_eq!(
        record.outcome,
        Outcome::NotStarted {
            code: 125,
            error: "nobody attached in time".into()
        }
    );
    world.check_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_all_run() {
    let world = std::sync::Arc::new(World::new());
    let jobs: Vec<_> = (0..50)
        .map(|number| {
            let world = world.clone();
            tokio::spawn(async move {
                world
                    .run(&world.spec(&format!("echo {number}; exit {number}")))
                    .await
            })
        })
        .collect();
    for (number, job) in jobs.into_iter().enumerate() {
        let (record, output) = job.await.unwrap();
        assert_eq!(record.outcome, Outcome::Exited { code: number as i32 });
        assert_eq!(output, format!("{number}\n"));
    }
    world.check_nothing_left().await;
}
