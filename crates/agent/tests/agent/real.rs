//! The agent with real containers in a network of their own. Needs root, `busybox-static`,
//! `mkfs.erofs`, `nft`, and the `flynn-shim` of this build.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api::{
    attach::{Frame, SUCCESS, Stream, WAITING},
    host::{HostJob, HostPort, HostService, ReportedState},
};
use container::{cgroup::Cgroup, layers};
use daemon::StateDir;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::{Exit, HealthCheck, JobId};

use crate::{
    controller::Controller,
    life::{Life, Setup, app_of, directories, id_of, job, until},
    machine::Fuse,
    session::{Session, heard},
};

struct World {
    controller: Controller,
    setup: Setup,
    layer: String,
    dir: tempfile::TempDir,
}

/// Runs a test on a thread, and threads made by it, that have a network namespace of their own.
fn in_new_machine<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    command("ip link set lo up");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { test(World::new().await).await });
}

fn command(line: &str) -> String {
    let mut words = line.split(' ');
    let output = std::process::Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Beside this test's own directory.
fn shim() -> PathBuf {
    let path = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("flynn-shim");
    assert!(
        path.exists(),
        "{} is not there: cargo build -p container",
        path.display()
    );
    path
}

impl World {
    async fn new() -> World {
        let dir = tempfile::Builder::new().prefix("agent-test-").tempdir().unwrap();
        let layer = busybox(dir.path());
        let controller = Controller::new(Fuse::endless());
        let setup = Setup {
            state: dir.path().join("state"),
            controller: controller.serve().await,
            network: overlay::Config::new("ta", "flynn_ta", "100.100.0.0/24".parse().unwrap()),
            cgroup_parent: dir.path().file_name().unwrap().to_str().unwrap().to_owned(),
            shim: shim(),
        };
        World {
            controller,
            setup,
            layer,
            dir,
        }
    }

    fn life(&self) -> Life {
        Life::begin(&self.setup, None)
    }

    /// A script that runs once.
    fn job(&self, script: &str) -> HostJob {
        let mut job = job(&self.layer, &["/bin/sh", "-c", script]);
        job.config.stop_timeout = 5;
        job
    }

    /// Busybox's web server at `address`, and a check of port 8080.
    fn web(&self, address: &str, check: HealthCheck) -> HostJob {
        let mut job = self.job(&format!("exec httpd -f -p {address} -h /www"));
        job.metadata.insert(HostJob::FORMATION.into(), "true".into());
        let service = HostService {
            name: "shop-web".into(),
            create: true,
            check: Some(check),
        };
        job.config.ports = vec![HostPort {
            port: 8080,
            proto: "tcp".into(),
            service: Some(service),
        }];
        job
    }

    async fn up(&self, job: &HostJob) -> IpAddr {
        let id = id_of(job);
        let is_settled = || self.controller.state().is_up(id) || self.controller.state().is_down(id);
        until("the job is up", is_settled).await;
        let state = self.controller.state();
        assert!(state.is_up(id), "{:?}", state.last(id));
        state.reports[&id].last().unwrap().address.unwrap()
    }

    async fn down(&self, job: &HostJob) -> ReportedState {
        let id = id_of(job);
        until("the job is down", || self.controller.state().is_down(id)).await;
        until("its directory is gone", || {
            !directories(&self.setup.state).contains(&id.to_string())
        })
        .await;
        self.controller.state().last(id).unwrap().clone()
    }

    fn log(&self, job: &HostJob) -> String {
        let dir = StateDir::new(&self.setup.state).app_logs(app_of(job));
        std::fs::read_to_string(dir.join(format!("{}.log", id_of(job)))).unwrap()
    }

    /// Every process that has the state directory in its command line: the shims.
    fn shims(&self) -> Vec<Pid> {
        let state = self.setup.state.to_str().unwrap().as_bytes();
        let entries = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word.starts_with(state))
        })
        .map(Pid::from_raw)
        .collect()
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::locate(&format!("/{}", self.setup.cgroup_parent)).unwrap()
    }

    /// All at once, as when the power goes.
    fn power_cut(&self) {
        for pid in self.shims() {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        self.cgroup().kill();
    }

    /// Nothing of any job is on the machine.
    async fn check_clean(&self) {
        until("the shims are gone", || self.shims().is_empty()).await;
        until("the links are gone", || !command("ip -o link").contains("ta-")).await;
        assert_eq!(self.cgroup().processes(), [0; 0]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        assert_eq!(directories(&self.setup.state), [""; 0]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.power_cut();
        let _ = self.cgroup().destroy();
    }
}

/// A layer with busybox and a page to serve; its digest.
fn busybox(dir: &Path) -> String {
    let root = dir.join("root");
    for path in ["bin", "etc", "www", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("busybox-static is needed");
    for name in [
        "sh", "cat", "echo", "httpd", "sleep", "stty", "kill", "env", "hostname", "wget", "true",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(root.join("www/index.html"), "hello from busybox\n").unwrap();
    let layers_dir = StateDir::new(dir.join("state")).layers();
    std::fs::create_dir_all(&layers_dir).unwrap();
    let packed = layers_dir.join("packed");
    let options = layers::PackOptions {
        compressed: false,
        owner: Some((0, 0)),
    };
    let digest = layers::pack(&root, &packed, options).unwrap().sha256;
    std::fs::rename(packed, layers_dir.join(format!("{digest}.erofs"))).unwrap();
    digest
}

fn http(path: &str) -> HealthCheck {
    HealthCheck {
        kind: "http".into(),
        path: path.into(),
        matches: "hello".into(),
        ..HealthCheck::default()
    }
}

fn tcp_or_kill() -> HealthCheck {
    HealthCheck {
        kind: "tcp".into(),
        kill_down: true,
        start_timeout: 1_000_000_000,
        ..HealthCheck::default()
    }
}

async fn get(address: IpAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect((address, 8080)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[test]
fn a_web_job_lives_through_a_kill_of_the_agent_and_leaves_nothing() {
    in_new_machine(async |world| {
        let life = world.life();
        let web = world.web("0.0.0.0:8080", http("/index.html"));
        let begin = Instant::now();
        world.controller.run(&web);
        let address = world.up(&web).await;
        println!(
            "from the assignment to the report that it is up: {:?}",
            begin.elapsed()
        );
        assert!(get(address).await.ends_with("hello from busybox\n"));

        let mut session = Session::exec(
            &life,
            &web,
            &["sh", "-c", "echo $PORT $HOSTNAME; cat /etc/resolv.conf; exit 3"],
        )
        .await;
        assert_eq!(session.state().await, SUCCESS);
        let expected = format!("8080 {}\nnameserver 100.100.0.1\n", id_of(&web));
        assert_eq!(session.hear().await, heard(&expected, "", 3));

        life.kill();
        let life = world.life();
        let reports = world.controller.state().reports[&id_of(&web)].len();
        until("it is reported again", || {
            world.controller.state().reports[&id_of(&web)].len() > reports
        })
        .await;
        assert_eq!(world.up(&web).await, address);
        assert!(get(address).await.ends_with("hello from busybox\n"));
        let mut session = Session::exec(&life, &web, &["true"]).await;
        assert_eq!(session.state().await, SUCCESS);
        assert_eq!(session.hear().await, heard("", "", 0));

        world.controller.stop(id_of(&web));
        assert_eq!(
            world.down(&web).await,
            ReportedState::Down {
                exit: Exit::Signal(15)
            }
        );
        world.check_clean().await;
    });
}

#[test]
fn a_one_off_job_waits_for_its_user_and_gives_the_status() {
    in_new_machine(async |world| {
        let life = world.life();
        let mut cat = world.job("cat; echo done >&2; exit 5");
        cat.config.stdin = true;
        cat.config.wait_for_attach = true;
        cat.config.disable_log = true;
        // Attached before the host has heard of the job.
        let mut session = Session::attach(&life, &cat).await;
        assert_eq!(session.state().await, WAITING);
        world.controller.run(&cat);
        assert_eq!(session.state().await, SUCCESS);
        world.up(&cat).await;
        session
            .send(Frame::Data(Stream::Stdin, "one\ntwo\n".into()))
            .await;
        session.send(Frame::Data(Stream::Stdin, "".into())).await;
        assert_eq!(session.hear().await, heard("one\ntwo\n", "done\n", 5));
        assert_eq!(
            world.down(&cat).await,
            ReportedState::Down { exit: Exit::Code(5) }
        );

        let mut terminal = world.job("stty size; read line; echo got $line");
        (
            terminal.config.tty,
            terminal.config.stdin,
            terminal.config.wait_for_attach,
        ) = (true, true, true);
        terminal.config.tty_size = Some(types::Tty {
            columns: 111,
            lines: 33,
        });
        world.controller.run(&terminal);
        let mut session = Session::attach(&life, &terminal).await;
        while session.state().await == WAITING {}
        // A person types when there is something to answer.
        assert_eq!(
            session.frame().await,
            Some(Frame::Data(Stream::Stdout, "33 111\r\n".into()))
        );
        session.send(Frame::Data(Stream::Stdin, "x\n".into())).await;
        let (stdout, _, status) = session.hear().await;
        assert_eq!(status, 0);
        assert!(stdout.contains("got x\r\n"), "{stdout:?}");
        world.down(&terminal).await;

        let mut missing = world.job("");
        missing.config.args = vec!["no-such-program".into()];
        missing.config.wait_for_attach = true;
        world.controller.run(&missing);
        let mut session = Session::attach(&life, &missing).await;
        while session.state().await == WAITING {}
        let (_, stderr, status) = session.hear().await;
        assert!(
            status == 127 && stderr.contains("no-such-program"),
            "{status} {stderr}"
        );
        world.down(&missing).await;
        world.check_clean().await;
    });
}

#[test]
fn what_ends_a_job_is_told_apart_and_its_output_is_kept() {
    in_new_machine(async |world| {
        let _life = world.life();
        let fails = world.job("echo out; echo err >&2; exit 7");
        world.controller.run(&fails);
        assert_eq!(
            world.down(&fails).await,
            ReportedState::Down { exit: Exit::Code(7) }
        );
        let log = world.log(&fails);
        assert!(
            log.contains(" stdout F out\n") && log.contains(" stderr F err\n"),
            "{log}"
        );

        let mut hog = world.job("x=aaaaaaaa; while true; do x=$x$x; done");
        let limit = types::ResourceLimit {
            request: None,
            limit: Some(32 << 20),
        };
        hog.resources.0.insert("memory".into(), limit);
        world.controller.run(&hog);
        assert_eq!(
            world.down(&hog).await,
            ReportedState::Down {
                exit: Exit::OutOfMemory
            }
        );

        let mut missing = world.job("");
        missing.config.args = vec!["no-such-program".into()];
        world.controller.run(&missing);
        let ReportedState::Down {
            exit: Exit::NotStarted(why),
        } = world.down(&missing).await
        else {
            panic!("{:?}", world.controller.state().last(id_of(&missing)));
        };
        assert!(why.contains("no-such-program"), "{why}");

        let mut stubborn = world.job("trap '' TERM; echo ready; while true; do sleep 1; done");
        stubborn.config.stop_timeout = 1;
        world.controller.run(&stubborn);
        world.up(&stubborn).await;
        until("it ignores the signal", || world.log(&stubborn).contains("ready")).await;
        world.controller.stop(id_of(&stubborn));
        assert_eq!(
            world.down(&stubborn).await,
            ReportedState::Down {
                exit: Exit::Signal(9)
            }
        );
        world.check_clean().await;
    });
}

#[test]
fn a_job_that_listens_where_nobody_comes_is_told_so() {
    in_new_machine(async |world| {
        let _life = world.life();
        let (inside, elsewhere) = (
            world.web("127.0.0.1:8080", tcp_or_kill()),
            world.web("0.0.0.0:3000", tcp_or_kill()),
        );
        world.controller.run(&inside);
        world.controller.run(&elsewhere);
        for (job, mistake) in [
            (&inside, "it listens on 127.0.0.1:8080 only; listen on 0.0.0.0"),
            (&elsewhere, "it listens on port 3000 instead; listen on $PORT"),
        ] {
            let expected = ReportedState::NeverHealthy {
                why: format!("did not open port 8080 within 1 s: {mistake}"),
                exit: Exit::Signal(15),
            };
            assert_eq!(world.down(job).await, expected);
        }

        // One that the scheduler gives up on, for the agent was not asked to.
        let patient = world.web("127.0.0.1:8080", HealthCheck::default());
        world.controller.run(&patient);
        let started = || {
            let state = world.controller.state();
            state
                .reports
                .get(&id_of(&patient))
                .and_then(|reports| reports.last())
                .map(|report| report.at)
        };
        until("it has started", || started().is_some()).await;
        let at = started().unwrap();
        until("it had its time", || {
            daemon::now().since(at) > Duration::from_millis(5100)
        })
        .await;
        world.controller.stop(id_of(&patient));
        let ReportedState::NeverHealthy { why, .. } = world.down(&patient).await else {
            panic!()
        };
        assert_eq!(
            why,
            "did not open port 8080 within 5 s: it listens on 127.0.0.1:8080 only; listen on 0.0.0.0"
        );
        world.check_clean().await;
    });
}

#[test]
fn after_a_power_cut_everything_is_reported_and_nothing_is_left() {
    in_new_machine(async |world| {
        for round in 0..3 {
            let life = world.life();
            let jobs: Vec<HostJob> = (0..6).map(|_| world.web("0.0.0.0:8080", http("/"))).collect();
            jobs.iter().for_each(|job| world.controller.run(job));
            for job in &jobs[round..] {
                world.up(job).await;
            }
            life.kill();
            world.power_cut();
            let begin = Instant::now();
            let _life = world.life();
            for job in &jobs {
                let state = world.down(job).await;
                let is_told = matches!(
                    &state,
                    ReportedState::Down {
                        exit: Exit::Lost(_) | Exit::NotStarted(_)
                    }
                );
                assert!(is_told, "{state:?}");
            }
            println!("after the power cut all was settled within {:?}", begin.elapsed());
            let next = world.web("0.0.0.0:8080", http("/"));
            world.controller.run(&next);
            world.up(&next).await;
            world.controller.stop(id_of(&next));
            world.down(&next).await;
            world.check_clean().await;
        }
    });
}

#[test]
fn a_dead_shim_is_a_lost_job_and_many_jobs_start_at_once() {
    in_new_machine(async |world| {
        let _life = world.life();
        let jobs: Vec<HostJob> = (0..40).map(|_| world.job("exec sleep 1000")).collect();
        let begin = Instant::now();
        jobs.iter().for_each(|job| world.controller.run(job));
        for job in &jobs {
            world.up(job).await;
        }
        println!("{} jobs up after {:?}", jobs.len(), begin.elapsed());
        for pid in world.shims() {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        for job in &jobs {
            let exit = Exit::Lost("its shim was killed".into());
            assert_eq!(world.down(job).await, ReportedState::Down { exit });
        }
        world.check_clean().await;
    });
}

#[test]
fn kills_of_the_agent_in_the_middle_of_starts_lose_and_double_nothing() {
    in_new_machine(async |world| {
        let mut life = world.life();
        let mut all: Vec<JobId> = Vec::new();
        // Each kill comes a little later than the one before, and so in another phase of the starts.
        for round in 0..12u64 {
            let jobs: Vec<HostJob> = (0..4).map(|_| world.job("exec sleep 1000")).collect();
            all.extend(jobs.iter().map(id_of));
            jobs.iter().for_each(|job| world.controller.run(job));
            tokio::time::sleep(Duration::from_millis(round * 7)).await;
            life.kill();
            life = world.life();
        }
        let is_settled = |id: &JobId| {
            let state = world.controller.state();
            state.is_up(*id) || state.is_down(*id)
        };
        until("every job is up or reported", || all.iter().all(is_settled)).await;
        let up = all
            .iter()
            .filter(|id| world.controller.state().is_up(**id))
            .count();
        until("each job that is up has one shim", || world.shims().len() == up).await;
        println!("{up} of {} jobs are up", all.len());
        all.iter()
            .filter(|id| world.controller.state().is_up(**id))
            .for_each(|id| world.controller.stop(*id));
        until("all are down", || {
            all.iter().all(|id| world.controller.state().is_down(*id))
        })
        .await;
        until("no directory is left", || {
            directories(&world.setup.state).is_empty()
        })
        .await;
        world.check_clean().await;
    });
}
