//! Listening: a bound socket, a router of handlers, and an end that lets requests finish.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};

use crate::Shutdown;

/// A client that has not sent a request's head after this long is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Binds `address`; port 0 takes any free one.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; is another program using it? (`ss -tlnp` tells)")
    })
}

/// Serves until `shutdown`, then stops accepting; open event streams end with the process.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer, router.clone()));
            }
            Err(error) => {
                // Out of file descriptors or memory: waiting is all that helps, and a tight loop hurts.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
