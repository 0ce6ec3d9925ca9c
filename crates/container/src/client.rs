//! The daemon's side: start shims, talk to them, find them again.
//!
//! All of it is async and none of it needs the shim to be quick: a shim that hangs costs the
//! caller a timeout of its own choosing, never a thread.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use crate::cgroup::Cgroup;
use crate::protocol::{Frame, FrameError, HEAD_BYTES, Reply, Request, State};
use crate::record::{ExitRecord, Outcome};
use crate::spec::{ExecSpec, Spec, WindowSize};
use crate::{job_dir, protocol};

/// The program that runs containers.
#[derive(Clone, Debug)]
pub struct Shim {
    binary: PathBuf,
}

/// A container that exists and waits for [`Created::start`]. Dropping it makes the shim give up.
#[derive(Debug)]
pub struct Created {
    /// The container's first process: its network namespace is the one to attach.
    pub pid: u32,
    socket: UnixStream,
    shim: Child,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    Running,
    WaitingForAttach,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Spec(String),
    /// The container could not be made or its program not be run.
    #[error("{}", reason(.0))]
    NotStarted(ExitRecord),
    #[error("the shim went away without a word; see {}", .0.display())]
    ShimLost(PathBuf),
    #[error("cannot run {}", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn reason(record: &ExitRecord) -> String {
    match &record.outcome {
        Outcome::NotStarted { error, .. } => error.clone(),
        other => format!("it ended at once: {other:?}"),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: it has ended, or was lost.
    #[error("the container is not running")]
    NotRunning,
    #[error("{0}")]
    Refused(String),
    #[error("the shim gave an answer that does not fit: {0:?}")]
    Unexpected(Box<Frame>),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Shim {
    /// `binary` is an absolute path: shims run in `/`.
    pub fn new(binary: impl Into<PathBuf>) -> Shim {
        Shim {
            binary: binary.into(),
        }
    }

    /// Makes the container, without starting its process. Makes `job_dir` if it is not there.
    pub async fn create(&self, job_dir: &Path, spec: &Spec) -> Result<Created, StartError> {
        if let Some(problem) = spec.problem() {
            return Err(StartError::Spec(problem));
        }
        // Only speed depends on it.
        tokio::task::spawn_blocking(crate::cgroup::expect_moves);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(job_dir)?;
        let mut file = private_file(&job_dir.join(job_dir::SPEC))?;
        io::Write::write_all(
            &mut file,
            &serde_json::to_vec(spec).expect("plain data has a JSON form"),
        )?;
        let (mut socket, mut shim) = self.spawn("run", job_dir)?;
        match first_word(&mut socket, &mut shim).await? {
            Some(Frame::Reply(Reply::Created { pid })) => Ok(Created { pid, socket, shim }),
            Some(Frame::Reply(Reply::Failed(record))) => Err(StartError::NotStarted(record)),
            _ => Err(lost(job_dir)),
        }
    }

    /// Runs another process in a running container.
    pub async fn exec(&self, job_dir: &Path, spec: &ExecSpec) -> Result<ExecSession, StartError> {
        let (mut socket, mut shim) = self.spawn("exec", job_dir)?;
        write_frame(
            &mut socket,
            &Frame::Request(Request::Exec(Box::new(spec.clone()))),
        )
        .await?;
        match first_word(&mut socket, &mut shim).await? {
            Some(Frame::Reply(Reply::Started)) => Ok(ExecSession(Attached::new(socket))),
            Some(Frame::Reply(Reply::Failed(record))) => Err(StartError::NotStarted(record)),
            _ => Err(lost(job_dir)),
        }
    }

    /// The shim's standard input is our socket to it: nothing else has to be inherited.
    fn spawn(&self, verb: &str, job_dir: &Path) -> Result<(UnixStream, Child), StartError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(job_dir.join(job_dir::SHIM_LOG))?;
        let shim = Command::new(&self.binary)
            .arg(verb)
            .arg(job_dir.canonicalize()?)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .env_clear()
            .current_dir("/")
            .spawn()
            .map_err(|error| StartError::Spawn(self.binary.clone(), error))?;
        Ok((UnixStream::from_std(ours)?, shim))
    }
}

/// What the shim answers. None: it died without a word.
///
/// The end of the socket is not enough to tell: a shim killed in the middle of making a container
/// leaves half-made processes, which hold the other end open until [`cleanup`].
async fn first_word(socket: &mut UnixStream, shim: &mut Child) -> io::Result<Option<Frame>> {
    tokio::select! {
        biased;
        frame = read_frame(socket) => return frame,
        _ = shim.wait() => {}
    }
    // What it said before its end is here already; only of one that said nothing is there more to wait for.
    tokio::time::timeout(Duration::from_millis(100), read_frame(socket))
        .await
        .unwrap_or(Ok(None))
}

fn lost(job_dir: &Path) -> StartError {
    StartError::ShimLost(job_dir.join(job_dir::SHIM_LOG))
}

fn private_file(path: &Path) -> io::Result<fs::File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

impl Created {
    /// Lets the process run. From here on the container does not depend on the caller.
    pub async fn start(mut self) -> Result<Started, StartError> {
        write_frame(&mut self.socket, &Frame::Request(Request::Start)).await?;
        match first_word(&mut self.socket, &mut self.shim).await? {
            Some(Frame::Reply(Reply::Started)) => Ok(Started::Running),
            Some(Frame::Reply(Reply::WaitingForAttach)) => Ok(Started::WaitingForAttach),
            Some(Frame::Reply(Reply::Failed(record))) => Err(StartError::NotStarted(record)),
            _ => Err(StartError::NotStarted(ExitRecord::not_started(
                "the shim went away during the start",
            ))),
        }
    }
}

/// A connection to the control socket of one job. Requests are answered one after the other.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
}

