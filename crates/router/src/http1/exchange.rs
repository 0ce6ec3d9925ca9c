//! One request and its response.
//!
//! The usual request has no body, or a short one that came with its head: head and body are written
//! in one call, the response's head and body go back in one call. Everything else is driven by one
//! task that polls both directions in turn, so that a response may begin while the request is still
//! being sent, and a client that leaves takes its request with it.

use super::head::{
    Field, HeadScan, ResponseHead, field, is_named_by_connection, parse_whole_request_head,
    parse_whole_response_head,
};
use super::pump::{Mode, Pump, PumpError};
use super::{Framing, tunnel::tunnel};
use crate::buffer::{Buffer, SMALL_BYTES};
use crate::choice::since_ms;
use crate::client::Client;
use crate::connection::write_all;
use crate::pages::{Format, Page};
use crate::prepare::{BodyField, Entrance, Line, Plan, Prepared, Request, page_format, prepare, put_field};
use crate::upstream::Upstream;
use crate::watch::{TimeIsUp, Watch};
use crate::worker::Worker;
use routing::Failure;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::AsyncWrite;

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Next,
    Close,
    /// Close, but let the client read what it was sent although it may still be sending.
    Linger,
}

/// What of the request matters for the response.
struct Asked {
    framing: Framing,
    keeps_alive: bool,
    minor_version: u8,
    is_upgrade: bool,
    format: Format,
    is_head: bool,
}

/// Serves the request whose head is the first `length` bytes of `read`.
pub async fn serve(
    worker: &Rc<Worker>,
    watch: &Watch,
    client: &mut Client,
    read: &mut Buffer,
    length: usize,
    entrance: &Entrance,
) -> After {
    let (plan, asked) = match plan(worker, &read.filled()[..length], entrance) {
        Ok(planned) => planned,
        Err(page) => {
            let asked = Asked {
                framing: Framing::UntilClose,
                keeps_alive: false,
                minor_version: 1,
                is_upgrade: false,
                format: Format::Text,
                is_head: false,
            };
            return answer(worker, watch, client, &asked, &page, None).await;
        }
    };
    read.consume(length);
    match plan {
        Plan::Page(page, line) => answer(worker, watch, client, &asked, &page, line).await,
        Plan::Forward(prepared) => forward(worker, watch, client, read, *prepared, &asked, entrance).await,
    }
}

fn plan(worker: &Rc<Worker>, bytes: &[u8], entrance: &Entrance) -> Result<(Plan, Asked), Page> {
    let head = parse_whole_request_head(bytes, &worker.config.limits).map_err(Page::refused)?;
    let request = Request {
        method: head.method,
        target: head.target,
        host: head.host,
        headers: head.headers(),
        has_connection_names: head.has_connection_names,
        upgrade: head.upgrade,
        body: match head.framing {
            Framing::Length(length) => BodyField::Length(length),
            Framing::Chunked(_) => BodyField::Chunked,
            Framing::Done | Framing::UntilClose => BodyField::None,
        },
    };
    let plan = prepare(worker, &request, entrance);
    let format = page_format(head.headers());
    let asked = Asked {
        framing: head.framing,
        keeps_alive: head.keeps_alive,
        minor_version: head.minor_version,
        is_upgrade: head.upgrade.is_some(),
        format,
        is_head: head.method == "HEAD",
    };
    Ok((plan, asked))
}

/// Answers with a page of our own.
async fn answer(
    worker: &Worker,
    watch: &Watch,
    client: &mut Client,
    asked: &Asked,
    page: &Page,
    line: Option<Line>,
) -> After {
    // The body of the request has not been read, so nothing after it can be.
    let keeps_alive =
        asked.keeps_alive && asked.framing.is_done() && page.status != 408 && !worker.is_stopping();
    let mut out = Buffer::take();
    let bytes = page.write(&mut out, asked.format, asked.is_head, keeps_alive);
    let written = watch
        .within(worker.config.timeouts.stall, write_all(client, &out))
        .await;
    if let (Some(line), Some(log)) = (line, &worker.log) {
        line.end(
            log,
            page.status,
            bytes,
            page.code.map(|code| (code, page.title.as_str())),
        );
    }
    match written {
        Ok(Ok(())) if keeps_alive => After::Next,
        Ok(Ok(())) => After::Linger,
        _ => After::Close,
    }
}

