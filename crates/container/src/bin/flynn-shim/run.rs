//! The life of one container, from the daemon's order to the exit record.
//!
//! ```text
//! create ─▶ Created ── start ──▶ (WaitingForAttach ── attach ──▶) Running ── stop ──▶ Stopping
//!              │ starter gone                                        │ app ends         │ app ends, or
//!              ▼                                                     ▼                  ▼ SIGKILL after the grace
//!            Ended: drain the output, remove the cgroup, write exit.json, tell who waits, exit
//! ```

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use container::cgroup::Cgroup;
use container::protocol::{Frame, Phase, Reply, Request, State};
use container::{ExitRecord, Outcome, Spec, capability, job_dir as names};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec as OciSpec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use crate::init::{self, Init, Order, Report};
use crate::logfile::{Files, LogWriter};
use crate::seccomp::Filter;
use crate::session::{Polls, Session, Token, pipe};
use crate::{oci, rootfs, sys};

/// How long the last output may wait for somebody who does not take it.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

/// The grace when the shim itself is asked to end (SIGTERM), by a machine going down.
const OWN_GRACE: Duration = Duration::from_secs(10);

pub fn run(job_dir: &Path, mut starter: UnixStream) -> anyhow::Result<()> {
    let result = read_spec(job_dir).and_then(|spec| {
        let cgroup = Cgroup::locate(&spec.cgroup)?;
        match create(&spec, job_dir, &cgroup) {
            Ok(parts) => Ok((spec, cgroup, parts)),
            Err(error) => {
                drop(cgroup.destroy());
                Err(error)
            }
        }
    });
    match result {
        Ok((spec, cgroup, parts)) => Run::new(spec, cgroup, parts, starter)?.serve(job_dir),
        Err(error) => {
            let record = ExitRecord::not_started(format!("{error:#}"));
            record.write(job_dir)?;
            drop(fs::remove_file(job_dir.join(names::CONTROL)));
            let frame = Frame::Reply(Reply::Failed(record));
            // The starter may be gone; the record is there for whoever comes.
            drop(io::Write::write_all(&mut starter, &frame.to_bytes()));
            Ok(())
        }
    }
}

fn read_spec(job_dir: &Path) -> anyhow::Result<Spec> {
    let bytes = fs::read(job_dir.join(names::SPEC)).context("read spec.json")?;
    let spec: Spec = serde_json::from_slice(&bytes).context("spec.json")?;
    match spec.problem() {
        Some(problem) => anyhow::bail!(problem),
        None => Ok(spec),
    }
}

/// What [`create`] leaves behind for the rest of the life.
struct Parts {
    init_pid: i32,
    init_socket: OwnedFd,
    session: Session,
    log: Option<Files>,
}

fn create(spec: &Spec, job_dir: &Path, cgroup: &Cgroup) -> anyhow::Result<Parts> {
    std::env::set_current_dir(job_dir)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let listener = listen().context("control socket")?;
    if let Some(files) = spec.limits.open_files_max {
        sys::limit_open_files(files).context("limit of open files")?;
    }
    let log = match &spec.log {
        Some(log) => Some(Files::open(log).with_context(|| format!("log file {}", log.path.display()))?),
        None => None,
    };
    let host = rootfs::enter_own_namespace()?;
    let root = rootfs::prepare(spec, job_dir)?;
    let configuration = oci::configuration(spec, &root.root, cgroup);
    fs::write(root.bundle.join("config.json"), configuration.to_string())?;

    let (init_socket, init_socket_inside) = sys::message_pair()?;
    let executor = InitExecutor(Init {
        process: spec.process.clone(),
        capabilities: capability::mask(oci::app_capabilities(spec)),
        filter: Filter::new(spec.seccomp),
        socket: init_socket_inside.as_raw_fd(),
    });
    let mut session = Session::new(Some(listener));
    let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
        .with_root_path(&root.runtime_directory)?
        .with_executor(executor);
    if spec.process.terminal.is_some() {
        session.expect_terminal();
    } else {
        let (stdin, our_stdin): (OwnedFd, Option<OwnedFd>) = match spec.stdin {
            true => pipe().map(|(read, write)| (read, Some(write)))?,
            false => (File::open("/dev/null")?.into(), None),
        };
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        session.set_pipes(our_stdin, our_stdout, our_stderr)?;
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let mut container = builder
        .as_init(&root.bundle)
        .with_systemd(false)
        .build()
        .map_err(flatten)
        .context("make the container")?;
    let init_pid = container
        .pid()
        .context("the container has no first process")?
        .as_raw();
    // Pid 1 waits for our own order; libcontainer's start only brings it that far.
    container
        .start()
        .map_err(flatten)
        .context("start the container's first process")?;
    drop(init_socket_inside);
    host.enter_again(job_dir)?;
    Ok(Parts {
        init_pid,
        init_socket,
        session,
        log,
    })
}

/// libcontainer's errors often say the same again in their source.
fn flatten(error: libcontainer::error::LibcontainerError) -> anyhow::Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    anyhow::anyhow!(text)
}

