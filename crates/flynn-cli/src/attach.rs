//! A job's streams at this terminal: input, output, signals, window size, exit status.
//!
//! ```text
//! stdin ── thread ──┐
//! signals ──────────┼─► frames ─► connection ─► frames ─► stdout, stderr ─► exit status
//! window size ──────┘
//! ```
//!
//! Without a terminal, signals sent to `flynn` go to the job. With one, the keys that would make
//! signals are sent as they are, and the job's own terminal makes the signals.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use api::{
    attach::{Frame, SUCCESS, Stream, WAITING},
    controller::Attached,
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{
    failure::{Failure, Result},
    terminal::{self, RawMode},
};

/// How often ctrl-c may be pressed at a job that does not react, before `flynn` itself ends.
const INTERRUPTS_MAX: u32 = 3;

/// How long a job may take to end after the terminal is gone.
const HANGUP_GRACE: Duration = Duration::from_secs(10);

/// Connects this terminal to a job until the job ends; gives its exit status.
pub async fn session(connection: Attached, with_tty: bool) -> Result<i32> {
    let raw_mode = if with_tty { Some(RawMode::enter()?) } else { None };
    let (reader, writer) = tokio::io::split(connection);
    let (frames, input) = mpsc::channel(4);
    let (control, urgent) = mpsc::unbounded_channel();
    let (hang_up, mut hung_up) = mpsc::channel(1);
    let signals = Signals::listen()?;
    std::thread::spawn(move || read_stdin(&frames));
    let sender = tokio::spawn(send(writer, input, urgent));
    let listener = tokio::spawn(signals.forward(control, hang_up, with_tty));
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let end = tokio::select! {
        end = receive(reader, &mut stdout, &mut stderr) => end,
        _ = hung_up.recv() => Ok(128 + SignalKind::hangup().as_raw_value()),
    };
    sender.abort();
    listener.abort();
    drop(raw_mode);
    end
}

fn read_stdin(frames: &mpsc::Sender<Frame>) {
    let mut buffer = vec![0; 32 << 10];
    let mut stdin = std::io::stdin().lock();
    loop {
        let length = match stdin.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A terminal that is gone reads as an error; to the job it is the end of its input.
            Err(_) => 0,
        };
        let frame = Frame::Data(Stream::Stdin, Bytes::copy_from_slice(&buffer[..length]));
        if frames.blocking_send(frame).is_err() || length == 0 {
            return;
        }
    }
}

/// Writes frames to the job; signals overtake input that waits.
async fn send(
    mut writer: impl AsyncWrite + Unpin,
    mut input: mpsc::Receiver<Frame>,
    mut urgent: mpsc::UnboundedReceiver<Frame>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = urgent.recv() => frame,
            Some(frame) = input.recv() => frame,
            else => return,
        };
        // Why it cannot be written is found out by the reading side.
        if writer.write_all(&frame.to_bytes()).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Writes what the job writes, until it ends.
async fn receive(
    mut reader: impl AsyncRead + Unpin,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> Result<i32> {
    let broken = |reason: &dyn std::fmt::Display| {
        Failure::new(format!("the connection to the job broke before it ended{reason}"))
            .with_hint("`flynn ps` shows whether it still runs")
    };
    let mut input = BytesMut::with_capacity(64 << 10);
    let mut is_started = false;
    loop {
        // A host says how the start goes, in single bytes; a controller leaves them out.
        while !is_started && matches!(input.first(), Some(&SUCCESS | &WAITING)) {
            input.advance(1);
        }
        while let Some(frame) = Frame::read(&mut input).map_err(|error| broken(&format_args!(": {error}")))? {
            is_started = true;
            let written = match &frame {
                Frame::Data(Stream::Stdout, data) => stdout.write_all(data).and_then(|()| stdout.flush()),
                Frame::Data(Stream::Stderr | Stream::InitLog, data) => stderr.write_all(data),
                Frame::Exit(status) => {
                    return Ok(i32::try_from(*status).ok().filter(|s| *s <= 255).unwrap_or(255));
                }
                Frame::Error(text) => return Err(Failure::new(text.clone())),
                Frame::Data(Stream::Stdin, _) | Frame::Signal(_) | Frame::Resize { .. } => Ok(()),
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    return Ok(128 + SignalKind::pipe().as_raw_value());
                }
                Err(error) => {
                    return Err(Failure::new(format!(
                        "the job's output cannot be written: {error}"
                    )));
                }
            }
        }
        match reader.read_buf(&mut input).await {
            Ok(0) => return Err(broken(&"")),
            Ok(_) => {}
            Err(error) => return Err(broken(&format_args!(": {error}"))),
        }
    }
}