/// Why there is no head of a response.
enum NoHead {
    ClientLeft,
    Failed(Failure),
    TimedOut,
    /// The client stopped sending its body, or sent nonsense.
    ClientSlow,
    ClientBroken,
    /// What came is no response.
    Nonsense,
}

async fn forward(
    worker: &Rc<Worker>,
    watch: &Watch,
    client: &mut Client,
    read: &mut Buffer,
    prepared: Prepared,
    asked: &Asked,
    entrance: &Entrance,
) -> After {
    let Prepared {
        mut out,
        mut choice,
        mut line,
        is_idempotent,
        ..
    } = prepared;
    let mut upload = Pump::new(asked.framing, Mode::AsIs);
    if upload.prefetch(read, &mut out).is_err() {
        let page = Page::refused(super::Refused::Malformed(
            "The body is not framed as HTTP wants it.",
        ));
        return answer(worker, watch, client, asked, &page, line).await;
    }
    let is_replayable = upload.is_complete();
    let mut source = Buffer::empty();

    let (mut upstream, mut head_length) = loop {
        let begin = Instant::now();
        let mut upstream = match choice.connect(worker, watch, is_idempotent).await {
            Ok(upstream) => upstream,
            Err(page) => return answer(worker, watch, client, asked, &page, line).await,
        };
        if let Some(line) = &mut line {
            line.connect_ms += since_ms(begin);
        }
        let mut sent = 0;
        let waiting = Waiting {
            worker,
            watch,
            limit: choice.response_limit,
        };
        let got = waiting
            .head(
                client,
                read,
                &mut upstream,
                &mut source,
                &out,
                &mut sent,
                &mut upload,
            )
            .await;
        let page = match got {
            Ok(length) => break (upstream, length),
            Err(NoHead::Failed(failure)) => {
                let can_replay = is_replayable || sent == 0;
                if choice.again(worker, failure, sent > 0, is_idempotent, can_replay) {
                    source.clear();
                    continue;
                }
                Page::broken()
            }
            Err(NoHead::Nonsense) => Page::broken(),
            Err(NoHead::TimedOut) => Page::too_slow(),
            Err(NoHead::ClientSlow) => Page::client_too_slow(),
            Err(NoHead::ClientBroken) => Page::refused(super::Refused::Malformed(
                "The body is not framed as HTTP wants it.",
            )),
            Err(NoHead::ClientLeft) => {
                end_line(
                    worker,
                    line,
                    choice.job(),
                    499,
                    0,
                    Some(("H27", "Client Request Interrupted")),
                );
                return After::Close;
            }
        };
        if let Some(line) = &mut line {
            line.job = choice.job().to_string();
        }
        return answer(worker, watch, client, asked, &page, line).await;
    };
    drop(out);

    let mut down = Buffer::take();
    loop {
        let head = match parse_whole_response_head(&source.filled()[..head_length], asked.is_head) {
            Ok(head) => head,
            Err(_) => return answer(worker, watch, client, asked, &Page::broken(), line).await,
        };
        let status = head.status;
        if status == 101 {
            if !asked.is_upgrade {
                return answer(worker, watch, client, asked, &Page::broken(), line).await;
            }
            write_response_head(&mut down, &head, None, Closing::Upgrade(head.upgrade));
            source.consume(head_length);
            // Bytes that follow the head belong to the new protocol and stay where they are.
            let written = watch
                .within(worker.config.timeouts.stall, write_all(client, &down))
                .await;
            if !matches!(written, Ok(Ok(()))) {
                return After::Close;
            }
            drop(down);
            let bytes = tunnel(client, read, &mut upstream.stream, &mut source).await;
            end_line(worker, line, choice.job(), 101, bytes, None);
            return After::Close;
        }
        if status < 200 {
            // HTTP/1.0 knows no interim responses.
            if asked.minor_version == 1 {
                write_response_head(&mut down, &head, None, Closing::Interim);
            }
            source.consume(head_length);
            let written = watch
                .within(worker.config.timeouts.stall, write_all(client, &down))
                .await;
            down.clear();
            let waiting = Waiting {
                worker,
                watch,
                limit: choice.response_limit,
            };
            let mut sent = 0;
            let next = match written {
                Ok(Ok(())) => {
                    waiting
                        .head(
                            client,
                            read,
                            &mut upstream,
                            &mut source,
                            &Buffer::empty(),
                            &mut sent,
                            &mut upload,
                        )
                        .await
                }
                _ => Err(NoHead::ClientLeft),
            };
            let page = match next {
                Ok(length) => {
                    head_length = length;
                    continue;
                }
                Err(NoHead::ClientLeft) => {
                    end_line(
                        worker,
                        line,
                        choice.job(),
                        499,
                        0,
                        Some(("H27", "Client Request Interrupted")),
                    );
                    return After::Close;
                }
                Err(NoHead::TimedOut) => Page::too_slow(),
                Err(NoHead::ClientSlow) => Page::client_too_slow(),
                Err(_) => Page::broken(),
            };
            return answer(worker, watch, client, asked, &page, line).await;
        }

        let mode = match head.framing {
            Framing::UntilClose if asked.minor_version == 1 => Mode::IntoChunks,
            Framing::Chunked(_) if asked.minor_version == 0 => Mode::OutOfChunks,
            _ => Mode::AsIs,
        };
        let ends_by_close =
            asked.minor_version == 0 && !matches!(head.framing, Framing::Done | Framing::Length(_));
        let keeps_client =
            asked.keeps_alive && !ends_by_close && upload.is_complete() && !worker.is_stopping();
        let closing = match (keeps_client, asked.minor_version) {
            (false, _) => Closing::Close,
            (true, 0) => Closing::KeepAlive,
            (true, _) => Closing::Silent,
        };
        let mut download = Pump::new(head.framing, mode);
        write_response_head(&mut down, &head, choice.cookie(entrance.is_tls), closing);
        match (mode, head.framing) {
            (Mode::IntoChunks, _) | (Mode::AsIs, Framing::Chunked(_)) => {
                down.put_str("Transfer-Encoding: chunked\r\n\r\n");
            }
            _ => down.put_str("\r\n"),
        }
        let keeps_backend = head.keeps_alive && choice.keeps_alive;
        source.consume(head_length);
        let is_cut = download.prefetch(&mut source, &mut down).is_err();

        let bodies = Bodies { worker, watch };
        let result = bodies
            .run(
                client,
                read,
                &mut upstream,
                &mut source,
                &down,
                &mut upload,
                &mut download,
            )
            .await;
        let bytes = download.moved;
        let problem = match (&result, is_cut) {
            (Ok(()), false) => None,
            (Err(BodyError::Client), _) => Some(("H27", "Client Request Interrupted")),
            _ => Some(("H18", "Server Request Interrupted")),
        };
        end_line(worker, line, choice.job(), status, bytes, problem);
        if problem.is_some() {
            return After::Close;
        }
        if keeps_backend && upload.is_complete() && !upload.is_given_up && source.is_empty() {
            worker.pool.keep(upstream, worker.config.limits.idle_per_backend);
        }
        return match (keeps_client, upload.is_complete()) {
            (true, _) => After::Next,
            (false, true) => After::Close,
            (false, false) => After::Linger,
        };
    }
}

