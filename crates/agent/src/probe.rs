//! Asks a job whether it is healthy, from the host and straight at the job's address.
//!
//! The answer comes from an app, which may be broken or malicious: everything is limited in time
//! and size.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::health::{Check, Probe};

/// The state of a socket that takes connections, as the kernel shows it.
const LISTEN: &str = "0A";

/// As much of an answer is looked at for the bytes that it should contain.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody took the connection.
    NotOpen,
    /// Somebody did, and the answer was not the one wanted: what it was.
    Answer(String),
}

pub async fn probe(address: Ipv4Addr, check: &Check) -> Result<(), Failure> {
    let target = SocketAddr::new(address.into(), check.port);
    let connect = tokio::time::timeout(check.timeout, TcpStream::connect(target)).await;
    let stream = match connect {
        Ok(Ok(stream)) => stream,
        _ => return Err(Failure::NotOpen),
    };
    let Probe::Http {
        path,
        host,
        matches,
        status,
    } = &check.probe
    else {
        return Ok(());
    };
    let host = if host.is_empty() {
        target.to_string()
    } else {
        host.clone()
    };
    match tokio::time::timeout(check.timeout, ask(stream, path, &host, matches, *status)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) => Err(Failure::Answer(text)),
        Err(_) => Err(Failure::Answer(format!(
            "GET {path} was not answered within {} ms",
            check.timeout.as_millis()
        ))),
    }
}

async fn ask(stream: TcpStream, path: &str, host: &str, matches: &str, status: u16) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("GET {path}: {error}");
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "flynn-health/1")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(BODY_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        let got = response.status().as_u16();
        if got != status {
            return Err(format!("GET {path} answered {got} instead of {status}"));
        }
        if matches.is_empty() {
            return Ok(());
        }
        let body = read_some(response.into_body())
            .await
            .map_err(|error| failed(&error))?;
        let needle = matches.as_bytes();
        if body.windows(needle.len()).any(|window| window == needle) {
            Ok(())
        } else {
            Err(format!("the answer to GET {path} does not contain {matches:?}"))
        }
    };
    // Both in this task: when the check is given up, the connection goes with it.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}

