//! One HTTP client for everything: JSON requests, event streams and upgraded connections.
//!
//! Names are resolved here and not by the C library, whose resolver cannot be linked statically;
//! `localhost` and everything below it is this machine, as browsers and curl have it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::stream::BoxStream;
pub use http::Method;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client as Pool,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

pub use crate::tls::Trust;
use crate::{Code, Error, attach, peers, sse, tls};

/// Longest JSON answer that a client reads.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a server is and how each side proves itself.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `http://HOST:PORT` or `https://HOST`, without a path.
    pub url: String,
    /// Sent as the password of HTTP Basic authentication; nothing is sent when empty.
    pub key: String,
    pub trust: Trust,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error of its own.
    #[error("{0}")]
    Api(#[from] Error),
    /// 404 without an envelope.
    #[error("controller: resource not found")]
    NotFound,
    #[error("the key was not accepted by {url}")]
    Unauthorized { url: String },
    #[error("{method} {path}: the server answered {status}{}", if body.is_empty() { String::new() } else { format!(": {body}") })]
    Status {
        method: Method,
        path: String,
        status: u16,
        body: String,
    },
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the connection to {url} broke: {reason}")]
    Broken { url: String, reason: String },
    #[error("{url} sent an answer that cannot be understood: {reason}")]
    BadAnswer { url: String, reason: String },
    #[error("{0:?} is no URL of a server")]
    BadUrl(String),
    #[error(transparent)]
    Trust(#[from] tls::TrustError),
}

impl ClientError {
    /// The contract's code, where the server gave one.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Api(error) => Some(error.code),
            ClientError::NotFound => Some(Code::NotFound),
            ClientError::Unauthorized { .. } => Some(Code::Unauthorized),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self.code(), Some(Code::NotFound | Code::ObjectNotFound))
    }

    /// Whether the same request may succeed a little later.
    pub fn may_retry(&self) -> bool {
        match self {
            ClientError::Api(error) => error.retry,
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
            ClientError::Status { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }
}

/// A body of unknown length that is sent as it comes.
pub type StreamBody = BoxBody<Bytes, std::io::Error>;

#[derive(Clone)]
pub struct Client {
    base: Arc<str>,
    authorization: Option<HeaderValue>,
    idempotency_key: Option<HeaderValue>,
    pool: Pool<Connector, StreamBody>,
    answer_bytes_max: usize,
}

impl Client {
    pub fn new(endpoint: &Endpoint) -> Result<Client, ClientError> {
        let base = endpoint.url.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| ClientError::BadUrl(base.into()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(ClientError::BadUrl(base.into()));
        }
        let tls = match uri.scheme_str() {
            Some("https") => Some(tokio_rustls::TlsConnector::from(Arc::new(tls::client_config(
                &endpoint.trust,
            )?))),
            _ => None,
        };
        let authorization = (!endpoint.key.is_empty()).then(|| {
            let token = BASE64_STANDARD.encode(format!(":{}", endpoint.key));
            let mut value =
                HeaderValue::from_str(&format!("Basic {token}")).expect("base64 is a header value");
            value.set_sensitive(true);
            value
        });
        let pool = Pool::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(Connector { tls, dial: None });
        Ok(Client {
            base: base.into(),
            authorization,
            idempotency_key: None,
            pool,
            answer_bytes_max: ANSWER_BYTES_MAX,
        })
    }

    /// For a server whose connections somebody else opens; `url` only names it, and its path comes
    /// before every other.
    pub fn dialed(url: &str, key: &str, dial: Arc<dyn peers::Dial>) -> Result<Client, ClientError> {
        let endpoint = Endpoint {
            url: url.to_owned(),
            key: key.to_owned(),
            trust: Trust::System,
        };
        let client = Client::new(&endpoint)?;
        let pool = Pool::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(Connector {
                tls: None,
                dial: Some(dial),
            });
        Ok(Client { pool, ..client })
    }

    /// For servers that are asked by a user's name and password.
    pub fn with_basic_auth(mut self, user: &str, password: &str) -> Client {
        let token = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let mut value = HeaderValue::from_str(&format!("Basic {token}")).expect("base64 is a header value");
        value.set_sensitive(true);
        self.authorization = Some(value);
        self
    }

    /// Tells servers that two requests with the same key ask for the same thing, once.
    pub fn with_idempotency_key(mut self, key: types::Uuid) -> Client {
        self.idempotency_key = HeaderValue::from_str(&key.to_string()).ok();
        self
    }

    /// For servers that are not the platform's own: no answer is read beyond this.
    pub fn with_answer_bytes_max(mut self, bytes: usize) -> Client {
        self.answer_bytes_max = bytes;
        self
    }

    pub fn url(&self) -> &str {
        &self.base
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None::<&()>).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// A request whose answer does not matter beyond having succeeded.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), ClientError> {
        let response = self
            .call(method, path, json_body(body), "application/json")
            .await?;
        let _ = self.read(response).await?;
        Ok(())
    }

    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None::<&()>).await
    }

    /// A deletion that answers with what was deleted.
    pub async fn delete_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::DELETE, path, None::<&()>).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let response = self
            .call(method, path, json_body(body), "application/json")
            .await?;
        let bytes = self.read(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.bad_answer(error))
    }

    /// The answer as text: logs, certificates.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.call(Method::GET, path, empty_body(), "*/*").await?;
        Ok(String::from_utf8_lossy(&self.read(response).await?).into_owned())
    }

    /// A request with a body that is streamed, and an answer that is streamed.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: StreamBody,
        accept: &'static str,
    ) -> Result<Response<Incoming>, ClientError> {
        self.call(method, path, body, accept).await
    }

    /// Follows an event stream: each item is one event's JSON, or why the stream broke.
    pub async fn events<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<BoxStream<'static, Result<T, ClientError>>, ClientError> {
        let response = self
            .call(Method::GET, path, empty_body(), "text/event-stream")
            .await?;
        let state = (response.into_body(), sse::Parser::default(), self.clone(), false);
        let stream = futures::stream::unfold(state, |(mut body, mut parser, client, ended)| async move {
            if ended {
                return None;
            }
            loop {
                match parser.next_message() {
                    Ok(Some(sse::Message::Data(data))) => {
                        let item = serde_json::from_slice(&data).map_err(|error| client.bad_answer(error));
                        return Some((item, (body, parser, client, false)));
                    }
                    Ok(Some(sse::Message::Error(text))) => {
                        let error = Error::new(Code::UnknownError, text);
                        return Some((Err(ClientError::Api(error)), (body, parser, client, true)));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        return Some((Err(client.bad_answer(error)), (body, parser, client, true)));
                    }
                }
                match body.frame().await? {
                    Ok(frame) => {
                        if let Some(data) = frame.data_ref() {
                            parser.push(data);
                        }
                    }
                    Err(error) => {
                        let url = client.base.to_string();
                        let broken = ClientError::Broken {
                            url,
                            reason: error.to_string(),
                        };
                        return Some((Err(broken), (body, parser, client, true)));
                    }
                }
            }
        });
        Ok(Box::pin(stream))
    }

    /// Asks for the attach protocol; gives the raw connection once the server has switched.
    pub async fn attach(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        let mut request = self.request(Method::POST, path, json_body(Some(body)), "application/json")?;
        request
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        request
            .headers_mut()
            .insert(header::UPGRADE, HeaderValue::from_static(attach::PROTOCOL));
        let response = self
            .pool
            .request(request)
            .await
            .map_err(|error| self.unreachable(error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let error = self.failure(Method::POST, path, response).await;
            return Err(error);
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| ClientError::Broken {
                url: self.base.to_string(),
                reason: error.to_string(),
            })?;
        Ok(TokioIo::new(upgraded))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: StreamBody,
        accept: &'static str,
    ) -> Result<Request<StreamBody>, ClientError> {
        let mut builder = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("flynn/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = &self.authorization {
            builder = builder.header(header::AUTHORIZATION, value.clone());
        }
        if let Some(value) = &self.idempotency_key {
            builder = builder.header("idempotency-key", value.clone());
        }
        builder
            .body(body)
            .map_err(|_| ClientError::BadUrl(format!("{}{path}", self.base)))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: StreamBody,
        accept: &'static str,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = self.request(method.clone(), path, body, accept)?;
        let response = self
            .pool
            .request(request)
            .await
            .map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.failure(method, path, response).await)
    }

    async fn failure(&self, method: Method, path: &str, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let body = match self.read(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        if let Ok(error) = serde_json::from_slice::<Error>(&body) {
            return ClientError::Api(error);
        }
        if let Some(error) = registry_error(status, &body) {
            return ClientError::Api(error);
        }
        match status {
            StatusCode::NOT_FOUND => ClientError::NotFound,
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized {
                url: self.base.to_string(),
            },
            _ => {
                let text = String::from_utf8_lossy(&body);
                let body = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(200)
                    .collect();
                ClientError::Status {
                    method,
                    path: path.to_owned(),
                    status: status.as_u16(),
                    body,
                }
            }
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), self.answer_bytes_max)
            .collect()
            .await
        {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(ClientError::Broken {
                url: self.base.to_string(),
                reason: error.to_string(),
            }),
        }
    }

    fn unreachable(&self, error: hyper_util::client::legacy::Error) -> ClientError {
        let mut reason = String::new();
        let mut source: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        // Only the innermost cause says something: the others are "client error (Connect)".
        while let Some(cause) = source {
            reason = cause.to_string();
            source = cause.source();
        }
        if reason.is_empty() {
            reason = error.to_string();
        }
        let url = self.base.to_string();
        if error.is_connect() {
            ClientError::Unreachable { url, reason }
        } else {
            ClientError::Broken { url, reason }
        }
    }

    fn bad_answer(&self, error: impl std::fmt::Display) -> ClientError {
        ClientError::BadAnswer {
            url: self.base.to_string(),
            reason: error.to_string(),
        }
    }
}

