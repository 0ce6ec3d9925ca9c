//! A controller with everything around it that a test needs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    Endpoint, Trust,
    host::{Assignment, HostReport, JobReport, ReportedState},
    logs::{LogSource, Message, Query},
};
use daemon::{Keys, Principal, Shutdown};
use futures::{StreamExt, stream::BoxStream};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::watch,
};
use types::{AppId, Exit};

pub const KEY: &str = "0123456789abcdef";
const INTERNAL_KEY: &str = "fedcba9876543210";

/// How long anything that a test waits for may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

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

pub struct World {
    pub address: std::net::SocketAddr,
    shutdown: Shutdown,
    /// While it is so, no job comes up.
    is_held: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {} {:?}", self.status, self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl World {
    pub async fn start() -> World {
        World::start_with_discovery(None).await
    }

    pub async fn start_with_discovery(discoverd: Option<Endpoint>) -> World {
        let directory = tempfile::tempdir().unwrap();
        let secrets = directory.path().join("secrets");
        let tls = daemon::Secrets::open(&secrets, "flynn.test").unwrap().tls;
        let store = controller::Store::open(store::Options::single(directory.path().join("raft")))
            .await
            .unwrap();
        let config = controller::Config {
            domain: "flynn.test".into(),
            http_port: 80,
            https_port: 443,
            keys: Keys::new([(KEY, Principal::User), (INTERNAL_KEY, Principal::Internal)]),
            internal_key: INTERNAL_KEY.into(),
            ca_cert: tls.ca_cert,
            cert: tls.cert,
            cert_key: tls.key,
            system_routes: vec![controller::SystemRoute {
                subdomain: "controller".into(),
                address: "127.0.0.1:1112".parse().unwrap(),
            }],
            logs: Arc::new(NoLogs),
            forget: vec![],
            discoverd,
            authority: daemon::secrets::Authority::new(&secrets),
            archive: None,
            layers: directory.path().join("layers"),
            stack: None,
            objects: None,
            forward: None,
            peers: None,
            membership: None,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        tokio::spawn(controller::Controller::new(store, config).run(listener, shutdown.clone()));
        World {
            address,
            shutdown,
            is_held: watch::Sender::new(false),
            _directory: directory,
        }
    }

    pub fn client(&self) -> api::Controller {
        self.client_with(KEY)
    }

    /// As a part of the platform.
    pub fn internal(&self) -> api::Controller {
        self.client_with(INTERNAL_KEY)
    }

    fn client_with(&self, key: &str) -> api::Controller {
        let endpoint = Endpoint {
            url: format!("http://{}", self.address),
            key: key.into(),
            trust: Trust::System,
        };
        api::Controller::new(&endpoint).unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[], Some(body.to_string())).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path, &[], Some(body.to_string())).await
    }

    /// The JSON of an answer that must be a success.
    pub async fn made(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Answer {
        let mut stream = self.send(method, path, headers, body).await;
        let (status, headers) = head(&mut stream).await;
        let mut body = vec![];
        match headers.get("content-length") {
            Some(length) => {
                body.resize(length.parse().unwrap(), 0);
                stream.read_exact(&mut body).await.unwrap();
            }
            None if headers.contains_key("transfer-encoding") => {
                while let Some(chunk) = chunk(&mut stream).await {
                    body.extend(chunk);
                }
            }
            None => {
                stream.read_to_end(&mut body).await.unwrap();
            }
        }
        Answer {
            status,
            headers,
            body,
        }
    }

    /// Begins a request, and leaves what is answered to be read.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let key = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!(":{KEY}"));
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: controller\r\nAuthorization: Basic {key}\r\nConnection: close\r\n"
        );
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &body {
            if !headers.iter().any(|(name, _)| *name == "Content-Type") {
                text.push_str("Content-Type: application/json\r\n");
            }
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&body.unwrap_or_default());
        // A refused body may break off while it is sent; the answer says why.
        let _ = stream.write_all(text.as_bytes()).await;
        BufReader::new(stream)
    }

    /// Follows events by their raw stream.
    pub async fn events(&self, query: &str, last_id: u64) -> Events {
        self.follow(&format!("/events?{query}"), last_id).await
    }

    pub async fn stream(&self, path: &str) -> Events {
        self.follow(path, 0).await
    }

    async fn follow(&self, path: &str, last_id: u64) -> Events {
        let id = last_id.to_string();
        let headers = [("Accept", "text/event-stream"), ("Last-Event-Id", id.as_str())];
        let mut stream = self.send("GET", path, &headers, None).await;
        let (status, _) = head(&mut stream).await;
        assert_eq!(status, 200);
        Events {
            stream,
            parser: api::sse::Parser::default(),
        }
    }

    /// The newest event of a type, once there is one that fits.
    pub async fn event(&self, object_type: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut events = self
            .events(&format!("past=true&object_types={object_type}"), 0)
            .await;
        loop {
            let event = events.next().await.expect("the stream goes on");
            if fits(&event) {
                return event;
            }
        }
    }

    pub async fn app(&self, name: &str) -> Value {
        self.made("/apps", json!({ "name": name })).await
    }

    /// A release of `app` with an image of its own, made by git.
    pub async fn release(&self, app: &str, image: &str) -> Value {
        let artifact = self
            .made(
                "/artifacts",
                json!({
                    "type": "flynn", "uri": format!("flynn://slug/{image}"), "meta": { "blobstore": "true" },
                    "manifest": { "rootfs": [{ "layers": [{ "id": image }] }] },
                }),
            )
            .await;
        let app = self.get(&format!("/apps/{app}")).await.json();
        self.made(
            "/releases",
            json!({
                "app_id": app["id"], "artifacts": [artifact["id"]], "meta": { "git": "true" },
                "processes": { "web": { "args": ["/bin/web"], "ports": [{ "port": 8080, "proto": "tcp" }] } },
            }),
        )
        .await
    }

    pub async fn deploy(&self, app: &str, release: &Value) -> Value {
        let path = format!("/apps/{app}/deploy");
        self.made(&path, json!({ "id": release["id"] })).await
    }

    /// An app with one web job that is up.
    pub async fn running_app(&self, name: &str) -> Value {
        self.app(name).await;
        let release = self.release(name, &format!("{name}-1")).await;
        self.deploy(name, &release).await;
        let path = format!("/apps/{name}/scale/{}", text(&release["id"]));
        let scaled = self.put(&path, json!({ "new_processes": { "web": 1 } })).await;
        assert_eq!(scaled.status, 200, "{}", scaled.text());
        self.wait_for("a job to be up", async || {
            let jobs = self.get(&format!("/apps/{name}/jobs")).await.json();
            jobs.as_array().unwrap().iter().any(|job| job["state"] == "up")
        })
        .await;
        release
    }

    pub async fn wait_for(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let waited = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waited).await;
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    /// Keeps a deployment under way: what the host is told to start does not come up until it is let go.
    pub fn hold(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }

    /// A host that starts and stops what it is told. Jobs of `broken` releases end at once.
    pub fn host(&self, broken: fn(&str) -> bool) {
        let client = self.client_with(INTERNAL_KEY);
        let shutdown = self.shutdown.clone();
        let mut is_held = self.is_held.subscribe();
        let host: types::HostId = "host0".parse().unwrap();
        let report = HostReport {
            addr: "127.0.0.1:1".into(),
            tags: BTreeMap::new(),
            memory_bytes: 64 << 30,
            cpu_milli: 64_000,
            gateway: None,
            subnet: None,
            underlay: None,
            public_key: None,
            public_addresses: vec![],
            version: "v1".into(),
            started_at: daemon::now(),
        };
        let (alive, name) = (client.clone(), host.clone());
        let beat = async move {
            loop {
                let _ = alive.report_host(&name, &report).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        let work = async move {
            loop {
                let Ok(mut stream) = client.assignments(&host).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                while let Some(Ok(assignment)) = stream.next().await {
                    let (job, state) = match assignment {
                        Assignment::Run { job } if broken(&job.mountspecs[0].id) => {
                            (job_id(&job.id), ReportedState::Down { exit: Exit::Code(1) })
                        }
                        Assignment::Run { job } => {
                            if is_held.wait_for(|is_held| !is_held).await.is_err() {
                                return;
                            }
                            (job_id(&job.id), ReportedState::Up)
                        }
                        Assignment::Stop { job } => (
                            job,
                            ReportedState::Down {
                                exit: Exit::Signal(15),
                            },
                        ),
                        _ => continue,
                    };
                    let report = JobReport {
                        state,
                        ipv6: None,
                        address: Some([127, 0, 0, 2].into()),
                        at: daemon::now(),
                    };
                    let _ = client.report_job(&host, job, &report).await;
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = beat => {}
                _ = work => {}
                _ = shutdown.cancelled() => {}
            }
        });
    }
}

fn job_id(reference: &str) -> types::JobId {
    reference.parse::<types::JobRef>().unwrap().job
}

/// The id of a job's row, for tests that make one.
pub fn new_id() -> String {
    types::Uuid::new_v4().to_string()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

pub struct Events {
    stream: BufReader<TcpStream>,
    parser: api::sse::Parser,
}

impl Events {
    /// The next event; nothing when the stream has ended. An error of the stream is `{"error": …}`.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            match self.parser.next_message().unwrap() {
                Some(api::sse::Message::Data(data)) => return Some(serde_json::from_slice(&data).unwrap()),
                Some(api::sse::Message::Error(error)) => return Some(json!({ "error": error })),
                None => {}
            }
            let chunk = tokio::time::timeout(PATIENCE, chunk(&mut self.stream)).await;
            self.parser.push(&chunk.expect("waited in vain for an event")?);
        }
    }
}

async fn head(stream: &mut BufReader<TcpStream>) -> (u16, BTreeMap<String, String>) {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {line:?}"));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return (status, headers);
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

async fn chunk(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let length = usize::from_str_radix(line.trim_end(), 16).ok()?;
    let mut bytes = vec![0; length + 2];
    stream.read_exact(&mut bytes).await.ok()?;
    bytes.truncate(length);
    (length > 0).then_some(bytes)
}
