//! A controller on a port of its own, with a host and a resource provider that only pretend.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{
    Endpoint, Trust,
    host::{Assignment, HostReport, JobReport, ReportedState},
    logs::{LogSource, Message, Query},
};
use axum::{Json, Router, extract::Request, routing::any};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use daemon::{Keys, Principal, Shutdown};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use types::{AppId, Exit, HostId};

pub const DOMAIN: &str = "flynn.test";
pub const KEY: &str = "0123456789abcdef0123456789abcdef";
const INTERNAL_KEY: &str = "fedcba9876543210fedcba9876543210";

/// An answer that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Server {
    pub address: SocketAddr,
    pub provider: SocketAddr,
    pub certificate: (String, String),
    client: Client<HttpConnector, Full<Bytes>>,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get("content-type")?.to_str().ok()
    }

    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Server {
    pub async fn start() -> Server {
        let directory = tempfile::tempdir().expect("a directory can be made");
        daemon::Secrets::open(&directory.path().join("secrets"), DOMAIN).expect("an authority is made");
        let store = controller::Store::open(store::Options::single(directory.path().join("raft")))
            .await
            .expect("an empty store opens");
        let certified =
            rcgen::generate_simple_self_signed(vec![format!("tls.{DOMAIN}")]).expect("a certificate");
        let certificate = (certified.cert.pem(), certified.signing_key.serialize_pem());
        let config = controller::Config {
            domain: DOMAIN.into(),
            http_port: 80,
            https_port: 443,
            keys: Keys::new([(KEY, Principal::User), (INTERNAL_KEY, Principal::Internal)]),
            internal_key: INTERNAL_KEY.into(),
            ca_cert: certificate.0.clone(),
            cert: certificate.0.clone(),
            cert_key: certificate.1.clone(),
            system_routes: vec![],
            logs: Arc::new(NoLogs),
            forget: vec![],
            discoverd: None,
            authority: daemon::secrets::Authority::new(&directory.path().join("secrets")),
            archive: None,
            layers: directory.path().join("layers"),
            stack: None,
            objects: None,
            forward: None,
            peers: None,
            membership: None,
        };
        let shutdown = Shutdown::new();
        let listener = daemon::server::listen(([127, 0, 0, 1], 0).into())
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(controller::Controller::new(store, config).run(listener, shutdown.clone()));
        let endpoint = Endpoint {
            url: format!("http://{address}"),
            key: INTERNAL_KEY.into(),
            trust: Trust::System,
        };
        let controller = api::Controller::new(&endpoint).expect("the address is one");
        let started_at = daemon::now();
        controller
            .report_host(&host(), &report(started_at))
            .await
            .expect("the controller takes it");
        tokio::spawn(stay_heard(controller.clone(), started_at));
        tokio::spawn(run_jobs(controller));
        Server {
            address,
            provider: provide(shutdown.clone()).await,
            certificate,
            // A connection for each request: the server closes one whose body it had no use for, and a
            // client that is about to use it again would see that as a request without an answer.
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build_http(),
            shutdown,
            _directory: directory,
        }
    }

    /// One request with the users' key, and its whole answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Answer {
        let request = self
            .request(method, path)
            .header("content-type", "application/json");
        let body = body.map(ToString::to_string).unwrap_or_default();
        self.send(request.body(Full::from(body)).expect("a request"))
            .await
    }

    /// A request with the users' key, to be completed.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        let key = BASE64_STANDARD.encode(format!(":{KEY}"));
        http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Basic {key}"))
    }

    pub async fn send(&self, request: http::Request<Full<Bytes>>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        tokio::time::timeout(PATIENCE, async {
            let response = self.open(request).await;
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("the body comes whole").to_bytes();
            Answer {
                status: head.status,
                headers: head.headers,
                body,
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{what} hangs"))
    }

    /// The head of an answer whose body goes on.
    pub async fn open(&self, request: http::Request<Full<Bytes>>) -> http::Response<hyper::body::Incoming> {
        let what = format!("{} {}", request.method(), request.uri());
        tokio::time::timeout(PATIENCE, self.client.request(request))
            .await
            .unwrap_or_else(|_| panic!("{what} hangs"))
            .unwrap_or_else(|error| panic!("{what} has no answer: {error:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct NoLogs;

#[async_trait::async_trait]
impl LogSource for NoLogs {
    async fn query(&self, _: AppId, _: Query) -> Result<BoxStream<'static, Message>, api::Error> {
        Ok(futures::stream::empty().boxed())
    }

    async fn forget(&self, _: AppId) -> Result<(), api::Error> {
        Ok(())
    }
}

fn host() -> HostId {
    "host0".parse().expect("a host's id")
}

fn report(started_at: types::Timestamp) -> HostReport {
    HostReport {
        addr: "127.0.0.1:1".into(),
        tags: Default::default(),
        memory_bytes: 64 << 30,
        cpu_milli: 64_000,
        gateway: None,
        subnet: None,
        underlay: None,
        public_key: None,
        public_addresses: vec![],
        version: api::VERSION.into(),
        started_at,
    }
}

async fn stay_heard(controller: api::Controller, started_at: types::Timestamp) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = controller.report_host(&host(), &report(started_at)).await;
    }
}

/// Every job is up as soon as it is to run, and ends well as soon as it is to stop.
async fn run_jobs(controller: api::Controller) {
    let mut assignments = controller.assignments(&host()).await.expect("a stream");
    while let Some(Ok(assignment)) = assignments.next().await {
        let (job, states) = match assignment {
            Assignment::Run { job } => (
                job.job_id().expect("it has one"),
                vec![ReportedState::Starting, ReportedState::Up],
            ),
            Assignment::Stop { job } => (job, vec![ReportedState::Down { exit: Exit::Code(0) }]),
            _ => continue,
        };
        for state in states {
            let report = JobReport {
                state,
                ipv6: None,
                address: Some([100, 100, 0, 2].into()),
                at: daemon::now(),
            };
            // A job may be gone by now.
            let _ = controller.report_job(&host(), job, &report).await;
        }
    }
}

/// A provider of resources that has always the same one to give.
async fn provide(shutdown: Shutdown) -> SocketAddr {
    let answer = async |request: Request| match request.method().as_str() {
        "POST" => Json(serde_json::json!({
            "id": "/databases/u:d",
            "env": {"DATABASE_URL": "pg://u@h/d", "PGHOST": "leader.postgres.discoverd"},
        })),
        _ => Json(serde_json::json!({})),
    };
    let listener = daemon::server::listen(([127, 0, 0, 1], 0).into())
        .await
        .expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let router = Router::new().fallback(any(answer));
    tokio::spawn(daemon::server::serve(listener, router, shutdown));
    address
}
