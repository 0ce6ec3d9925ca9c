//! `flynn-host teardown`: ends what runs here and takes back what was changed on the machine.

use anyhow::{Context, Result, bail};
use daemon::files;
use rustix::process::Pid;

use crate::{config::Config, supervise::runs_program};

pub async fn run(config: &Config, remove_state: bool) -> Result<()> {
    let state = config.state();
    for part in ["supervise", "daemon", "router", "tunnel"] {
        let name = if part == "supervise" { "supervisor" } else { part };
        let pid = std::fs::read_to_string(state.run().join(format!("{name}.pid"))).unwrap_or_default();
        if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw)
            && runs_program(pid, part)
        {
            bail!(
                "the {name} is running (process {}); stop it first",
                pid.as_raw_nonzero()
            );
        }
    }
    let mut jobs = 0;
    for entry in std::fs::read_dir(state.jobs()).into_iter().flatten().flatten() {
        let directory = entry.path();
        let ended = tokio::task::spawn_blocking(move || {
            container::cleanup(&directory)?;
            std::fs::remove_dir_all(&directory)
        });
        ended
            .await?
            .with_context(|| format!("cannot end the job in {}", entry.path().display()))?;
        jobs += 1;
    }
    overlay::Network::teardown(&config.overlay()?).await?;
    builder::unmount_all(&state).await?;
    container::cgroup::Cgroup::locate(&config.cgroup)?.destroy()?;
    println!("Ended {jobs} jobs and removed the network.");
    if remove_state {
        files::remove_all(state.root())
            .with_context(|| format!("cannot remove {}", state.root().display()))?;
        println!("Removed {}.", state.root().display());
    }
    Ok(())
}
