//! TLS, certificates by name, and HTTP/2.

mod common;

use bytes::Bytes;
use common::*;
use router::{CertificatePem, Config};
use routing::feed::{Certificate, Route, Snapshot};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let root = CertificateDer::from_pem_slice(root.pem().as_bytes()).unwrap();
        Authority {
            issuer: rcgen::Issuer::new(params, key),
            root,
        }
    }

    fn issue(&self, name: &str) -> CertificatePem {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.to_string()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        CertificatePem {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

async fn connect(
    addr: SocketAddr,
    name: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(name.to_string()).unwrap();
    tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
}

fn with_tls(authority: &Authority) -> Config {
    Config {
        https_listen: vec![([127, 0, 0, 1], 0).into()],
        default_certificate: Some(authority.issue("default.test")),
        ..config()
    }
}

#[tokio::test]
async fn each_name_gets_its_certificate() {
    let authority = Authority::new();
    let mut world = World::start(with_tls(&authority)).await;
    let https = world.running.https[0];
    let row = |id: &str, domains: &[&str], pem: CertificatePem| Certificate {
        id: id.into(),
        domains: domains.iter().map(|name| name.to_string()).collect(),
        cert: pem.cert,
        key: pem.key,
    };
    let mut shop = route("shop.test", "/", "s");
    shop.certificate = Some("shop".into());
    let snapshot = Snapshot {
        routes: vec![Route::Http(shop), Route::Http(route("*", "/", "s"))],
        services: vec![service("s", &[echo().await])],
        certificates: vec![
            row("shop", &[], authority.issue("shop.test")),
            row("wild", &["*.wild.test"], authority.issue("*.wild.test")),
            row(
                "broken",
                &["broken.test"],
                CertificatePem {
                    cert: "x".into(),
                    key: "y".into(),
                },
            ),
        ],
        ..Snapshot::default()
    };
    world.snapshot(snapshot).await;
    // The client verifies the name, so a connection is the proof.
    for name in ["shop.test", "a.wild.test", "default.test"] {
        let mut stream = connect(https, name, authority.client(&["http/1.1"]))
            .await
            .unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("X-Forwarded-Proto: https\r\n"), "{answer}");
        assert!(
            answer.contains(&format!("X-Forwarded-Port: {}\r\n", https.port())),
            "{answer}"
        );
    }
    for name in ["broken.test", "other.test"] {
        assert!(
            connect(https, name, authority.client(&[])).await.is_err(),
            "{name} has the default certificate"
        );
    }
}

#[tokio::test]
async fn a_session_is_resumed_by_its_ticket() {
    let authority = Authority::new();
    let mut world = World::start(with_tls(&authority)).await;
    world
        .set(
            vec![route("*", "/", "s")],
            vec![service("s", &[saying("hi").await])],
        )
        .await;
    let client = authority.client(&["http/1.1"]);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(world.running.https[0], "default.test", client.clone())
            .await
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: default.test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds[0], rustls::HandshakeKind::Full);
    assert_eq!(kinds[1..], [rustls::HandshakeKind::Resumed; 2]);
}

type Http2 = h2::client::SendRequest<Bytes>;

async fn http2(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) -> Http2 {
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn ask(client: &Http2, request: http::Request<()>, body: &[u8]) -> (http::response::Parts, Vec<u8>) {
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut send) = client.send_request(request, body.is_empty()).unwrap();
    let mut rest = Bytes::copy_from_slice(body);
    let sending = async {
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx))
                .await
                .unwrap()
                .unwrap();
            let part = rest.split_to(capacity.min(rest.len()));
            send.send_data(part, rest.is_empty()).unwrap();
        }
    };
    let receiving = async {
        let (parts, mut body) = response.await.unwrap().into_parts();
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            all.extend_from_slice(&data);
        }
        (parts, all)
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(sending, receiving).1 })
        .await
        .expect("in time")
}

fn get(url: &str) -> http::Request<()> {
    http::Request::get(url).body(()).unwrap()
}

#[tokio::test]
async fn http2_over_tls_reaches_the_app_as_http1() {
    let authority = Authority::new();
    let mut world = World::start(with_tls(&authority)).await;
    world
        .set(
            vec![route("default.test", "/", "s")],
            vec![service("s", &[echo().await])],
        )
        .await;
    let stream = connect(
        world.running.https[0],
        "default.test",
        authority.client(&["h2", "http/1.1"]),
    )
    .await
    .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let client = http2(stream).await;
    let mut request = get("https://default.test/a?b");
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (parts, body) = ask(&client, request, b"").await;
    let seen = String::from_utf8(body).unwrap();
    assert_eq!(parts.status, 200);
    assert!(
        seen.starts_with("GET /a?b HTTP/1.1\r\nHost: default.test\r\n"),
        "{seen}"
    );
    assert!(seen.contains("Cookie: a=1; b=2\r\n"), "{seen}");
    assert!(seen.contains("X-Forwarded-Proto: https\r\n"), "{seen}");
    let (parts, body) = ask(&client, get("https://nope.test/"), b"").await;
    assert_eq!(parts.status, 404);
    assert!(String::from_utf8(body).unwrap().contains("nope.test"));
}

#[tokio::test]
async fn http2_without_asking_carries_many_streams_and_big_bodies() {
    let world = World::shop(config(), &[echo().await, echo().await]).await;
    let client = http2(TcpStream::connect(world.http).await.unwrap()).await;
    let mut all = Vec::new();
    for n in 0..50usize {
        let client = client.clone();
        all.push(tokio::spawn(async move {
            let body = vec![b'a' + (n % 26) as u8; n * 20_000];
            let request = http::Request::post(format!("http://shop.test/{n}"))
                .body(())
                .unwrap();
            let (parts, answer) = ask(&client, request, &body).await;
            assert_eq!(parts.status, 200);
            assert!(answer.ends_with(&body), "{n}");
            assert!(answer.starts_with(format!("POST /{n} ").as_bytes()));
        }));
    }
    for one in all {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn chunked_and_endless_responses_become_http2_data() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    ] {
        let addr = backend(move |mut stream| async move {
            let _ = read_message(&mut stream, false).await;
            stream.get_mut().write_all(answer).await.unwrap();
        })
        .await;
        let world = World::shop(config(), &[addr]).await;
        let client = http2(TcpStream::connect(world.http).await.unwrap()).await;
        let (parts, body) = ask(&client, get("http://shop.test/"), b"").await;
        assert_eq!((parts.status.as_u16(), body.as_slice()), (200, &b"abcde"[..]));
        assert!(parts.headers.get("transfer-encoding").is_none());
    }
}

#[tokio::test]
async fn http2_failures_have_their_pages_too() {
    let broken = backend(|mut stream| async move {
        let _ = read_message(&mut stream, false).await;
    })
    .await;
    for (backends, status) in [(vec![], 503), (vec![nobody().await], 503), (vec![broken], 502)] {
        let world = World::shop(config(), &backends).await;
        let client = http2(TcpStream::connect(world.http).await.unwrap()).await;
        let (parts, _) = ask(&client, get("http://shop.test/"), b"").await;
        assert_eq!(parts.status, status);
    }
    let world = World::shop(config(), &[nobody().await, saying("alive").await]).await;
    let client = http2(TcpStream::connect(world.http).await.unwrap()).await;
    for _ in 0..10 {
        assert_eq!(ask(&client, get("http://shop.test/"), b"").await.1, b"alive");
    }
}
