//! A blocking rtnetlink socket that sends several requests in one system call.
//!
//! A socket belongs for life to the network namespace in which it was *opened*: one opened before `setns`
//! keeps working on the old namespace. The kernel answers rtnetlink while it is being asked, so blocking here
//! never means waiting for another process; what it does mean is the kernel's one lock for all of networking.

mod request;

use std::io;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(crate) use request::*;

/// The kernel cuts dumps into datagrams of at most 32 KiB, or what the receiver offers.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// Set by the kernel when what it lists changed under its hands (linux/netlink.h, NLM_F_DUMP_INTR).
const DUMP_INTERRUPTED: u16 = 0x10;

/// Index of `lo` in every network namespace (linux/net_namespace.h, LOOPBACK_IFINDEX).
pub(crate) const LOOPBACK_INDEX: u32 = 1;

pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

pub(crate) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

/// What the kernel said to one request: the objects asked for (none for a change), or why not.
pub(crate) type Answer = io::Result<Vec<RouteNetlinkMessage>>;

impl Netlink {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Each request is carried out, in order, whether or not one before it failed. The outer error is the socket's.
    pub(crate) fn exchange<const N: usize>(&mut self, requests: [Request; N]) -> io::Result<[Answer; N]> {
        let answers = self.exchange_all(requests.into())?;
        Ok(answers.try_into().expect("each request has one answer"))
    }

    /// The same for as many as there happen to be.
    pub(crate) fn exchange_all(&mut self, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        let (first, count) = (self.sequence, requests.len());
        let mut bytes = Vec::with_capacity(1024);
        for request in requests {
            self.append(&mut bytes, request.message, request.flags | NLM_F_ACK);
        }
        self.send(&bytes)?;
        let mut answers: Vec<Answer> = (0..count).map(|_| Ok(Vec::new())).collect();
        let mut is_open = vec![true; count];
        while is_open.contains(&true) {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if index >= count || !is_open[index] {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => {
                        if let Ok(objects) = &mut answers[index] {
                            objects.push(object);
                        }
                    }
                    NetlinkPayload::Error(error) => {
                        is_open[index] = false;
                        if error.code.is_some() {
                            answers[index] = Err(error.to_io());
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(answers)
    }

    /// Any number of requests; what the first that failed said.
    pub(crate) fn all(&mut self, requests: impl IntoIterator<Item = Request>) -> io::Result<()> {
        requests
            .into_iter()
            .try_for_each(|request| self.one(request).map(drop))
    }

    pub(crate) fn one(&mut self, request: Request) -> Answer {
        let [answer] = self.exchange([request])?;
        answer
    }

    /// `None` if there is no such interface.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        into_link(self.one(get_link(name)))
    }

    pub(crate) fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let objects = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(objects.into_iter().filter_map(as_link).collect())
    }

    pub(crate) fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let objects = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(objects
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewAddress(address) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// Of one interface; `family` is that of addresses, or `Bridge` for where a VXLAN's ends are.
    pub(crate) fn neighbours(
        &mut self,
        index: u32,
        family: AddressFamily,
    ) -> io::Result<Vec<NeighbourMessage>> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        let objects = self.dump(RouteNetlinkMessage::GetNeighbour(message))?;
        Ok(objects
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewNeighbour(neighbour) if neighbour.header.ifindex == index => {
                    Some(neighbour)
                }
                _ => None,
            })
            .collect())
    }

    /// Of the main table.
    pub(crate) fn routes(&mut self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let objects = self.dump(RouteNetlinkMessage::GetRoute(message))?;
        Ok(objects
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
                    Some(route)
                }
                _ => None,
            })
            .collect())
    }

    /// Starts again when the kernel says that the list changed while it was being read.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        loop {
            let sequence = self.sequence;
            let mut bytes = Vec::with_capacity(128);
            self.append(&mut bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            self.send(&bytes)?;
            let (mut objects, mut is_interrupted, mut is_done) = (Vec::new(), false, false);
            while !is_done {
                for message in self.receive()? {
                    if message.header.sequence_number != sequence {
                        continue;
                    }
                    is_interrupted |= message.header.flags & DUMP_INTERRUPTED != 0;
                    match message.payload {
                        NetlinkPayload::InnerMessage(object) => objects.push(object),
                        NetlinkPayload::Done(_) => is_done = true,
                        NetlinkPayload::Error(error) => return Err(error.to_io()),
                        _ => {}
                    }
                }
            }
            if !is_interrupted {
                return Ok(objects);
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize((start + message.buffer_len()).next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0).map(drop)
    }

    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut bytes = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        while let Err(error) = self.socket.recv(&mut bytes, 0) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

/// The answer to [`get_link`].
pub(crate) fn into_link(answer: Answer) -> io::Result<Option<LinkMessage>> {
    match answer {
        Ok(objects) => Ok(objects.into_iter().find_map(as_link)),
        Err(error) if is(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

pub(crate) fn name(link: &LinkMessage) -> &str {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

/// Index of the other end, in the other end's namespace.
pub(crate) fn peer_index(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

pub(crate) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

pub(crate) fn data(link: &LinkMessage) -> Option<&InfoData> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(data) => Some(data),
            _ => None,
        }),
        _ => None,
    })
}

pub(crate) fn hardware_address(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

pub(crate) fn kind(link: &LinkMessage) -> Option<InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    })
}

fn as_link(object: RouteNetlinkMessage) -> Option<LinkMessage> {
    match object {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}
