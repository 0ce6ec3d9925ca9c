//! The least HTTP client that tests need: one request per connection, nothing hidden, nothing retried.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

/// A host that is dead does not refuse.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn get(address: &str, host: &str, path: &str) -> Result<Answer> {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    )
}

pub fn call(address: &str, method: &str, path: &str, key: &str, body: Option<&Value>) -> Result<Answer> {
    call_named(address, "controller", method, path, key, body)
}

/// The same for one of several names at an address.
pub fn call_named(
    address: &str,
    host: &str,
    method: &str,
    path: &str,
    key: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let credentials = BASE64_STANDARD.encode(format!(":{key}"));
    exchange(
        address,
        &format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {credentials}\r\n\
             Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        ),
    )
}

fn exchange(address: &str, request: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes)?;
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no end of its head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("the answer has no status")?;
    let mut body = bytes[end + 4..].to_vec();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = unchunked(&body).context("the answer's chunks are broken off")?;
    } else if let Some(length) = content_length(&head) {
        anyhow::ensure!(body.len() == length, "{} of {length} bytes came", body.len());
    }
    Ok(Answer { status, head, body })
}

fn content_length(head: &str) -> Option<usize> {
    let line = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("content-length:"))?;
    line.split(':').nth(1)?.trim().parse().ok()
}

fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = vec![];
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

/// Users who ask for a page again and again until they are told to stop.
#[derive(Default)]
pub struct Load {
    pub stop: AtomicBool,
    pub requests: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Load {
    /// One user: asks until `stop`. To be called on a thread within the cluster's network.
    pub fn user(&self, host: &str, path: &str) {
        while !self.stop.load(Ordering::Relaxed) {
            self.requests.fetch_add(1, Ordering::Relaxed);
            match get("127.0.0.1:80", host, path) {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => self.fail(format!("{} {}", answer.status, answer.text())),
                Err(error) => self.fail(format!("{error:#}")),
            }
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("no panic while held").push(failure);
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic while held").clone()
    }
}
