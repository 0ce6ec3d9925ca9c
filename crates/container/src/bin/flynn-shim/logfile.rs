//! Writes a job's output into its log file, never making the job wait for a disk that is stuck or full.
//!
//! A thread of its own does the writing. While it gets on, output waits for it (that is the speed
//! of the disk, and nothing is lost); when it has not moved for a while, or writing fails, output
//! is dropped and counted, and a line in the log says how many lines are missing there.
//!
//! Each file carries the number of its first line, counted over all files of the job, as an extended
//! attribute: whoever reads the files and finds one gone knows how much it missed.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use container::LogFile;
use container::logline::{FIRST_LINE, Formatter, LogLine, Stream, TEXT_BYTES_MAX};
use jiff::Timestamp;

/// Output that waits to be written.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// A writer that has not moved for so long is stuck.
const PATIENCE: Duration = Duration::from_millis(250);

pub struct LogWriter {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    chunks: VecDeque<Chunk>,
    queued_bytes: usize,
    /// Lines dropped before they were queued.
    lost_lines: u64,
    moved_at: Instant,
    is_closing: bool,
    is_finished: bool,
}

struct Chunk {
    time: Timestamp,
    stream: Stream,
    bytes: Vec<u8>,
}

impl LogWriter {
    /// Starts the thread. Only after the container exists: a process with threads must not fork one.
    pub fn start(mut files: Files) -> io::Result<LogWriter> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                queued_bytes: 0,
                lost_lines: 0,
                moved_at: Instant::now(),
                is_closing: false,
                is_finished: false,
            }),
            changed: Condvar::new(),
        });
        let for_thread = shared.clone();
        thread::Builder::new()
            .name("log".into())
            .stack_size(256 << 10)
            .spawn(move || write_all(&for_thread, &mut files))?;
        Ok(LogWriter { shared })
    }

    /// Whether more output should be read now.
    pub fn is_ready(&self) -> bool {
        let state = self.shared.lock();
        state.queued_bytes < QUEUE_BYTES_MAX || state.moved_at.elapsed() > PATIENCE
    }

    pub fn push(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.shared.lock();
        if state.queued_bytes >= QUEUE_BYTES_MAX {
            state.lost_lines += count_lines(bytes);
            return;
        }
        if state.chunks.is_empty() {
            state.moved_at = Instant::now();
        }
        state.queued_bytes += bytes.len();
        state.chunks.push_back(Chunk {
            time: Timestamp::now(),
            stream,
            bytes: bytes.to_vec(),
        });
        self.shared.changed.notify_all();
    }

    /// Writes what is queued, for as long as the writer moves.
    pub fn finish(self) {
        let mut state = self.shared.lock();
        state.is_closing = true;
        self.shared.changed.notify_all();
        while !state.is_finished && state.moved_at.elapsed() < 20 * PATIENCE {
            state = self.shared.wait(state, PATIENCE);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the lock held")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, limit)
            .expect("nobody panics with the lock held")
            .0
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    (bytes.iter().filter(|byte| **byte == b'\n').count() as u64).max(1)
}

fn write_all(shared: &Shared, files: &mut Files) {
    let mut lines = Lines::default();
    loop {
        let (chunks, lost, is_closing) = {
            let mut state = shared.lock();
            while state.chunks.is_empty() && !state.is_closing {
                state = shared.wait(state, Duration::from_secs(3600));
            }
            state.moved_at = Instant::now();
            (
                std::mem::take(&mut state.chunks),
                std::mem::take(&mut state.lost_lines),
                state.is_closing,
            )
        };
        files.lost_lines += lost;
        for chunk in &chunks {
            lines.take(chunk, files);
            files.flush();
            let mut state = shared.lock();
            state.queued_bytes -= chunk.bytes.len();
            state.moved_at = Instant::now();
        }
        if is_closing && chunks.is_empty() {
            lines.finish(files);
            files.flush();
            shared.lock().is_finished = true;
            shared.changed.notify_all();
            return;
        }
    }
}

/// Cuts streams into lines.
#[derive(Default)]
struct Lines {
    stdout: Option<(Timestamp, Vec<u8>)>,
    stderr: Option<(Timestamp, Vec<u8>)>,
}

impl Lines {
    fn begun(&mut self, stream: Stream) -> &mut Option<(Timestamp, Vec<u8>)> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn take(&mut self, chunk: &Chunk, files: &mut Files) {
        for piece in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            let begun = self.begun(chunk.stream);
            let (time, mut text) = begun.take().unwrap_or_else(|| (chunk.time, Vec::new()));
            text.extend_from_slice(piece.strip_suffix(b"\n").unwrap_or(piece));
            let mut rest = text.as_slice();
            while rest.len() > TEXT_BYTES_MAX {
                let (part, after) = rest.split_at(TEXT_BYTES_MAX);
                files.line(&LogLine {
                    time,
                    stream: chunk.stream,
                    is_partial: true,
                    text: part,
                });
                rest = after;
            }
            if piece.ends_with(b"\n") {
                files.line(&LogLine {
                    time,
                    stream: chunk.stream,
                    is_partial: false,
                    text: rest,
                });
            } else {
                *begun = Some((time, rest.to_vec()));
            }
        }
    }

    /// The last line of an app need not have an end.
    fn finish(&mut self, files: &mut Files) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some((time, text)) = self.begun(stream).take() {
                files.line(&LogLine {
                    time,
                    stream,
                    is_partial: false,
                    text: &text,
                });
            }
        }
    }
}

