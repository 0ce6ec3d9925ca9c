//! One line per request, in the app's own log.
//!
//! Lines are gathered per thread and handed over in batches to a writer thread through a bounded
//! channel. A full channel loses the batch and counts its lines; nothing on the way of a request
//! ever waits for a disk. The files are in CRI log format, so that whoever reads the jobs' logs
//! reads these the same way: `<time> stdout F <line>`.

use crate::config::Limits;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

/// Handed over at the next tick, or when this is reached: each handing over wakes the writer, which
/// takes the core from a thread that serves.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches under way; 16 MiB at most.
const BATCHES_MAX: usize = 64;
/// Written batches whose memory is kept for the next ones.
const SPARE_MAX: usize = 8;
/// Files per app. Readers want the newest two; the rest is for those who fell behind, and is removed by
/// the daemon when nobody does.
const FILES_PER_APP_MAX: u32 = 16;
/// The extended attribute with the number of a file's first line, as the logs of jobs have it.
const FIRST_LINE: &str = "user.flynn.first_line";
/// Open files; beyond it all are closed and opened again as needed.
const FILES_MAX: usize = 256;

#[derive(Debug, Default)]
struct Batch {
    text: Vec<u8>,
    /// Whose lines reach to where, in order.
    parts: Vec<(Arc<str>, usize)>,
    lines: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Lines lost to a full channel.
    dropped: AtomicU64,
    /// Looked at once per batch.
    spare: Mutex<Vec<Batch>>,
}

/// A thread's end.
#[derive(Debug)]
pub struct AccessLog {
    batch: RefCell<Batch>,
    sender: SyncSender<Batch>,
    shared: Arc<Shared>,
    /// The second that is written out in `stamp`.
    second: Cell<i64>,
    stamp: RefCell<String>,
}

