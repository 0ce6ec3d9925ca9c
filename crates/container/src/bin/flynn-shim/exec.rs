//! One more process in a running container.
//!
//! ```text
//! this process (host) ── fork ──▶ doorkeeper: joins the cgroup, then all namespaces
//!        │                              └── clone, our child too ──▶ the process
//!        ├── carries input and output          (in the container's pid namespace)
//!        └── waits for both
//! ```
//!
//! Both are children of *this* process and are waited for here. A zombie left inside would keep
//! the whole container from going away when it is killed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use container::cgroup::Cgroup;
use container::protocol::{Frame, HEAD_BYTES, Phase, Reply, Request, State};
use container::{ExecSpec, ExitRecord, Outcome, Spec, capability, job_dir as names};

use crate::launch::{self, Failure, Launch, Stdio};
use crate::run::outcome_of;
use crate::seccomp::Filter;
use crate::session::{Polls, Session, Token, pipe};
use crate::{oci, sys};

/// From the hang-up to SIGKILL, when whoever asked for the process has gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

pub fn exec(job_dir: &Path, mut starter: UnixStream) -> anyhow::Result<()> {
    let spec = match read_frame(&mut starter).context("the order")? {
        Frame::Request(Request::Exec(spec)) => *spec,
        _ => bail!("the first frame must be an exec request"),
    };
    let started_at = jiff::Timestamp::now();
    let mut session = Session::new(None);
    let outcome = match begin(job_dir, &spec, &mut session) {
        Ok(Ok(pid)) => {
            return Exec {
                pid,
                session,
                outcome: None,
                kill_deadline: None,
                started_at,
            }
            .serve(starter, &spec);
        }
        Ok(Err(failure)) => Outcome::NotStarted {
            code: failure.code,
            error: failure.error,
        },
        Err(error) => Outcome::NotStarted {
            code: 125,
            error: format!("{error:#}"),
        },
    };
    let record = ExitRecord {
        outcome,
        oom_killed: false,
        started_at: None,
        ended_at: jiff::Timestamp::now(),
    };
    Ok(starter.write_all(&Frame::Reply(Reply::Failed(record)).to_bytes())?)
}

fn read_frame(socket: &mut UnixStream) -> anyhow::Result<Frame> {
    let mut head = [0; HEAD_BYTES];
    socket.read_exact(&mut head)?;
    let (kind, length) = Frame::decode_head(head)?;
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Frame::decode_body(kind, &body)?)
}

/// The pid of the process, which runs the program already.
fn begin(job_dir: &Path, spec: &ExecSpec, session: &mut Session) -> anyhow::Result<Result<i32, Failure>> {
    if spec.process.args.is_empty() {
        bail!("there is no command to run");
    }
    let container: Spec =
        serde_json::from_slice(&std::fs::read(job_dir.join(names::SPEC))?).context("spec.json")?;
    if let Some(files) = container.limits.open_files_max {
        sys::limit_open_files(files).context("limit of open files")?;
    }
    let door = open_container(job_dir)?;
    let cgroup = Cgroup::locate(&container.cgroup)?;
    let filter = Filter::new(container.seccomp);
    let stdio = match spec.process.terminal {
        Some(_) => None,
        None => {
            let (stdin, our_stdin): (OwnedFd, Option<OwnedFd>) = match spec.stdin {
                true => pipe().map(|(read, write)| (read, Some(write)))?,
                false => (std::fs::File::open("/dev/null")?.into(), None),
            };
            let (our_stdout, stdout) = pipe()?;
            let (our_stderr, stderr) = pipe()?;
            session.set_pipes(our_stdin, our_stdout, our_stderr)?;
            Some([stdin, stdout, stderr])
        }
    };
    let (ours, theirs) = sys::message_pair()?;
    let (report, their_report) = pipe()?;
    // SAFETY: this process has one thread.
    let doorkeeper = sys::check(unsafe { libc::fork() }.into())? as i32;
    if doorkeeper == 0 {
        let inside = || -> io::Result<()> {
            cgroup.join()?;
            enter(&door)?;
            let stdio = match (stdio, spec.process.terminal) {
                (Some(pipes), _) => Stdio::Pipes(pipes),
                (None, size) => {
                    let (terminal, their_side) =
                        sys::terminal(size.expect("no pipes means a terminal"), spec.process.uid)?;
                    sys::send_message(theirs.as_fd(), b"t", Some(terminal.as_fd()))?;
                    Stdio::Terminal(their_side)
                }
            };
            // SAFETY: one thread; a plain fork, but as a child of our parent.
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            let pid = sys::check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? as i32;
            if pid == 0 {
                let launch = Launch {
                    process: &spec.process,
                    capabilities: capability::mask(oci::app_capabilities(&container)),
                    filter: &filter,
                    stdio,
                    parent_death_signal: Some(libc::SIGKILL),
                };
                launch::become_program(launch, their_report.try_clone()?);
            }
            sys::send_message(theirs.as_fd(), &pid.to_ne_bytes(), None)
        };
        if let Err(error) = inside() {
            let text = format!("enter the container: {error}");
            let _ = rustix::io::write(&their_report, &[&[125u8], text.as_bytes()].concat());
        }
        // SAFETY: ends the process without running anything of its parent's.
        unsafe { libc::_exit(0) }
    }
    drop((stdio, theirs, their_report));
    let mut pid = None;
    loop {
        let (bytes, descriptor) = sys::receive_message(ours.as_fd())?;
        match (bytes.as_slice(), descriptor) {
            (b"t", Some(terminal)) => session.set_terminal(terminal)?,
            (bytes, _) => match bytes.try_into() {
                Ok(bytes) => pid = Some(i32::from_ne_bytes(bytes)),
                Err(_) => break,
            },
        }
    }
    sys::wait_for(doorkeeper)?;
    match (launch::read_report(report)?, pid) {
        (None, Some(pid)) => Ok(Ok(pid)),
        (Some(failure), pid) => {
            if let Some(pid) = pid {
                sys::wait_for(pid)?;
            }
            Ok(Err(failure))
        }
        (None, None) => bail!("the container went away"),
    }
}

