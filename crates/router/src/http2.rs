//! HTTP/2 from clients. Each stream becomes an HTTP/1.1 request to a backend.

use crate::buffer::Buffer;
use crate::choice::since_ms;
use crate::client::Rewound;
use crate::http1::head::{Field, HeadScan, Scratch, content_length, field, parse_whole_response_head};
use crate::http1::{Framing, Refused};
use crate::pages::{Format, Page};
use crate::prepare::{BodyField, Entrance, Line, Plan, Prepared, Request, page_format, prepare};
use crate::upstream::Upstream;
use crate::watch::{TimeIsUp, Watch};
use crate::worker::Worker;
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use routing::Failure;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
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

struct Exchange<'w> {
    worker: &'w Rc<Worker>,
    entrance: Entrance,
    format: Format,
    body_field: BodyField,
}

/// How the way to a response ended.
enum Ended {
    /// Status, bytes, and whether the backend's connection may be kept.
    Done {
        status: u16,
        bytes: u64,
        keeps_backend: bool,
    },
    /// The response broke after it had begun.
    Cut {
        status: u16,
        bytes: u64,
    },
    ClientLeft,
    Failed(Failure),
    Page(Page),
}

impl Exchange<'_> {
    async fn run(&self, prepared: Prepared, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
        let worker = self.worker;
        let Prepared {
            out,
            mut choice,
            mut line,
            is_head,
            is_idempotent,
        } = prepared;
        let watch = worker.watches.add();
        loop {
            let begin = Instant::now();
            let mut upstream = match choice.connect(worker, &watch, is_idempotent).await {
                Ok(upstream) => upstream,
                Err(page) => {
                    return answer(
                        worker,
                        &mut respond,
                        &page,
                        self.format,
                        is_head,
                        line,
                        choice.job(),
                    );
                }
            };
            if let Some(line) = &mut line {
                line.connect_ms += since_ms(begin);
            }
            let limit = choice.response_limit;
            let cookie = choice.cookie(self.entrance.is_tls);
            let ended = self
                .attempt(
                    &watch,
                    &mut upstream,
                    &out,
                    &mut body,
                    &mut respond,
                    limit,
                    cookie,
                    is_head,
                )
                .await;
            let (status, bytes, problem) = match ended {
                Ended::Done {
                    status,
                    bytes,
                    keeps_backend,
                } => {
                    if keeps_backend && choice.keeps_alive {
                        worker.pool.keep(upstream, worker.config.limits.idle_per_backend);
                    }
                    (status, bytes, None)
                }
                Ended::Cut { status, bytes } => (status, bytes, Some(("H18", "Server Request Interrupted"))),
                Ended::ClientLeft => (499, 0, Some(("H27", "Client Request Interrupted"))),
                Ended::Failed(failure) => {
                    let is_replayable = self.body_field == BodyField::None;
                    if choice.again(worker, failure, true, is_idempotent, is_replayable) {
                        continue;
                    }
                    return answer(
                        worker,
                        &mut respond,
                        &Page::broken(),
                        self.format,
                        is_head,
                        line,
                        choice.job(),
                    );
                }
                Ended::Page(page) => {
                    return answer(
                        worker,
                        &mut respond,
                        &page,
                        self.format,
                        is_head,
                        line,
                        choice.job(),
                    );
                }
            };
            if let (Some(line), Some(log)) = (line, &worker.log) {
                line.end(log, choice.job(), status, bytes, problem);
            }
            return;
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn attempt(
        &self,
        watch: &Watch,
        upstream: &mut Upstream,
        out: &Buffer,
        body: &mut RecvStream,
        respond: &mut SendResponse<Bytes>,
        limit: Option<std::time::Duration>,
        cookie: Option<String>,
        is_head: bool,
    ) -> Ended {
        let is_reused = upstream.is_reused;
        let (mut from_backend, mut to_backend) = upstream.stream.split();
        let uploading = self.worker.watches.add();
        let is_uploaded = Cell::new(false);
        let mut upload = pin!(async {
            let result = self.upload(&uploading, &mut to_backend, out, body).await;
            is_uploaded.set(true);
            result
        });
        let mut download = pin!(self.download(watch, &mut from_backend, respond, cookie, is_head, is_reused));
        let mut is_upload_over = false;
        let is_limited = Cell::new(false);
        let both = poll_fn(|cx| {
            if !is_upload_over {
                match upload.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => is_upload_over = true,
                    // The backend hung up; it may have answered before.
                    Poll::Ready(Err(UploadError::Backend)) => is_upload_over = true,
                    Poll::Ready(Err(UploadError::Client)) => return Poll::Ready(Ended::ClientLeft),
                    Poll::Ready(Err(UploadError::Slow)) => {
                        return Poll::Ready(Ended::Page(Page::client_too_slow()));
                    }
                    Poll::Pending => {}
                }
            }
            if is_upload_over && !is_limited.replace(true) {
                match limit {
                    Some(limit) => watch.set(limit),
                    None => watch.clear(),
                }
            }
            download.as_mut().poll(cx)
        });
        // The download clears the deadline as soon as a head has come.
        let ended = match watch.until_up(both).await {
            Ok(ended) => ended,
            Err(TimeIsUp) => Ended::Page(Page::too_slow()),
        };
        watch.clear();
        match ended {
            Ended::Done { status, bytes, .. } if !is_uploaded.get() => Ended::Done {
                status,
                bytes,
                keeps_backend: false,
            },
            ended => ended,
        }
    }

    async fn upload(
        &self,
        watch: &Watch,
        to_backend: &mut WriteHalf<'_>,
        out: &Buffer,
        body: &mut RecvStream,
    ) -> Result<(), UploadError> {
        to_backend
            .write_all(out.filled())
            .await
            .map_err(|_| UploadError::Backend)?;
        if self.body_field == BodyField::None {
            return Ok(());
        }
        let is_chunked = self.body_field == BodyField::Chunked;
        let stall = self.worker.config.timeouts.stall;
        loop {
            let data = match watch.within(stall, body.data()).await {
                Ok(Some(Ok(data))) => data,
                Ok(Some(Err(_))) => return Err(UploadError::Client),
                Ok(None) => break,
                Err(TimeIsUp) => return Err(UploadError::Slow),
            };
            let length = data.len();
            if length > 0 {
                let mut framed = if is_chunked {
                    let head = Bytes::from(format!("{length:x}\r\n"));
                    head.chain(data).chain(Bytes::from_static(b"\r\n"))
                } else {
                    Bytes::new().chain(data).chain(Bytes::new())
                };
                to_backend
                    .write_all_buf(&mut framed)
                    .await
                    .map_err(|_| UploadError::Backend)?;
            }
            let _ = body.flow_control().release_capacity(length);
        }
        if is_chunked {
            to_backend
                .write_all(b"0\r\n\r\n")
                .await
                .map_err(|_| UploadError::Backend)?;
        }
        Ok(())
    }

    async fn download(
        &self,
        watch: &Watch,
        from_backend: &mut ReadHalf<'_>,
        respond: &mut SendResponse<Bytes>,
        cookie: Option<String>,
        is_head: bool,
        is_reused: bool,
    ) -> Ended {
        let mut source = Buffer::empty();
        let (response, mut framing, keeps_alive) = loop {
            let length = match self
                .read_head(from_backend, respond, &mut source, is_reused)
                .await
            {
                Ok(length) => length,
                Err(ended) => return ended,
            };
            let parsed =
                match parse_whole_response_head(&source.filled()[..length], is_head, &mut Scratch::new()) {
                    Ok(head) if head.status < 200 && head.status != 101 => {
                        if let Some(interim) = response_of(&head, None) {
                            let _ = respond.send_informational(interim);
                        }
                        None
                    }
                    Ok(head) => match response_of(&head, cookie.as_deref()) {
                        Some(response) => Some((response, head.framing, head.keeps_alive)),
                        None => return Ended::Page(Page::broken()),
                    },
                    Err(_) => return Ended::Page(Page::broken()),
                };
            source.consume(length);
            if let Some(parsed) = parsed {
                break parsed;
            }
        };
        watch.clear();
        let status = response.status().as_u16();
        let Ok(mut send) = respond.send_response(response, framing.is_done()) else {
            return Ended::ClientLeft;
        };
        let mut bytes = 0u64;
        let mut data = Vec::new();
        while !framing.is_done() {
            if source.is_empty() {
                match fill_or_reset(&mut source, from_backend, &mut send).await {
                    Ok(0) if framing.ends_well() => break,
                    Ok(0) | Err(FillError::Backend) => {
                        send.send_reset(Reason::INTERNAL_ERROR);
                        return Ended::Cut { status, bytes };
                    }
                    Ok(_) => {}
                    Err(FillError::Client) => return Ended::ClientLeft,
                }
            }
            data.clear();
            let Ok(used) = framing.advance_with(source.filled(), |part| data.extend_from_slice(part)) else {
                send.send_reset(Reason::INTERNAL_ERROR);
                return Ended::Cut { status, bytes };
            };
            source.consume(used);
            bytes += data.len() as u64;
            let is_last = framing.is_done();
            let sending = send_all(&mut send, Bytes::copy_from_slice(&data), is_last);
            match watch.within(self.worker.config.timeouts.stall, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(())) => return Ended::ClientLeft,
                Err(TimeIsUp) => {
                    send.send_reset(Reason::CANCEL);
                    return Ended::ClientLeft;
                }
            }
            if is_last {
                return Ended::Done {
                    status,
                    bytes,
                    keeps_backend: keeps_alive && source.is_empty(),
                };
            }
        }
        if bytes > 0 || !framing.is_done() {
            let _ = send.send_data(Bytes::new(), true);
        }
        Ended::Done {
            status,
            bytes,
            keeps_backend: keeps_alive && framing.is_done() && source.is_empty(),
        }
    }

    async fn read_head(
        &self,
        from_backend: &mut ReadHalf<'_>,
        respond: &mut SendResponse<Bytes>,
        source: &mut Buffer,
        is_reused: bool,
    ) -> Result<usize, Ended> {
        let limits = &self.worker.config.limits;
        let mut scan = HeadScan::default();
        loop {
            if !source.is_empty() {
                match scan.find(source.filled(), limits) {
                    Ok(Some(length)) => return Ok(length),
                    Ok(None) => {}
                    Err(_) => return Err(Ended::Page(Page::broken())),
                }
                if source.room() == 0 {
                    source.grow_to(limits.head_bytes + 1);
                }
            }
            let filled = poll_fn(|cx| {
                if respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Ended::ClientLeft));
                }
                source.poll_fill(cx, from_backend).map(Ok)
            });
            match filled.await? {
                Ok(count) if count > 0 => {}
                _ if !source.is_empty() => return Err(Ended::Failed(Failure::ResponseBroken)),
                _ if is_reused => return Err(Ended::Failed(Failure::ReusedConnectionClosed)),
                _ => return Err(Ended::Failed(Failure::ConnectionClosed)),
            }
        }
    }
}