async fn read_some(body: hyper::body::Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut body = Limited::new(body, BODY_BYTES_MAX);
    let mut bytes = Vec::new();
    // An answer that goes on beyond the limit is judged by what came before it.
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// What the processes of a container listen on, as the kernel shows it for their network.
pub fn listening(pid: u32) -> io::Result<Vec<Listening>> {
    let mut all = parse(&std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?);
    if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")) {
        all.extend(parse(&text));
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// The ports on which a container takes connections to its IPv6 address.
pub fn ports_of_ipv6(pid: u32, address: Ipv6Addr) -> io::Result<BTreeSet<u16>> {
    Ok(parse_ipv6(
        &std::fs::read_to_string(format!("/proc/{pid}/net/tcp6"))?,
        address,
    ))
}

/// Those on all addresses, and on this one: a socket for IPv4 alone may be in that list too, as `::ffff:0.0.0.0`.
fn parse_ipv6(text: &str, address: Ipv6Addr) -> BTreeSet<u16> {
    let words = |address: Ipv6Addr| -> String {
        let word = |bytes: &[u8]| {
            let word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
            format!("{word:08X}")
        };
        address.octets().chunks(4).map(word).collect()
    };
    let wanted = [Ipv6Addr::UNSPECIFIED, address].map(words);
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (own, port) = fields.nth(1)?.split_once(':')?;
        (fields.nth(1)? == LISTEN && wanted.iter().any(|wanted| wanted == own)).then_some(())?;
        u16::from_str_radix(port, 16).ok()
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    pub port: u16,
    pub is_loopback: bool,
}

/// `/proc/net/tcp` and `tcp6`: addresses are hexadecimal, in words of four bytes in the machine's order.
fn parse(text: &str) -> Vec<Listening> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        (fields.nth(1)? == LISTEN).then_some(())?;
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let is_loopback = match address.len() {
            8 => u32::from_str_radix(address, 16).ok()?.to_ne_bytes()[0] == 127,
            // ::1, and 127.0.0.0/8 written as ::ffff:127.x.y.z.
            _ => {
                address == "00000000000000000000000001000000"
                    || (address.starts_with("0000000000000000FFFF0000")
                        && u32::from_str_radix(address.get(24..)?, 16).ok()?.to_ne_bytes()[0] == 127)
            }
        };
        Some(Listening { port, is_loopback })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Why a job was given up, for its owner: what was waited for, and what it does instead.
pub fn reason(check: &Check, failure: &Failure, listening: &[Listening], waited_s: u64) -> String {
    let port = check.port;
    if let (Failure::Answer(text), Probe::Command { .. }) = (failure, &check.probe) {
        return format!("its image's health check did not succeed within {waited_s} s: {text}");
    }
    if let Failure::Answer(text) = failure {
        return format!("port {port} is open, but it did not become healthy within {waited_s} s: {text}");
    }
    let missed = format!("did not open port {port} within {waited_s} s");
    let on_port: Vec<&Listening> = listening.iter().filter(|entry| entry.port == port).collect();
    if !on_port.is_empty() && on_port.iter().all(|entry| entry.is_loopback) {
        return format!("{missed}: it listens on 127.0.0.1:{port} only; listen on 0.0.0.0");
    }
    let others: Vec<String> = listening
        .iter()
        .filter(|entry| entry.port != port)
        .take(5)
        .map(|entry| entry.port.to_string())
        .collect();
    match others.as_slice() {
        [] => missed,
        ports => format!(
            "{missed}: it listens on port {} instead; listen on $PORT",
            ports.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    fn check(port: u16, probe: Probe) -> Check {
        Check {
            port,
            probe,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            threshold: 2,
            kill_after: None,
        }
    }

    fn http(matches: &str) -> Probe {
        Probe::Http {
            path: "/up".into(),
            host: "shop".into(),
            matches: matches.into(),
            status: 200,
        }
    }

    /// A server that gives one answer to everything, and the result of asking it.
    async fn asked(probe_: Probe, answer: &'static [u8]) -> (Result<(), Failure>, String) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let check = check(listener.local_addr().unwrap().port(), probe_);
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            let _ = stream.write_all(answer).await;
            head.truncate(count);
            String::from_utf8(head).unwrap()
        };
        tokio::join!(probe(Ipv4Addr::LOCALHOST, &check), serve)
    }

    #[tokio::test]
    async fn an_http_check_wants_its_status_and_its_bytes() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nall set";
        let (result, request) = asked(http("set"), ok).await;
        assert_eq!(result, Ok(()));
        assert!(
            request.starts_with("GET /up HTTP/1.1\r\nhost: shop\r\n"),
            "{request}"
        );
        let (result, _) = asked(http("gone"), ok).await;
        assert_eq!(
            result,
            Err(Failure::Answer(
                "the answer to GET /up does not contain \"gone\"".into()
            ))
        );
        let (result, _) = asked(http(""), b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            result,
            Err(Failure::Answer("GET /up answered 503 instead of 200".into()))
        );
        let (result, _) = asked(http(""), b"nonsense").await;
        assert!(matches!(result, Err(Failure::Answer(_))));
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_not_open() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert_eq!(
            probe(Ipv4Addr::LOCALHOST, &check(free, Probe::Tcp)).await,
            Err(Failure::NotOpen)
        );
    }

    #[test]
    fn listeners_are_read_as_the_kernel_shows_them() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                    0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
                    2: 0100007F:0BB9 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0\n";
        let six = "h\n0: 00000000000000000000000001000000:0050 0:0 0A x\n1: 00000000000000000000000000000000:0051 0:0 0A x\n";
        let listening = |port, is_loopback| Listening { port, is_loopback };
        assert_eq!(parse(text), [listening(8080, true), listening(3000, false)]);
        assert_eq!(parse(six), [listening(80, true), listening(81, false)]);
    }

    #[test]
    fn only_what_takes_connections_by_ipv6_is_found() {
        let text = "h\n0: 00000000000000000000000001000000:0050 0:0 0A x\n\
                    1: 00000000000000000000000000000000:1F90 0:0 0A x\n\
                    2: 0000000000000000FFFF000000000000:1F91 0:0 0A x\n\
                    3: 563412FD00009A780000000002006464:1F92 0:0 0A x\n\
                    4: 00000000000000000000000000000000:1F93 0:0 01 x\n";
        let own = "fd12:3456:789a::6464:2".parse().unwrap();
        assert_eq!(parse_ipv6(text, own), [8080, 8082].into());
        assert_eq!(
            parse_ipv6(text, "fd12:3456:789a::6464:3".parse().unwrap()),
            [8080].into()
        );
    }

    #[test]
    fn the_usual_mistakes_are_named() {
        let check = check(8080, Probe::Tcp);
        let say = |listening: &[(u16, bool)]| {
            let listening: Vec<Listening> = listening
                .iter()
                .map(|(port, is_loopback)| Listening {
                    port: *port,
                    is_loopback: *is_loopback,
                })
                .collect();
            reason(&check, &Failure::NotOpen, &listening, 30)
        };
        assert_eq!(say(&[]), "did not open port 8080 within 30 s");
        assert_eq!(
            say(&[(8080, true)]),
            "did not open port 8080 within 30 s: it listens on 127.0.0.1:8080 only; listen on 0.0.0.0"
        );
        assert_eq!(
            say(&[(3000, false)]),
            "did not open port 8080 within 30 s: it listens on port 3000 instead; listen on $PORT"
        );
    }
}
