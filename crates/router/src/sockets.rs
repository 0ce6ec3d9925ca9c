//! The listening sockets of a router, which outlive the process that serves them.
//!
//! One process opens them and never serves; it sends them to the one that does, and to the one that
//! takes its place later. A connection that arrives in between waits in the kernel's queue, which
//! belongs to the socket and not to a process, so none is refused or reset.
//!
//! What a reader would get wrong: there is a socket per address *and thread* (`SO_REUSEPORT`), and the
//! kernel spreads connections over all of them. So whoever receives them has to serve all of them,
//! with as many threads as they were opened for.
//!
//! Ports of routes (TCP, additional HTTP ports) come and go with the table and are opened by the
//! serving process itself.

use crate::config::Config;
use crate::listen::{self, Kind, Listening};
use anyhow::Context;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// One message carries the sockets of one address; the kernel takes 253 files in one (`SCM_MAX_FD`).
const THREADS_MAX: usize = 250;
const MESSAGE_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub struct Sockets {
    groups: Vec<Group>,
}

/// The sockets of one address, one for each thread.
#[derive(Debug)]
struct Group {
    about: About,
    listeners: Vec<TcpListener>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct About {
    kind: Kind,
    /// As the configuration has it.
    asked: SocketAddr,
    /// With the real port where 0 was asked for.
    real: SocketAddr,
}

/// What goes over the channel beside sockets.
#[derive(Serialize, Deserialize)]
enum Message {
    Sockets(About),
    /// There are no more.
    Complete,
}

impl Sockets {
    /// Opens the addresses of `config`.
    pub fn open(config: &Config) -> anyhow::Result<Sockets> {
        let mut sockets = Sockets { groups: Vec::new() };
        sockets.change(config)?;
        Ok(sockets)
    }

    /// Opens the addresses of `config` that lack, then closes those that it has no more. After an error
    /// all is as it was.
    pub fn change(&mut self, config: &Config) -> anyhow::Result<()> {
        let http = config.http_listen.iter().map(|addr| (Kind::Http, *addr));
        let wanted: Vec<_> = http
            .chain(config.https_listen.iter().map(|addr| (Kind::Https, *addr)))
            .collect();
        let is_wanted = |group: &Group| wanted.contains(&(group.about.kind, group.about.asked));
        let mut opened = Vec::new();
        for (kind, asked) in &wanted {
            let is_open = |group: &Group| (group.about.kind, group.about.asked) == (*kind, *asked);
            if self.groups.iter().any(is_open) {
                continue;
            }
            // Where both are asked for, each hears its own kind of addresses.
            let other = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), asked.port());
            let is_half = asked.ip() == Ipv6Addr::UNSPECIFIED && wanted.contains(&(*kind, other));
            let open: fn(SocketAddr) -> io::Result<TcpListener> = match is_half {
                true => listen::open_ipv6_only,
                false => listen::open,
            };
            match Group::open(*kind, *asked, threads(config), open) {
                Ok(group) => opened.push(group),
                Err(error) if is_half && listen::is_unknown(&error) => {
                    tracing::info!(%asked, "the kernel has no IPv6, so the router listens on IPv4 only");
                }
                Err(error) => return Err(error).with_context(|| format!("cannot listen on {asked}")),
            }
        }
        self.groups.retain(is_wanted);
        self.groups.extend(opened);
        Ok(())
    }

    /// The real addresses.
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        let of_kind = self.groups.iter().filter(|group| group.about.kind == kind);
        of_kind.map(|group| group.about.real).collect()
    }

    /// How many threads have to serve them.
    pub fn threads(&self) -> usize {
        self.groups
            .iter()
            .map(|group| group.listeners.len())
            .max()
            .unwrap_or(1)
    }

    /// Gives each thread its sockets.
    pub(crate) fn share(self) -> Vec<Vec<Listening>> {
        let mut per_thread: Vec<Vec<Listening>> = (0..self.threads()).map(|_| Vec::new()).collect();
        for group in self.groups {
            for (thread, listener) in per_thread.iter_mut().zip(group.listeners) {
                thread.push(Listening {
                    kind: group.about.kind,
                    listener,
                });
            }
        }
        per_thread
    }

    /// Sends copies over `channel`, a Unix socket that keeps messages apart (`SOCK_SEQPACKET`).
    pub fn send(&self, channel: impl AsFd) -> io::Result<()> {
        for group in &self.groups {
            let text = serde_json::to_vec(&Message::Sockets(group.about.clone()))?;
            let files: Vec<_> = group.listeners.iter().map(AsFd::as_fd).collect();
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(THREADS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(
                control.push(SendAncillaryMessage::ScmRights(&files)),
                "no address has more sockets than there is room for"
            );
            rustix::net::sendmsg(
                &channel,
                &[IoSlice::new(&text)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
        }
        let text = serde_json::to_vec(&Message::Complete)?;
        rustix::net::send(&channel, &text, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes what [`Sockets::send`] sent at the other end.
    pub fn receive(channel: impl AsFd) -> io::Result<Sockets> {
        let mut groups = Vec::new();
        loop {
            match receive_message(&channel)? {
                (Message::Complete, _) => return Ok(Sockets { groups }),
                (Message::Sockets(about), files) => groups.push(Group {
                    about,
                    listeners: files.into_iter().map(TcpListener::from).collect(),
                }),
            }
        }
    }
}

fn receive_message(channel: impl AsFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut text = [0; MESSAGE_BYTES_MAX];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(THREADS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let length = loop {
        match rustix::net::recvmsg(&channel, &mut [IoSliceMut::new(&mut text)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    Ok((serde_json::from_slice(&text[..length])?, files))
}

impl Group {
    fn open(
        kind: Kind,
        asked: SocketAddr,
        threads: usize,
        open: fn(SocketAddr) -> io::Result<TcpListener>,
    ) -> io::Result<Group> {
        let mut real = asked;
        let mut listeners = Vec::new();
        for _ in 0..threads {
            let listener = open(real)?;
            // Port 0 becomes a number with the first socket.
            real = listener.local_addr()?;
            listeners.push(listener);
        }
        Ok(Group {
            about: About { kind, asked, real },
            listeners,
        })
    }
}

fn threads(config: &Config) -> usize {
    let threads = match config.worker_threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        threads => threads,
    };
    threads.min(THREADS_MAX)
}
