//! Connections to backends, kept for the next request.
//!
//! A kept connection is watched by nobody. Whether it has been closed is asked when it is taken,
//! which costs nothing: the event loop has noted it, and without such a note no system call is made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

pub struct Upstream {
    pub stream: TcpStream,
    pub addr: SocketAddr,
    /// It has served a request before.
    pub is_reused: bool,
}

struct Kept {
    stream: TcpStream,
    since: Instant,
}

/// The kept connections of one thread.
#[derive(Default)]
pub struct Pool {
    kept: RefCell<HashMap<SocketAddr, Vec<Kept>>>,
}

impl Pool {
    /// The most recently used connection that is not older than `age_max` and still open.
    pub fn take(&self, addr: SocketAddr, age_max: Duration) -> Option<Upstream> {
        let mut kept = self.kept.borrow_mut();
        let connections = kept.get_mut(&addr)?;
        while let Some(Kept { stream, since }) = connections.pop() {
            if since.elapsed() > age_max {
                // The rest is older still.
                connections.clear();
                return None;
            }
            if is_quiet(&stream) {
                return Some(Upstream {
                    stream,
                    addr,
                    is_reused: true,
                });
            }
        }
        None
    }

    pub fn keep(&self, upstream: Upstream, per_backend_max: usize) {
        let mut kept = self.kept.borrow_mut();
        let connections = kept.entry(upstream.addr).or_default();
        if connections.len() < per_backend_max {
            connections.push(Kept {
                stream: upstream.stream,
                since: Instant::now(),
            });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.kept.borrow().is_empty()
    }

    /// Closes those that are old, closed by the other side, or lead to a backend that is gone.
    pub fn sweep(&self, age_max: Duration, is_wanted: impl Fn(&SocketAddr) -> bool) {
        self.kept.borrow_mut().retain(|addr, connections| {
            if !is_wanted(addr) {
                return false;
            }
            connections.retain(|kept| kept.since.elapsed() <= age_max && is_quiet(&kept.stream));
            !connections.is_empty()
        });
    }
}

/// Open, and the other side has not said anything: a byte here would be taken for a response.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A connection whose other end acknowledges nothing for so long leads to a host that is gone, or out of reach. Discovery
/// says so after two seconds to routers that it reaches; this is for requests on their way then, and for the others.
/// Long enough for four losses of the same packet in a row.
const UNHEARD_MAX: Duration = Duration::from_secs(3);
/// How soon, and then how often, an end that has nothing to say is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub async fn connect(addr: SocketAddr) -> io::Result<Upstream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(UNHEARD_MAX))?;
    let asking = socket2::TcpKeepalive::new();
    socket.set_tcp_keepalive(&asking.with_time(ASK_AFTER).with_interval(ASK_AGAIN))?;
    Ok(Upstream {
        stream,
        addr,
        is_reused: false,
    })
}
