//! The last steps of a process that becomes the app: identity, rights, filter, program.
//!
//! The same for the main process (a child of pid 1) and for one added by `exec`. All of it runs
//! between fork and execve in a process with one thread, so it may allocate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use container::Process;

use crate::seccomp::Filter;
use crate::sys;

/// What the process has as its input and output.
pub enum Stdio {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

pub struct Launch<'a> {
    pub process: &'a Process,
    /// Bits of the capabilities the process may ever have.
    pub capabilities: u64,
    pub filter: &'a Filter,
    pub stdio: Stdio,
    /// Sent to the process when its parent dies.
    pub parent_death_signal: Option<i32>,
}

/// Why a process could not be started: what a shell would exit with, and words.
pub struct Failure {
    pub code: i32,
    pub error: String,
}

impl Failure {
    fn new(what: &str, error: io::Error) -> Failure {
        Failure {
            code: 125,
            error: format!("{what}: {error}"),
        }
    }
}

/// Becomes the program; a failure is written to `report`, which success closes.
pub fn become_program(launch: Launch<'_>, report: OwnedFd) -> ! {
    let failure = match prepare_and_execute(launch, report.as_fd()) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let mut message = vec![failure.code as u8];
    message.extend_from_slice(&failure.error.as_bytes()[..failure.error.len().min(2000)]);
    let _ = rustix::io::write(&report, &message);
    // SAFETY: ends the process without running anything of its parent's.
    unsafe { libc::_exit(failure.code) }
}

/// What the process wrote to its `report`. None: it became the program.
pub fn read_report(report: OwnedFd) -> io::Result<Option<Failure>> {
    let mut message = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(report), &mut message)?;
    Ok(message.split_first().map(|(code, error)| Failure {
        code: i32::from(*code),
        error: String::from_utf8_lossy(error).into_owned(),
    }))
}

fn prepare_and_execute(
    launch: Launch<'_>,
    report: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, Failure> {
    let failed = |what: &'static str| move |error: io::Error| Failure::new(what, error);
    rustix::process::setsid().map_err(|error| Failure::new("new session", error.into()))?;
    set_stdio(launch.stdio).map_err(failed("standard streams"))?;
    become_user(launch.process, launch.capabilities).map_err(failed("change user"))?;
    if let Some(signal) = launch.parent_death_signal {
        // After the change of user, which clears it.
        sys::prctl(libc::PR_SET_PDEATHSIG, signal as u64).map_err(failed("parent death signal"))?;
    }
    std::env::set_current_dir(&launch.process.cwd).map_err(|error| Failure {
        code: 126,
        error: format!("cannot change to directory {:?}: {error}", launch.process.cwd),
    })?;
    reset_signals().map_err(failed("reset signals"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let candidates = candidates(launch.process)?;
    let arguments = c_strings(launch.process.args.iter())?;
    let environment = c_strings(
        launch
            .process
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    )?;
    // SAFETY: only marks descriptors; `report` is needed until execve succeeds.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    sys::check(marked).map_err(failed("close descriptors"))?;
    let _ = report;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(failed("no_new_privs"))?;
    launch.filter.load().map_err(failed("system call filter"))?;
    Err(execute(
        &launch.process.args[0],
        &candidates,
        &arguments,
        &environment,
    ))
}

fn set_stdio(stdio: Stdio) -> io::Result<()> {
    let onto = |from: &OwnedFd, to: RawFd| {
        // SAFETY: plain descriptors; 0 to 2 belong to nobody in this process.
        sys::check(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(from), to) }.into())
    };
    match stdio {
        Stdio::Pipes(pipes) => {
            for (to, from) in pipes.iter().enumerate() {
                onto(from, to as RawFd)?;
            }
            // A descriptor that was 0 to 2 before must not be closed now.
            std::mem::forget(pipes);
        }
        Stdio::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(&terminal)?;
            for to in 0..3 {
                onto(&terminal, to)?;
            }
            std::mem::forget(terminal);
        }
    }
    Ok(())
}

/// Straight system calls: the C library's versions want to tell threads that do not exist here.
fn become_user(process: &Process, capabilities: u64) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = process.groups.clone();
    let (uid, gid) = (process.uid as libc::c_long, process.gid as libc::c_long);
    // SAFETY: pointers are valid for the length given; the rest are numbers.
    unsafe {
        sys::check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        for number in 0..64 {
            let is_known = libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) >= 0;
            if !is_known {
                break;
            }
            if capabilities & (1 << number) == 0 {
                sys::check(libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0).into())?;
            }
        }
        sys::check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        sys::check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        sys::check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    set_capabilities(if process.uid == 0 { capabilities } else { 0 })
}

/// Permitted and effective; nothing inheritable.
pub fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |bits: u64| Half {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: 0,
    };
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let halves = [half(mask & 0xffff_ffff), half(mask >> 32)];
    // SAFETY: version 3 of the call takes exactly these two structures.
    sys::check(unsafe { libc::syscall(libc::SYS_capset, &header, halves.as_ptr()) })?;
    Ok(())
}

/// Straight system calls again: the C library does not let go of two signals it uses itself, and
/// whoever started the daemon may have had them ignored.
fn reset_signals() -> io::Result<()> {
    /// The kernel's `struct sigaction`; all zeroes is the default disposition. The mask is 64 bits.
    #[repr(C)]
    struct Action([u64; 4]);
    let (default, nothing_blocked) = (Action([0; 4]), 0u64);
    // SAFETY: both structures outlive the calls.
    unsafe {
        for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
            sys::check(libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &default,
                0,
                size_of::<u64>(),
            ))?;
        }
        sys::check(libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &nothing_blocked,
            0,
            size_of::<u64>(),
        ))?;
    }
    Ok(())
}

fn c_strings(strings: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<CString>, Failure> {
    strings
        .map(|string| {
            CString::new(string.as_ref()).map_err(|_| Failure {
                code: 126,
                error: format!(
                    "{:?} has a zero byte, which no argument or variable can have",
                    string.as_ref()
                ),
            })
        })
        .collect()
}

/// The paths to try, as execvp(3) does.
fn candidates(process: &Process) -> Result<Vec<CString>, Failure> {
    let name = &process.args[0];
    if name.contains('/') || name.is_empty() {
        return c_strings([name].into_iter());
    }
    let path = process.env.get("PATH").map_or(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        |p| p,
    );
    c_strings(path.split(':').map(|directory| match directory {
        "" => name.clone(),
        directory => format!("{directory}/{name}"),
    }))
}

fn execute(name: &str, candidates: &[CString], arguments: &[CString], environment: &[CString]) -> Failure {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let mut worst = libc::ENOENT;
    for candidate in candidates {
        // SAFETY: both arrays end with a null pointer and outlive the call.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(other) => {
                worst = other;
                if other != libc::EACCES {
                    break;
                }
            }
            None => {}
        }
    }
    let code = if worst == libc::ENOENT { 127 } else { 126 };
    let reason = match worst {
        libc::ENOENT if !name.contains('/') => "executable file not found in $PATH".to_owned(),
        libc::ENOENT => "no such file or directory".to_owned(),
        libc::EACCES => "permission denied".to_owned(),
        libc::ENOEXEC => "exec format error".to_owned(),
        other => io::Error::from_raw_os_error(other).to_string(),
    };
    Failure {
        code,
        error: format!("exec: {name:?}: {reason}"),
    }
}
