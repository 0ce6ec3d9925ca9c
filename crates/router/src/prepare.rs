//! From a parsed request to what is sent to whom: the decision, the new head, and the beginning of
//! the line in the access log. No waiting happens here.

use crate::access_log::AccessLog;
use crate::buffer::Buffer;
use crate::choice::Choice;
use crate::http1::head::{Field, field, is_named_by_connection, path_of};
use crate::live::ThreadTable;
use crate::pages::{Format, Page};
use crate::worker::Worker;
use routing::{Decision, RequestHead as Asked};
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Answered by every router, whatever name it is asked by: load balancers often know none.
pub const HEALTH_PATH: &str = "/.well-known/flynn/health";

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
pub struct Entrance {
    pub peer: SocketAddr,
    /// The listener's port.
    pub port: u16,
    /// As the table knows it: 0 for the usual listeners.
    pub route_port: u16,
    pub is_tls: bool,
}

/// A request of either version of HTTP.
pub struct Request<'r, H> {
    pub method: &'r str,
    pub target: &'r str,
    pub host: &'r str,
    pub headers: H,
    pub has_connection_names: bool,
    pub upgrade: Option<&'r str>,
    pub body: BodyField,
}

/// How the body is announced to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyField {
    None,
    Length(u64),
    Chunked,
}

pub enum Plan {
    Forward(Box<Prepared>),
    Page(Page, Option<Line>),
}

pub struct Prepared {
    /// The head for the backend.
    pub out: Buffer,
    pub choice: Choice,
    pub line: Option<Line>,
    pub is_head: bool,
    pub is_idempotent: bool,
}

/// A line of the access log, as far as it is known at the beginning.
pub struct Line {
    text: Buffer,
    app_id: Arc<str>,
    begin: Instant,
    pub connect_ms: u64,
}

pub fn prepare<'h, H>(worker: &Rc<Worker>, request: &Request<'_, H>, entrance: &Entrance) -> Plan
where
    H: Iterator<Item = (&'h str, &'h [u8])> + Clone,
{
    let table = worker.table();
    if path_of(request.target) == HEALTH_PATH {
        return Plan::Page(health(worker, &table), None);
    }
    let cookie = request
        .headers
        .clone()
        .filter(|(name, _)| field(name) == Field::Cookie)
        .find_map(|(_, value)| routing::cookie_value(std::str::from_utf8(value).ok()?));
    let asked = Asked {
        port: entrance.route_port,
        host: request.host,
        path: path_of(request.target),
        sticky: cookie,
    };
    let request_id = RequestId::of(worker, request.headers.clone());
    let forward = match routing::decide(
        table.table(),
        &asked,
        &table.load(worker.now_ms()),
        worker.random(),
    ) {
        Decision::Forward(forward) => forward,
        Decision::NoSuchRoute if !table.live.is_loaded => return Plan::Page(Page::not_ready(), None),
        Decision::NoSuchRoute => {
            return Plan::Page(Page::no_such_app(&routing::normal_host(request.host)), None);
        }
        Decision::NothingRunning(service) => {
            let line = Line::begin(worker, &service.app_id, request, &request_id, entrance);
            return Plan::Page(Page::nothing_running(&service.app_name), line);
        }
    };
    let service = table.table().service(forward.route.service);
    let line = Line::begin(worker, &service.app_id, request, &request_id, entrance);
    let mut out = Buffer::take();
    write_head(
        &mut out,
        worker,
        request,
        &request_id,
        entrance,
        forward.route.keeps_alive,
    );
    let Some(choice) = Choice::begin(worker, &table, &forward, request.upgrade.is_some()) else {
        return Plan::Page(Page::nothing_running(&service.app_name), line);
    };
    Plan::Forward(Box::new(Prepared {
        out,
        choice,
        line,
        is_head: request.method == "HEAD",
        is_idempotent: routing::is_idempotent(request.method),
    }))
}

/// Whether a load balancer should send requests here.
fn health(worker: &Worker, table: &ThreadTable) -> Page {
    if !table.live.is_loaded {
        Page::not_ready()
    } else if table.table().is_draining || worker.is_stopping() {
        Page::draining()
    } else {
        Page::healthy()
    }
}

/// The form that the client wants pages in.
pub fn page_format<'h>(mut headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> Format {
    headers
        .find(|(name, _)| field(name) == Field::Accept)
        .map_or(Format::default(), |(_, value)| Format::accepted(value))
}