impl Control {
    pub async fn connect(job_dir: &Path) -> Result<Control, ControlError> {
        // The path of a job may be longer than a socket's address can be; the way through an open
        // directory is short.
        let directory = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(job_dir)
            .map_err(not_running)?;
        let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), job_dir::CONTROL);
        let socket = UnixStream::connect(path).await.map_err(not_running)?;
        Ok(Control { socket })
    }

    pub async fn state(&mut self) -> Result<State, ControlError> {
        match self.ask(Request::State).await? {
            Frame::Reply(Reply::State(state)) => Ok(state),
            other => Err(ControlError::Unexpected(Box::new(other))),
        }
    }

    /// Sends a signal to the main process.
    pub async fn signal(&mut self, signal: i32) -> Result<(), ControlError> {
        self.ask_for_done(Request::Signal(signal)).await
    }

    /// Asks it to stop. Returns at once; SIGKILL comes after `grace` even if the caller is gone.
    pub async fn stop(&mut self, grace: Duration) -> Result<(), ControlError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask_for_done(Request::Stop { grace_ms }).await
    }

    /// Waits for the end. A caller that comes too late is told [`ControlError::NotRunning`]: see [`wait`].
    pub async fn wait(mut self) -> Result<ExitRecord, ControlError> {
        match self.ask(Request::Wait).await? {
            Frame::Exit(record) => Ok(record),
            other => Err(ControlError::Unexpected(Box::new(other))),
        }
    }

    /// From here on the connection carries the process's input and output. What was written before
    /// is in the log only.
    pub async fn attach(mut self, stdin: bool, stdout: bool, stderr: bool) -> Result<Attached, ControlError> {
        self.ask_for_done(Request::Attach {
            stdin,
            stdout,
            stderr,
        })
        .await?;
        Ok(Attached::new(self.socket))
    }

    async fn ask_for_done(&mut self, request: Request) -> Result<(), ControlError> {
        match self.ask(request).await? {
            Frame::Reply(Reply::Done) => Ok(()),
            other => Err(ControlError::Unexpected(Box::new(other))),
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Frame, ControlError> {
        write_frame(&mut self.socket, &Frame::Request(request))
            .await
            .map_err(not_running)?;
        match read_frame(&mut self.socket).await {
            Ok(Some(Frame::Reply(Reply::Refused { error }))) => Err(ControlError::Refused(error)),
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(ControlError::NotRunning),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error.into()),
            Err(error) => Err(not_running(error)),
        }
    }
}

fn not_running(error: io::Error) -> ControlError {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => ControlError::NotRunning,
        _ => ControlError::Io(error),
    }
}

/// The input and output of a process, live.
#[derive(Debug)]
pub struct Attached {
    pub reader: AttachedReader,
    pub writer: AttachedWriter,
}

/// An [`Attached`] of a process added by [`Shim::exec`]. Dropping it hangs up on the process.
#[derive(Debug)]
pub struct ExecSession(pub Attached);

#[derive(Debug)]
pub struct AttachedReader(OwnedReadHalf);

#[derive(Debug)]
pub struct AttachedWriter(OwnedWriteHalf);

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The last one.
    Exit(ExitRecord),
}

impl Attached {
    fn new(socket: UnixStream) -> Attached {
        let (reader, writer) = socket.into_split();
        Attached {
            reader: AttachedReader(reader),
            writer: AttachedWriter(writer),
        }
    }
}

