//! What the router is told at its start. Everything else comes through the feed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Config {
    /// Names this router to the controller.
    pub router_id: String,
    pub http_listen: Vec<SocketAddr>,
    pub https_listen: Vec<SocketAddr>,
    /// The address on which the ports of TCP routes, and additional HTTP ports, are opened.
    pub tcp_bind_ip: IpAddr,
    /// Where the last table is kept. Holds private keys; written readable by its owner only.
    pub state_file: Option<PathBuf>,
    /// Access lines go to `<directory>/<app id>/router.log`. `None`: no access log.
    pub access_log_directory: Option<PathBuf>,
    /// For names that no certificate of the table covers.
    pub default_certificate: Option<CertificatePem>,
    /// 0: one per core.
    pub worker_threads: usize,
    pub timeouts: Timeouts,
    pub limits: Limits,
}

#[derive(Clone)]
pub struct CertificatePem {
    pub cert: String,
    pub key: String,
}

impl std::fmt::Debug for CertificatePem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificatePem(..)")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            router_id: "router".into(),
            http_listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80))],
            https_listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 443))],
            tcp_bind_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            state_file: None,
            access_log_directory: None,
            default_certificate: None,
            worker_threads: 0,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head; also for the TLS handshake.
    pub head: Duration,
    /// A client connection without a request.
    pub idle: Duration,
    /// A client that neither reads its response nor sends the body that it announced.
    pub stall: Duration,
    /// For a connection to a backend, where no other one could take the request.
    pub connect: Duration,
    /// The same where another one could: a host that is gone refuses nothing, it is just not heard of.
    pub connect_first: Duration,
    /// Until the head of the response; a service may say otherwise. Heroku's 30 seconds, which apps
    /// are written for.
    pub response: Duration,
    /// A kept connection to a backend. Below the 5 seconds after which Node.js closes one, so that
    /// requests seldom meet a connection that is just being closed.
    pub backend_idle: Duration,
    /// At the start, for a newer table than the one on disk, while connections queue. A controller that
    /// is out of reach is not waited for.
    pub first_table: Duration,
    /// After a planned stop, for requests still running.
    pub drain: Duration,
    /// After a planned stop, for client connections without a request: who sends one within it is
    /// answered and told that it was the last. Ending them at once would cut off requests on their way.
    pub drain_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            connect_first: Duration::from_secs(1),
            response: Duration::from_secs(30),
            backend_idle: Duration::from_secs(4),
            first_table: Duration::from_secs(3),
            drain: Duration::from_secs(30),
            drain_idle: Duration::from_secs(3),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub head_bytes: usize,
    pub headers: usize,
    pub target_bytes: usize,
    /// Kept connections per backend and thread.
    pub idle_per_backend: usize,
    /// Client connections in all. 0: three quarters of the limit on open files.
    pub connections: usize,
    /// Of one HTTP/2 connection.
    pub http2_streams: u32,
    /// Size at which an access log file is put aside; one older file is kept.
    pub access_log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 64 * 1024,
            headers: 100,
            target_bytes: 16 * 1024,
            idle_per_backend: 512,
            connections: 0,
            http2_streams: 128,
            access_log_bytes: 16 * 1024 * 1024,
        }
    }
}