/// A handle on pid 1 of the container: its namespaces are the container's.
fn open_container(job_dir: &Path) -> anyhow::Result<OwnedFd> {
    std::env::set_current_dir(job_dir)?;
    let mut control = UnixStream::connect(names::CONTROL).context("the container is not running")?;
    let mut running_pid = || -> anyhow::Result<u32> {
        control.write_all(&Frame::Request(Request::State).to_bytes())?;
        match read_frame(&mut control).context("the container is not running")? {
            Frame::Reply(Reply::State(State {
                phase: Phase::Running | Phase::Stopping,
                pid,
            })) => Ok(pid),
            _ => bail!("the container is not running"),
        }
    };
    let pid = running_pid()?;
    // SAFETY: plain numbers; the result is a descriptor of our own.
    let handle = unsafe {
        let descriptor = sys::check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        OwnedFd::from_raw_fd(descriptor as i32)
    };
    // Asked again: had it ended before the handle was open, the pid could be somebody else's.
    running_pid()?;
    Ok(handle)
}

fn enter(door: &OwnedFd) -> io::Result<()> {
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: plain numbers, in a process with one thread.
    unsafe {
        sys::check(libc::setns(door.as_raw_fd(), all).into())?;
        sys::check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        sys::check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    // The change of user made it visible to the container again.
    sys::prctl(libc::PR_SET_DUMPABLE, 0)
}

struct Exec {
    pid: i32,
    session: Session,
    outcome: Option<Outcome>,
    kill_deadline: Option<Instant>,
    started_at: jiff::Timestamp,
}

impl Exec {
    fn serve(mut self, starter: UnixStream, spec: &ExecSpec) -> anyhow::Result<()> {
        let signals = sys::signals()?;
        let client = self.session.add_client(starter)?;
        self.session.reply(client, Reply::Started);
        self.session
            .attach(client, spec.stdin || spec.process.terminal.is_some(), true, true);
        let mut progress = (0, Instant::now());
        // It may have ended before signals were looked at.
        self.reap();
        loop {
            let is_alone = !self.session.has_client(client);
            if is_alone && self.outcome.is_none() && self.kill_deadline.is_none() {
                sys::kill(-self.pid, libc::SIGHUP);
                self.kill_deadline = Some(Instant::now() + HANG_UP_GRACE);
            }
            if progress.0 != self.session.moved_bytes {
                progress = (self.session.moved_bytes, Instant::now());
            }
            if self.outcome.is_some() {
                // What it left running may keep its streams open; what is there now is what there is.
                self.session.drain();
                if is_alone || self.session.is_drained() || progress.1.elapsed() > HANDOVER_PATIENCE {
                    break;
                }
            }
            let mut polls = Polls::default();
            let mut limit = self.session.register(&mut polls);
            polls.add(Token::Signals, &signals, libc::POLLIN);
            let handover = self.outcome.as_ref().map(|_| progress.1 + HANDOVER_PATIENCE);
            for deadline in [self.kill_deadline, handover].into_iter().flatten() {
                let left = deadline.saturating_duration_since(Instant::now());
                limit = Some(limit.map_or(left, |limit| limit.min(left)));
            }
            for (token, events) in polls.wait(limit)? {
                if token == Token::Signals {
                    while sys::next_signal(&signals).is_some() {}
                    self.reap();
                }
                for (client, request) in self.session.handle(token, events) {
                    let reply = self.answer(request);
                    self.session.reply(client, reply);
                }
            }
            if self
                .kill_deadline
                .is_some_and(|deadline| deadline <= Instant::now())
                && self.outcome.is_none()
            {
                self.kill_deadline = None;
                sys::kill(-self.pid, libc::SIGKILL);
                sys::kill(self.pid, libc::SIGKILL);
            }
        }
        self.finish()
    }

    fn reap(&mut self) {
        if let Some((_, status)) = sys::reap(self.pid) {
            self.outcome = Some(outcome_of(status));
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Signal(signal) if (1..=64).contains(&signal) && self.outcome.is_none() => {
                sys::kill(self.pid, signal);
                Reply::Done
            }
            Request::Stop { grace_ms } if self.outcome.is_none() => {
                sys::kill(-self.pid, libc::SIGTERM);
                self.kill_deadline = Some(Instant::now() + Duration::from_millis(grace_ms));
                Reply::Done
            }
            _ => Reply::Refused {
                error: "not for a process added by exec, or not now".into(),
            },
        }
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let outcome = self.outcome.take().unwrap_or(Outcome::Signaled {
            signal: libc::SIGKILL,
        });
        let record = ExitRecord {
            outcome,
            oom_killed: false,
            started_at: Some(self.started_at),
            ended_at: jiff::Timestamp::now(),
        };
        self.session.announce_exit(&record);
        let begun = Instant::now();
        while !self.session.is_said() && begun.elapsed() < HANDOVER_PATIENCE {
            let mut polls = Polls::default();
            let _ = self.session.register(&mut polls);
            for (token, events) in polls.wait(Some(HANDOVER_PATIENCE.saturating_sub(begun.elapsed())))? {
                drop(self.session.handle(token, events));
            }
        }
        Ok(())
    }
}
