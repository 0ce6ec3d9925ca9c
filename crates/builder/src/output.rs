//! What the pusher reads: lines in the form that Heroku taught, each sent at once.
//!
//! Nobody waits for a slow reader: a build that had to would fail for a terminal that was paused.
//! What a reader is too far behind for is left out, and it is told how much.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

/// How far behind a reader may be.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// A longer line is cut: it is no text for people.
const LINE_BYTES_MAX: usize = 64 << 10;

#[derive(Clone)]
pub struct Output {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
    left_out: Arc<AtomicUsize>,
}

pub struct Lines {
    lines: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
}

pub fn channel() -> (Output, Lines) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let output = Output {
        lines: sender,
        waiting_bytes: waiting_bytes.clone(),
        left_out: Arc::default(),
    };
    (
        output,
        Lines {
            lines: receiver,
            waiting_bytes,
        },
    )
}

impl Output {
    /// `-----> text`
    pub fn step(&self, text: impl std::fmt::Display) {
        self.raw(format!("-----> {text}").into_bytes());
    }

    /// `=====> text`
    pub fn done(&self, text: impl std::fmt::Display) {
        self.raw(format!("=====> {text}").into_bytes());
    }

    /// A line below a step.
    pub fn detail(&self, text: impl std::fmt::Display) {
        self.raw(format!("       {text}").into_bytes());
    }

    /// ` !     text`
    pub fn warn(&self, text: impl std::fmt::Display) {
        self.raw(format!(" !     {text}").into_bytes());
    }

    /// A line as it is, without its end.
    pub fn raw(&self, mut line: Vec<u8>) {
        line.truncate(LINE_BYTES_MAX);
        line.retain(|byte| *byte != 0 && *byte != b'\n');
        if self.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            self.send(
                format!("       ({left_out} lines left out: they were not read fast enough)").into_bytes(),
            );
        }
        self.send(line);
    }

    fn send(&self, line: Vec<u8>) {
        self.waiting_bytes.fetch_add(line.len(), Ordering::Relaxed);
        // Without a reader the pusher is gone, and whoever speaks learns that in another way.
        let _ = self.lines.send(line);
    }
}

impl Lines {
    /// `None` when all speakers are gone.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.recv().await?;
        self.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
        Some(line)
    }

    /// A line that is there already.
    pub fn next_ready(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.try_recv().ok()?;
        self.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
        Some(line)
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Vec<u8>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            each(clean(std::mem::take(&mut self.partial)));
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > LINE_BYTES_MAX {
            each(clean(std::mem::take(&mut self.partial)));
        }
    }

    pub fn finish(&mut self, mut each: impl FnMut(Vec<u8>)) {
        if !self.partial.is_empty() {
            each(clean(std::mem::take(&mut self.partial)));
        }
    }
}

/// What a terminal would show of a line that returned to its start: the last part.
fn clean(mut line: Vec<u8>) -> Vec<u8> {
    while line.last() == Some(&b'\r') {
        line.pop();
    }
    match line.iter().rposition(|byte| *byte == b'\r') {
        Some(at) => line.split_off(at + 1),
        None => line,
    }
}

/// `2 GB`, as limits are named.
pub fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    match bytes {
        _ if bytes >= GIB && bytes.is_multiple_of(GIB) => format!("{} GB", bytes / GIB),
        _ if bytes >= 10 * GIB => format!("{} GB", bytes / GIB),
        _ => format!("{} MB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines_however_they_arrive() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        for piece in ["one\ntw", "o\r\n", "10%\r20%\r100%\n", "", "end"] {
            splitter.push(piece.as_bytes(), |line| {
                lines.push(String::from_utf8(line).unwrap())
            });
        }
        splitter.finish(|line| lines.push(String::from_utf8(line).unwrap()));
        assert_eq!(lines, ["one", "two", "100%", "end"]);
    }

    #[test]
    fn limits_are_named_as_people_write_them() {
        let named: Vec<_> = [2 << 30, 512 << 20, 1536 << 20, 4 << 30].map(size).into();
        assert_eq!(named, ["2 GB", "512 MB", "1536 MB", "4 GB"]);
    }

    #[tokio::test]
    async fn a_reader_that_is_far_behind_is_told_what_it_missed() {
        let (output, mut lines) = channel();
        for _ in 0..200 {
            output.raw(vec![b'x'; LINE_BYTES_MAX]);
        }
        let mut read = 0;
        while lines.next_ready().is_some() {
            read += 1;
        }
        output.detail("after");
        let told = String::from_utf8(lines.next().await.unwrap()).unwrap();
        assert_eq!(
            told,
            format!(
                "       ({} lines left out: they were not read fast enough)",
                200 - read
            )
        );
        assert_eq!(lines.next().await.unwrap(), b"       after");
    }
}
