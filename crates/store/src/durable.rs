//! Puts whole files on disk so that a power cut leaves the old one or the new one.
//!
//! What is easy to get wrong: a rename is not on disk before the *directory* has been synced, and
//! an fsync that failed once must not be tried again (the kernel may have dropped the pages and
//! then reports success). Callers treat every error from here as the end of their file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Ending of files that are not finished; they are removed when their directory is opened.
pub(crate) const UNFINISHED: &str = "unfinished";

/// Writes `path` by way of a neighbour file, readable by its owner only.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut unfinished = Unfinished::create(path)?;
    unfinished.file.write_all(content)?;
    unfinished.finish(path).map(drop)
}

/// A file being written, which gets its name when it is complete. Dropped, it is removed.
pub(crate) struct Unfinished {
    pub(crate) file: File,
    path: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    /// Creates it in the directory of `target`; an older unfinished file is overwritten.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let path = unfinished_name(target);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            is_finished: false,
        })
    }

    /// Syncs, gives the file its name, syncs the directory.
    pub(crate) fn finish(mut self, target: &Path) -> io::Result<File> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.is_finished = true;
        sync_directory_of(target)?;
        self.file.try_clone()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn unfinished_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    name.into()
}

pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().expect("files of the store are in a directory");
    sync_directory(directory)
}

pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory that only its owner can enter, parents included, and syncs its parent.
pub(crate) fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => Ok(()),
    }
}

/// Paths of the files in `directory`, sorted by name, after removing what was left unfinished.
pub(crate) fn finished_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            fs::remove_file(&path)?;
        } else {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
