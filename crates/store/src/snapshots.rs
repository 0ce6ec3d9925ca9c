//! Keeps the newest snapshot of the state on disk, in one file that proves its own integrity.
//!
//! ```text
//! "flynn-snapshot 1\n"  length u32  header as JSON  state …  state length u64  crc u32
//! ```
//!
//! The name carries the log position, the header everything openraft wants to know, the crc covers
//! all before it. A snapshot replaces the log in front of it, so one that cannot be read is an
//! error at start, never "no snapshot".

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWriteExt};
use tracing::{info, warn};

use crate::consensus::{RaftSnapshot, SnapshotMeta};
use crate::durable::{self, Unfinished};

const MAGIC: &[u8] = b"flynn-snapshot 1\n";
const TRAILER_BYTES: u64 = 12;
const HEADER_BYTES_MAX: u32 = 1 << 20;

/// An open snapshot. It stays readable when a newer one has replaced it.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    file: Arc<File>,
    path: PathBuf,
}

impl SnapshotFile {
    /// Size of the file.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills a file of [`Snapshots::incoming`].
    pub(crate) async fn receive(&self, input: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut out = tokio::fs::File::from_std(self.file.try_clone()?);
        tokio::io::copy(input, &mut out).await?;
        out.flush().await
    }

    /// Forgets a received file that was not installed.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Reads from the start, whatever other readers do.
    pub fn reader(&self) -> impl Read + Send + 'static {
        ReadAt {
            file: self.file.clone(),
            position: 0,
        }
    }
}

struct ReadAt {
    file: Arc<File>,
    position: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// The directory of snapshots.
pub(crate) struct Snapshots {
    directory: PathBuf,
    kept: Mutex<Kept>,
    /// Held while a file is written: the compaction and openraft may want the same one.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Kept {
    current: Option<(SnapshotMeta, SnapshotFile)>,
    /// Written, but openraft has not been told yet.
    is_news: bool,
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("snapshot {} {what}", path.display()),
    )
}

