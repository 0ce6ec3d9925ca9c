//! A router on loopback with a feed that the test holds in its hand, and small backends.
#![allow(dead_code)]

use futures::future::BoxFuture;
use router::{Config, Feed, Limits, Running, Timeouts};
use routing::feed::{Acknowledgement, Backend, HttpRoute, Route, Service, Snapshot, TcpRoute, Update};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Everything here is over in milliseconds; this only ends a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct HandFeed {
    updates: mpsc::Receiver<Update>,
    acknowledgements: watch::Sender<Acknowledgement>,
}

impl Feed for HandFeed {
    fn run(
        mut self: Box<Self>,
        updates: mpsc::Sender<Update>,
        mut acknowledgements: watch::Receiver<Acknowledgement>,
        _: watch::Sender<bool>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                tokio::select! {
                    update = self.updates.recv() => match update {
                        Some(update) => updates.send(update).await.unwrap(),
                        None => return,
                    },
                    _ = acknowledgements.changed() => {
                        self.acknowledgements.send_replace(acknowledgements.borrow_and_update().clone());
                    }
                }
            }
        })
    }
}

pub struct World {
    pub running: Running,
    pub http: SocketAddr,
    updates: mpsc::Sender<Update>,
    acknowledgements: watch::Receiver<Acknowledgement>,
    generation: u64,
}

pub fn config() -> Config {
    Config {
        http_listen: vec![([127, 0, 0, 1], 0).into()],
        https_listen: vec![],
        tcp_bind_ip: [127, 0, 0, 1].into(),
        worker_threads: 2,
        timeouts: Timeouts {
            drain: Duration::from_secs(5),
            drain_idle: Duration::from_millis(100),
            first_table: Duration::ZERO,
            ..Timeouts::default()
        },
        limits: Limits::default(),
        ..Config::default()
    }
}

impl World {
    pub async fn start(config: Config) -> World {
        let sockets = router::Sockets::open(&config).unwrap();
        World::start_on(sockets, config).await
    }

    pub async fn start_on(sockets: router::Sockets, config: Config) -> World {
        let (updates, incoming) = mpsc::channel(16);
        let (sender, acknowledgements) = watch::channel(Acknowledgement::default());
        let feed = HandFeed {
            updates: incoming,
            acknowledgements: sender,
        };
        let running = router::start_on(sockets, config, Box::new(feed)).unwrap();
        let http = running.http[0];
        World {
            running,
            http,
            updates,
            acknowledgements,
            generation: 0,
        }
    }

    /// One app `shop` at `shop.test` on these backends.
    pub async fn shop(config: Config, backends: &[SocketAddr]) -> World {
        let mut world = World::start(config).await;
        world
            .set(
                vec![route("shop.test", "/", "shop-web")],
                vec![service("shop-web", backends)],
            )
            .await;
        world
    }

    /// Replaces everything and waits until it is in use.
    pub async fn set(&mut self, routes: Vec<HttpRoute>, services: Vec<Service>) {
        let routes = routes.into_iter().map(Route::Http).collect();
        self.snapshot(Snapshot {
            routes,
            services,
            ..Snapshot::default()
        })
        .await;
    }

    pub async fn snapshot(&mut self, snapshot: Snapshot) {
        self.generation += 1;
        let generation = self.generation;
        self.updates
            .send(Update::Snapshot(Snapshot {
                generation,
                ..snapshot
            }))
            .await
            .unwrap();
        self.acknowledged(|answer| answer.generation >= generation).await;
    }

    pub async fn set_service(&mut self, service: Service) {
        self.generation += 1;
        let generation = self.generation;
        self.updates
            .send(Update::SetService { generation, service })
            .await
            .unwrap();
        self.acknowledged(|answer| answer.generation >= generation).await;
    }

    pub async fn acknowledged(&mut self, is_so: impl Fn(&Acknowledgement) -> bool) -> Acknowledgement {
        let wait = self.acknowledgements.wait_for(|answer| is_so(answer));
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("acknowledged in time")
            .unwrap()
            .clone()
    }

    /// Kills the feed, as when the controller's host goes away.
    pub fn without_feed(self) -> (Running, SocketAddr) {
        (self.running, self.http)
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.http).await
    }

    /// One request on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        let mut client = self.client().await;
        client
            .send(&format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        client.answer().await
    }
}

