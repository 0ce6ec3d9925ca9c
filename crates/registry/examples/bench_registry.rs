//! Push and pull throughput beside Debian's docker-registry, and the time to make layers runnable beside
//! umoci; run by `script/bench-registry`, which says what is needed.
//!
//! ```text
//! bench_registry serve DIR PORT        ours, with a stand-in for the controller; what the bench starts
//! bench_registry load URL …            see `script/bench-registry`
//! bench_registry layer FILE            converts one layer, and says how long it took
//! ```
//!
//! Both servers get the same requests from the same client: uploads by POST, PATCH and PUT as Docker
//! sends them, and downloads of the same blobs. Blobs are random, so no server can save anything.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use api::{
    Client, Endpoint, Trust,
    client::{Method, empty_body},
};
use axum::{Json, Router, extract::Path, routing::get};
use bytes::Bytes;
use daemon::{Keys, Principal, Shutdown, StateDir, server};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use registry::layer::{
    archive::Limits,
    converter::Worker,
    worker::{self, Answer},
};
use serde_json::json;
use sha2::{Digest, Sha256};

const PIECE_BYTES: usize = 1 << 20;
const KEY: &str = "bench";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match &words[..] {
        ["serve", dir, port] => runtime.block_on(serve(dir, port.parse()?)),
        ["load", url, blobs, megabytes, at_once] => {
            runtime.block_on(load(url, blobs.parse()?, megabytes.parse()?, at_once.parse()?))
        }
        ["layer", file] => layer(file),
        _ => bail!("run script/bench-registry"),
    }
}

async fn serve(dir: &str, port: u16) -> Result<()> {
    let app = async |Path(name): Path<String>| {
        Json(json!({
            "id": types::Uuid::new_v5(&types::Uuid::NAMESPACE_DNS, name.as_bytes()), "name": name, "meta": {},
            "strategy": "all-at-once", "deploy_timeout": 120,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        }))
    };
    // No repository has been recorded, and blobs alone make none.
    let contents = async || Json(json!([]));
    let controller = Router::new()
        .route("/apps/{app}", get(app))
        .route("/internal/contents", get(contents));
    let listener = server::listen(([127, 0, 0, 1], 0).into()).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let shutdown = daemon::shutdown_on_signals()?;
    tokio::spawn(server::serve(listener, controller, Shutdown::new()));
    let config = registry::Config {
        state: StateDir::new(dir),
        controller: Endpoint {
            url,
            key: KEY.into(),
            trust: Trust::System,
        },
        keys: Keys::new([(KEY, Principal::User)]),
        internal_key: KEY.into(),
        worker: Worker::InProcess,
        blob_bytes_max: 10 << 30,
        disk_reserve_bytes: 1 << 30,
        host: "host0".parse().expect("it is an id"),
        objects: None,
        forward: None,
    };
    let listener = server::listen(([127, 0, 0, 1], port).into()).await?;
    registry::run(config, listener, shutdown).await
}

/// Random pieces, of which every blob is a different sequence.
fn pieces() -> Result<Vec<Bytes>> {
    use std::io::Read;
    let mut random = File::open("/dev/urandom")?;
    (0..16)
        .map(|_| {
            let mut piece = vec![0; PIECE_BYTES];
            random.read_exact(&mut piece)?;
            Ok(Bytes::from(piece))
        })
        .collect()
}

/// One blob's pieces in their order.
fn sequence(pieces: &[Bytes], blob: usize, count: usize) -> Vec<Bytes> {
    let mut first = pieces[blob % pieces.len()].to_vec();
    first[..8].copy_from_slice(&(blob as u64).to_le_bytes());
    let rest = (1..count).map(|index| pieces[(index * 7 + blob) % pieces.len()].clone());
    std::iter::once(Bytes::from(first)).chain(rest).collect()
}