/// The file being written and the older ones.
pub struct Files {
    path: PathBuf,
    bytes_max: u64,
    files_max: u32,
    file: File,
    written_bytes: u64,
    /// Lines in this file and all before it.
    written_lines: u64,
    pending: Vec<u8>,
    pending_lines: u64,
    lost_lines: u64,
    formatter: Formatter,
}

impl Files {
    pub fn open(log: &LogFile) -> io::Result<Files> {
        let file = open(&log.path)?;
        let written_bytes = file.metadata()?.len();
        let written_lines = lines_so_far(&log.path, &file, written_bytes)?;
        Ok(Files {
            path: log.path.clone(),
            bytes_max: log.bytes_max.max(64 << 10),
            files_max: log.files_max.max(1),
            file,
            written_bytes,
            written_lines,
            pending: Vec::new(),
            pending_lines: 0,
            lost_lines: 0,
            formatter: Formatter::default(),
        })
    }

    fn line(&mut self, line: &LogLine<'_>) {
        let before = self.pending.len();
        self.formatter.append(line, &mut self.pending);
        self.pending_lines += 1;
        if self.written_bytes + self.pending.len() as u64 > self.bytes_max
            && self.written_bytes + before as u64 > 0
        {
            let last = self.pending.split_off(before);
            self.pending_lines -= 1;
            self.flush();
            self.rotate();
            self.pending = last;
            self.pending_lines = 1;
        }
        if self.pending.len() > 256 << 10 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut bytes = std::mem::take(&mut self.pending);
        let lines = std::mem::take(&mut self.pending_lines);
        let mut written = lines;
        if self.lost_lines > 0 {
            written += 1;
            let text = format!("{} lines lost: the log could not be written", self.lost_lines);
            let notice = LogLine {
                time: Timestamp::now(),
                stream: Stream::Stderr,
                is_partial: false,
                text: text.as_bytes(),
            };
            let mut with_notice = Vec::new();
            self.formatter.append(&notice, &mut with_notice);
            with_notice.append(&mut bytes);
            bytes = with_notice;
        }
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.written_bytes += bytes.len() as u64;
                self.written_lines += written;
                self.lost_lines = 0;
            }
            Err(_) => {
                // A torn line would be read as one.
                drop(self.file.set_len(self.written_bytes));
                self.lost_lines += lines;
            }
        }
        bytes.clear();
        self.pending = bytes;
    }

    /// Where this fails the present file is written on: a long log is better than none.
    fn rotate(&mut self) {
        let numbered = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..self.files_max.saturating_sub(1)).rev() {
            drop(fs::rename(numbered(number), numbered(number + 1)));
        }
        if self.files_max == 1 {
            if self.file.set_len(0).is_ok() {
                self.written_bytes = 0;
                number(&self.file, self.written_lines);
            }
            return;
        }
        if fs::rename(&self.path, numbered(1)).is_err() {
            return;
        }
        match open(&self.path) {
            Ok(file) => {
                number(&file, self.written_lines);
                self.file = file;
                self.written_bytes = 0;
            }
            Err(_) => drop(fs::rename(numbered(1), &self.path)),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Says in a file that is still empty how many lines came before it. A file system without extended
/// attributes costs readers no more than knowing how many lines they missed.
fn number(file: &File, lines_before: u64) {
    let text = (lines_before + 1).to_string();
    let _ = rustix::fs::fsetxattr(file, FIRST_LINE, text.as_bytes(), rustix::fs::XattrFlags::empty());
}

/// What an earlier shim of the job has written: none, as a rule, and then the file is numbered.
fn lines_so_far(path: &Path, file: &File, bytes: u64) -> io::Result<u64> {
    if bytes == 0 {
        number(file, 0);
        return Ok(0);
    }
    let mut text = [0; 20];
    let length = rustix::fs::fgetxattr(file, FIRST_LINE, &mut text).unwrap_or(0);
    let first = std::str::from_utf8(&text[..length])
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    let lines = fs::read(path)?.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(first.unwrap_or(1).saturating_sub(1) + lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use container::logline;

    fn texts(path: &Path) -> Vec<(bool, String)> {
        let content = fs::read(path).unwrap_or_default();
        content
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| logline::parse(line).expect("a whole line"))
            .map(|line| (line.is_partial, String::from_utf8_lossy(line.text).into_owned()))
            .collect()
    }

    fn write(log: &LogFile, chunks: &[&[u8]]) {
        let writer = LogWriter::start(Files::open(log).unwrap()).unwrap();
        for chunk in chunks {
            writer.push(Stream::Stdout, chunk);
        }
        writer.finish();
    }

    #[test]
    fn lines_are_put_together_however_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            path: directory.path().join("log"),
            bytes_max: 1 << 20,
            files_max: 2,
        };
        write(&log, &[b"one\ntw", b"o\n", b"\nthe end"]);
        let expected = ["one", "two", "", "the end"].map(|text| (false, text.to_owned()));
        assert_eq!(texts(&log.path), expected);
    }

    #[test]
    fn a_long_line_comes_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            path: directory.path().join("log"),
            bytes_max: 1 << 20,
            files_max: 2,
        };
        let mut long = vec![b'x'; TEXT_BYTES_MAX * 2 + 5];
        long.push(b'\n');
        write(&log, &[&long]);
        let lengths: Vec<_> = texts(&log.path)
            .into_iter()
            .map(|(partial, text)| (partial, text.len()))
            .collect();
        assert_eq!(
            lengths,
            [(true, TEXT_BYTES_MAX), (true, TEXT_BYTES_MAX), (false, 5)]
        );
    }

    #[test]
    fn rotation_keeps_the_newest_files_and_tears_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            path: directory.path().join("log"),
            bytes_max: 64 << 10,
            files_max: 3,
        };
        let lines: Vec<String> = (0..10_000).map(|number| format!("line {number}\n")).collect();
        write(
            &log,
            &lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>(),
        );
        let mut all = Vec::new();
        for name in ["log.2", "log.1", "log"] {
            let path = directory.path().join(name);
            assert!(fs::metadata(&path).unwrap().len() <= 64 << 10);
            all.extend(texts(&path));
        }
        assert!(!directory.path().join("log.3").exists());
        assert_eq!(all.last().unwrap().1, "line 9999");
        let first: usize = all[0].1.strip_prefix("line ").unwrap().parse().unwrap();
        assert_eq!(all.len(), 10_000 - first);
        // The oldest file knows how many lines went with those that were removed.
        let oldest = File::open(directory.path().join("log.2")).unwrap();
        let mut number = [0; 20];
        let length = rustix::fs::fgetxattr(&oldest, FIRST_LINE, &mut number).unwrap();
        assert_eq!(&number[..length], (first + 1).to_string().as_bytes());
    }

    #[test]
    fn a_full_disk_costs_lines_and_says_how_many() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            path: directory.path().join("log"),
            bytes_max: 1 << 20,
            files_max: 2,
        };
        let mut files = Files::open(&log).unwrap();
        let line = |text| LogLine {
            time: Timestamp::UNIX_EPOCH,
            stream: Stream::Stdout,
            is_partial: false,
            text,
        };
        let good = std::mem::replace(
            &mut files.file,
            File::options().write(true).open("/dev/full").unwrap(),
        );
        for _ in 0..3 {
            files.line(&line(b"lost"));
            files.flush();
        }
        files.file = good;
        files.line(&line(b"back"));
        files.flush();
        let expected =
            ["3 lines lost: the log could not be written", "back"].map(|text| (false, text.to_owned()));
        assert_eq!(texts(&log.path), expected);
    }
}
