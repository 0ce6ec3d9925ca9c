//! `flynn cluster backup`: the cluster's state and images as one file.

use std::{
    fs,
    io::{IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;

use crate::{
    context::Context,
    failure::{Failure, Result},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to write the backup to [default: standard output]
    #[arg(short, long)]
    file: Option<PathBuf>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let mut destination = Destination::open(self.file.as_deref(), "backup")?;
        let backup = context.controller()?.backup().await?;
        eprintln!("Creating cluster backup...");
        let length = copy(backup.into_data_stream(), &mut destination).await?;
        destination.finish()?;
        eprintln!("Backup complete ({length} bytes).");
        Ok(())
    }
}

/// Copies what is streamed, to its end.
pub async fn copy<E: std::fmt::Display>(
    mut stream: impl Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    destination: &mut Destination,
) -> Result<u64> {
    let mut length = 0;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| {
            Failure::new(format!("the stream broke before its end: {error}")).with_hint("try again")
        })?;
        length += bytes.len() as u64;
        destination.write(&bytes)?;
    }
    Ok(length)
}

/// A file that is there when all of it is written, or standard output.
pub enum Destination {
    File {
        path: PathBuf,
        draft: PathBuf,
        file: fs::File,
        is_finished: bool,
    },
    Stdout(std::io::Stdout),
}

impl Destination {
    /// `what` is what would be written.
    pub fn open(path: Option<&Path>, what: &str) -> Result<Destination> {
        let Some(path) = path else {
            let stdout = std::io::stdout();
            if stdout.is_terminal() {
                return Err(Failure::new(format!("the {what} is not for a terminal"))
                    .with_hint("name a file with -f FILE, or send the output to one: > FILE"));
            }
            return Ok(Destination::Stdout(stdout));
        };
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}.part", std::process::id()));
        let draft = PathBuf::from(draft);
        // It may hold keys and what users entrusted to the app.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        Ok(Destination::File {
            path: path.to_owned(),
            draft,
            file,
            is_finished: false,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match self {
            Destination::File { file, .. } => file.write_all(bytes),
            Destination::Stdout(stdout) => stdout.write_all(bytes),
        };
        written.map_err(|error| self.failed(error))
    }

    pub fn finish(mut self) -> Result<()> {
        let finished = match &mut self {
            Destination::File {
                path,
                draft,
                file,
                is_finished,
            } => file
                .sync_all()
                .and_then(|()| fs::rename(&*draft, &*path))
                .inspect(|()| *is_finished = true),
            Destination::Stdout(stdout) => stdout.flush(),
        };
        finished.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        match self {
            Destination::File { path, .. } => {
                Failure::new(format!("cannot write {}: {error}", path.display()))
            }
            Destination::Stdout(_) => Failure::new(format!("cannot write the output: {error}")),
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Destination::File {
            draft,
            is_finished: false,
            ..
        } = self
        {
            let _ = fs::remove_file(draft);
        }
    }
}
