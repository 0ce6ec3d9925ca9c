//! `flynn-host lab-init`: the first process of a lab's host, and so the one whose end is the host's.
//!
//! It starts in namespaces that `unshare` made, gives the host what is its own (name, cgroup,
//! `/var/lib/flynn`, `/etc/flynn`, `/run`, `/tmp`; the rest is the machine's), joins the cluster if it was
//! told to, runs `flynn-host supervise`, and reaps what is left to it, as any first process must.
//!
//! Told to end, it ends like a machine that is shut down: the platform first, then everything else.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use container::cgroup::Cgroup;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::clock::{self, Offset};

/// How long processes have between being told to end and being ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What a host gets that is its own.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inside {
    /// The `flynn-host` that runs in it.
    pub program: PathBuf,
    pub hostname: String,
    pub cgroup: String,
    /// What its platform's clock is off by.
    #[serde(default)]
    pub clock: Offset,
    /// Becomes /var/lib/flynn.
    pub state: PathBuf,
    /// Becomes /etc/flynn.
    pub etc: PathBuf,
    /// What stays visible though it may be in a directory that is covered.
    pub keep: Vec<PathBuf>,
}

/// In a host's /etc/flynn: what to join, until it has; and that it has got as far as running things.
pub const JOIN_FILE: &str = "join";
pub const BOOTED_FILE: &str = "booted";

pub fn main(inside: &str) -> ExitCode {
    match run(inside) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(inside: &str) -> Result<()> {
    let inside: Inside = serde_json::from_str(inside).context("the host's description")?;
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]
        .into_iter()
        .collect();
    signals.thread_block()?;
    rustix::system::sethostname(inside.hostname.as_bytes()).context("cannot set the host's name")?;
    enter_cgroup(&inside.cgroup).context("cannot enter the host's cgroup")?;
    mount_own(&inside).context("cannot mount what is the host's own")?;
    fs::write(Path::new("/etc/flynn").join(BOOTED_FILE), "")?;
    Init {
        program: inside.program,
        clock: inside.clock,
        signals,
        is_ending: false,
    }
    .run()
}

/// After this the host's cgroup is the root of all that it sees of cgroups.
fn enter_cgroup(path: &str) -> Result<()> {
    let (cgroup, root) = (Cgroup::locate(path)?, Cgroup::locate("/")?);
    cgroup.join()?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    for (directory, root) in cgroup.directories().zip(root.directories()) {
        rustix::mount::mount_bind(directory, root)?;
    }
    // On cgroup v2 what has processes cannot hand controllers on, so the root must have none.
    let leaf = Cgroup::locate("init")?;
    leaf.create()?;
    leaf.join()?;
    Ok(())
}

fn mount_own(inside: &Inside) -> Result<()> {
    let open = |path: &Path| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(rustix::fs::CWD, path, flags)
            .with_context(|| format!("cannot open {}", path.display()))
    };
    let attach = |tree: rustix::fd::OwnedFd, path: &Path| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, path, flags)
            .with_context(|| format!("cannot mount on {}", path.display()))
    };
    let covered = |path: &&PathBuf| path.starts_with("/tmp") || path.starts_with("/run");
    let kept: Vec<_> = inside
        .keep
        .iter()
        .filter(covered)
        .map(|path| Ok((path, open(path)?)))
        .collect::<Result<_>>()?;
    let (state, etc) = (open(&inside.state)?, open(&inside.etc)?);
    for (path, mode) in [("/run", 0o755), ("/tmp", 0o1777)] {
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::NOSUID, None)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    attach(state, Path::new("/var/lib/flynn"))?;
    attach(etc, Path::new("/etc/flynn"))?;
    for (path, tree) in kept {
        if tree_is_directory(&tree)? {
            fs::create_dir_all(path)?;
        } else {
            fs::create_dir_all(path.parent().expect("a file is in a directory"))?;
            fs::write(path, "")?;
        }
        attach(tree, path)?;
    }
    Ok(())
}

fn tree_is_directory(tree: &rustix::fd::OwnedFd) -> Result<bool> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode);
    Ok(kind == rustix::fs::FileType::Directory)
}

struct Init {
    program: PathBuf,
    clock: Offset,
    signals: SigSet,
    is_ending: bool,
}

impl Init {
    fn run(mut self) -> Result<()> {
        let join = Path::new("/etc/flynn").join(JOIN_FILE);
        if let Ok(arguments) = fs::read_to_string(&join) {
            let arguments: Vec<&str> = arguments.lines().collect();
            while !self.is_ending {
                if self.run_to_end(&arguments)?.success() {
                    fs::remove_file(&join)?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        while !self.is_ending {
            let status = self.run_to_end(&["supervise"])?;
            if !self.is_ending {
                eprintln!("the supervisor ended ({status}); starting it again");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        end_all()
    }

    /// Runs `flynn-host` with these arguments, reaping whatever else ends.
    fn run_to_end(&mut self, arguments: &[&str]) -> Result<std::process::ExitStatus> {
        // A child has its parent's mask, and must hear what it is told.
        self.signals.thread_unblock()?;
        let mut command = Command::new(&self.program);
        if self.clock != Offset::default() {
            command.env(clock::VARIABLE, self.clock.0.to_string());
        }
        let child = command.args(arguments).spawn();
        self.signals.thread_block()?;
        let child = Pid::from_raw(child?.id() as i32);
        loop {
            // First, as the child may have ended while nobody listened.
            if let Some(status) = reap(child)? {
                return Ok(status);
            }
            if self.signals.wait()? != Signal::SIGCHLD {
                self.is_ending = true;
                let _ = kill(child, Signal::SIGTERM);
            }
        }
    }
}

/// Takes note of all that have ended; how `child` did, if it is among them.
fn reap(child: Pid) -> Result<Option<std::process::ExitStatus>> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                found = Some(std::process::ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                found = Some(std::process::ExitStatus::from_raw(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(found),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// As machines do when they are shut down. What stays is killed by the kernel, as this process ends.
fn end_all() -> Result<()> {
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => break,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
    }
    Ok(())
}