pub fn route(domain: &str, path: &str, service: &str) -> HttpRoute {
    HttpRoute {
        id: format!("{domain}{path}"),
        domain: domain.into(),
        path: path.into(),
        port: 0,
        service: service.into(),
        sticky: false,
        leader: false,
        drain_backends: true,
        disable_keep_alives: false,
        certificate: None,
    }
}

pub fn tcp_route(port: u16, service: &str) -> Route {
    Route::Tcp(TcpRoute {
        id: format!("tcp{port}"),
        port,
        service: service.into(),
        leader: false,
        drain_backends: true,
    })
}

pub fn service(name: &str, backends: &[SocketAddr]) -> Service {
    Service {
        name: name.into(),
        app_id: format!("{name}-id"),
        app_name: name.trim_end_matches("-web").into(),
        leader: None,
        response_timeout_ms: None,
        backends: backends
            .iter()
            .map(|addr| Backend {
                id: format!("b{}", addr.port()),
                addr: *addr,
                job_id: format!("j{}", addr.port()),
                job_type: "web".into(),
                healthy: true,
            })
            .collect(),
    }
}

/// A client's side of a connection, byte by byte.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Client {
        Client {
            stream: BufReader::new(TcpStream::connect(addr).await.unwrap()),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    pub async fn answer_to(&mut self, method: &str) -> Answer {
        tokio::time::timeout(PATIENCE, read_message(&mut self.stream, method == "HEAD"))
            .await
            .expect("an answer in time")
            .expect("an answer")
    }

    /// The head of a response only.
    pub async fn head(&mut self) -> String {
        tokio::time::timeout(PATIENCE, read_head(&mut self.stream))
            .await
            .expect("in time")
            .expect("a head")
    }

    pub async fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        tokio::time::timeout(PATIENCE, self.stream.read_exact(&mut bytes))
            .await
            .expect("in time")
            .unwrap();
        bytes
    }

    /// Whatever comes until the end of the stream.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut bytes))
            .await
            .expect("closed in time");
        bytes
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
        if head.len() - before == 2 {
            return Some(head);
        }
    }
}

/// A request or response with its body; a body without length lasts to the end of the stream only
/// for responses.
pub async fn read_message(stream: &mut BufReader<TcpStream>, is_answer_to_head: bool) -> Option<Answer> {
    let head = read_head(stream).await?;
    let is_response = head.starts_with("HTTP/");
    let status = if is_response {
        head.split(' ').nth(1)?.parse().ok()?
    } else {
        0
    };
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    if is_answer_to_head || status == 204 || status == 304 || (100..200).contains(&status) {
        return Some(answer);
    }
    if let Some(length) = answer.header("content-length") {
        answer.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut answer.body).await.ok()?;
    } else if answer.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            let mut chunk = vec![0; size + 2];
            if size == 0 {
                while stream.read_line(&mut line).await.ok()? > 2 {}
                break;
            }
            stream.read_exact(&mut chunk).await.ok()?;
            answer.body.extend_from_slice(&chunk[..size]);
        }
    } else if is_response {
        stream.read_to_end(&mut answer.body).await.ok()?;
    }
    Some(answer)
}

/// A backend that treats each connection so.
pub async fn backend<F, R>(serve: F) -> SocketAddr
where
    F: Fn(BufReader<TcpStream>) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(BufReader::new(stream)));
        }
    });
    addr
}

/// A backend that answers every request with what `answer` says about it.
pub async fn answering(answer: impl Fn(&Answer) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let answer = std::sync::Arc::new(answer);
    backend(move |mut stream| {
        let answer = answer.clone();
        async move {
            while let Some(request) = read_message(&mut stream, false).await {
                if stream.get_mut().write_all(&answer(&request)).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Sends back the request, head and body.
pub async fn echo() -> SocketAddr {
    answering(|request| {
        let mut body = request.head.clone().into_bytes();
        body.extend_from_slice(&request.body);
        response(&body)
    })
    .await
}

/// Always says the same.
pub async fn saying(text: &'static str) -> SocketAddr {
    answering(move |_| response(text.as_bytes())).await
}

pub fn response(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
