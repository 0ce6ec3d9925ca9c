//! The parts of `script/bench-router` that are no Debian package: our router with a fixed table, a
//! backend, and clients that `wrk` cannot be.
//!
//! ```text
//! bench_router serve HTTP HTTPS THREADS LOG|- CERT KEY BACKEND...   our router
//! bench_router backend ADDR                                        answers 1 KiB to everything
//! bench_router certificate CERT KEY                                writes a certificate for localhost
//! bench_router idle ADDR COUNT                                     opens connections, prints "ready", waits for stdin to end
//! bench_router handshakes ADDR SECONDS CLIENTS                     prints full TLS handshakes per second
//! ```

use anyhow::Context;
use futures::future::BoxFuture;
use router::{CertificatePem, Config, Feed};
use routing::feed::{Acknowledgement, Backend, HttpRoute, Route, Service, Snapshot, Update};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", http, https, threads, log, cert, key, backends @ ..] => {
            let config = Config {
                http_listen: vec![http.parse()?],
                https_listen: vec![https.parse()?],
                worker_threads: threads.parse()?,
                access_log_directory: (*log != "-").then(|| log.into()),
                default_certificate: Some(CertificatePem {
                    cert: std::fs::read_to_string(cert)?,
                    key: std::fs::read_to_string(key)?,
                }),
                ..Config::default()
            };
            serve(config, backends)
        }
        ["backend", addr] => backend(addr.parse()?),
        ["certificate", cert, key] => certificate(cert, key),
        ["idle", addr, count] => idle(addr.parse()?, count.parse()?),
        ["handshakes", addr, seconds, clients] => {
            handshakes(addr.parse()?, seconds.parse()?, clients.parse()?)
        }
        _ => anyhow::bail!("which part? see the head of this file"),
    }
}

struct FixedFeed(Snapshot);

impl Feed for FixedFeed {
    fn run(
        self: Box<Self>,
        updates: mpsc::Sender<Update>,
        _: watch::Receiver<Acknowledgement>,
        _: watch::Sender<bool>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let _ = updates.send(Update::Snapshot(self.0)).await;
            updates.closed().await;
        })
    }
}

fn serve(config: Config, backends: &[&str]) -> anyhow::Result<()> {
    let backends = backends
        .iter()
        .enumerate()
        .map(|(n, addr)| {
            Ok(Backend {
                id: format!("b{n}"),
                addr: addr.parse()?,
                job_id: format!("job{n}"),
                job_type: "web".into(),
                healthy: true,
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let snapshot = Snapshot {
        generation: 1,
        routes: vec![Route::Http(HttpRoute {
            id: "all".into(),
            domain: "*".into(),
            path: "/".into(),
            port: 0,
            service: "bench-web".into(),
            sticky: false,
            leader: false,
            drain_backends: true,
            disable_keep_alives: false,
            certificate: None,
        })],
        services: vec![Service {
            name: "bench-web".into(),
            app_id: "bench".into(),
            app_name: "bench".into(),
            leader: None,
            response_timeout_ms: None,
            backends,
        }],
        ..Snapshot::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(router::run(
        config,
        Box::new(FixedFeed(snapshot)),
        std::future::pending(),
    ))
}

fn backend(addr: SocketAddr) -> anyhow::Result<()> {
    let body = "x".repeat(1024);
    let answer: Arc<str> = format!("HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n{body}").into();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(addr).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 8192];
                // A proxy sends a head in one piece, and waits for the answer.
                while matches!(stream.read(&mut bytes).await, Ok(count) if count > 0) {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

fn certificate(cert: &str, key: &str) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    std::fs::write(cert, made.cert.pem())?;
    std::fs::write(key, made.signing_key.serialize_pem())?;
    Ok(())
}

fn idle(addr: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut open = Vec::with_capacity(count);
    for n in 0..count {
        let mut stream = std::net::TcpStream::connect(addr).with_context(|| format!("connection {n}"))?;
        // Each has served a request and now waits for the next one.
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut bytes = [0; 4096];
        let mut seen = 0;
        while seen < 1024 {
            let got = stream.read(&mut bytes[seen..])?;
            anyhow::ensure!(got > 0, "closed after {seen} bytes");
            seen += got;
        }
        open.push(stream);
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Checking signatures would measure the client.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn handshakes(addr: SocketAddr, seconds: u64, clients: usize) -> anyhow::Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let count = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for _ in 0..clients {
            let (connector, count) = (connector.clone(), count.clone());
            tasks.push(tokio::spawn(async move {
                while begin.elapsed() < Duration::from_secs(seconds) {
                    let stream = TcpStream::connect(addr).await?;
                    // A reset at the end leaves no port waiting: thousands a second would use them up.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    let name = ServerName::try_from("localhost").expect("it is a name");
                    let mut stream = connector.connect(name, stream).await?;
                    stream
                        .write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        .await?;
                    // The handshake is what counts; of the answer, that there is one.
                    if stream.read(&mut [0; 2048]).await? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::io::Result::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        anyhow::Ok(())
    })?;
    println!(
        "{:.0}",
        count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
    );
    Ok(())
}
