//! A client's connection from its first byte to its last.
//!
//! Between requests a connection is small: the state of a request is boxed and made anew for each,
//! and buffers are given back. Ten thousand waiting clients cost little more than their sockets.

use crate::buffer::{Buffer, SMALL_BYTES};
use crate::client::{Client, Rewound};
use crate::http1::Refused;
use crate::http1::exchange::{self, After};
use crate::http1::head::HeadScan;
use crate::http2;
use crate::pages::{Format, Page};
use crate::prepare::Entrance;
use crate::watch::{TimeIsUp, Watch};
use crate::worker::{Guest, Worker};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What a client that speaks HTTP/2 without asking says first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read and thrown away of a client that is told to go, so that it gets to see the answer.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

pub async fn serve_plain(guest: Guest, stream: TcpStream, entrance: Entrance) {
    let watch = guest.worker.watches.add();
    serve(&guest, &watch, Client::Plain(stream), entrance).await;
}

pub async fn serve_tls(guest: Guest, stream: TcpStream, entrance: Entrance) {
    let watch = guest.worker.watches.add();
    let Some(acceptor) = guest.worker.tls.clone() else {
        return;
    };
    let limit = guest.worker.config.timeouts.head;
    let handshake = Box::pin(watch.within(limit, acceptor.accept(stream)));
    let Ok(Ok(stream)) = handshake.await else { return };
    let client = Client::Tls(Box::new(stream));
    if client.has_chosen_http2() {
        let rewound = Rewound {
            first: Buffer::empty(),
            client,
        };
        Box::pin(http2::serve(guest.worker.clone(), watch, rewound, entrance)).await;
    } else {
        serve(&guest, &watch, client, entrance).await;
    }
}

async fn serve(guest: &Guest, watch: &Rc<Watch>, mut client: Client, entrance: Entrance) {
    let worker = &guest.worker;
    let mut buffer = Buffer::empty();
    loop {
        if worker.is_ending() {
            break;
        }
        let first = poll_fn(|cx| buffer.poll_fill(cx, &mut client));
        match watch.within_idle(worker.config.timeouts.idle, first).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => break,
        }
        if buffer.filled().starts_with(&HTTP2_PREFACE[..3])
            && is_http2(worker, watch, &mut client, &mut buffer).await
        {
            let rewound = Rewound {
                first: buffer,
                client,
            };
            Box::pin(http2::serve(worker.clone(), watch.clone(), rewound, entrance)).await;
            return;
        }
        match Box::pin(busy(worker, watch, &mut client, &mut buffer, &entrance)).await {
            After::Next => {}
            After::Close => break,
            After::Linger => {
                Box::pin(linger(watch, &mut client)).await;
                return;
            }
        }
    }
    let _ = watch.within(LINGER, client.shutdown()).await;
}

/// Requests as long as there is something in the buffer.
async fn busy(
    worker: &Rc<Worker>,
    watch: &Watch,
    client: &mut Client,
    buffer: &mut Buffer,
    entrance: &Entrance,
) -> After {
    while !buffer.is_empty() {
        let length = match head(worker, watch, client, buffer).await {
            Ok(length) => length,
            Err(Ended::Gone) => return After::Close,
            Err(Ended::Page(page)) => return refuse(worker, watch, client, &page).await,
        };
        match exchange::serve(worker, watch, client, buffer, length, entrance).await {
            After::Next => {}
            other => return other,
        }
    }
    After::Next
}

enum Ended {
    Gone,
    Page(Page),
}

/// Reads until the buffer begins with a whole head; its length.
async fn head(
    worker: &Worker,
    watch: &Watch,
    client: &mut Client,
    buffer: &mut Buffer,
) -> Result<usize, Ended> {
    let limits = &worker.config.limits;
    // Some clients end a form with an empty line too many (RFC 9112, 2.2).
    if buffer.filled().starts_with(b"\r\n") {
        buffer.consume(2);
    }
    let mut scan = HeadScan::default();
    let refused = |refused: Refused| Ended::Page(Page::refused(refused));
    if let Some(length) = scan.find(buffer.filled(), limits).map_err(refused)? {
        return Ok(length);
    }
    let rest = async {
        loop {
            if buffer.room() == 0 {
                buffer.grow_to((limits.head_bytes + 1).max(SMALL_BYTES));
            }
            let count = poll_fn(|cx| buffer.poll_fill(cx, client)).await;
            if !matches!(count, Ok(count) if count > 0) {
                return Err(Ended::Gone);
            }
            if let Some(length) = scan.find(buffer.filled(), limits).map_err(refused)? {
                return Ok(length);
            }
        }
    };
    match watch.within(worker.config.timeouts.head, rest).await {
        Ok(result) => result,
        Err(TimeIsUp) => Err(Ended::Page(Page::client_too_slow())),
    }
}

/// Whether the connection begins as HTTP/2 does; reads as much of it as that takes.
async fn is_http2(worker: &Worker, watch: &Watch, client: &mut Client, buffer: &mut Buffer) -> bool {
    let decided = poll_fn(|cx| {
        loop {
            let filled = buffer.filled();
            let common = filled.len().min(HTTP2_PREFACE.len());
            if filled[..common] != HTTP2_PREFACE[..common] {
                return Poll::Ready(false);
            }
            if common == HTTP2_PREFACE.len() {
                return Poll::Ready(true);
            }
            match buffer.poll_fill(cx, client) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    watch
        .within(worker.config.timeouts.head, decided)
        .await
        .unwrap_or(false)
}

async fn refuse(worker: &Worker, watch: &Watch, client: &mut Client, page: &Page) -> After {
    let mut out = Buffer::take();
    page.write(&mut out, Format::Text, false, false);
    let _ = watch
        .within(worker.config.timeouts.stall, write_all(client, &out))
        .await;
    After::Linger
}

/// Writes everything and flushes.
pub async fn write_all(client: &mut Client, out: &Buffer) -> std::io::Result<()> {
    client.write_all(out.filled()).await?;
    client.flush().await
}

/// Says that nothing more comes, then reads on for a while: closing a socket with unread bytes
/// resets the connection, and the client would lose the answer that says why.
async fn linger(watch: &Watch, client: &mut Client) {
    let ending = async {
        if client.shutdown().await.is_err() {
            return;
        }
        let mut buffer = Buffer::take();
        let mut seen = 0;
        while seen < LINGER_BYTES {
            buffer.clear();
            match poll_fn(|cx| buffer.poll_fill(cx, client)).await {
                Ok(count) if count > 0 => seen += count,
                _ => return,
            }
        }
    };
    let _ = watch.within(LINGER, ending).await;
}
