//! `flynn-host df`: what of the disk is taken by what, on this host.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;

#[derive(Debug, Serialize)]
struct Taken {
    what: &'static str,
    path: PathBuf,
    bytes: u64,
    files: u64,
}

pub fn run(config: &Config, json: bool) -> Result<()> {
    let state = config.state();
    let parts: [(&'static str, PathBuf); 9] = [
        ("images that jobs run from", state.layers()),
        ("images as they were pushed", state.root().join("registry/blobs")),
        ("pushes under way", state.root().join("registry/uploads")),
        ("volumes", state.volumes()),
        ("logs", state.logs()),
        ("builds", state.builds()),
        ("repositories", state.repos()),
        ("running jobs", state.jobs()),
        ("the cluster's state", state.raft()),
    ];
    let taken = parts
        .into_iter()
        .map(|(what, path)| {
            let (mut bytes, mut files) = (0, 0);
            add(&path, &mut bytes, &mut files)?;
            Ok(Taken {
                what,
                path,
                bytes,
                files,
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    let disk = rustix::fs::statvfs(state.root())?;
    let (size, free) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    if json {
        let all = serde_json::json!({"parts": taken, "disk_bytes": size, "free_bytes": free});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let width = taken.iter().map(|one| one.what.len()).max().unwrap_or(0) + 2;
    println!("{:width$}{:<12}FILES", "WHAT", "SIZE");
    for one in &taken {
        println!("{:width$}{:<12}{}", one.what, shown(one.bytes), one.files);
    }
    let total = taken.iter().map(|one| one.bytes).sum();
    println!("{:width$}{}", "together", shown(total));
    println!("{:width$}{} of {}", "free", shown(free), shown(size));
    Ok(())
}

/// What it takes on the disk, holes not counted. What goes meanwhile is not there.
fn add(path: &Path, bytes: &mut u64, files: &mut u64) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    *bytes += meta.blocks() * 512;
    if !meta.is_dir() {
        *files += 1;
        return Ok(());
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        add(&entry?.path(), bytes, files)?;
    }
    Ok(())
}

fn shown(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_a_directory_are_counted_and_holes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/full"), vec![1; 100_000]).unwrap();
        fs::File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let (mut bytes, mut files) = (0, 0);
        add(dir.path(), &mut bytes, &mut files).unwrap();
        assert_eq!(files, 2);
        assert!((100_000..1_000_000).contains(&bytes), "{bytes}");
        add(&dir.path().join("nowhere"), &mut bytes, &mut files).unwrap();
        assert_eq!((shown(10), shown(1536)), ("10 B".into(), "1.5 KB".into()));
    }
}