fn end_line(
    worker: &Worker,
    line: Option<Line>,
    job: &str,
    status: u16,
    bytes: u64,
    problem: Option<(&str, &str)>,
) {
    if let (Some(mut line), Some(log)) = (line, &worker.log) {
        line.job = job.to_string();
        line.end(log, status, bytes, problem);
    }
}

struct Waiting<'w> {
    worker: &'w Worker,
    watch: &'w Watch,
    limit: Option<std::time::Duration>,
}

impl Waiting<'_> {
    /// Sends `out`, then what there is of the body, until a head has arrived; its length in `source`.
    #[allow(clippy::too_many_arguments)]
    async fn head(
        &self,
        client: &mut Client,
        read: &mut Buffer,
        upstream: &mut Upstream,
        source: &mut Buffer,
        out: &Buffer,
        sent: &mut usize,
        upload: &mut Pump,
    ) -> Result<usize, NoHead> {
        let limits = &self.worker.config.limits;
        let stall = self.worker.config.timeouts.stall;
        let mut scan = HeadScan::default();
        let mut is_answer_due = false;
        let mut moved = upload.moved;
        let mut write_failed = false;
        self.watch.set(stall);
        let polled = poll_fn(|cx| {
            while *sent < out.len() && !write_failed {
                match Pin::new(&mut upstream.stream).poll_write(cx, &out.filled()[*sent..]) {
                    Poll::Ready(Ok(count)) if count > 0 => *sent += count,
                    Poll::Ready(_) => {
                        // It may have answered before it hung up.
                        write_failed = true;
                        upload.is_given_up = true;
                    }
                    Poll::Pending => break,
                }
            }
            if *sent == out.len() && !upload.is_over() {
                match upload.poll(cx, client, read, &mut upstream.stream) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(PumpError::Sink)) => upload.is_given_up = true,
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(NoHead::ClientBroken)),
                    Poll::Pending => {}
                }
                if upload.moved != moved {
                    moved = upload.moved;
                    self.watch.set(stall);
                }
            }
            if !is_answer_due && upload.is_over() && (*sent == out.len() || write_failed) {
                is_answer_due = true;
                match self.limit {
                    Some(limit) => self.watch.set(limit),
                    None => self.watch.clear(),
                }
            }
            if let Poll::Ready(result) = poll_head(
                cx,
                upstream,
                source,
                &mut scan,
                limits,
                *sent > 0 || write_failed || out.is_empty(),
            ) {
                return Poll::Ready(result);
            }
            if upload.is_over() && has_left(cx, client, read) {
                return Poll::Ready(Err(NoHead::ClientLeft));
            }
            Poll::Pending
        });
        let result = self.watch.until_up(polled).await;
        self.watch.clear();
        match result {
            Ok(result) => result,
            Err(TimeIsUp) if !is_answer_due && upload.waits_for_source => Err(NoHead::ClientSlow),
            Err(TimeIsUp) => Err(NoHead::TimedOut),
        }
    }
}

