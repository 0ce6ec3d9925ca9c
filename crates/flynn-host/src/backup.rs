//! A whole cluster in one file, and back: `GET /backup` packs it, `flynn-host restore` unpacks it.
//!
//! ```text
//! flynn-backup-TIME/backup.json     what this is: form, domain, time
//!                   state.json      the state, as snapshots have it
//!                   secrets/        keys and the cluster's authority
//!                   layers/         DIGEST.erofs, those that releases and the stack need
//!                   images/         stack.json
//!                   repos/          what was pushed
//!                   volumes/        files of apps, as they were when they were read
//!                   end             that nothing is missing
//! ```
//!
//! GNU tar does the packing: it knows sparse files, extended attributes and owners, and is on every Debian.
//! What a reader would get wrong: layers are linked into a directory of the backup's own first, so that the
//! collection of unused layers cannot take one away half way through.

use std::{collections::BTreeSet, io, path::PathBuf, process::Stdio};

use bytes::Bytes;
use controller::backup::{Archive, Contents};
use daemon::{StateDir, files};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command};
use tokio_util::io::ReaderStream;
use types::{Timestamp, Uuid};

pub const FORM: u32 = 1;
const CHUNK_BYTES: usize = 256 << 10;

/// `backup.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct About {
    /// Grows when an older `flynn-host` could not read it any more.
    pub form: u32,
    pub version: String,
    pub domain: String,
    pub created_at: Timestamp,
}

pub struct Files {
    state: StateDir,
    /// This host's parts that keep copies of what several hosts keep, each with the path by which it
    /// fetches the newest of all.
    keepers: Vec<(api::Client, &'static str)>,
}

impl Files {
    pub fn new(state: StateDir, keepers: Vec<(api::Client, &'static str)>) -> Files {
        Files { state, keepers }
    }

    /// What other hosts have and this one has not. Without what no host has, the backup goes without it.
    async fn fetch_copies(&self) {
        for (keeper, path) in &self.keepers {
            match keeper.post::<Vec<String>>(path, &()).await {
                Ok(failed) => {
                    for error in failed {
                        tracing::warn!(error, "the backup goes without the newest of something");
                    }
                }
                Err(error) => tracing::warn!(%error, "the backup has what this host has"),
            }
        }
    }

    /// What tar is to read, with everything that has to be made for it.
    fn stage(&self, contents: &Contents) -> io::Result<Stage> {
        let now = daemon::now();
        let directory = self.state.run().join(format!("backup-{}", Uuid::new_v4()));
        let stage = Stage {
            directory: directory.clone(),
        };
        files::create_private_dir(&directory.join("layers"))?;
        let about = About {
            form: FORM,
            version: api::VERSION.into(),
            domain: contents.domain.clone(),
            created_at: now,
        };
        std::fs::write(directory.join("backup.json"), serde_json::to_vec_pretty(&about)?)?;
        std::fs::write(directory.join("state.json"), &contents.state)?;
        std::fs::write(directory.join("end"), "")?;
        let mut layers: BTreeSet<String> = contents.layers.iter().map(ToString::to_string).collect();
        layers.extend(stack_layers(&self.state)?);
        for layer in layers {
            let name = format!("{layer}.erofs");
            let (from, to) = (
                self.state.layers().join(&name),
                directory.join("layers").join(&name),
            );
            match std::fs::hard_link(&from, &to) {
                // A release whose layer was never there cannot run here either.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(
                        layer,
                        "a release needs a layer that is not here: the backup goes without"
                    );
                }
                other => other?,
            }
        }
        Ok(stage)
    }

    fn command(&self, stage: &Stage) -> Command {
        let mut command = Command::new("tar");
        let name = format!(
            "flynn-backup-{}",
            daemon::now()
                .to_string()
                .replace(':', "")
                .replace(['.', 'Z'], "-")
        );
        command
            .args([
                "--create",
                "--format=posix",
                "--sparse",
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
            ])
            // Sockets and what apps change meanwhile are no reason to stop.
            .args([
                "--warning=no-file-ignored",
                "--warning=no-file-changed",
                "--warning=no-file-removed",
            ])
            // Also on names of hard links, not on what symbolic ones lead to.
            .arg(format!(
                "--transform=s,^,{},S",
                name.trim_end_matches('-').to_owned() + "/"
            ))
            .arg("--directory")
            .arg(&stage.directory)
            .args(["backup.json", "state.json", "layers"])
            .arg("--directory")
            .arg(self.state.root());
        for part in ["secrets", "images", "repos", "volumes"] {
            if self.state.root().join(part).exists() {
                command.arg(part);
            }
        }
        command
            .arg("--directory")
            .arg(&stage.directory)
            .arg("end")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// Digests of the layers that buildpacks need.
fn stack_layers(state: &StateDir) -> io::Result<Vec<String>> {
    let Some(text) = files::read_if_exists(&state.stack())? else {
        return Ok(vec![]);
    };
    let stack: serde_json::Value = serde_json::from_str(&text)?;
    Ok(["run", "build"]
        .iter()
        .filter_map(|image| stack[image]["layers"].as_array())
        .flatten()
        .filter_map(|layer| layer["id"].as_str().map(str::to_owned))
        .collect())
}

/// A directory that goes with the backup.
struct Stage {
    directory: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = files::remove_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "cannot remove what a backup made");
        }
    }
}

impl Archive for Files {
    fn pack(&self, contents: Contents) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        Box::pin(async move {
            self.fetch_copies().await;
            let stage = self.stage(&contents)?;
            let mut child = self.command(&stage).spawn()?;
            let out = child.stdout.take().expect("it is piped");
            let mut told = child.stderr.take().expect("it is piped");
            let said = tokio::spawn(async move {
                let mut said = vec![];
                // As much as makes an error's text; the rest only has to be out of tar's way.
                let _ = (&mut told).take(4096).read_to_end(&mut said).await;
                let _ = tokio::io::copy(&mut told, &mut tokio::io::sink()).await;
                String::from_utf8_lossy(&said).trim().to_owned()
            });
            let ending = async move {
                let status = child.wait().await?;
                drop(stage);
                // 1: a file changed while it was read, which is what apps do.
                match status.code() {
                    Some(0 | 1) => Ok(Bytes::new()),
                    _ => Err(io::Error::other(format!(
                        "tar: {}",
                        said.await.unwrap_or_default()
                    ))),
                }
            };
            let chunks = ReaderStream::with_capacity(out, CHUNK_BYTES);
            // What tar ended with comes last, and as an error where the pack is not whole.
            let end = futures::stream::once(ending).filter(|end| futures::future::ready(end.is_err()));
            Ok(chunks.chain(end).boxed())
        })
    }
}