impl AttachedReader {
    /// None: the shim is gone without an [`Event::Exit`], or has dropped a reader that was too slow.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            return Ok(Some(match read_frame(&mut self.0).await? {
                Some(Frame::Stdout(bytes)) => Event::Stdout(bytes),
                Some(Frame::Stderr(bytes)) => Event::Stderr(bytes),
                Some(Frame::Exit(record)) => Event::Exit(record),
                Some(_) => continue,
                None => return Ok(None),
            }));
        }
    }
}

impl AttachedWriter {
    pub async fn stdin(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(protocol::CHUNK_BYTES_MAX) {
            write_frame(&mut self.0, &Frame::Stdin(chunk.to_vec())).await?;
        }
        Ok(())
    }

    pub async fn close_stdin(&mut self) -> io::Result<()> {
        write_frame(&mut self.0, &Frame::CloseStdin).await
    }

    pub async fn resize(&mut self, size: WindowSize) -> io::Result<()> {
        write_frame(&mut self.0, &Frame::Resize(size)).await
    }

    pub async fn signal(&mut self, signal: i32) -> io::Result<()> {
        write_frame(&mut self.0, &Frame::Request(Request::Signal(signal))).await
    }
}

async fn write_frame(socket: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    socket.write_all(&frame.to_bytes()).await
}

async fn read_frame(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let invalid = |error: FrameError| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut head = [0; HEAD_BYTES];
    match socket.read_exact(&mut head).await {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        other => other?,
    };
    let (kind, length) = Frame::decode_head(head).map_err(invalid)?;
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    Frame::decode_body(kind, &body).map(Some).map_err(invalid)
}

/// What has become of a job whose directory is there.
#[derive(Debug)]
pub enum Adopted {
    Running(State),
    Ended(ExitRecord),
    /// Neither a shim nor an exit record: killed from outside, or the power went. [`cleanup`] it.
    Lost,
}

/// Looks at a job of an earlier life of the daemon.
pub async fn adopt(job_dir: &Path) -> Result<Adopted, ControlError> {
    // A shim writes the record before it closes its socket, so this order leaves no gap.
    let state = match Control::connect(job_dir).await {
        Ok(mut control) => control.state().await,
        Err(error) => Err(error),
    };
    match state {
        Ok(state) => Ok(Adopted::Running(state)),
        Err(ControlError::NotRunning) => Ok(match ExitRecord::read(job_dir)? {
            Some(record) => Adopted::Ended(record),
            None => Adopted::Lost,
        }),
        Err(error) => Err(error),
    }
}

/// Waits for the end of a job, or looks up how it ended. [`ControlError::NotRunning`]: it was lost.
pub async fn wait(job_dir: &Path) -> Result<ExitRecord, ControlError> {
    let ended = match Control::connect(job_dir).await {
        Ok(control) => control.wait().await,
        Err(error) => Err(error),
    };
    match ended {
        // It may have ended between any two steps of ours; the record is there before the socket goes.
        Err(ControlError::NotRunning) => ExitRecord::read(job_dir)?.ok_or(ControlError::NotRunning),
        other => other,
    }
}

/// Ends whatever is left of a job: its shim and what that had forked, what is in its cgroup, the
/// cgroup and the socket.
///
/// For a job that is [`Adopted::Lost`], or after [`StartError::ShimLost`]; mounts and network
/// namespaces went with its processes. Doing it again does nothing. Blocks, for milliseconds as a
/// rule and two seconds at most: call it off the async threads.
pub fn cleanup(job_dir: &Path) -> io::Result<()> {
    let spec: Spec = match fs::read(job_dir.join(job_dir::SPEC)) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // First those who could still put something into the cgroup. Once none is found, none can appear:
    // each is a fork of another.
    let job_dir = job_dir.canonicalize()?;
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let shims = shims_of(&job_dir)?;
        if shims.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "processes {shims:?} of {} do not die",
                job_dir.display()
            )));
        }
        for pid in shims {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let cgroup = Cgroup::locate(&spec.cgroup)?;
    cgroup.kill();
    cgroup.destroy()?;
    match fs::remove_file(job_dir.join(job_dir::CONTROL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The shim of a job and its forks that have not become something else: they share its arguments.
fn shims_of(job_dir: &Path) -> io::Result<Vec<i32>> {
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = line.split(|byte| *byte == 0).skip(1);
        matches!(arguments.next(), Some(b"run" | b"exec"))
            && arguments
                .next()
                .is_some_and(|argument| argument == job_dir.as_os_str().as_encoded_bytes())
    };
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_one)
        .collect())
}
