//! From the head of a backend's response to the one for the client.

use super::exchange::Asked;
use super::head::{Field, ResponseHead, Scratch, field, is_named_by_connection, parse_whole_response_head};
use super::pump::Mode;
use super::{Framing, Refused};
use crate::buffer::Buffer;
use crate::choice::Choice;
use crate::prepare::put_field;

/// What has come. Its head for the client is in `down`.
pub enum Received {
    /// The connection belongs to another protocol now.
    Upgraded,
    /// The response proper is still to come.
    Interim,
    Response(Response),
}

pub struct Response {
    pub status: u16,
    pub framing: Framing,
    pub mode: Mode,
    pub keeps_client: bool,
    pub keeps_backend: bool,
}

/// `bytes` is exactly one head. `may_keep_client`: nothing but the response stands against another
/// request on the client's connection.
pub fn receive(
    bytes: &[u8],
    down: &mut Buffer,
    asked: &Asked,
    choice: &Choice,
    may_keep_client: bool,
    is_tls: bool,
) -> Result<Received, Refused> {
    let mut scratch = Scratch::new();
    let head = parse_whole_response_head(bytes, asked.is_head, &mut scratch)?;
    if head.status == 101 {
        if !asked.is_upgrade {
            return Err(Refused::Malformed(
                "The response changes a protocol that nobody wanted changed.",
            ));
        }
        write_response_head(down, &head, None, Closing::Upgrade(head.upgrade));
        return Ok(Received::Upgraded);
    }
    if head.status < 200 {
        // HTTP/1.0 knows no interim responses.
        if asked.minor_version == 1 {
            write_response_head(down, &head, None, Closing::Interim);
        }
        return Ok(Received::Interim);
    }
    let mode = match head.framing {
        Framing::UntilClose if asked.minor_version == 1 => Mode::IntoChunks,
        Framing::Chunked(_) if asked.minor_version == 0 => Mode::OutOfChunks,
        _ => Mode::AsIs,
    };
    let ends_by_close =
        asked.minor_version == 0 && !matches!(head.framing, Framing::Done | Framing::Length(_));
    let keeps_client = may_keep_client && asked.keeps_alive && !ends_by_close;
    let closing = match (keeps_client, asked.minor_version) {
        (false, _) => Closing::Close,
        (true, 0) => Closing::KeepAlive,
        (true, _) => Closing::Silent,
    };
    write_response_head(down, &head, choice.cookie(is_tls), closing);
    match (mode, head.framing) {
        (Mode::IntoChunks, _) | (Mode::AsIs, Framing::Chunked(_)) => {
            down.put_str("Transfer-Encoding: chunked\r\n\r\n");
        }
        _ => down.put_str("\r\n"),
    }
    Ok(Received::Response(Response {
        status: head.status,
        framing: head.framing,
        mode,
        keeps_client,
        keeps_backend: head.keeps_alive && choice.keeps_alive,
    }))
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
    head: &ResponseHead<'_, '_>,
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
