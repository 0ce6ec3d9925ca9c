//! Removes what nobody refers to any more: layers of images, and what is kept of deleted apps.
//!
//! Both lists, the controller's and our own, are taken before anything is removed, and a file that
//! is younger than the grace stays whatever they say: a layer is written before the artifact that
//! names it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};
use types::AppId;

use crate::agent::Agent;

pub const INTERVAL: Duration = Duration::from_secs(600);
pub const GRACE: Duration = Duration::from_secs(3600);

pub async fn run(agent: Arc<Agent>) {
    loop {
        tokio::select! {
            _ = tokio::time::sleep(INTERVAL) => {}
            _ = agent.shutdown.cancelled() => return,
        }
        if let Err(error) = collect(&agent, GRACE).await {
            warn!(error = format!("{error:#}"), "cannot remove what is not used");
        }
    }
}

/// One round; gives the names of the layers that were removed.
pub async fn collect(agent: &Agent, grace: Duration) -> anyhow::Result<Vec<String>> {
    let mut used: BTreeSet<String> = agent.controller.layers_in_use().await?.into_iter().collect();
    let apps: BTreeSet<AppId> = agent.controller.app_ids().await?.into_iter().collect();
    used.extend(agent.layers_in_use());
    let running = agent.apps_in_use();
    agent.table.forget_apps_but(|app| apps.contains(&app));
    let state = agent.disk.state().clone();
    let removed = tokio::task::spawn_blocking(move || {
        // The stack's layers are used by builds, which no release names.
        used.extend(digests_in(
            &daemon::files::read_if_exists(&state.stack())?.unwrap_or_default(),
        ));
        let layers = remove_old(&state.layers(), grace, |name| match name.strip_suffix(".erofs") {
            Some(digest) => !used.contains(digest),
            // What was being packed when the power went.
            None => name.contains(".new-"),
        })?;
        remove_old(&state.logs(), grace, |name| {
            name.parse::<AppId>()
                .is_ok_and(|app| !apps.contains(&app) && !running.contains(&app))
        })?;
        io::Result::Ok(layers)
    })
    .await??;
    if !removed.is_empty() {
        info!(layers = removed.len(), "unused layers removed");
    }
    Ok(removed)
}

fn remove_old(dir: &Path, grace: Duration, is_unused: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let path: PathBuf = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if is_unused(name) && is_older(&path, grace) {
            match daemon::files::remove_all(&path) {
                Ok(()) => removed.push(name.to_owned()),
                Err(error) => warn!(path = %path.display(), %error, "cannot remove what is not used"),
            }
        }
    }
    Ok(removed)
}

fn is_older(path: &Path, grace: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|meta| meta.modified());
    // A clock that was set back makes a file of the future: it stays.
    modified.is_ok_and(|time| {
        SystemTime::now()
            .duration_since(time)
            .is_ok_and(|age| age >= grace)
    })
}

fn digests_in(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter(|word| word.parse::<types::Digest>().is_ok())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unused_and_old_goes() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "used.erofs",
            "unused.erofs",
            "young.erofs",
            "x.new-12",
            "other.txt",
        ] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            if name != "young.erofs" {
                file.set_modified(SystemTime::now() - Duration::from_secs(7200))
                    .unwrap();
            }
        }
        let mut removed = remove_old(dir.path(), GRACE, |name| match name.strip_suffix(".erofs") {
            Some(digest) => digest != "used",
            None => name.contains(".new-"),
        })
        .unwrap();
        removed.sort();
        assert_eq!(removed, ["unused.erofs", "x.new-12"]);
        assert_eq!(
            remove_old(&dir.path().join("nowhere"), GRACE, |_| true).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn the_digests_of_the_stack_are_found_whatever_its_form() {
        let digest = "ab".repeat(32);
        let text = format!(
            r#"{{"run":{{"layers":["{digest}"]}},"other":"{}"}}"#,
            "x".repeat(64)
        );
        assert_eq!(digests_in(&text).collect::<Vec<_>>(), [digest]);
    }
}
