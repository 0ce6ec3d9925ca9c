//! A job's input and output over one upgraded connection, in the frames of [`api::attach`].
//!
//! The connection belongs to somebody far away who may vanish, stall or send nonsense; the job must
//! not notice more of it than a closed input.

use std::{io, path::Path, sync::Arc, time::Duration};

use api::{
    attach::{Frame, SUCCESS, Stream, WAITING, flag},
    host::AttachReq,
    wire::NewExec,
};
use bytes::{Bytes, BytesMut};
use container::{Attached, ControlError, Event, ExecSpec, ExitRecord, Outcome, Spec, StartError, WindowSize};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tracing::debug;
use types::{Exit, JobId};

use crate::{
    agent::Agent,
    edge::Streams,
    table::{Entry, Phase},
};

/// How long an attach waits for a job that is not there, or not made yet.
const PATIENCE: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 << 10;

type Connection = TokioIo<Upgraded>;

/// Serves `POST /attach` past the upgrade.
pub async fn attach(agent: Arc<Agent>, connection: Upgraded, id: JobId, request: AttachReq) {
    let mut connection = TokioIo::new(connection);
    let served = tokio::select! {
        served = attach_to(&agent, &mut connection, id, &request) => served,
        _ = agent.shutdown.cancelled() => Ok(()),
    };
    close(connection, id, served).await;
}

/// Serves `POST /host/jobs/:id/exec` past the upgrade.
pub async fn exec(agent: Arc<Agent>, connection: Upgraded, id: JobId, request: NewExec) {
    let mut connection = TokioIo::new(connection);
    let served = tokio::select! {
        served = exec_in(&agent, &mut connection, id, request) => served,
        _ = agent.shutdown.cancelled() => Ok(()),
    };
    close(connection, id, served).await;
}

async fn close(mut connection: Connection, id: JobId, served: io::Result<()>) {
    if let Err(error) = served {
        debug!(job = %id, %error, "an attached connection broke");
    }
    let _ = connection.shutdown().await;
}

async fn attach_to(
    agent: &Agent,
    connection: &mut Connection,
    id: JobId,
    request: &AttachReq,
) -> io::Result<()> {
    let entry = match agent.table.get(id) {
        Some(entry) => Some(entry),
        None if agent.table.finished(id).is_some() => return ended_before(agent, connection, id).await,
        None => None,
    };
    let is_made = |entry: &Entry| entry.view().phase != Phase::Starting;
    if !entry.as_ref().is_some_and(|entry| is_made(entry)) {
        connection.write_all(&[WAITING]).await?;
    }
    let ready = async {
        let entry = match entry {
            Some(entry) => entry,
            None => agent.table.appears(id).await,
        };
        let _ = entry.watch().wait_for(|view| view.phase != Phase::Starting).await;
        entry
    };
    let Ok(entry) = tokio::time::timeout(PATIENCE, ready).await else {
        let text = format!("job {id} did not start within {} s", PATIENCE.as_secs());
        return connection.write_all(&Frame::Error(text).to_bytes()).await;
    };
    let dir = agent.disk.job_dir(id);
    match agent.runtime.attach(&dir, wanted(request.flags)).await {
        Ok(mut attached) => {
            connection.write_all(&[SUCCESS]).await?;
            if request.width > 0 && request.height > 0 {
                let size = WindowSize {
                    columns: request.width,
                    rows: request.height,
                };
                let _ = attached.writer.resize(size).await;
            }
            pump(connection, attached).await
        }
        Err(ControlError::NotRunning) => {
            let mut view = entry.watch();
            let down = async {
                view.wait_for(|view| view.phase == Phase::Down)
                    .await
                    .ok()?
                    .exit
                    .clone()
            };
            let exit = tokio::time::timeout(PATIENCE, down).await.ok().flatten();
            connection.write_all(&[SUCCESS]).await?;
            let exit = exit.unwrap_or_else(|| Exit::Lost("nobody knows how it ended".into()));
            connection.write_all(&farewell(exit.status(), words(&exit))).await
        }
        Err(error) => {
            connection
                .write_all(&Frame::Error(format!("cannot attach: {error}")).to_bytes())
                .await
        }
    }
}

async fn ended_before(agent: &Agent, connection: &mut Connection, id: JobId) -> io::Result<()> {
    let Some(job) = agent.table.finished(id) else {
        return Ok(());
    };
    connection.write_all(&[SUCCESS]).await?;
    connection
        .write_all(&farewell(job.exit_status.unwrap_or(1), job.error))
        .await
}

async fn exec_in(agent: &Agent, connection: &mut Connection, id: JobId, request: NewExec) -> io::Result<()> {
    let dir = agent.disk.job_dir(id);
    let session = match exec_spec(&dir, request) {
        Ok(spec) => agent.runtime.exec(&dir, &spec).await,
        Err(error) => Err(StartError::Io(error)),
    };
    match session {
        Ok(session) => {
            connection.write_all(&[SUCCESS]).await?;
            pump(connection, session.0).await
        }
        Err(StartError::NotStarted(record)) => {
            connection.write_all(&[SUCCESS]).await?;
            connection.write_all(&exit_frames(&record)).await
        }
        Err(error) => {
            connection
                .write_all(&Frame::Error(format!("cannot run: {error}")).to_bytes())
                .await
        }
    }
}

