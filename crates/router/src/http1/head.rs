//! Parses heads of requests and responses. Pure: bytes in, value or refusal out.

use super::Framing;
use crate::config::Limits;
use memchr::memchr_iter;
use std::mem::MaybeUninit;

/// Never more, whatever the limit says: the place for them is on the stack.
pub const HEADERS_MAX: usize = 128;

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed(&'static str),
    TooManyHeaders,
    HeadTooLarge,
    TargetTooLong,
    MethodNotAllowed,
    CodingNotImplemented,
    VersionNotSupported,
}

impl Refused {
    pub fn status(self) -> u16 {
        match self {
            Refused::Malformed(_) => 400,
            Refused::MethodNotAllowed => 405,
            Refused::TargetTooLong => 414,
            Refused::TooManyHeaders | Refused::HeadTooLarge => 431,
            Refused::CodingNotImplemented => 501,
            Refused::VersionNotSupported => 505,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Refused::Malformed(reason) => reason,
            Refused::TooManyHeaders => "There are too many header fields.",
            Refused::HeadTooLarge => "The header fields are too large.",
            Refused::TargetTooLong => "The address is too long.",
            Refused::MethodNotAllowed => "This method is not offered here.",
            Refused::CodingNotImplemented => "This transfer coding is not known here.",
            Refused::VersionNotSupported => "This version of HTTP is not known here.",
        }
    }
}

/// Finds the end of a head that arrives in pieces, looking at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    seen: usize,
    /// Where the line after the last LF begins.
    line: usize,
    lines: usize,
}

impl HeadScan {
    /// The length of the head, if all of it is there.
    ///
    /// `bytes` is what there is from the beginning, each time longer than before. A line feed
    /// without a carriage return is refused here already.
    pub fn find(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refused> {
        for at in memchr_iter(b'\n', &bytes[self.seen..]) {
            let at = self.seen + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Refused::Malformed("A line does not end in CR LF."));
            }
            let is_empty_line = at - 1 == self.line;
            self.line = at + 1;
            if is_empty_line {
                if self.lines == 0 {
                    return Err(Refused::Malformed("The request begins with an empty line."));
                }
                return if at < limits.head_bytes {
                    Ok(Some(at + 1))
                } else {
                    Err(Refused::HeadTooLarge)
                };
            }
            self.lines += 1;
        }
        self.seen = bytes.len();
        if self.lines == 0 && bytes.len() > limits.target_bytes + 64 {
            return Err(Refused::TargetTooLong);
        }
        if bytes.len() >= limits.head_bytes {
            return Err(Refused::HeadTooLarge);
        }
        Ok(None)
    }
}

/// The header fields that mean something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Host,
    Connection,
    /// Belongs to one connection, not to the message: never passed on.
    HopByHop,
    Upgrade,
    ContentLength,
    TransferEncoding,
    Cookie,
    Accept,
    ForwardedFor,
    /// Set by us, whatever came in.
    Ours,
    RequestId,
    Other,
}

pub fn field(name: &str) -> Field {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 if is("te") => Field::HopByHop,
        4 if is("host") => Field::Host,
        6 if is("cookie") => Field::Cookie,
        6 if is("accept") => Field::Accept,
        7 if is("upgrade") => Field::Upgrade,
        10 if is("connection") => Field::Connection,
        10 if is("keep-alive") => Field::HopByHop,
        12 if is("x-request-id") => Field::RequestId,
        14 if is("content-length") => Field::ContentLength,
        14 if is("http2-settings") => Field::HopByHop,
        15 if is("x-forwarded-for") => Field::ForwardedFor,
        15 if is("x-request-start") => Field::Ours,
        16 if is("x-forwarded-host") || is("x-forwarded-port") => Field::Ours,
        16 if is("proxy-connection") => Field::HopByHop,
        17 if is("x-forwarded-proto") => Field::Ours,
        17 if is("transfer-encoding") => Field::TransferEncoding,
        _ => Field::Other,
    }
}

/// Room for the fields of a head while it is looked at. Four kilobytes that are neither cleared nor
/// moved for each request.
pub struct Scratch<'b>([MaybeUninit<httparse::Header<'b>>; HEADERS_MAX]);

impl Scratch<'_> {
    pub fn new() -> Self {
        Scratch([const { MaybeUninit::uninit() }; HEADERS_MAX])
    }
}

impl Default for Scratch<'_> {
    fn default() -> Self {
        Scratch::new()
    }
}

