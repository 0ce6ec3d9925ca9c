//! `flynn-host router`: holds the router's sockets and sees that a process serves them.
//!
//! ```text
//! supervisor ── keeper ──┬── router --serve        SIGHUP:  a new one starts; when it serves, the old one
//!                sockets └── router --serve (old)           lets its requests finish and ends
//! ```
//!
//! So the router's program and its addresses can be replaced without a request lost, and a router that
//! crashes is back before the queue of its sockets is full. A new one that does not come to serve is
//! given up, and the old one stays.
//!
//! What a reader would get wrong: nothing but the sockets is kept here. A keeper that dies takes no
//! request along: the serving process hears it, lets its requests finish and ends, while the next
//! keeper opens sockets of its own beside the old ones.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use daemon::files;
use router::Sockets;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};

use crate::{
    config::Config,
    router_command::{self, READY},
};

/// To read a table from disk and open what it needs.
const READY_MAX: Duration = Duration::from_secs(20);
/// The router lets requests finish for 30 s.
const DRAIN_MAX: Duration = Duration::from_secs(35);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// One that has served for so long is started again at once.
const SERVED_LONG: Duration = Duration::from_secs(10);

pub async fn run(config: Config, config_path: &Path) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let mut renew = signal(SignalKind::hangup())?;
    let mut keeper = Keeper {
        sockets: Sockets::open(&router_command::edge(&config))?,
        // Asked for now: after an update the link in /proc names the file that was removed.
        program: std::env::current_exe().context("cannot find this program's own file")?,
        config: config_path.to_owned(),
        pid_file: config.state().run().join("router-serving.pid"),
    };
    files::create_private_dir(&config.state().run())?;
    let mut serving = keeper.start().await?;
    let mut leaving = JoinSet::new();
    let mut pause = PAUSE_FIRST;
    loop {
        tokio::select! {
            status = serving.child.wait() => {
                tracing::warn!(?status, "the router ended; starting it again");
                pause = if serving.since.elapsed() > SERVED_LONG { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MAX) };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.cancelled() => break,
                }
                serving = keeper.start().await?;
            }
            _ = renew.recv() => match keeper.renew().await {
                Ok(next) => {
                    let before = std::mem::replace(&mut serving, next);
                    leaving.spawn(before.leave());
                    tracing::info!(pid = serving.child.id(), "another router has taken over");
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "no other router could take over; the one before stays");
                }
            },
            Some(_) = leaving.join_next() => {}
            () = shutdown.cancelled() => break,
        }
    }
    // Nobody may queue for what is not served any more.
    drop(keeper);
    leaving.spawn(serving.leave());
    while leaving.join_next().await.is_some() {}
    Ok(())
}

struct Keeper {
    sockets: Sockets,
    program: PathBuf,
    config: PathBuf,
    pid_file: PathBuf,
}

struct Serving {
    child: Child,
    /// Closing it tells the process to let go.
    channel: OwnedFd,
    since: Instant,
}

impl Keeper {
    /// Starts a process and waits until it serves.
    async fn start(&self) -> Result<Serving> {
        let (own, its) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .args(["router", "--serve"])
            .stdin(Stdio::from(its))
            // A signal for the terminal that the keeper was started from reaches it through the keeper.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let channel = own.try_clone()?;
        self.sockets.send(&own).context("cannot hand over the sockets")?;
        let ready = tokio::task::spawn_blocking(move || {
            let mut answer = [0; 16];
            let count = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&channel, &mut answer[..], RecvFlags::empty())
            });
            matches!(count, Ok((count, _)) if answer[..count] == *READY)
        });
        let is_ready = tokio::time::timeout(READY_MAX, ready).await;
        if !matches!(is_ready, Ok(Ok(true))) {
            let _ = child.start_kill();
            let status = child.wait().await?;
            match is_ready {
                Ok(_) => bail!("the router ended before it served ({status})"),
                Err(_) => bail!("the router did not serve within {} s", READY_MAX.as_secs()),
            }
        }
        // Whoever asked for another router sees here that there is one.
        let pid = child.id().unwrap_or_default();
        files::write_atomic(&self.pid_file, format!("{pid}\n").as_bytes(), 0o600)?;
        Ok(Serving {
            child,
            channel: own,
            since: Instant::now(),
        })
    }

    /// The same with the configuration read anew.
    async fn renew(&mut self) -> Result<Serving> {
        let config = Config::load(&self.config)?;
        self.sockets.change(&router_command::edge(&config))?;
        self.start().await
    }
}

impl Serving {
    /// Lets its requests finish; ends it when that takes too long.
    async fn leave(mut self) {
        drop(self.channel);
        if tokio::time::timeout(DRAIN_MAX, self.child.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(pid = self.child.id(), "the router does not end; killing it");
        let _ = self.child.kill().await;
    }
}
