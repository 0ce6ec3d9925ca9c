//! One stream: its HTTP/1.1 request to a backend, and the response back as frames.

use super::answer;
use crate::buffer::Buffer;
use crate::choice::since_ms;
use crate::http1::Framing;
use crate::http1::head::{
    Field, HeadScan, ResponseHead, Scratch, field, is_named_by_connection, parse_whole_response_head,
};
use crate::pages::{Format, Page};
use crate::prepare::{BodyField, Entrance, Prepared};
use crate::upstream::Upstream;
use crate::watch::{TimeIsUp, Watch};
use crate::worker::Worker;
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use routing::Failure;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

pub struct Exchange<'w> {
    pub worker: &'w Rc<Worker>,
    pub entrance: Entrance,
    pub format: Format,
    pub body_field: BodyField,
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
    pub async fn run(&self, prepared: Prepared, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
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
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Ended::Failed(Failure::Unheard));
                }
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
fn response_of(head: &ResponseHead<'_, '_>, cookie: Option<&str>) -> Option<Response<()>> {
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
            _ if head.has_connection_names && is_named_by_connection(name, head.headers()) => {
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