enum UploadError {
    Client,
    Slow,
    Backend,
}

enum FillError {
    Client,
    Backend,
}

async fn fill_or_reset(
    source: &mut Buffer,
    from_backend: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
) -> Result<usize, FillError> {
    poll_fn(|cx| {
        if send.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(FillError::Client));
        }
        source
            .poll_fill_body(cx, from_backend)
            .map(|result| result.map_err(|_| FillError::Backend))
    })
    .await
}

/// Sends as the client's window allows.
async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes, is_last: bool) -> Result<(), ()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut capacity = send.capacity();
        if capacity == 0 {
            capacity = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(capacity)) => capacity,
                _ => return Err(()),
            };
        }
        let part = data.split_to(capacity.min(data.len()));
        let ends = is_last && data.is_empty();
        send.send_data(part, ends).map_err(|_| ())?;
        if ends {
            return Ok(());
        }
    }
    if is_last {
        send.send_data(Bytes::new(), true).map_err(|_| ())
    } else {
        Ok(())
    }
}

/// `None` if it cannot be said in HTTP/2.
fn response_of(
    head: &crate::http1::head::ResponseHead<'_, '_>,
    cookie: Option<&str>,
) -> Option<Response<()>> {
    if head.status == 101 {
        return None;
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    let headers = response.headers_mut();
    let is_chunked = matches!(head.framing, Framing::Chunked(_));
    for (name, value) in head.headers() {
        match field(name) {
            Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Upgrade => continue,
            Field::ContentLength if head.status == 204 || is_chunked => continue,
            _ if head.has_connection_names
                && crate::http1::head::is_named_by_connection(name, head.headers()) =>
            {
                continue;
            }
            _ => {}
        }
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_bytes(value).ok()?,
        );
    }
    if let Some(cookie) = cookie {
        headers.append(http::header::SET_COOKIE, HeaderValue::from_str(cookie).ok()?);
    }
    Some(response)
}
