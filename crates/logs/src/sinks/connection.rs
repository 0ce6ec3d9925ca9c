//! A connection to a receiver, and how much of what was sent on it the receiver has taken.
//!
//! Syslog over TCP has no answers. The nearest thing to one is in the kernel: which bytes the other
//! side's kernel has confirmed, and how many it has had space for at most. What its program has not
//! read when it ends is among the last so many bytes; and a program that ends with something unread
//! ends its connection with a reset, and one that has read everything does not.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use container::delivery::delivery;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use types::SyslogUrl;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Sent and not confirmed by anybody for so long: the receiver's machine is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

pub struct Connection {
    pub stream: Box<dyn Stream>,
    pub meter: Meter,
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is known of a connection from outside of it.
pub struct Meter {
    socket: OwnedFd,
    written: Arc<AtomicU64>,
    /// What the kernel had counted when the connection was new.
    acknowledged_at_first: u64,
    window_max: u32,
}

pub async fn connect(url: &SyslogUrl, insecure: bool) -> io::Result<Connection> {
    let opening = open(url, insecure);
    tokio::time::timeout(CONNECT_TIMEOUT, opening)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "timed out"))?
}

async fn open(url: &SyslogUrl, insecure: bool) -> io::Result<Connection> {
    let socket = api::client::connect(&url.host, url.port).await?;
    socket.set_nodelay(true)?;
    let options = socket2::SockRef::from(&socket);
    options.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(KEEP_ALIVE_AFTER)
        .with_interval(KEEP_ALIVE_INTERVAL);
    options.set_tcp_keepalive(&keep_alive)?;
    let written = Arc::new(AtomicU64::new(0));
    let meter = Meter {
        socket: socket.as_fd().try_clone_to_owned()?,
        written: written.clone(),
        acknowledged_at_first: delivery(&socket)?.acknowledged_bytes,
        window_max: 0,
    };
    let counted = Counted { socket, written };
    if !url.is_tls {
        let stream = Box::new(counted);
        return Ok(Connection { stream, meter });
    }
    let config = match insecure {
        true => api::tls::unchecked_client_config(),
        false => api::tls::client_config(&api::Trust::System).map_err(io::Error::other)?,
    };
    let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = Box::new(connector.connect(name, counted).await?);
    Ok(Connection { stream, meter })
}

impl Meter {
    /// Bytes given to the socket so far; what is encrypted counts as it is sent.
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Of these, what has reached the receiver.
    pub fn acknowledged_bytes(&mut self) -> io::Result<u64> {
        let now = delivery(&self.socket)?;
        self.window_max = self.window_max.max(now.window_bytes);
        Ok(now.acknowledged_bytes.saturating_sub(self.acknowledged_at_first))
    }

    /// What can have reached the receiver without its program having read it.
    pub fn unread_bytes_max(&self) -> u64 {
        u64::from(self.window_max)
    }
}

/// Counts what is written.
struct Counted {
    socket: TcpStream,
    written: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Whether the receiver ended a connection having read all that had reached it. Linux tells by EPIPE
/// that an end came before what was written after it; TLS is often ended without its own goodbye.
pub fn is_clean_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    )
}
