//! `flynn-host supervise`: keeps daemon, router and tunnel running where there is no systemd.
//!
//! Nothing more: it starts them, starts them again when they end, and ends them when it is ended. If
//! it is killed itself they go on; starting it again finds their places taken, so it ends those first.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use daemon::{Shutdown, files};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::{config::Config, tunnel_command};

/// Restarts wait this long at first and at most; one that has run for long starts from the first again.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const RUN_LONG: Duration = Duration::from_secs(10);
/// How long a part may take to end. The router lets requests finish for 30 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

pub async fn run(config: Config, config_path: &Path) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let run = config.state().run();
    files::create_private_dir(&run)?;
    write_pid(&run.join("supervisor.pid"))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let parts = ["daemon", "router", "tunnel"].map(|name| {
        let part = Part {
            name,
            program: program.clone(),
            config: config_path.to_owned(),
            pid_file: run.join(format!("{name}.pid")),
        };
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            // Most hosts have nothing to encrypt, and need no process for it.
            if name == "tunnel"
                && tunnel_command::encrypting(&part.config, &shutdown)
                    .await
                    .is_none()
            {
                return;
            }
            part.keep_running(shutdown).await
        })
    });
    for part in parts {
        part.await.context("a supervising task ended by itself")?;
    }
    let _ = std::fs::remove_file(run.join("supervisor.pid"));
    Ok(())
}

struct Part {
    name: &'static str,
    program: PathBuf,
    config: PathBuf,
    pid_file: PathBuf,
}

impl Part {
    async fn keep_running(self, shutdown: Shutdown) {
        self.end_former().await;
        let mut pause = PAUSE_FIRST;
        while !shutdown.is_cancelled() {
            let began = tokio::time::Instant::now();
            match self.start() {
                Ok(mut child) => {
                    tokio::select! {
                        status = child.wait() => tracing::warn!(part = self.name, ?status, "ended; starting it again"),
                        _ = shutdown.cancelled() => self.stop(&mut child).await,
                    }
                }
                Err(error) => tracing::error!(part = self.name, %error, "cannot start"),
            }
            pause = if began.elapsed() > RUN_LONG {
                PAUSE_FIRST
            } else {
                (pause * 2).min(PAUSE_MAX)
            };
            tokio::select! {
                _ = tokio::time::sleep(pause) => {}
                _ = shutdown.cancelled() => {}
            }
        }
        let _ = std::fs::remove_file(&self.pid_file);
    }

    fn start(&self) -> Result<Child> {
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .arg(self.name)
            .stdin(Stdio::null())
            // A signal for the terminal that the supervisor was started from is not for the parts.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let pid = child.id().unwrap_or_default();
        files::write_atomic(&self.pid_file, format!("{pid}\n").as_bytes(), 0o600)?;
        tracing::info!(part = self.name, pid, "started");
        Ok(child)
    }

    async fn stop(&self, child: &mut Child) {
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
            tracing::warn!(part = self.name, "does not end; killing it");
            let _ = child.kill().await;
        }
    }

    /// Ends what an earlier supervisor left running: it holds the ports and the store.
    async fn end_former(&self) {
        let Ok(text) = std::fs::read_to_string(&self.pid_file) else {
            return;
        };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
            return;
        };
        if !runs_program(pid, self.name) {
            return;
        }
        tracing::info!(
            part = self.name,
            pid = pid.as_raw_nonzero().get(),
            "ending the one that was left"
        );
        let _ = kill_process(pid, Signal::TERM);
        let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
        while runs_program(pid, self.name) {
            if tokio::time::Instant::now() > deadline {
                let _ = kill_process(pid, Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether the process is really ours and not another that got its number since.
pub fn runs_program(pid: Pid, part: &str) -> bool {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    let Ok(command) = std::fs::read(path) else {
        return false;
    };
    let arguments: Vec<_> = command.split(|byte| *byte == 0).collect();
    let is_ours = arguments
        .first()
        .is_some_and(|program| program.ends_with(b"flynn-host"));
    is_ours && arguments.contains(&part.as_bytes())
}

fn write_pid(path: &Path) -> Result<()> {
    files::write_atomic(path, format!("{}\n", std::process::id()).as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", path.display()))
}
