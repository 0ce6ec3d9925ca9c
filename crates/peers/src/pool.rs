//! Kept HTTP connections: to members, `http://node-3/…`, and to what listens on this host,
//! `http://127.0.0.1:1112/…`.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::dial::Dialer;

#[derive(Clone)]
pub struct Pool(Client<Connector, Body>);

impl Pool {
    pub fn new(dialer: Dialer) -> Pool {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(Connector(dialer));
        Pool(client)
    }

    pub(crate) async fn request(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, Error> {
        self.0.request(request).await
    }

    /// Has `target` answer a request. An answer that switches protocols has the connection to come
    /// among its extensions.
    pub(crate) async fn send(
        &self,
        target: &str,
        mut request: Request,
        upgrades: bool,
    ) -> Result<Response, Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("{target}{path}")
            .parse()
            .expect("a path of a request is one of another, too");
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_11;
        let protocol = request.headers().get(header::UPGRADE).cloned();
        remove_hop_headers(request.headers_mut());
        if let Some(protocol) = protocol.filter(|_| upgrades) {
            let headers = request.headers_mut();
            headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol);
        }
        let mut response = self.request(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response.map(|_| Body::empty()));
        }
        remove_hop_headers(response.headers_mut());
        Ok(response.map(Body::new))
    }

    /// [`Pool::send`], with both connections joined where they are upgraded.
    pub(crate) async fn pass(&self, target: &str, mut request: Request) -> Result<Response, Error> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let mut response = self.send(target, request, upgrade.is_some()).await?;
        if let (Some(client), Some(server)) = (upgrade, response.extensions_mut().remove::<OnUpgrade>()) {
            join(client, server);
        }
        Ok(response)
    }
}

/// Carries bytes both ways until one side ends.
pub(crate) fn join(client: OnUpgrade, server: OnUpgrade) {
    tokio::spawn(async move {
        let Ok((client, server)) = futures::future::try_join(client, server).await else {
            return;
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
}

/// What is said of one connection only.
fn remove_hop_headers(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 6] = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        HeaderName::from_static("keep-alive"),
    ];
    for name in HOP {
        headers.remove(name);
    }
}

#[derive(Clone)]
struct Connector(Dialer);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let stream: Box<dyn api::peers::Connection> = match authority.strip_prefix("node-") {
                Some(node) => Box::new(dialer.http(node.parse().map_err(io::Error::other)?).await?),
                None => {
                    let place: SocketAddr = authority.parse().map_err(io::Error::other)?;
                    let stream = TcpStream::connect(place).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            Ok(TokioIo::new(Stream(stream)))
        })
    }
}

struct Stream(Box<dyn api::peers::Connection>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