fn json_body(body: Option<&impl Serialize>) -> StreamBody {
    match body {
        Some(body) => {
            let bytes = serde_json::to_vec(body).expect("API values always serialise");
            Full::new(Bytes::from(bytes))
                .map_err(|never| match never {})
                .boxed()
        }
        None => empty_body(),
    }
}

/// An error in the envelope of registries of images.
fn registry_error(status: StatusCode, body: &[u8]) -> Option<Error> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = answer["errors"][0]["message"].as_str()?;
    let code = match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::Unauthorized,
        status if status.is_server_error() => Code::ServiceUnavailable,
        _ => Code::ValidationError,
    };
    Some(Error::new(code, message))
}

pub fn empty_body() -> StreamBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

/// Escapes one segment of a path or a query value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// All addresses of `host`, those of this machine for `localhost` and names below it.
pub async fn resolve(host: &str) -> std::io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let name = bare.trim_end_matches('.');
    if name == "localhost" || name.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let failed = |error: &dyn std::fmt::Display| std::io::Error::other(format!("{name}: {error}"));
    let resolver = hickory_resolver::TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| failed(&error))?;
    let found = resolver.lookup_ip(name).await.map_err(|error| failed(&error))?;
    Ok(found.iter().collect())
}

/// Opens plain or TLS connections for the pool.
#[derive(Clone)]
struct Connector {
    tls: Option<tokio_rustls::TlsConnector>,
    dial: Option<Arc<dyn peers::Dial>>,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Transport>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        if let Some(dial) = &self.dial {
            let dialing = dial.dial();
            return Box::pin(async move { Ok(TokioIo::new(Transport::Dialed(dialing.await?))) });
        }
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
            let open = async {
                let stream = connect(&host, port).await?;
                stream.set_nodelay(true)?;
                let Some(tls) = tls else {
                    return Ok(TokioIo::new(Transport::Plain(stream)));
                };
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = rustls::pki_types::ServerName::try_from(name).map_err(std::io::Error::other)?;
                let stream = tls.connect(name, stream).await?;
                Ok(TokioIo::new(Transport::Tls(Box::new(stream))))
            };
            tokio::time::timeout(CONNECT_TIMEOUT, open)
                .await
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "timed out"))?
        })
    }
}

/// Connects to the first address that answers.
pub async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in resolve(host).await? {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Dialed(Box<dyn peers::Connection>),
}

impl Connection for Transport {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! forward {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain(stream) => {
                let $stream = std::pin::Pin::new(stream);
                $call
            }
            Transport::Tls(stream) => {
                let $stream = std::pin::Pin::new(stream.as_mut());
                $call
            }
            Transport::Dialed(stream) => {
                let $stream = std::pin::Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        forward!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        forward!(self, stream => stream.poll_write(context, buffer))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        forward!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        forward!(self, stream => stream.poll_shutdown(context))
    }
}
