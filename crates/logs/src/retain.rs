//! Keeps an app's logs within bounds: the oldest logs of ended jobs go first.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use daemon::{Shutdown, StateDir};

/// Kept per app, beyond what its running jobs write to.
const APP_BYTES_MAX: u64 = 64 << 20;
/// Logs of jobs that ended longer ago are removed.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const INTERVAL: Duration = Duration::from_secs(600);

pub async fn run(state_dir: &StateDir, shutdown: Shutdown) {
    loop {
        let directory = state_dir.clone();
        let swept = tokio::task::spawn_blocking(move || sweep_all(&directory, SystemTime::now())).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "cannot tidy the logs");
        }
        tokio::select! {
            _ = tokio::time::sleep(INTERVAL) => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

pub fn sweep_all(state_dir: &StateDir, now: SystemTime) -> io::Result<()> {
    let apps = match fs::read_dir(state_dir.logs()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for app in apps.flatten() {
        sweep(&app.path(), &state_dir.jobs(), now)?;
    }
    Ok(())
}

fn sweep(directory: &Path, jobs: &Path, now: SystemTime) -> io::Result<()> {
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
        if is_old || kept > APP_BYTES_MAX {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