fn listen() -> io::Result<UnixListener> {
    match fs::remove_file(names::CONTROL) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Relative: the absolute path may be longer than a socket's address can be.
    let listener = UnixListener::bind(names::CONTROL)?;
    fs::set_permissions(names::CONTROL, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[derive(Clone)]
struct InitExecutor(Init);

impl Executor for InitExecutor {
    fn exec(&self, _: &OciSpec) -> Result<(), ExecutorError> {
        init::run(&self.0)
    }

    fn validate(&self, _: &OciSpec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

struct Run {
    spec: Spec,
    cgroup: Cgroup,
    session: Session,
    init_pid: i32,
    init_socket: Option<OwnedFd>,
    signals: File,
    starter: u64,
    phase: Phase,
    started_at: Option<jiff::Timestamp>,
    outcome: Option<Outcome>,
    attach_deadline: Option<Instant>,
    kill_deadline: Option<Instant>,
}

impl Run {
    fn new(spec: Spec, cgroup: Cgroup, parts: Parts, starter: UnixStream) -> anyhow::Result<Run> {
        let mut session = parts.session;
        // Before there is a second thread, which would otherwise take signals away.
        let signals = sys::signals()?;
        if let Some(files) = parts.log {
            session.set_log(LogWriter::start(files)?);
        }
        let starter = session.add_client(starter)?;
        session.reply(
            starter,
            Reply::Created {
                pid: parts.init_pid as u32,
            },
        );
        Ok(Run {
            spec,
            cgroup,
            session,
            init_pid: parts.init_pid,
            init_socket: Some(parts.init_socket),
            signals,
            starter,
            phase: Phase::Created,
            started_at: None,
            outcome: None,
            attach_deadline: None,
            kill_deadline: None,
        })
    }

    fn serve(mut self, job_dir: &Path) -> anyhow::Result<()> {
        let mut stuck_at = None;
        loop {
            if self.phase == Phase::Created && !self.session.has_client(self.starter) {
                self.give_up("the daemon went away before the start");
            }
            if std::mem::take(&mut self.session.has_hung_up) && self.spec.process.terminal.is_some() {
                self.order(Order::Signal(libc::SIGHUP));
            }
            if self.phase == Phase::Ended {
                self.session.drain();
                let (moved, at) = stuck_at.get_or_insert((self.session.moved_bytes, Instant::now()));
                if *moved != self.session.moved_bytes {
                    (*moved, *at) = (self.session.moved_bytes, Instant::now());
                }
                if self.session.is_drained() || at.elapsed() > HANDOVER_PATIENCE {
                    break;
                }
            }
            self.step(stuck_at.map(|(_, at)| at + HANDOVER_PATIENCE))?;
        }
        self.finish(job_dir)
    }

    fn step(&mut self, other_deadline: Option<Instant>) -> anyhow::Result<()> {
        let mut polls = Polls::default();
        let mut limit = self.session.register(&mut polls);
        polls.add(Token::Signals, &self.signals, libc::POLLIN);
        if let Some(socket) = &self.init_socket {
            polls.add(Token::Init, socket, libc::POLLIN);
        }
        for deadline in [self.attach_deadline, self.kill_deadline, other_deadline]
            .into_iter()
            .flatten()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            limit = Some(limit.map_or(left, |limit| limit.min(left)));
        }
        // Pid 1 speaks before it ends: its last word must be heard before its death is looked at.
        let mut ready = polls.wait(limit)?;
        ready.sort_by_key(|(token, _)| *token == Token::Signals);
        for (token, events) in ready {
            match token {
                Token::Init => self.hear_init()?,
                Token::Signals => self.take_signals()?,
                token => {
                    for (client, request) in self.session.handle(token, events) {
                        self.answer(client, request)?;
                    }
                }
            }
        }
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= Instant::now());
        if passed(
            self.attach_deadline
                .filter(|_| self.phase == Phase::WaitingForAttach),
        ) {
            self.give_up("nobody attached in time");
        }
        if passed(self.kill_deadline) {
            self.kill_deadline = None;
            self.kill();
        }
        Ok(())
    }

    fn hear_init(&mut self) -> anyhow::Result<()> {
        let Some(socket) = &self.init_socket else {
            return Ok(());
        };
        let (bytes, descriptor) = match sys::receive_message(socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (Vec::new(), None),
            other => other?,
        };
        match (Report::from_bytes(&bytes), descriptor) {
            (Some(Report::Terminal), Some(terminal)) => self.session.set_terminal(terminal)?,
            (Some(Report::Started), _) => {
                self.started_at = Some(jiff::Timestamp::now());
                self.session.reply(self.starter, Reply::Started);
            }
            (Some(Report::NotStarted { code, error }), _) => {
                self.outcome.get_or_insert(Outcome::NotStarted { code, error });
            }
            (Some(Report::Ended(status)), _) => {
                self.outcome.get_or_insert(outcome_of(status));
            }
            _ => self.init_socket = None,
        }
        Ok(())
    }

    fn take_signals(&mut self) -> anyhow::Result<()> {
        while let Some(signal) = sys::next_signal(&self.signals) {
            match signal {
                libc::SIGCHLD => {
                    while let Some((pid, status)) = sys::reap(-1) {
                        if pid == self.init_pid {
                            self.end(status)?;
                        }
                    }
                }
                libc::SIGTERM | libc::SIGINT => self.stop(OWN_GRACE),
                _ => {}
            }
        }
        Ok(())
    }

    /// Pid 1 is gone, and the kernel has killed the rest of the container before telling.
    fn end(&mut self, status: i32) -> anyhow::Result<()> {
        while self.init_socket.is_some() {
            self.hear_init()?;
        }
        let died = match (outcome_of(status), self.started_at) {
            (outcome @ Outcome::Signaled { .. }, Some(_)) => outcome,
            (_, Some(_)) => Outcome::Signaled {
                signal: libc::SIGKILL,
            },
            (_, None) => Outcome::NotStarted {
                code: 125,
                error: "the container's first process died".into(),
            },
        };
        let outcome = self.outcome.get_or_insert(died);
        if let (Outcome::NotStarted { .. }, None) = (&outcome, self.started_at) {
            let mut record = ExitRecord::not_started("");
            record.outcome = outcome.clone();
            self.session.reply(self.starter, Reply::Failed(record));
        }
        self.phase = Phase::Ended;
        self.kill_deadline = None;
        Ok(())
    }

    fn answer(&mut self, client: u64, request: Request) -> anyhow::Result<()> {
        let reply = match request {
            Request::Start if client == self.starter && self.phase == Phase::Created => {
                match self.spec.wait_for_attach_ms {
                    Some(limit_ms) if !self.session.has_attached() => {
                        self.phase = Phase::WaitingForAttach;
                        self.attach_deadline = Some(Instant::now() + Duration::from_millis(limit_ms));
                        Reply::WaitingForAttach
                    }
                    // Answered when the program runs, or does not.
                    _ => {
                        self.go();
                        return Ok(());
                    }
                }
            }
            Request::State => Reply::State(State {
                phase: self.phase,
                pid: self.init_pid as u32,
            }),
            Request::Signal(signal) if !(1..=64).contains(&signal) => Reply::Refused {
                error: format!("there is no signal {signal}"),
            },
            Request::Signal(signal) => match self.phase {
                Phase::Running | Phase::Stopping => {
                    self.order(Order::Signal(signal));
                    Reply::Done
                }
                _ => Reply::Refused {
                    error: "the process is not running".into(),
                },
            },
            Request::Stop { grace_ms } => {
                self.stop(Duration::from_millis(grace_ms));
                Reply::Done
            }
            Request::Attach {
                stdin,
                stdout,
                stderr,
            } => {
                // The answer first: what follows on this connection is output.
                self.session.reply(client, Reply::Done);
                self.session.attach(client, stdin, stdout, stderr);
                if self.phase == Phase::WaitingForAttach {
                    self.go();
                }
                return Ok(());
            }
            Request::Wait => {
                self.session.wait_for_exit(client);
                return Ok(());
            }
            Request::Start | Request::Exec(_) => Reply::Refused {
                error: "not on this socket, or not now".into(),
            },
        };
        self.session.reply(client, reply);
        Ok(())
    }

    fn go(&mut self) {
        self.phase = Phase::Running;
        self.order(Order::Go);
    }

    fn stop(&mut self, grace: Duration) {
        match self.phase {
            Phase::Created | Phase::WaitingForAttach => self.give_up("stopped before it started"),
            Phase::Running | Phase::Stopping => {
                let deadline = Instant::now() + grace;
                self.kill_deadline = Some(
                    self.kill_deadline
                        .map_or(deadline, |earlier| earlier.min(deadline)),
                );
                if self.phase == Phase::Running {
                    self.order(Order::Stop(self.spec.stop_signal));
                }
                self.phase = Phase::Stopping;
            }
            Phase::Ended => {}
        }
    }

    fn give_up(&mut self, reason: &str) {
        self.outcome.get_or_insert(Outcome::NotStarted {
            code: 125,
            error: reason.into(),
        });
        self.kill();
        // Ended is only what has been reaped; until then, nothing is asked for again.
        self.phase = Phase::Stopping;
    }

    /// Pid 1's death is the death of everything in its pid namespace.
    fn kill(&self) {
        if self.phase != Phase::Ended {
            sys::kill(self.init_pid, libc::SIGKILL);
        }
    }

    fn order(&mut self, order: Order) {
        if let Some(socket) = &self.init_socket {
            // A pid 1 that is gone is noticed by its death.
            drop(sys::send_message(socket.as_fd(), &order.to_bytes(), None));
        }
    }

    fn finish(mut self, job_dir: &Path) -> anyhow::Result<()> {
        if let Some(log) = self.session.take_log() {
            log.finish();
        }
        let oom_killed = self.cgroup.oom_kills() > 0;
        if let Err(error) = self.cgroup.destroy() {
            eprintln!(
                "flynn-shim: the cgroup {} cannot be removed: {error}",
                self.spec.cgroup
            );
        }
        let record = ExitRecord {
            outcome: self
                .outcome
                .take()
                .expect("a container that has ended has an outcome"),
            oom_killed,
            started_at: self.started_at,
            ended_at: jiff::Timestamp::now(),
        };
        record.write(job_dir).context("write exit.json")?;
        self.session.announce_exit(&record);
        let (mut moved, mut at) = (self.session.moved_bytes, Instant::now());
        while !self.session.is_said() && at.elapsed() < HANDOVER_PATIENCE {
            let mut polls = Polls::default();
            let _ = self.session.register(&mut polls);
            for (token, events) in polls.wait(Some(HANDOVER_PATIENCE.saturating_sub(at.elapsed())))? {
                drop(self.session.handle(token, events));
            }
            if moved != self.session.moved_bytes {
                (moved, at) = (self.session.moved_bytes, Instant::now());
            }
        }
        fs::remove_file(job_dir.join(names::CONTROL)).context("remove the control socket")
    }
}

pub fn outcome_of(status: i32) -> Outcome {
    if libc::WIFSIGNALED(status) {
        Outcome::Signaled {
            signal: libc::WTERMSIG(status),
        }
    } else {
        Outcome::Exited {
            code: libc::WEXITSTATUS(status),
        }
    }
}