fn poll_head(
    cx: &mut Context<'_>,
    upstream: &mut Upstream,
    source: &mut Buffer,
    scan: &mut HeadScan,
    limits: &crate::config::Limits,
    was_sent: bool,
) -> Poll<Result<usize, NoHead>> {
    loop {
        if !source.is_empty() {
            match scan.find(source.filled(), limits) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(NoHead::Nonsense)),
            }
            if source.room() == 0 {
                source.grow_to((limits.head_bytes + 1).max(SMALL_BYTES));
            }
        }
        // Before anything is sent a readable connection can only be one that was closed; reading it
        // would find that out, and so will writing.
        if !was_sent {
            return Poll::Pending;
        }
        match source.poll_fill(cx, &mut upstream.stream) {
            Poll::Ready(Ok(count)) if count > 0 => {}
            Poll::Ready(_) => {
                let failure = match (source.is_empty(), upstream.is_reused) {
                    (false, _) => Failure::ResponseBroken,
                    (true, true) => Failure::ReusedConnectionClosed,
                    (true, false) => Failure::ConnectionClosed,
                };
                return Poll::Ready(Err(NoHead::Failed(failure)));
            }
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Whether the client has gone away. What it sends meanwhile is kept for the next request.
fn has_left(cx: &mut Context<'_>, client: &mut Client, read: &mut Buffer) -> bool {
    while read.room() > 0 {
        match read.poll_fill(cx, client) {
            Poll::Ready(Ok(count)) if count > 0 => {}
            Poll::Ready(_) => return true,
            Poll::Pending => return false,
        }
    }
    false
}

enum BodyError {
    Client,
    Backend,
}

struct Bodies<'w> {
    worker: &'w Worker,
    watch: &'w Watch,
}

