//! Keeps an app's logs within bounds: the oldest logs of ended jobs go first.
//!
//! What a log sink still has to send stays longer, and not for ever.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use daemon::{Shutdown, StateDir};

use crate::{
    Shipper,
    sinks::{self, Cursors},
};

/// Kept per app, beyond what its running jobs write to.
const APP_BYTES_MAX: u64 = 64 << 20;
/// The same, where log sinks have not taken it.
const APP_BYTES_UNSENT_MAX: u64 = 512 << 20;
/// Logs of jobs that ended longer ago are removed.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const INTERVAL: Duration = Duration::from_secs(600);

pub async fn run(state_dir: &StateDir, shipper: &Shipper, shutdown: Shutdown) {
    loop {
        let directory = state_dir.clone();
        let taken = shipper.taken();
        let swept =
            tokio::task::spawn_blocking(move || sweep_all(&directory, &taken, SystemTime::now())).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "cannot tidy the logs");
        }
        tokio::select! {
            _ = tokio::time::sleep(INTERVAL) => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

pub fn sweep_all(state_dir: &StateDir, taken: &[Arc<Cursors>], now: SystemTime) -> io::Result<()> {
    let apps = match fs::read_dir(state_dir.logs()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let unsent = match taken {
        [] => BTreeSet::new(),
        taken => sinks::unsent(&sinks::list(&state_dir.logs())?, taken),
    };
    for app in apps.flatten() {
        sweep(&app.path(), &state_dir.jobs(), &unsent, now)?;
    }
    Ok(())
}

fn sweep(directory: &Path, jobs: &Path, unsent: &BTreeSet<PathBuf>, now: SystemTime) -> io::Result<()> {
    let mut ended = vec![];
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        let Some(stem) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split('.').next())
        else {
            continue;
        };
        // A job whose directory is there may still write; the router rotates its own file.
        if stem == "router" || jobs.join(stem).exists() {
            continue;
        }
        let meta = entry.metadata()?;
        ended.push((meta.modified()?, meta.len(), path));
    }
    ended.sort_by(|a, b| b.cmp(a));
    let mut kept = 0;
    for (modified, length, path) in ended {
        kept += length;
        let is_old = now.duration_since(modified).is_ok_and(|age| age > AGE_MAX);
        let bytes_max = if unsent.contains(&path) {
            APP_BYTES_UNSENT_MAX
        } else {
            APP_BYTES_MAX
        };
        if is_old || kept > bytes_max {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