async fn load(url: &str, blobs: usize, megabytes: usize, at_once: usize) -> Result<()> {
    let client = Client::new(&Endpoint {
        url: url.into(),
        key: KEY.into(),
        trust: Trust::System,
    })?;
    let pieces = pieces()?;
    let all: Vec<(Vec<Bytes>, String)> = (0..blobs)
        .map(|blob| {
            let sequence = sequence(&pieces, blob, megabytes);
            let mut hash = Sha256::new();
            sequence.iter().for_each(|piece| hash.update(piece));
            (sequence, format!("sha256:{}", hex::encode(hash.finalize())))
        })
        .collect();
    let all = Arc::new(all);
    let began = Instant::now();
    in_turns(at_once, blobs, {
        let (client, url, all) = (client.clone(), url.to_owned(), all.clone());
        move |blob| push(client.clone(), url.clone(), all.clone(), blob)
    })
    .await?;
    let pushed = began.elapsed();
    let began = Instant::now();
    in_turns(at_once, blobs, {
        let (client, all) = (client.clone(), all.clone());
        move |blob| pull(client.clone(), all.clone(), blob)
    })
    .await?;
    let pulled = began.elapsed();
    let rate = |time: Duration| (blobs * megabytes) as f64 / time.as_secs_f64();
    println!("{:.0} {:.0}", rate(pushed), rate(pulled));
    Ok(())
}

async fn in_turns<F>(at_once: usize, count: usize, work: impl Fn(usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    for blob in 0..count {
        if running.len() >= at_once
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(work(blob));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// `PATCH` of a blob's bytes. Docker's registry wants to know what they are, and our own client calls all of it JSON.
async fn send(url: &str, place: &str, sequence: Vec<Bytes>) -> Result<http::Response<hyper::body::Incoming>> {
    let authority = url.strip_prefix("http://").context("an address of http")?;
    let connection = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(authority).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(connection).await?;
    tokio::spawn(connection);
    let key = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!(":{KEY}"));
    let length: usize = sequence.iter().map(Bytes::len).sum();
    let frames = sequence
        .into_iter()
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
    let request = http::Request::patch(place)
        .header("host", authority)
        .header("authorization", format!("Basic {key}"))
        .header("content-type", "application/octet-stream")
        .header("content-length", length)
        .body(StreamBody::new(futures::stream::iter(frames)))?;
    let response = sender.send_request(request).await?;
    match response.status() {
        http::StatusCode::ACCEPTED => Ok(response),
        status => bail!("an upload is answered {status}"),
    }
}

async fn push(client: Client, url: String, all: Arc<Vec<(Vec<Bytes>, String)>>, blob: usize) -> Result<()> {
    let (sequence, digest) = all[blob].clone();
    let begun = client
        .stream(Method::POST, "/v2/bench/blobs/uploads/", empty_body(), "*/*")
        .await?;
    let mut place = path(&begun)?;
    place = path(&send(&url, &place, sequence).await?)?;
    let separator = if place.contains('?') { '&' } else { '?' };
    let done = format!("{place}{separator}digest={digest}");
    client
        .stream(Method::PUT, &done, empty_body(), "*/*")
        .await?
        .into_body()
        .collect()
        .await?;
    Ok(())
}

/// Where to go on, without the server's name.
fn path<B>(response: &http::Response<B>) -> Result<String> {
    let place = response
        .headers()
        .get("location")
        .and_then(|place| place.to_str().ok());
    let place = place.context("no Location")?;
    Ok(match place.split_once("://") {
        Some((_, rest)) => format!("/{}", rest.split_once('/').context("no path")?.1),
        None => place.to_owned(),
    })
}

async fn pull(client: Client, all: Arc<Vec<(Vec<Bytes>, String)>>, blob: usize) -> Result<()> {
    let path = format!("/v2/bench/blobs/{}", all[blob].1);
    let mut body = client
        .stream(Method::GET, &path, empty_body(), "*/*")
        .await?
        .into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    match length == all[blob].0.iter().map(Bytes::len).sum::<usize>() {
        true => Ok(()),
        false => bail!("{length} bytes came back"),
    }
}

fn layer(file: &str) -> Result<()> {
    let output = tempfile::tempfile_in(".")?;
    let began = Instant::now();
    match worker::run(File::open(file)?, output.try_clone()?, &Limits::default()) {
        Answer::Done(done) => {
            output.sync_all()?;
            println!("{:.2} {}", began.elapsed().as_secs_f64(), done.length >> 20);
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}
