//! Jobs of the fake controller, which do what their command says.

use std::sync::Arc;

use api::{
    attach::{Frame, PROTOCOL, Stream},
    wire::NewJob,
};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake::{Failure, Inner};

/// Attaches to a job if the request asks for that; otherwise `detached` answers.
pub async fn start<T: serde::Serialize>(
    inner: &Arc<Inner>,
    mut request: Request,
    detached: impl FnOnce(&Inner, NewJob) -> Json<T>,
) -> Result<Response, Failure> {
    let wants_attach = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value == PROTOCOL);
    let upgrade = hyper::upgrade::on(&mut request);
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
    inner.lock().requests.push(("jobs".into(), value.clone()));
    let job: NewJob = serde_json::from_value(value).unwrap();
    if !wants_attach {
        return Ok(detached(inner, job).into_response());
    }
    tokio::spawn(async move {
        let connection = Connection {
            io: TokioIo::new(upgrade.await.unwrap()),
            input: Default::default(),
        };
        run(connection, job).await;
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Body::empty());
    Ok(response.unwrap())
}

struct Connection {
    io: TokioIo<hyper::upgrade::Upgraded>,
    input: bytes::BytesMut,
}

impl Connection {
    async fn send(&mut self, frame: Frame) {
        self.io.write_all(&frame.to_bytes()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn say(&mut self, stream: Stream, text: &str) {
        self.send(Frame::Data(
            stream,
            bytes::Bytes::copy_from_slice(text.as_bytes()),
        ))
        .await;
    }

    /// The next frame; `None` when the client has gone.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::read(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

async fn run(mut connection: Connection, job: NewJob) {
    let words: Vec<&str> = job.args.iter().map(String::as_str).collect();
    match words[..] {
        ["exit", status] => {
            connection.say(Stream::Stdout, "to stdout\n").await;
            connection.say(Stream::Stderr, "to stderr\n").await;
            connection.send(Frame::Exit(status.parse().unwrap())).await;
        }
        ["echo", ..] => {
            connection
                .say(Stream::Stdout, &format!("{:?}\n", &words[1..]))
                .await;
            connection.send(Frame::Exit(0)).await;
        }
        ["cat"] => {
            while let Some(Frame::Data(Stream::Stdin, data)) = connection.next().await {
                if data.is_empty() {
                    connection.send(Frame::Exit(0)).await;
                } else {
                    connection.send(Frame::Data(Stream::Stdout, data)).await;
                }
            }
        }
        ["break"] => connection.say(Stream::Stdout, "half a li").await,
        ["flood"] => loop {
            let data = Frame::Data(Stream::Stdout, vec![b'x'; 4096].into()).to_bytes();
            if connection.io.write_all(&data).await.is_err() {
                return;
            }
        },
        ["signal"] => {
            connection.say(Stream::Stdout, "ready\n").await;
            loop {
                match connection.next().await {
                    Some(Frame::Signal(signal)) => {
                        connection
                            .say(Stream::Stdout, &format!("signal {signal}\n"))
                            .await;
                        return connection.send(Frame::Exit(128 + signal)).await;
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        }
        // Says what the terminal sends, until ctrl-c.
        ["terminal"] => {
            let (term, columns, lines) = (job.env.get("TERM"), job.tty_columns, job.tty_lines);
            connection
                .say(
                    Stream::Stdout,
                    &format!("tty={} {columns}x{lines} {term:?}\r\n", job.tty),
                )
                .await;
            loop {
                match connection.next().await {
                    Some(Frame::Data(Stream::Stdin, data)) if data.contains(&3) => {
                        connection.say(Stream::Stdout, "ctrl-c\r\n").await;
                        return connection.send(Frame::Exit(130)).await;
                    }
                    Some(frame) => connection.say(Stream::Stdout, &format!("{frame:?}\r\n")).await,
                    None => return,
                }
            }
        }
        _ => {
            connection
                .send(Frame::Error(format!("no such command: {}", words.join(" "))))
                .await
        }
    }
    // Lets what was written arrive before the connection is closed.
    let _ = connection.io.shutdown().await;
}
