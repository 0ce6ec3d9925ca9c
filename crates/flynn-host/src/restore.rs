//! `flynn-host restore`: what [`crate::backup`] packed, on a machine that has no cluster.
//!
//! Everything is unpacked beside its place first and looked through; only then is it moved. A restore that was
//! interrupted leaves a mark by which the daemon does not start on half a cluster, and is begun again from the
//! same file.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use daemon::{StateDir, files};
use sha2::{Digest, Sha256};
use state::{Change, State};

use crate::{
    backup::{About, FORM},
    config::Config,
};

/// What is moved to its place as a whole.
const PARTS: [&str; 4] = ["secrets", "images", "repos", "volumes"];

pub async fn run(config: &Config, file: &Path) -> Result<()> {
    let state = config.state();
    let about = read_about(file)?;
    ensure!(
        about.form <= FORM,
        "{} was made by a newer version, {}\nhint: update flynn-host to at least that version",
        file.display(),
        about.version
    );
    ensure!(
        about.domain == config.domain,
        "the backup is of a cluster at {}, and this host is configured for {}\nhint: set domain = {:?} in the \
         configuration, or run script/up --domain {}",
        about.domain,
        config.domain,
        about.domain,
        about.domain
    );
    let mark = mark(&state);
    let has_state = fs::read_dir(state.raft()).is_ok_and(|mut entries| entries.next().is_some());
    ensure!(
        !has_state || mark.exists(),
        "there is a cluster in {} already\nhint: a backup is restored on an empty machine; script/down empties this one",
        state.root().display()
    );

    let unpacked = state.root().join("restore");
    files::remove_all(&unpacked)?;
    files::create_private_dir(&unpacked)?;
    println!(
        "Unpacking {} ({} MB), made at {}...",
        file.display(),
        fs::metadata(file)?.len() / 1_000_000,
        about.created_at
    );
    let result = unpack(file, &unpacked).and_then(|()| look_through(&unpacked));
    if let Err(error) = result {
        files::remove_all(&unpacked)?;
        return Err(error);
    }

    files::write_atomic(&mark, b"", 0o600)?;
    println!("Putting everything in its place...");
    files::remove_all(&state.raft())?;
    for part in PARTS {
        let target = state.root().join(part);
        files::remove_all(&target)?;
        if unpacked.join(part).exists() {
            fs::rename(unpacked.join(part), target)?;
        }
    }
    files::create_private_dir(&state.layers())?;
    for layer in fs::read_dir(unpacked.join("layers"))? {
        let layer = layer?;
        fs::rename(layer.path(), state.layers().join(layer.file_name()))?;
    }
    let apps = write_state(config, &state, &unpacked.join("state.json")).await?;
    fs::remove_file(&mark)?;
    files::remove_all(&unpacked)?;
    println!("Restored {apps} apps. They run as soon as this host is started.");
    Ok(())
}

/// The daemon must not start on half a cluster.
pub fn check_not_under_way(state: &StateDir) -> Result<()> {
    if mark(state).exists() {
        bail!("a restore was interrupted\nhint: run flynn-host restore FILE again, with the same file");
    }
    Ok(())
}

fn mark(state: &StateDir) -> PathBuf {
    state.root().join("restore-under-way")
}

fn read_about(file: &Path) -> Result<About> {
    fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let output = Command::new("tar")
        .args([
            "--extract",
            "--to-stdout",
            "--occurrence=1",
            "--wildcards",
            "--file",
        ])
        .arg(file)
        .arg("*/backup.json")
        .env("LC_ALL", "C")
        .output()
        .context("tar cannot be run")?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        anyhow::anyhow!(
            "{} is no backup of a cluster\nhint: flynn cluster backup --file FILE makes one",
            file.display()
        )
    })
}

fn unpack(file: &Path, target: &Path) -> Result<()> {
    let output = Command::new("tar")
        .args([
            "--extract",
            "--strip-components=1",
            "--numeric-owner",
            "--same-permissions",
            "--same-owner",
        ])
        .args(["--xattrs", "--xattrs-include=*", "--sparse", "--file"])
        .arg(file)
        .arg("--directory")
        .arg(target)
        .env("LC_ALL", "C")
        .output()
        .context("tar cannot be run")?;
    ensure!(
        output.status.success(),
        "{} cannot be unpacked: {}\nhint: is the disk full, or the file cut off?",
        file.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Whether all of it is there and whole.
fn look_through(unpacked: &Path) -> Result<()> {
    ensure!(
        unpacked.join("end").exists(),
        "the backup is cut off\nhint: it was not written to its end; only a whole one can be restored"
    );
    for layer in fs::read_dir(unpacked.join("layers"))? {
        let path = layer?.path();
        let mut file = fs::File::open(&path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let digest = hex::encode(hash.finalize());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        ensure!(digest == name, "the layer {name} is damaged in the backup");
        file.sync_all()?;
    }
    Ok(())
}

/// Founds the group with the backup's state; gives the number of its apps.
async fn write_state(config: &Config, state: &StateDir, image: &Path) -> Result<usize> {
    let image = fs::read(image)?;
    let store = store::Store::<State>::open(store::Options::single(state.raft()))
        .await
        .map_err(|error| anyhow::anyhow!("{error}\nhint: {}", error.hint()))?;
    let host = config.host_id()?;
    for rows in state::pieces(&image).context("the backup's state cannot be read")? {
        let change = Change::Restore {
            rows,
            host: host.clone(),
        };
        let command = state::Command {
            at: daemon::now(),
            change,
        };
        store
            .write(command)
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    }
    store.snapshot().await.map_err(anyhow::Error::msg)?;
    let apps = store.read().state.apps.len();
    store.shutdown().await;
    Ok(apps)
}
