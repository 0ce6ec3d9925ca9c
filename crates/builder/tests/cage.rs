//! The cage that is a job of the controller, against a controller that only pretends.

use std::sync::{Arc, Mutex};

use api::{
    Controller, Endpoint, Trust,
    attach::{Frame, PROTOCOL, Stream},
    wire::NewJob,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
    routing::get,
};
use builder::{Cage, CageError, ControllerCage};
use bytes::Bytes;
use daemon::Shutdown;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use types::{AppId, Exit, Uuid};

#[derive(Clone)]
struct Fake {
    /// What the job's connection carries before it is closed, or left open.
    frames: Arc<Vec<Frame>>,
    stays_open: bool,
    exit: Value,
    meta: Arc<Mutex<Value>>,
    stopped: watch::Sender<bool>,
}

impl Fake {
    fn new(frames: &[Frame], stays_open: bool, exit: Value) -> Fake {
        Fake {
            frames: frames.to_vec().into(),
            stays_open,
            exit,
            meta: Arc::default(),
            stopped: watch::Sender::new(false),
        }
    }

    fn job(&self) -> Value {
        let is_down = !self.stays_open || *self.stopped.borrow();
        let at = "2020-01-01T00:00:00Z";
        json!({"uuid": Uuid::nil(), "id": "host0-x", "state": if is_down { "down" } else { "up" }, "host_id": "host0",
            "app": Uuid::nil(), "exit": self.exit, "meta": *self.meta.lock().unwrap(), "created_at": at, "updated_at": at})
    }
}

async fn create(State(fake): State<Fake>, mut request: Request) -> Response {
    let upgrade = request
        .extensions_mut()
        .remove::<hyper::upgrade::OnUpgrade>()
        .unwrap();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let job: Value = serde_json::from_slice(&body).unwrap();
    *fake.meta.lock().unwrap() = job["meta"].clone();
    tokio::spawn(async move {
        let mut connection = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
        for frame in fake.frames.iter() {
            // Byte by byte, as a network may.
            for byte in frame.to_bytes() {
                connection.write_all(&[byte]).await.unwrap();
            }
        }
        connection.flush().await.unwrap();
        if fake.stays_open {
            // Its end is told only to whoever kills it through the connection.
            let mut killed = vec![0; Frame::Signal(9).to_bytes().len()];
            connection.read_exact(&mut killed).await.unwrap();
            assert_eq!(killed, Frame::Signal(9).to_bytes());
            fake.stopped.send_replace(true);
            let last = text(Stream::Stdout, "last words\n");
            for frame in [last, Frame::Exit(137)] {
                connection.write_all(&frame.to_bytes()).await.unwrap();
            }
            connection.flush().await.unwrap();
        }
    });
    let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    answer
        .header("connection", "Upgrade")
        .header("upgrade", PROTOCOL)
        .body(Body::empty())
        .unwrap()
}

async fn start(fake: Fake) -> (ControllerCage, Shutdown) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new()
        .route(
            "/apps/{app}/jobs",
            get(async |State(fake): State<Fake>| Json(json!([fake.job()]))).post(create),
        )
        .route(
            "/apps/{app}/jobs/{job}",
            get(async |State(fake): State<Fake>| Json(fake.job())).delete(
                async |State(fake): State<Fake>| {
                    fake.stopped.send_replace(true);
                },
            ),
        )
        .route(
            "/active-jobs",
            get(async |State(fake): State<Fake>| Json(json!([fake.job()]))),
        )
        .with_state(fake);
    let shutdown = Shutdown::new();
    tokio::spawn(daemon::server::serve(listener, router, shutdown.clone()));
    let controller = Controller::new(&Endpoint {
        url,
        key: "k".into(),
        trust: Trust::System,
    })
    .unwrap();
    (ControllerCage::new(controller), shutdown)
}

async fn run(fake: Fake, stop_at: Option<&str>) -> (String, Result<Exit, CageError>) {
    let (cage, shutdown) = start(fake).await;
    let (said, stop) = (Mutex::new(String::new()), Shutdown::new());
    let each = |line: Vec<u8>| {
        let line = String::from_utf8(line).unwrap();
        if stop_at == Some(line.as_str()) {
            stop.cancel();
        }
        said.lock().unwrap().push_str(&format!("{line}|"));
    };
    let ended = cage
        .run(AppId(Uuid::nil()), NewJob::default(), &each, &stop)
        .await;
    shutdown.cancel();
    (said.into_inner().unwrap(), ended)
}

fn text(stream: Stream, text: &'static str) -> Frame {
    Frame::Data(stream, Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn a_job_is_followed_to_its_end() {
    let frames = [
        text(Stream::Stdout, "-----> one\ntw"),
        text(Stream::Stderr, "warning\n"),
        text(Stream::Stdout, "o\nlast"),
        Frame::Data(Stream::Stdout, Bytes::new()),
        Frame::Exit(137),
    ];
    let (said, ended) = run(Fake::new(&frames, false, json!("out_of_memory")), None).await;
    assert_eq!(said, "-----> one|warning|two|last|");
    // The frame has a number; the row tells why.
    assert_eq!(ended.unwrap(), Exit::OutOfMemory);
}

#[tokio::test]
async fn a_job_that_nobody_wants_any_more_is_killed_and_read_to_its_end() {
    let fake = Fake::new(&[text(Stream::Stdout, "working\n")], true, json!({"signal": 15}));
    let stopped = fake.stopped.clone();
    let (said, ended) = run(fake, Some("working")).await;
    assert!(matches!(ended, Err(CageError::Stopped)), "{ended:?}");
    assert_eq!(said, "working|last words|");
    assert!(*stopped.borrow());
}

#[tokio::test]
async fn a_connection_that_breaks_is_no_end() {
    let (_, ended) = run(
        Fake::new(&[text(Stream::Stdout, "working\n")], false, json!({"code": 0})),
        None,
    )
    .await;
    assert!(matches!(ended, Err(CageError::Lost)), "{ended:?}");
}

#[tokio::test]
async fn what_a_killed_daemon_began_is_stopped_and_nothing_else() {
    let host = "host0".parse().unwrap();
    for (meta, is_stopped) in [
        (json!({"flynn-builder.run": "other/1"}), true),
        (json!({}), false),
    ] {
        let fake = Fake::new(&[], true, Value::Null);
        *fake.meta.lock().unwrap() = meta;
        let (cage, shutdown) = start(fake.clone()).await;
        cage.stop_leftovers(&host).await.unwrap();
        assert_eq!(*fake.stopped.borrow(), is_stopped);
        shutdown.cancel();
    }
}