impl AccessLog {
    /// Appends one line for the app.
    pub fn line(&self, app_id: &Arc<str>, write: impl FnOnce(&mut Vec<u8>)) {
        if app_id.is_empty() {
            return;
        }
        let mut batch = self.batch.borrow_mut();
        self.time(&mut batch.text);
        batch.text.extend_from_slice(b" stdout F ");
        write(&mut batch.text);
        batch.text.push(b'\n');
        batch.lines += 1;
        let end = batch.text.len();
        match batch.parts.last_mut() {
            Some((last, until)) if Arc::ptr_eq(last, app_id) => *until = end,
            _ => batch.parts.push((app_id.clone(), end)),
        }
        if end >= BATCH_BYTES {
            drop(batch);
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.lines == 0 {
            return;
        }
        let lines = batch.lines;
        let empty = self
            .shared
            .spare
            .lock()
            .expect("nobody panics while holding it")
            .pop()
            .unwrap_or_default();
        let full = std::mem::replace(&mut *batch, empty);
        if self.sender.try_send(full).is_err() {
            self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// RFC 3339 with nanoseconds; the seconds are written out once a second.
    fn time(&self, out: &mut Vec<u8>) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let second = now.as_secs() as i64;
        let mut stamp = self.stamp.borrow_mut();
        if self.second.replace(second) != second || stamp.is_empty() {
            let time = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            *stamp = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        out.extend_from_slice(stamp.as_bytes());
        let mut digits = *b".000000000Z";
        let mut rest = now.subsec_nanos();
        for digit in digits[1..10].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

/// The writer. Dropping every [`AccessLog`] ends its thread after the last line.
#[derive(Clone)]
pub struct Writer {
    sender: SyncSender<Batch>,
    shared: Arc<Shared>,
}

impl Writer {
    pub fn start(
        directory: &Path,
        limits: &Limits,
    ) -> std::io::Result<(Writer, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(BATCHES_MAX);
        let shared = Arc::new(Shared::default());
        let mut files = Files {
            directory: directory.to_path_buf(),
            bytes_max: limits.access_log_bytes,
            open: HashMap::new(),
        };
        let state = shared.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                write_all(&receiver, &mut files, &state);
            })?;
        Ok((Writer { sender, shared }, thread))
    }

    pub fn log(&self) -> AccessLog {
        AccessLog {
            batch: RefCell::default(),
            sender: self.sender.clone(),
            shared: self.shared.clone(),
            second: Cell::new(0),
            stamp: RefCell::default(),
        }
    }
}

fn write_all(receiver: &Receiver<Batch>, files: &mut Files, shared: &Shared) {
    while let Ok(mut batch) = receiver.recv() {
        let mut start = 0;
        for (app, end) in &batch.parts {
            if let Err(error) = files.append(app, &batch.text[start..*end]) {
                tracing::warn!(app = %app, %error, "access lines lost");
            }
            start = *end;
        }
        batch.text.clear();
        batch.parts.clear();
        batch.lines = 0;
        let mut spare = shared.spare.lock().expect("nobody panics while holding it");
        // A quiet router has no use for the memory of its busiest moment.
        if spare.len() < SPARE_MAX && start > BATCH_BYTES / 2 {
            spare.push(batch);
        }
        drop(spare);
        let lost = shared.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lines = lost, "access log cannot keep up, lines dropped");
        }
    }
}

struct Files {
    directory: PathBuf,
    bytes_max: u64,
    open: HashMap<String, Open>,
}

struct Open {
    file: File,
    bytes: u64,
    /// In this file and all before it.
    lines: u64,
}

impl Files {
    fn append(&mut self, app: &str, text: &[u8]) -> std::io::Result<()> {
        // The id becomes part of a path.
        if app.starts_with('.')
            || !app
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err(std::io::Error::other("the app's id is no file name"));
        }
        let path = self.directory.join(app).join("router.log");
        // While one router takes another's place, both write, and either may put the file aside.
        if self.open.get(app).is_some_and(|known| !known.is_at(&path)) {
            self.open.remove(app);
        }
        if !self.open.contains_key(app) {
            if self.open.len() >= FILES_MAX {
                self.open.clear();
            }
            let directory = self.directory.join(app);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)?;
            self.open.insert(app.to_string(), Open::begin(&path)?);
        }
        let Open { file, bytes, lines } = self.open.get_mut(app).expect("it was just put there");
        if *bytes > 0 && *bytes + text.len() as u64 > self.bytes_max {
            for number in (1..FILES_PER_APP_MAX - 1).rev() {
                let older = path.with_extension(format!("log.{}", number + 1));
                drop(fs::rename(path.with_extension(format!("log.{number}")), older));
            }
            fs::rename(&path, path.with_extension("log.1"))?;
            *file = open(&path)?;
            *bytes = 0;
            set_first_line(file, *lines + 1);
        }
        // One write: whole lines, or a short disk.
        match file.write_all(text) {
            Ok(()) => {
                *bytes += text.len() as u64;
                *lines += count_lines(text);
            }
            Err(error) => {
                self.open.remove(app);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Open {
    fn begin(path: &Path) -> std::io::Result<Open> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        let mut lines = 0;
        if bytes == 0 {
            set_first_line(&file, 1);
        } else {
            let mut number = [0; 20];
            let length = rustix::fs::fgetxattr(&file, FIRST_LINE, &mut number).unwrap_or(0);
            let first = std::str::from_utf8(&number[..length])
                .ok()
                .and_then(|text| text.parse::<u64>().ok());
            lines = first.unwrap_or(1).saturating_sub(1) + count_lines(&fs::read(path)?);
        }
        Ok(Open { file, bytes, lines })
    }

    /// Whether the file is still the one at `path`, and nobody else has written to it.
    fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(there)) = (self.file.metadata(), fs::metadata(path)) else {
            return false;
        };
        (own.dev(), own.ino()) == (there.dev(), there.ino()) && there.len() == self.bytes
    }
}

/// Where the file system has no extended attributes, readers that miss lines do not know how many.
fn set_first_line(file: &File, number: u64) {
    let text = number.to_string();
    let _ = rustix::fs::fsetxattr(file, FIRST_LINE, text.as_bytes(), rustix::fs::XattrFlags::empty());
}

fn count_lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_their_apps_files_and_files_are_put_aside_by_size() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            access_log_bytes: 200,
            ..Limits::default()
        };
        let (writer, thread) = Writer::start(directory.path(), &limits).unwrap();
        let log = writer.log();
        let (one, two): (Arc<str>, Arc<str>) = (Arc::from("one"), Arc::from("two"));
        for n in 0..4 {
            log.line(&one, |out| write!(out, "at=info n={n}").unwrap());
            log.line(&two, |out| write!(out, "at=info n={n}").unwrap());
            log.flush();
        }
        log.line(&Arc::from("../three"), |out| {
            out.extend_from_slice(b"never written")
        });
        drop((log, writer));
        thread.join().unwrap();
        let now = fs::read_to_string(directory.path().join("one/router.log")).unwrap();
        let before = fs::read_to_string(directory.path().join("one/router.log.1")).unwrap();
        assert_eq!(before.lines().chain(now.lines()).count(), 4);
        let (time, rest) = now.lines().last().unwrap().split_once(' ').unwrap();
        assert_eq!(rest, "stdout F at=info n=3");
        time.parse::<jiff::Timestamp>().unwrap();
        assert_eq!(time.len(), "2026-01-01T00:00:00.000000000Z".len());
    }
}