fn write_head<'h, H>(
    out: &mut Buffer,
    worker: &Worker,
    request: &Request<'_, H>,
    request_id: &RequestId<'_>,
    entrance: &Entrance,
    keeps_alive: bool,
) where
    H: Iterator<Item = (&'h str, &'h [u8])> + Clone,
{
    out.put_str(request.method);
    out.put_str(" ");
    out.put_str(request.target);
    out.put_str(" HTTP/1.1\r\nHost: ");
    out.put_str(request.host);
    out.put_str("\r\n");
    let mut has_forwarded = false;
    let mut cookies = 0;
    for (name, value) in request.headers.clone() {
        match field(name) {
            // HTTP/2 may split cookies over several fields; HTTP/1.1 may not.
            Field::Cookie => {
                cookies += 1;
                if cookies > 1 {
                    continue;
                }
                out.put_str("Cookie: ");
                let all = request
                    .headers
                    .clone()
                    .filter(|(name, _)| field(name) == Field::Cookie);
                put_joined(out, all, "; ");
                out.put_str("\r\n");
            }
            Field::Other | Field::Accept => {
                if request.has_connection_names && is_named_by_connection(name, request.headers.clone()) {
                    continue;
                }
                put_field(out, name, value);
            }
            Field::ForwardedFor => has_forwarded = true,
            Field::Host
            | Field::Connection
            | Field::HopByHop
            | Field::Upgrade
            | Field::ContentLength
            | Field::TransferEncoding
            | Field::Ours
            | Field::RequestId => {}
        }
    }
    out.put_str("X-Forwarded-For: ");
    if has_forwarded {
        put_joined(
            out,
            request
                .headers
                .clone()
                .filter(|(name, _)| field(name) == Field::ForwardedFor),
            ", ",
        );
        out.put_str(", ");
    }
    worker.put_ip(out, entrance.peer.ip());
    out.put_str(if entrance.is_tls {
        "\r\nX-Forwarded-Proto: https"
    } else {
        "\r\nX-Forwarded-Proto: http"
    });
    out.put_str("\r\nX-Forwarded-Port: ");
    out.put_number(u64::from(entrance.port));
    out.put_str("\r\nX-Forwarded-Host: ");
    out.put_str(request.host);
    out.put_str("\r\nX-Request-Id: ");
    out.put_str(request_id.as_str());
    out.put_str("\r\nX-Request-Start: ");
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    out.put_number(since_epoch.as_millis() as u64);
    match request.body {
        BodyField::Length(length) => {
            out.put_str("\r\nContent-Length: ");
            out.put_number(length);
        }
        BodyField::Chunked => out.put_str("\r\nTransfer-Encoding: chunked"),
        // Some backends wait for a body unless they are told that there is none.
        BodyField::None if matches!(request.method, "POST" | "PUT" | "PATCH") => {
            out.put_str("\r\nContent-Length: 0")
        }
        BodyField::None => {}
    }
    if let Some(protocol) = request.upgrade {
        out.put_str("\r\nConnection: Upgrade\r\nUpgrade: ");
        out.put_str(protocol);
    } else if !keeps_alive {
        out.put_str("\r\nConnection: close");
    }
    out.put_str("\r\n\r\n");
}

pub fn put_field(out: &mut Buffer, name: &str, value: &[u8]) {
    out.put_str(name);
    out.put_str(": ");
    out.put(value);
    out.put_str("\r\n");
}

fn put_joined<'h>(out: &mut Buffer, fields: impl Iterator<Item = (&'h str, &'h [u8])>, separator: &str) {
    for (index, (_, value)) in fields.enumerate() {
        if index > 0 {
            out.put_str(separator);
        }
        out.put(value);
    }
}

/// The client's, if it is one that can stand in a log line, or a new one.
enum RequestId<'h> {
    Given(&'h str),
    New([u8; 36]),
}

