//! Datagrams of one size for one peer, sent by one system call: the kernel cuts them apart, or the network card does.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};

/// What UDP can carry at a time, and how many datagrams the kernel makes of it (UDP_MAX_SEGMENTS, linux/udp.h).
const BYTES_MAX: usize = 65_507 - 100;
const SEGMENTS_MAX: usize = 64;

/// Of the socket's queues. A host sends bursts, and its peers' bursts must find room.
const QUEUE_BYTES: usize = 4 << 20;

pub fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    // Beyond the machine's limit where that is allowed; as much as it allows where not.
    for result in [
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES),
        setsockopt(&socket, sockopt::SndBufForce, &QUEUE_BYTES),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, "the socket's queues stay small");
        }
    }
    Ok(socket)
}

/// Collects what goes out, in order.
pub struct Burst {
    bytes: Vec<u8>,
    used: usize,
    segment: usize,
    segments: usize,
    is_closed: bool,
    to: Option<SocketAddr>,
}

impl Burst {
    pub fn new() -> Burst {
        Burst {
            bytes: vec![0; BYTES_MAX],
            used: 0,
            segment: 0,
            segments: 0,
            is_closed: false,
            to: None,
        }
    }

    /// Room for one more datagram of at most `length` bytes for `to`. What does not go with it is sent before.
    pub fn room(&mut self, socket: &UdpSocket, to: SocketAddr, length: usize) -> &mut [u8] {
        let fits = self.to == Some(to)
            && !self.is_closed
            && self.segments < SEGMENTS_MAX
            && self.used + length <= self.bytes.len();
        if !fits {
            self.flush(socket);
            self.to = Some(to);
        }
        &mut self.bytes[self.used..]
    }

    /// Takes what was written to [`Burst::room`]. All but the last of a burst are of one size.
    pub fn add(&mut self, socket: &UdpSocket, length: usize) {
        if self.segments > 0 && length > self.segment {
            // It does not fit in with those before: they go, it stays.
            let (start, to) = (self.used, self.to);
            self.flush(socket);
            self.bytes.copy_within(start..start + length, 0);
            self.to = to;
        }
        if self.segments == 0 {
            self.segment = length;
        }
        self.is_closed = length < self.segment;
        self.used += length;
        self.segments += 1;
    }

    /// What cannot be sent is lost, as on any network; those whose it is send it again.
    pub fn flush(&mut self, socket: &UdpSocket) {
        if let Some(to) = self.to.take()
            && self.segments > 0
            && let Err(error) = send(socket, to, &self.bytes[..self.used], self.segment)
        {
            tracing::debug!(%to, %error, "datagrams are lost");
        }
        (self.used, self.segments, self.is_closed) = (0, 0, false);
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, bytes: &[u8], segment: usize) -> nix::Result<()> {
    let to = SockaddrStorage::from(to);
    let size = segment as u16;
    let cut = [ControlMessage::UdpGsoSegments(&size)];
    let control: &[ControlMessage] = if bytes.len() > segment { &cut } else { &[] };
    let sent = sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::empty(),
        Some(&to),
    );
    match sent {
        // The way there cannot cut (no checksums by the card, a tunnel beneath): one by one.
        Err(Errno::EIO | Errno::EINVAL) if !control.is_empty() => {
            for datagram in bytes.chunks(segment) {
                let parts = [IoSlice::new(datagram)];
                sendmsg(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&to))?;
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Datagrams that came together from one sender: how many bytes in all, and the size of each but the last.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, usize, Option<SocketAddr>)> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<SockaddrStorage>(
            socket.as_fd().as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        ) {
            // An earlier datagram was refused by its receiver: nothing to do with this one.
            Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
            other => break other?,
        }
    };
    let segment = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let from = message.address.and_then(|address| {
        let v4 = address
            .as_sockaddr_in()
            .map(|it| SocketAddr::from((it.ip(), it.port())));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|it| SocketAddr::from((it.ip(), it.port())))
        })
    });
    let segment = segment.filter(|size| *size > 0).unwrap_or(message.bytes.max(1));
    Ok((message.bytes, segment, from))
}
