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

/// A non-blocking socket that shares its address with those of the other threads.
pub fn open(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