/// The signals that `flynn` passes on.
struct Signals {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        let on =
            |kind| signal(kind).map_err(|error| Failure::new(format!("cannot listen to signals: {error}")));
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
            window: on(SignalKind::window_change())?,
        })
    }

    async fn forward(
        mut self,
        frames: mpsc::UnboundedSender<Frame>,
        hang_up: mpsc::Sender<()>,
        with_tty: bool,
    ) {
        let mut interrupts = 0;
        loop {
            let kind = tokio::select! {
                _ = self.interrupt.recv() => SignalKind::interrupt(),
                _ = self.quit.recv() => SignalKind::quit(),
                _ = self.terminate.recv() => SignalKind::terminate(),
                _ = self.hangup.recv() => SignalKind::hangup(),
                _ = self.user1.recv() => SignalKind::user_defined1(),
                _ = self.user2.recv() => SignalKind::user_defined2(),
                _ = self.window.recv() => {
                    if let (true, Some(size)) = (with_tty, terminal::size()) {
                        let _ = frames.send(Frame::Resize { height: size.lines, width: size.columns });
                    }
                    continue;
                }
            };
            let _ = frames.send(Frame::Signal(kind.as_raw_value() as u32));
            if kind == SignalKind::hangup() {
                let hang_up = hang_up.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(HANGUP_GRACE).await;
                    let _ = hang_up.send(()).await;
                });
            }
            if kind == SignalKind::interrupt() && !with_tty {
                interrupts += 1;
                if interrupts == INTERRUPTS_MAX {
                    eprintln!("The job does not react; it is left to itself.");
                    std::process::exit(128 + kind.as_raw_value());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a job's bytes become: output, error output, and how it ended.
    async fn check(wire: Vec<u8>, stdout: &str, stderr: &str, end: &str) {
        // In pieces, as a network delivers them.
        let pieces = in_pieces(wire);
        let (mut out, mut err) = (vec![], vec![]);
        let ended = match receive(pieces, &mut out, &mut err).await {
            Ok(status) => format!("exit {status}"),
            Err(failure) => failure.message,
        };
        assert_eq!(
            (
                String::from_utf8(out).unwrap().as_str(),
                String::from_utf8(err).unwrap().as_str()
            ),
            (stdout, stderr)
        );
        assert_eq!(ended, end);
    }

    fn in_pieces(wire: Vec<u8>) -> impl AsyncRead + Unpin {
        let (mut near, far) = tokio::io::duplex(3);
        tokio::spawn(async move {
            let _ = near.write_all(&wire).await;
        });
        far
    }

    fn wire(frames: &[Frame]) -> Vec<u8> {
        frames.iter().flat_map(|frame| frame.to_bytes()).collect()
    }

    fn out(text: &'static str) -> Frame {
        Frame::Data(Stream::Stdout, Bytes::from_static(text.as_bytes()))
    }

    fn err(text: &'static str) -> Frame {
        Frame::Data(Stream::Stderr, Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn streams_stay_apart_and_the_status_comes_through() {
        check(
            wire(&[out("a"), err("b"), out("c"), out(""), Frame::Exit(3)]),
            "ac",
            "b",
            "exit 3",
        )
        .await;
    }

    #[tokio::test]
    async fn what_a_host_says_about_the_start_is_passed_over() {
        let mut bytes = vec![WAITING, SUCCESS];
        bytes.extend(wire(&[out("a"), Frame::Exit(0)]));
        check(bytes, "a", "", "exit 0").await;
    }

    #[tokio::test]
    async fn an_error_of_the_host_is_the_commands_error() {
        check(
            wire(&[Frame::Error("no such image".into())]),
            "",
            "",
            "no such image",
        )
        .await;
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_a_status_is_an_error() {
        check(
            wire(&[out("a")]),
            "a",
            "",
            "the connection to the job broke before it ended",
        )
        .await;
        check(
            vec![99],
            "",
            "",
            "the connection to the job broke before it ended: frame type 99 is unknown",
        )
        .await;
    }

    #[tokio::test]
    async fn a_status_that_no_shell_knows_is_255() {
        check(wire(&[Frame::Exit(256)]), "", "", "exit 255").await;
        check(wire(&[Frame::Exit(u32::MAX)]), "", "", "exit 255").await;
    }

    #[tokio::test]
    async fn a_signal_overtakes_input_that_waits() {
        let (frames, input) = mpsc::channel(4);
        let (control, urgent) = mpsc::unbounded_channel();
        frames
            .send(Frame::Data(Stream::Stdin, Bytes::from_static(b"x")))
            .await
            .unwrap();
        control.send(Frame::Signal(15)).unwrap();
        drop((frames, control));
        let mut sent = vec![];
        send(&mut sent, input, urgent).await;
        let expected = wire(&[
            Frame::Signal(15),
            Frame::Data(Stream::Stdin, Bytes::from_static(b"x")),
        ]);
        assert_eq!(sent, expected);
    }
}
