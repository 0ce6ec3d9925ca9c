//! Listening sockets. The one place where they are made.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// What is spoken behind a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    Http,
    Https,
    Tcp,
}

#[derive(Debug)]
pub struct Listening {
    pub kind: Kind,
    pub listener: TcpListener,
}

/// Connections that wait to be accepted; the kernel cuts it to `somaxconn`.
const BACKLOG: i32 = 4096;

/// A non-blocking socket that shares its address with those of the other threads. One on all IPv6 addresses
/// hears IPv4 as well.
pub fn open(addr: SocketAddr) -> io::Result<TcpListener> {
    listen(addr, false)
}

/// The same that leaves IPv4 to another socket of the same port.
pub fn open_ipv6_only(addr: SocketAddr) -> io::Result<TcpListener> {
    listen(addr, true)
}

/// Whether the kernel knows no IPv6 at all.
pub fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn listen(addr: SocketAddr, is_ipv6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(is_ipv6_only)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