impl Bodies<'_> {
    /// Sends `down`, the beginning of the response, and the rest of both bodies. Ends with the
    /// response.
    #[allow(clippy::too_many_arguments)]
    async fn run(
        &self,
        client: &mut Client,
        read: &mut Buffer,
        upstream: &mut Upstream,
        source: &mut Buffer,
        down: &Buffer,
        upload: &mut Pump,
        download: &mut Pump,
    ) -> Result<(), BodyError> {
        let stall = self.worker.config.timeouts.stall;
        let mut sent = 0;
        let mut moved = 0;
        let polled = poll_fn(|cx| {
            if !upload.is_over() {
                match upload.poll(cx, client, read, &mut upstream.stream) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(PumpError::Sink)) => upload.is_given_up = true,
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(BodyError::Client)),
                }
            }
            while sent < down.len() {
                match Pin::new(&mut *client).poll_write(cx, &down.filled()[sent..]) {
                    Poll::Ready(Ok(count)) if count > 0 => sent += count,
                    Poll::Ready(_) => return Poll::Ready(Err(BodyError::Client)),
                    Poll::Pending => break,
                }
            }
            if sent == down.len() {
                match download.poll(cx, &mut upstream.stream, source, client) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(BodyError::Backend)),
                    Poll::Ready(Err(PumpError::Sink)) => return Poll::Ready(Err(BodyError::Client)),
                    Poll::Pending => {}
                }
            }
            let waits_for_client =
                !download.waits_for_source || (!upload.is_over() && upload.waits_for_source);
            let progress = upload.moved + download.moved + sent as u64;
            if !waits_for_client {
                // A stream may be silent for as long as it likes, unless its reader goes away.
                self.watch.clear();
                if upload.is_over() && has_left(cx, client, read) {
                    return Poll::Ready(Err(BodyError::Client));
                }
            } else if progress != moved || !self.watch.is_set() {
                self.watch.set(stall);
            }
            moved = progress;
            Poll::Pending
        });
        let result = self.watch.until_up(polled).await;
        self.watch.clear();
        result.unwrap_or(Err(BodyError::Client))
    }
}

/// What the response says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing<'h> {
    Close,
    KeepAlive,
    /// HTTP/1.1 keeps a connection unless told otherwise.
    Silent,
    Interim,
    Upgrade(Option<&'h str>),
}

/// All but the empty line for a final response, all of it for an interim one.
fn write_response_head(
    out: &mut Buffer,
    head: &ResponseHead<'_>,
    cookie: Option<String>,
    closing: Closing<'_>,
) {
    out.put_str("HTTP/1.1 ");
    out.put_number(u64::from(head.status));
    out.put_str(" ");
    out.put_str(head.reason);
    out.put_str("\r\n");
    let is_chunked = matches!(head.framing, Framing::Chunked(_));
    for (name, value) in head.headers() {
        match field(name) {
            Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::Upgrade => {}
            Field::ContentLength if head.status < 200 || head.status == 204 || is_chunked => {}
            _ if head.has_connection_names && is_named_by_connection(name, head.headers()) => {}
            _ => put_field(out, name, value),
        }
    }
    if let Some(cookie) = cookie {
        put_field(out, "Set-Cookie", cookie.as_bytes());
    }
    match closing {
        Closing::Close => out.put_str("Connection: close\r\n"),
        Closing::KeepAlive => out.put_str("Connection: keep-alive\r\n"),
        Closing::Silent => {}
        Closing::Interim => out.put_str("\r\n"),
        Closing::Upgrade(protocol) => {
            out.put_str("Connection: Upgrade\r\nUpgrade: ");
            out.put_str(protocol.unwrap_or("websocket"));
            out.put_str("\r\n\r\n");
        }
    }
}
