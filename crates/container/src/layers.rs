//! Layers as single files: a directory packed into an erofs image.
//!
//! The same directory always gives the same bytes, hence the same digest: times and the file
//! system's own id are fixed, and mkfs.erofs walks directories in sorted order.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

#[derive(Clone, Copy, Debug, Default)]
pub struct PackOptions {
    /// lz4: about 0.6 of the size, twice the time to make; reads the same once warm.
    pub compressed: bool,
    /// All files belong to this user and group, whoever they belong to on disk.
    pub owner: Option<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub sha256: String,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("mkfs.erofs cannot be run; install erofs-utils")]
    NotInstalled(#[source] io::Error),
    #[error("mkfs.erofs failed: {0}")]
    Failed(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Packs `directory` into `file`, whole or not at all. Blocks: call it off the async threads.
pub fn pack(directory: &Path, file: &Path, options: PackOptions) -> Result<Packed, PackError> {
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    let result = pack_into(directory, &temporary, options);
    match &result {
        Ok(_) => fs::rename(&temporary, file)?,
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    result
}

fn pack_into(directory: &Path, file: &Path, options: PackOptions) -> Result<Packed, PackError> {
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", "-T0", "-U00000000-0000-0000-0000-000000000000"]);
    if options.compressed {
        command.arg("-zlz4");
    }
    if let Some((uid, gid)) = options.owner {
        command
            .arg(format!("--force-uid={uid}"))
            .arg(format!("--force-gid={gid}"));
    }
    let output = command
        .arg(file)
        .arg(directory)
        .output()
        .map_err(PackError::NotInstalled)?;
    if !output.status.success() {
        return Err(PackError::Failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    let mut image = File::open(file)?;
    image.sync_all()?;
    let (mut hash, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match image.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                size_bytes += count as u64;
            }
        }
    }
    Ok(Packed {
        sha256: hex::encode(hash.finalize()),
        size_bytes,
    })
}