#[derive(Debug)]
pub struct RequestHead<'s, 'b> {
    pub method: &'b str,
    /// Path and query, beginning with `/`, or `*`.
    pub target: &'b str,
    pub host: &'b str,
    /// The 1 of HTTP/1.1.
    pub minor_version: u8,
    pub framing: Framing,
    pub keeps_alive: bool,
    /// The protocol that the client would rather speak.
    pub upgrade: Option<&'b str>,
    /// `Connection` names fields that must go no further.
    pub has_connection_names: bool,
    headers: &'s [httparse::Header<'b>],
}

impl<'b> RequestHead<'_, 'b> {
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + Clone + '_ {
        self.headers.iter().map(|header| (header.name, header.value))
    }

    /// The path without the query.
    pub fn path(&self) -> &'b str {
        path_of(self.target)
    }
}

pub fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// Parses a request's head if all of it is there, and says how long it was.
pub fn parse_request_head<'s, 'b>(
    bytes: &'b [u8],
    limits: &Limits,
    scratch: &'s mut Scratch<'b>,
) -> Result<Option<(RequestHead<'s, 'b>, usize)>, Refused> {
    match HeadScan::default().find(bytes, limits)? {
        Some(length) => Ok(Some((
            parse_whole_request_head(&bytes[..length], limits, scratch)?,
            length,
        ))),
        None => Ok(None),
    }
}

/// `bytes` is exactly one head, as [`HeadScan`] found it.
pub fn parse_whole_request_head<'s, 'b>(
    bytes: &'b [u8],
    limits: &Limits,
    scratch: &'s mut Scratch<'b>,
) -> Result<RequestHead<'s, 'b>, Refused> {
    let most = limits.headers.min(HEADERS_MAX);
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut scratch.0[..most]) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Refused::Malformed("The head is not complete.")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooManyHeaders),
        Err(httparse::Error::Version) => return Err(Refused::VersionNotSupported),
        Err(_) => return Err(Refused::Malformed("The head is not HTTP.")),
    }
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version)
    else {
        return Err(Refused::Malformed("The head is not HTTP."));
    };
    let headers: &'s [httparse::Header<'b>] = request.headers;
    if target.len() > limits.target_bytes {
        return Err(Refused::TargetTooLong);
    }
    if method == "CONNECT" {
        return Err(Refused::MethodNotAllowed);
    }

    let mut host = None;
    let mut length = None;
    let mut is_chunked = false;
    let mut upgrade = None;
    let mut connection = Connection::default();
    for header in headers {
        // A name that ends in a space, and folded lines, were refused by the parser.
        match field(header.name) {
            Field::Host => set_once(&mut host, header.value, "There is more than one Host.")?,
            Field::ContentLength => {
                let value = content_length(header.value)?;
                set_once(&mut length, value, "There is more than one Content-Length.")?;
            }
            Field::TransferEncoding => {
                if is_chunked {
                    return Err(Refused::Malformed("There is more than one Transfer-Encoding."));
                }
                if !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::CodingNotImplemented);
                }
                is_chunked = true;
            }
            Field::Connection => connection.read(header.value),
            Field::Upgrade => upgrade = std::str::from_utf8(header.value).ok(),
            _ => {}
        }
    }
    let framing = match (is_chunked, length) {
        (true, Some(_)) => {
            return Err(Refused::Malformed(
                "There are both Content-Length and Transfer-Encoding.",
            ));
        }
        (true, None) if minor_version == 0 => {
            return Err(Refused::Malformed("HTTP/1.0 knows no Transfer-Encoding."));
        }
        (true, None) => Framing::chunked(),
        (false, Some(length)) => Framing::length(length),
        (false, None) => Framing::Done,
    };

    let host = match host {
        Some(host) => std::str::from_utf8(host).ok().filter(|host| is_host(host)),
        None if minor_version == 0 => Some(""),
        None => return Err(Refused::Malformed("There is no Host.")),
    };
    let host = host.ok_or(Refused::Malformed("The Host is not a host."))?;
    let (target, host) =
        origin_form(target, method).map(|(target, authority)| (target, authority.unwrap_or(host)))?;
    // An upgrade to HTTP/2 in the clear would go past every check that follows.
    let upgrade = upgrade.filter(|protocol| {
        connection.has_upgrade
            && minor_version == 1
            && is_upgrade(protocol)
            && !protocol.to_ascii_lowercase().contains("h2c")
    });
    Ok(RequestHead {
        method,
        target,
        host,
        minor_version,
        framing,
        keeps_alive: !connection.has_close && (minor_version == 1 || connection.has_keep_alive),
        upgrade,
        has_connection_names: connection.has_names,
        headers,
    })
}

/// Fields that say where a message goes or ends may not be said twice, not even alike.
fn set_once<T>(place: &mut Option<T>, value: T, twice: &'static str) -> Result<(), Refused> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refused::Malformed(twice)),
    }
}

