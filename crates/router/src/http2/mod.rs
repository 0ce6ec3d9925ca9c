//! HTTP/2 from clients. Each stream becomes an HTTP/1.1 request to a backend.

mod exchange;

use crate::client::Rewound;
use crate::http1::Refused;
use crate::http1::head::content_length;
use crate::pages::{Format, Page};
use crate::prepare::{BodyField, Entrance, Line, Plan, Request, page_format, prepare};
use crate::watch::{TimeIsUp, Watch};
use crate::worker::Worker;
use bytes::Bytes;
use exchange::Exchange;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use tokio::task::spawn_local;

/// What a client may send ahead of us, per stream and in all.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

pub async fn serve(worker: Rc<Worker>, watch: Rc<Watch>, io: Rewound, entrance: Entrance) {
    let limits = &worker.config.limits;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(256 * 1024);
    let handshake = watch
        .within(worker.config.timeouts.head, builder.handshake::<_, Bytes>(io))
        .await;
    let Ok(Ok(mut connection)) = handshake else { return };
    let streams = Rc::new(Cell::new(0usize));
    let mut is_leaving = false;
    loop {
        let next = poll_fn(|cx| {
            let polled = connection.poll_accept(cx);
            // Set once per silence: what the client does meanwhile, such as pings, is no use of it.
            let is_idle = streams.get() == 0;
            watch.mark_idle(is_idle);
            if !is_idle {
                watch.clear();
            } else if !watch.is_set() {
                watch.set(worker.config.timeouts.idle);
            }
            if polled.is_pending() && worker.is_stopping() && !is_leaving {
                return Poll::Ready(None);
            }
            polled.map(Some)
        });
        match watch.until_up(next).await {
            Ok(Some(Some(Ok((request, respond))))) => {
                watch.clear();
                streams.set(streams.get() + 1);
                let counted = Counted(streams.clone());
                spawn_local(stream(worker.clone(), request, respond, entrance, counted));
            }
            Ok(Some(_)) => return,
            Ok(None) | Err(TimeIsUp) if !is_leaving => {
                // Says goodbye; the streams that are open may finish.
                is_leaving = true;
                connection.graceful_shutdown();
                watch.clear();
            }
            Ok(None) | Err(TimeIsUp) => return,
        }
    }
}

struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn stream(
    worker: Rc<Worker>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    entrance: Entrance,
    _counted: Counted,
) {
    let (parts, body) = request.into_parts();
    let is_head = parts.method == http::Method::HEAD;
    let format = page_format(fields(&parts.headers).into_iter());
    let plan = match plan(&worker, &parts, &body, &entrance) {
        Ok(plan) => plan,
        Err(refused) => Plan::Page(Page::refused(refused), None),
    };
    match plan {
        Plan::Page(page, line) => answer(&worker, &mut respond, &page, format, is_head, line, ""),
        Plan::Forward(prepared) => {
            let body_field = body_field(&parts.headers, &body).unwrap_or(BodyField::None);
            let exchange = Exchange {
                worker: &worker,
                entrance,
                format,
                body_field,
            };
            Box::pin(exchange.run(*prepared, body, respond)).await;
        }
    }
}

fn plan(
    worker: &Rc<Worker>,
    parts: &http::request::Parts,
    body: &RecvStream,
    entrance: &Entrance,
) -> Result<Plan, Refused> {
    let limits = &worker.config.limits;
    if parts.method == http::Method::CONNECT {
        return Err(Refused::MethodNotAllowed);
    }
    if parts.headers.len() > limits.headers {
        return Err(Refused::TooManyHeaders);
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > limits.target_bytes {
        return Err(Refused::TargetTooLong);
    }
    if !target.starts_with('/') && target != "*" {
        return Err(Refused::Malformed("The address is not a path."));
    }
    let named = parts
        .headers
        .get(http::header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = match (parts.uri.authority(), named) {
        (Some(authority), Some(named)) if !authority.as_str().eq_ignore_ascii_case(named) => {
            return Err(Refused::Malformed("There are two hosts."));
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(named)) => named,
        (None, None) => return Err(Refused::Malformed("There is no host.")),
    };
    // "user@host" is an authority, and no host.
    if host.contains('@') {
        return Err(Refused::Malformed("The host is not a host."));
    }
    let fields = fields(&parts.headers);
    let request = Request {
        method: parts.method.as_str(),
        target,
        host,
        headers: fields.iter().copied(),
        has_connection_names: false,
        upgrade: None,
        body: body_field(&parts.headers, body)?,
    };
    Ok(prepare(worker, &request, entrance))
}

fn fields(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect()
}

fn body_field(headers: &HeaderMap, body: &RecvStream) -> Result<BodyField, Refused> {
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let length = lengths
        .next()
        .map(|length| content_length(length.as_bytes()))
        .transpose()?;
    if lengths.next().is_some() {
        return Err(Refused::Malformed("There is more than one Content-Length."));
    }
    Ok(match length {
        _ if body.is_end_stream() => BodyField::None,
        Some(0) | None => BodyField::Chunked,
        Some(length) => BodyField::Length(length),
    })
}

fn answer(
    worker: &Worker,
    respond: &mut SendResponse<Bytes>,
    page: &Page,
    format: Format,
    is_head: bool,
    line: Option<Line>,
    job: &str,
) {
    let body = page.body(format);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(page.status).expect("our pages have good statuses");
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(Page::content_type(format)),
    );
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(seconds) = page.retry_after {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = page.allow {
        headers.insert(http::header::ALLOW, HeaderValue::from_static(allow));
    }
    let bytes = if is_head { 0 } else { body.len() as u64 };
    if let Ok(mut send) = respond.send_response(response, is_head)
        && !is_head
    {
        let _ = send.send_data(Bytes::from(body), true);
    }
    if let (Some(line), Some(log)) = (line, &worker.log) {
        line.end(
            log,
            job,
            page.status,
            bytes,
            page.code.map(|code| (code, page.title.as_str())),
        );
    }
}