impl Snapshots {
    /// Blocks: the newest snapshot is read through once, to check it.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        durable::create_directory(directory)?;
        let mut paths = durable::finished_files(directory)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "snapshot"));
        let mut kept = Kept::default();
        if let Some(newest) = paths.pop() {
            let snapshot = SnapshotFile {
                file: Arc::new(File::open(&newest)?),
                path: newest,
            };
            kept.current = Some((check(&snapshot)?, snapshot));
        }
        for older in paths {
            fs::remove_file(older)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            kept: Mutex::new(kept),
            writing: Mutex::new(()),
        })
    }

    pub(crate) fn current(&self) -> Option<RaftSnapshot> {
        let kept = self.kept.lock().expect("no panic under this lock");
        kept.current
            .clone()
            .map(|(meta, snapshot)| RaftSnapshot { meta, snapshot })
    }

    /// The current snapshot if it was written by [`Snapshots::write`] and not taken yet.
    pub(crate) fn take_news(&self) -> Option<RaftSnapshot> {
        let mut kept = self.kept.lock().expect("no panic under this lock");
        let is_news = std::mem::take(&mut kept.is_news);
        drop(kept);
        self.current().filter(|_| is_news)
    }

    /// Writes a snapshot and makes it the current one, unless a newer one came meanwhile. Blocks.
    pub(crate) fn write(
        &self,
        meta: &SnapshotMeta,
        write_state: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<RaftSnapshot> {
        let _only = self.writing.lock().expect("no panic under this lock");
        let path = self.path_of(meta);
        let unfinished = Unfinished::create(&path.with_extension("building"))?;
        let mut out = Sealing {
            out: BufWriter::with_capacity(1 << 20, &unfinished.file),
            crc: Default::default(),
            bytes: 0,
        };
        let header = serde_json::to_vec(meta)?;
        out.write_all(MAGIC)?;
        out.write_all(&(header.len() as u32).to_le_bytes())?;
        out.write_all(&header)?;
        let before = out.bytes;
        write_state(&mut out)?;
        let state_bytes = out.bytes - before;
        out.write_all(&state_bytes.to_le_bytes())?;
        let crc = out.crc.clone().finalize();
        out.write_all(&crc.to_le_bytes())?;
        let bytes = out.bytes;
        out.out.flush()?;
        drop(out);
        let file = unfinished.finish(&path)?;
        info!(
            index = meta.last_log_id.map(|id| id.index()),
            bytes, "wrote a snapshot"
        );
        self.adopt(
            meta.clone(),
            SnapshotFile {
                file: Arc::new(file),
                path,
            },
            true,
        );
        Ok(self.current().expect("one was just adopted"))
    }

    /// Takes over a snapshot from another node, received into [`Snapshots::incoming`]. Blocks.
    pub(crate) fn install(&self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<SnapshotFile> {
        let path = self.path_of(meta);
        if snapshot.path == path {
            return Ok(snapshot);
        }
        if check(&snapshot)? != *meta {
            return Err(damaged(
                &snapshot.path,
                "is of another log position than announced",
            ));
        }
        snapshot.file.sync_all()?;
        fs::rename(&snapshot.path, &path)?;
        durable::sync_directory(&self.directory)?;
        let installed = SnapshotFile {
            file: snapshot.file,
            path,
        };
        self.adopt(meta.clone(), installed.clone(), false);
        Ok(installed)
    }

    /// A file to receive a snapshot into. Left behind, it is removed at the next start.
    pub(crate) fn incoming(&self, number: u64) -> io::Result<SnapshotFile> {
        let path = self
            .directory
            .join(format!("incoming-{number}.{}", durable::UNFINISHED));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .mode(0o600)
            .truncate(true)
            .open(&path)?;
        Ok(SnapshotFile {
            file: Arc::new(file),
            path,
        })
    }

    fn path_of(&self, meta: &SnapshotMeta) -> PathBuf {
        let next = meta.last_log_id.map_or(0, |id| id.index() + 1);
        self.directory.join(format!("{next:020}.snapshot"))
    }

    fn adopt(&self, meta: SnapshotMeta, snapshot: SnapshotFile, is_news: bool) {
        let mut kept = self.kept.lock().expect("no panic under this lock");
        let obsolete = match &kept.current {
            Some((current, _)) if current.last_log_id > meta.last_log_id => Some(snapshot.path),
            _ => {
                kept.is_news = is_news;
                kept.current
                    .replace((meta, snapshot.clone()))
                    .map(|(_, older)| older.path)
            }
        };
        let current = kept.current.as_ref().map(|(_, current)| current.path.clone());
        drop(kept);
        // The same position can be written twice; then the name is the new file's.
        if let Some(obsolete) = obsolete.filter(|path| Some(path) != current.as_ref())
            && let Err(problem) = fs::remove_file(&obsolete)
        {
            warn!(path = %obsolete.display(), %problem, "could not remove an old snapshot");
        }
    }
}

/// The state inside a snapshot that [`check`] has passed.
pub(crate) fn state_reader(snapshot: &SnapshotFile) -> io::Result<impl Read> {
    let mut reader = BufReader::with_capacity(1 << 20, snapshot.reader());
    let (_, header_bytes) = read_header(&mut reader, &snapshot.path)?;
    Ok(reader.take(snapshot.bytes()? - header_bytes - TRAILER_BYTES))
}

fn read_header(reader: &mut impl Read, path: &Path) -> io::Result<(SnapshotMeta, u64)> {
    let mut magic = [0; MAGIC.len()];
    reader
        .read_exact(&mut magic)
        .map_err(|_| damaged(path, "is too short"))?;
    if magic != MAGIC {
        return Err(damaged(
            path,
            "is no snapshot, or one of another version of this program",
        ));
    }
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(damaged(path, "is damaged: its header cannot be that long"));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header)?;
    let meta = serde_json::from_slice(&header)
        .map_err(|problem| damaged(path, &format!("has an unreadable header: {problem}")))?;
    Ok((meta, (MAGIC.len() + 4) as u64 + u64::from(length)))
}

/// Reads a snapshot through and returns its header.
fn check(snapshot: &SnapshotFile) -> io::Result<SnapshotMeta> {
    let path = &snapshot.path;
    let bytes = snapshot.bytes()?;
    let sealed = bytes
        .checked_sub(4)
        .ok_or_else(|| damaged(path, "is too short"))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut reader = snapshot.reader().take(sealed);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    let mut crc = [0; 4];
    snapshot.file.read_exact_at(&mut crc, sealed)?;
    if hasher.finalize() != u32::from_le_bytes(crc) {
        return Err(damaged(path, "is damaged: its checksum does not fit"));
    }
    let (meta, header_bytes) = read_header(&mut snapshot.reader(), path)?;
    let mut state_bytes = [0; 8];
    snapshot
        .file
        .read_exact_at(&mut state_bytes, bytes - TRAILER_BYTES)?;
    if u64::from_le_bytes(state_bytes) != bytes - TRAILER_BYTES - header_bytes {
        return Err(damaged(path, "is damaged: its length does not fit"));
    }
    Ok(meta)
}

/// Counts and checksums what goes through it.
struct Sealing<W> {
    out: W,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
