//! Runs one container and stays with it to its end; or runs one more process in it.
//!
//! ```text
//! flynn-shim run <job dir>     reads spec.json; serves ctl.sock; writes exit.json
//! flynn-shim exec <job dir>    takes an ExecSpec from its socket
//! ```
//!
//! Standard input is a socket to whoever started it, speaking `container::protocol`. Not meant to
//! be run by hand. Until the container exists this process must stay single-threaded: it forks,
//! and changes namespaces, which is per thread.

mod exec;
mod init;
mod launch;
mod logfile;
mod oci;
mod rootfs;
mod run;
mod seccomp;
mod session;
mod sys;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flynn-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(verb), Some(job_dir)) = (arguments.next(), arguments.next()) else {
        bail!("usage: flynn-shim run|exec <job dir>")
    };
    let job_dir = PathBuf::from(job_dir)
        .canonicalize()
        .context("the job's directory")?;
    // Neither a ctrl-C at the daemon's terminal nor its end is meant for the container.
    let _ = rustix::process::setsid();
    // Nobody may look into this process through /proc: parts of it run inside containers.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).context("hide memory")?;
    let starter = take_standard_input().context("the starter's socket")?;
    match verb.to_str() {
        Some("run") => run::run(&job_dir, starter),
        Some("exec") => exec::exec(&job_dir, starter),
        _ => bail!("usage: flynn-shim run|exec <job dir>"),
    }
}

/// Moves the socket away from descriptor 0, so that no child inherits it as its input.
fn take_standard_input() -> anyhow::Result<UnixStream> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(UnixStream::from(socket))
}