/// What the `Connection` fields say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    pub has_close: bool,
    pub has_keep_alive: bool,
    pub has_upgrade: bool,
    pub has_names: bool,
}

impl Connection {
    pub fn read(&mut self, value: &[u8]) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.has_close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.has_keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.has_upgrade = true;
            } else {
                self.has_names = true;
            }
        }
    }
}

/// Whether one of the `Connection` fields names this one.
pub fn is_named_by_connection<'h>(
    name: &str,
    mut headers: impl Iterator<Item = (&'h str, &'h [u8])>,
) -> bool {
    headers.any(|(other, value)| {
        field(other) == Field::Connection
            && tokens(value).any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
    })
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(|token| token.trim_ascii())
        .filter(|token| !token.is_empty())
}

/// Digits only: `+5`, `5, 5` and `0x5` are read differently by different servers.
pub fn content_length(value: &[u8]) -> Result<u64, Refused> {
    const BAD: Refused = Refused::Malformed("The Content-Length is not a number.");
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(BAD)
}

fn is_host(host: &str) -> bool {
    host.len() <= 255
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(&byte))
}

fn is_upgrade(protocol: &str) -> bool {
    !protocol.is_empty() && protocol.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

/// `http://host/path`, as it is sent to proxies, says host and path in one.
fn origin_form<'b>(target: &'b str, method: &str) -> Result<(&'b str, Option<&'b str>), Refused> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((target, None));
    }
    const BAD: Refused = Refused::Malformed("The address is neither a path nor a URL.");
    let scheme_end = target.find("://").ok_or(BAD)?;
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(BAD);
    }
    let rest = &target[scheme_end + 3..];
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    if authority.is_empty() || !is_host(authority) {
        return Err(BAD);
    }
    match path {
        "" => Ok(("/", Some(authority))),
        path if path.starts_with('/') => Ok((path, Some(authority))),
        _ => Err(BAD),
    }
}

#[derive(Debug)]
pub struct ResponseHead<'s, 'b> {
    pub status: u16,
    pub reason: &'b str,
    pub framing: Framing,
    /// The backend will take another request on this connection.
    pub keeps_alive: bool,
    pub has_connection_names: bool,
    pub upgrade: Option<&'b str>,
    headers: &'s [httparse::Header<'b>],
}

impl<'b> ResponseHead<'_, 'b> {
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + Clone + '_ {
        self.headers.iter().map(|header| (header.name, header.value))
    }
}

/// `bytes` is exactly one head, as [`HeadScan`] found it.
pub fn parse_whole_response_head<'s, 'b>(
    bytes: &'b [u8],
    is_answer_to_head: bool,
    scratch: &'s mut Scratch<'b>,
) -> Result<ResponseHead<'s, 'b>, Refused> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, bytes, &mut scratch.0) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooManyHeaders),
        _ => return Err(Refused::Malformed("The response is not HTTP.")),
    }
    let (Some(status), Some(minor_version)) = (response.code, response.version) else {
        return Err(Refused::Malformed("The response is not HTTP."));
    };
    let reason = response.reason.unwrap_or("");
    let headers: &'s [httparse::Header<'b>] = response.headers;
    if !(100..=999).contains(&status) {
        return Err(Refused::Malformed("The response has no such status."));
    }
    let mut length = None;
    let mut is_chunked = false;
    let mut upgrade = None;
    let mut connection = Connection::default();
    for header in headers {
        match field(header.name) {
            Field::ContentLength => {
                let value = content_length(header.value)?;
                if length.replace(value).is_some_and(|other| other != value) {
                    return Err(Refused::Malformed("The response has two lengths."));
                }
            }
            Field::TransferEncoding => {
                if is_chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::CodingNotImplemented);
                }
                is_chunked = true;
            }
            Field::Connection => connection.read(header.value),
            Field::Upgrade => upgrade = std::str::from_utf8(header.value).ok(),
            _ => {}
        }
    }
    if is_chunked && length.is_some() {
        return Err(Refused::Malformed("The response has both a length and chunks."));
    }
    let has_no_body = is_answer_to_head || status < 200 || status == 204 || status == 304;
    let framing = match (is_chunked, length) {
        _ if has_no_body => Framing::Done,
        (true, _) => Framing::chunked(),
        (false, Some(length)) => Framing::length(length),
        (false, None) => Framing::UntilClose,
    };
    Ok(ResponseHead {
        status,
        reason,
        keeps_alive: !connection.has_close
            && (minor_version == 1 || connection.has_keep_alive)
            && !matches!(framing, Framing::UntilClose),
        framing,
        has_connection_names: connection.has_names,
        upgrade,
        headers,
    })
}
