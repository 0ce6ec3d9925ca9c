//! One request and its response.
//!
//! The usual request has no body, or a short one that came with its head: head and body are written
//! in one call, the response's head and body go back in one call. Everything else is driven by one
//! task that polls both directions in turn, so that a response may begin while the request is still
//! being sent, and a client that leaves takes its request with it.

use super::bodies::{Bodies, BodyError};
use super::head::{Scratch, parse_whole_request_head};
use super::pump::{Mode, Pump};
use super::response::{Received, receive};
use super::waiting::{NoHead, Waiting};
use super::{Framing, tunnel::tunnel};
use crate::buffer::Buffer;
use crate::choice::since_ms;
use crate::client::Client;
use crate::connection::write_all;
use crate::pages::{Format, Page};
use crate::prepare::{BodyField, Entrance, Line, Plan, Prepared, Request, page_format, prepare};
use crate::watch::Watch;
use crate::worker::Worker;
use std::rc::Rc;
use std::time::Instant;

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Next,
    Close,
    /// Close, but let the client read what it was sent although it may still be sending.
    Linger,
}

/// What of the request matters for the response.
pub struct Asked {
    framing: Framing,
    pub keeps_alive: bool,
    pub minor_version: u8,
    pub is_upgrade: bool,
    format: Format,
    pub is_head: bool,
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
            return answer(worker, watch, client, &asked, &page, None, "").await;
        }
    };
    read.consume(length);
    match plan {
        Plan::Page(page, line) => answer(worker, watch, client, &asked, &page, line, "").await,
        Plan::Forward(prepared) => forward(worker, watch, client, read, *prepared, &asked, entrance).await,
    }
}

fn plan(worker: &Rc<Worker>, bytes: &[u8], entrance: &Entrance) -> Result<(Plan, Asked), Page> {
    let mut scratch = Scratch::new();
    let head = parse_whole_request_head(bytes, &worker.config.limits, &mut scratch).map_err(Page::refused)?;
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
#[allow(clippy::too_many_arguments)]
async fn answer(
    worker: &Worker,
    watch: &Watch,
    client: &mut Client,
    asked: &Asked,
    page: &Page,
    line: Option<Line>,
    job: &str,
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
            job,
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
        return answer(worker, watch, client, asked, &page, line, choice.job()).await;
    }
    let is_replayable = upload.is_complete();
    let mut source = Buffer::empty();

    let (mut upstream, mut head_length) = loop {
        let begin = Instant::now();
        let mut upstream = match choice.connect(worker, watch, is_idempotent).await {
            Ok(upstream) => upstream,
            Err(page) => return answer(worker, watch, client, asked, &page, line, choice.job()).await,
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
        return answer(worker, watch, client, asked, &page, line, choice.job()).await;
    };
    drop(out);

    let mut down = Buffer::take();
    loop {
        let may_keep_client = upload.is_complete() && !worker.is_stopping();
        let bytes = &source.filled()[..head_length];
        let received = receive(bytes, &mut down, asked, &choice, may_keep_client, entrance.is_tls);
        source.consume(head_length);
        let response = match received {
            Err(_) => return answer(worker, watch, client, asked, &Page::broken(), line, choice.job()).await,
            Ok(Received::Response(response)) => response,
            Ok(Received::Upgraded) => {
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
            Ok(Received::Interim) => {
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
                return answer(worker, watch, client, asked, &page, line, choice.job()).await;
            }
        };

        let mut download = Pump::new(response.framing, response.mode);
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
        end_line(worker, line, choice.job(), response.status, bytes, problem);
        if problem.is_some() {
            return After::Close;
        }
        if response.keeps_backend && upload.is_complete() && !upload.is_given_up && source.is_empty() {
            worker.pool.keep(upstream, worker.config.limits.idle_per_backend);
        }
        return match (response.keeps_client, upload.is_complete()) {
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
    if let (Some(line), Some(log)) = (line, &worker.log) {
        line.end(log, job, status, bytes, problem);
    }
}