impl<'h> RequestId<'h> {
    fn of(worker: &Worker, mut headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> RequestId<'h> {
        let given = headers
            .find(|(name, _)| field(name) == Field::RequestId)
            .map(|(_, value)| value);
        let is_sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.=+/:@".contains(byte);
        match given.and_then(|value| std::str::from_utf8(value).ok()) {
            Some(id) if (1..=200).contains(&id.len()) && id.as_bytes().iter().all(is_sane) => {
                RequestId::Given(id)
            }
            _ => RequestId::New(uuid(worker.random(), worker.random())),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            RequestId::Given(id) => id,
            RequestId::New(id) => std::str::from_utf8(id).expect("it is made of hex digits"),
        }
    }
}

fn uuid(high: u64, low: u64) -> [u8; 36] {
    let high = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let low = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    let bits = u128::from(high) << 64 | u128::from(low);
    let mut text = [b'-'; 36];
    let mut nibble = 32;
    for (at, place) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            nibble -= 1;
            *place = b"0123456789abcdef"[(bits >> (nibble * 4) & 15) as usize];
        }
    }
    text
}

impl Line {
    fn begin<'h, H>(
        worker: &Worker,
        app_id: &Arc<str>,
        request: &Request<'_, H>,
        request_id: &RequestId<'_>,
        entrance: &Entrance,
    ) -> Option<Line>
    where
        H: Iterator<Item = (&'h str, &'h [u8])> + Clone,
    {
        worker.log.as_ref()?;
        if app_id.is_empty() {
            return None;
        }
        let mut text = Buffer::take();
        text.put_str("method=");
        text.put_str(request.method);
        text.put_str(" path=\"");
        put_quoted(&mut text, request.target.as_bytes());
        text.put_str("\" host=");
        text.put_str(if request.host.is_empty() {
            "-"
        } else {
            request.host
        });
        text.put_str(" request_id=");
        text.put_str(request_id.as_str());
        text.put_str(" fwd=\"");
        for (_, value) in request
            .headers
            .clone()
            .filter(|(name, _)| field(name) == Field::ForwardedFor)
        {
            put_quoted(&mut text, value);
            text.put_str(", ");
        }
        worker.put_ip(&mut text, entrance.peer.ip());
        text.put_str(if entrance.is_tls {
            "\" protocol=https"
        } else {
            "\" protocol=http"
        });
        Some(Line {
            text,
            app_id: app_id.clone(),
            begin: Instant::now(),
            connect_ms: 0,
        })
    }

    /// Writes the line. `problem` is a code and its meaning; `job` is empty if none took the request.
    pub fn end(mut self, log: &AccessLog, job: &str, status: u16, bytes: u64, problem: Option<(&str, &str)>) {
        let service_ms = (self.begin.elapsed().as_millis() as u64).saturating_sub(self.connect_ms);
        let text = &mut self.text;
        text.put_str(" dyno=");
        text.put_str(if job.is_empty() { "-" } else { job });
        let numbers = [
            (" connect=", self.connect_ms),
            ("ms service=", service_ms),
            ("ms status=", u64::from(status)),
            (" bytes=", bytes),
        ];
        for (name, number) in numbers {
            text.put_str(name);
            text.put_number(number);
        }
        log.line(&self.app_id, |out| {
            match problem {
                Some((code, meaning)) => {
                    write!(out, "at=error code={code} desc=\"{meaning}\" ")
                        .expect("a vector takes everything");
                }
                None => out.extend_from_slice(b"at=info "),
            }
            out.extend_from_slice(self.text.filled());
        });
    }
}

/// Nothing that ends the quotes or the line.
fn put_quoted(out: &mut Buffer, text: &[u8]) {
    if text
        .iter()
        .all(|byte| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\')
    {
        out.put(text);
        return;
    }
    for byte in text {
        match byte {
            b'"' => out.put_str("%22"),
            b'\\' => out.put_str("%5C"),
            0x20..0x7f => out.put(&[*byte]),
            other => {
                out.put_str("%");
                out.put(&[
                    b"0123456789ABCDEF"[usize::from(other >> 4)],
                    b"0123456789ABCDEF"[usize::from(other & 15)],
                ]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_request_id_is_a_uuid_of_version_4() {
        let id = String::from_utf8(uuid(u64::MAX, 0).to_vec()).unwrap();
        assert_eq!(id, "ffffffff-ffff-4fff-8000-000000000000");
    }

    #[test]
    fn a_path_cannot_break_the_line() {
        let mut out = Buffer::take();
        put_quoted(&mut out, b"/a\"b\n\xff");
        assert_eq!(out.filled(), b"/a%22b%0A%FF");
    }
}