/// As the job's own process: its user, directory and environment.
pub(crate) fn exec_spec(job_dir: &Path, request: NewExec) -> io::Result<ExecSpec> {
    let text = std::fs::read(job_dir.join(container::job_dir::SPEC))?;
    let spec: Spec = serde_json::from_slice(&text)?;
    let mut process = spec.process;
    process.args = request.args;
    process.env.extend(request.env);
    let (columns, rows) = (request.tty_columns, request.tty_lines);
    process.terminal = request.tty.then_some(match (columns, rows) {
        (0, _) | (_, 0) => WindowSize {
            columns: 80,
            rows: 24,
        },
        _ => WindowSize { columns, rows },
    });
    if request.tty {
        process.env.entry("TERM".into()).or_insert_with(|| "xterm".into());
    }
    Ok(ExecSpec { process, stdin: true })
}

fn wanted(flags: u8) -> Streams {
    let wants = |bit: u8| flags & bit != 0;
    let is_any = wants(flag::STDIN | flag::STDOUT | flag::STDERR);
    Streams {
        stdin: wants(flag::STDIN),
        stdout: wants(flag::STDOUT) || !is_any,
        stderr: wants(flag::STDERR) || !is_any,
    }
}

/// Both ways until the process ends or the other side goes.
async fn pump(connection: &mut Connection, attached: Attached) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(connection);
    let Attached {
        reader: output,
        writer: input,
    } = attached;
    tokio::select! {
        done = outwards(output, writer) => done,
        done = inwards(reader, input) => done,
    }
}

async fn outwards(
    mut output: container::AttachedReader,
    mut writer: WriteHalf<&mut Connection>,
) -> io::Result<()> {
    loop {
        let bytes = match output.next().await? {
            Some(Event::Stdout(bytes)) if !bytes.is_empty() => {
                Frame::Data(Stream::Stdout, bytes.into()).to_bytes()
            }
            Some(Event::Stderr(bytes)) if !bytes.is_empty() => {
                Frame::Data(Stream::Stderr, bytes.into()).to_bytes()
            }
            // Empty data would close the stream for the reader.
            Some(Event::Stdout(_) | Event::Stderr(_)) => continue,
            Some(Event::Exit(record)) => {
                writer.write_all(&exit_frames(&record)).await?;
                return writer.flush().await;
            }
            None => {
                let text = "the connection to the job was lost, or its output was not read fast enough";
                return writer.write_all(&Frame::Error(text.into()).to_bytes()).await;
            }
        };
        writer.write_all(&bytes).await?;
    }
}

async fn inwards(
    mut reader: ReadHalf<&mut Connection>,
    mut input: container::AttachedWriter,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        while let Some(frame) = Frame::read(&mut buffer).map_err(io::Error::other)? {
            let passed_on = match frame {
                Frame::Data(Stream::Stdin, bytes) if bytes.is_empty() => input.close_stdin().await,
                Frame::Data(Stream::Stdin, bytes) => input.stdin(&bytes).await,
                Frame::Resize { height, width } => {
                    input
                        .resize(WindowSize {
                            columns: width,
                            rows: height,
                        })
                        .await
                }
                Frame::Signal(signal) => match i32::try_from(signal) {
                    Ok(signal) => input.signal(signal).await,
                    Err(_) => Ok(()),
                },
                Frame::Data(..) | Frame::Exit(_) | Frame::Error(_) => Ok(()),
            };
            if passed_on.is_err() {
                // The process has ended; how is on its way outwards.
                return std::future::pending().await;
            }
        }
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn exit_frames(record: &ExitRecord) -> Bytes {
    let why = match &record.outcome {
        Outcome::NotStarted { error, .. } => Some(error.clone()),
        _ if record.oom_killed && record.outcome.exit_code() == 137 => Some(Exit::OutOfMemory.to_string()),
        _ => None,
    };
    farewell(record.outcome.exit_code(), why)
}

fn words(exit: &Exit) -> Option<String> {
    match exit {
        Exit::Code(_) | Exit::Signal(_) => None,
        other => Some(other.to_string()),
    }
}

/// The last frames: why it ended where that is not its own doing, both streams closed, its status.
fn farewell(status: i32, why: Option<String>) -> Bytes {
    let mut out = BytesMut::new();
    if let Some(why) = why {
        Frame::Data(Stream::Stderr, format!("flynn: {why}\n").into()).write(&mut out);
    }
    Frame::Data(Stream::Stdout, Bytes::new()).write(&mut out);
    Frame::Data(Stream::Stderr, Bytes::new()).write(&mut out);
    Frame::Exit(status as u32).write(&mut out);
    out.freeze()
}
