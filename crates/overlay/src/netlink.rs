//! A blocking rtnetlink socket that sends several requests in one system call.
//!
//! A socket belongs for life to the network namespace in which it was *opened*: one opened before `setns`
//! keeps working on the old namespace. The kernel answers rtnetlink while it is being asked, so blocking here
//! never means waiting for another process; what it does mean is the kernel's one lock for all of networking.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::map::Mac;
use crate::plan::Attachment;
use crate::{Subnet, Underlay};

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
        let first = self.sequence;
        let mut bytes = Vec::with_capacity(1024);
        for request in requests {
            self.append(&mut bytes, request.message, request.flags | NLM_F_ACK);
        }
        self.send(&bytes)?;
        let mut answers: [Answer; N] = std::array::from_fn(|_| Ok(Vec::new()));
        let mut is_open = [true; N];
        while is_open.contains(&true) {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if index >= N || !is_open[index] {
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
    pub(crate) fn routes(&mut self) -> io::Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
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

const CREATE: u16 = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
const CREATE_OR_REPLACE: u16 = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE;

/// Both ends in one message: the peer is born in the job's namespace under its final name.
/// Both are down: an end of a veth cannot be brought up before its peer is known (ENOTCONN).
pub(crate) fn create_veth(job: &Attachment, namespace: BorrowedFd) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(job.job_interface.into()),
        LinkAttribute::Mtu(job.mtu),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(job.host_interface.clone()),
        LinkAttribute::Mtu(job.mtu),
        LinkAttribute::Group(job.group),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Request {
        message: RouteNetlinkMessage::NewLink(link),
        flags: CREATE,
    }
}

pub(crate) fn create_link(name: &str, kind: InfoKind) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    Request {
        message: RouteNetlinkMessage::NewLink(link),
        flags: CREATE,
    }
}

/// Nothing is flooded and nothing learned: what it does not know it drops. Down at first.
pub(crate) fn create_vxlan(name: &str, underlay: &Underlay, mac: Mac, mtu: u32) -> Request {
    let local = match underlay.address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(underlay.vni),
                local,
                InfoVxlan::Port(underlay.vxlan_port),
                InfoVxlan::Learning(false),
            ])),
        ]),
    ];
    Request {
        message: RouteNetlinkMessage::NewLink(link),
        flags: CREATE,
    }
}

/// Under which hardware address the gateway of a peer is known.
pub(crate) fn put_neighbour(index: u32, gateway: Ipv4Addr, mac: Mac) -> Request {
    let mut message = neighbour(index, AddressFamily::Inet);
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(gateway)));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: CREATE_OR_REPLACE,
    }
}

/// At which address of the underlay a hardware address is.
pub(crate) fn put_forwarding(index: u32, mac: Mac, underlay: IpAddr) -> Request {
    let mut message = neighbour(index, AddressFamily::Bridge);
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(underlay.into()));
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: CREATE_OR_REPLACE,
    }
}

/// One that a dump gave.
pub(crate) fn delete_neighbour(message: NeighbourMessage) -> Request {
    Request {
        message: RouteNetlinkMessage::DelNeighbour(message),
        flags: NLM_F_REQUEST,
    }
}

fn neighbour(index: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message
}

/// Up, and without an IPv6 address of its own. The kernel ignores the latter in the message that makes a link.
pub(crate) fn up_without_ipv6(name: &str) -> Request {
    let mut link = LinkMessage::default();
    set_up_flag(&mut link);
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: NLM_F_REQUEST,
    }
}

pub(crate) fn up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    set_up_flag(&mut link);
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: NLM_F_REQUEST,
    }
}

pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    set_link(index, LinkAttribute::Mtu(mtu))
}

pub(crate) fn set_group(index: u32, group: u32) -> Request {
    set_link(index, LinkAttribute::Group(group))
}

pub(crate) fn delete_link(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    Request {
        message: RouteNetlinkMessage::DelLink(link),
        flags: NLM_F_REQUEST,
    }
}

pub(crate) fn get_link(name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.into())];
    Request {
        message: RouteNetlinkMessage::GetLink(link),
        flags: NLM_F_REQUEST,
    }
}

pub(crate) fn add_address(index: u32, address: Ipv4Addr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    Request {
        message: RouteNetlinkMessage::NewAddress(message),
        flags: CREATE_OR_REPLACE,
    }
}

/// The host's way to one job. `source` is what the job sees as the peer of connections from the host.
pub(crate) fn route_to_job(index: u32, address: Ipv4Addr, source: Ipv4Addr) -> Request {
    let mut route = route(address, 32, RouteType::Unicast, RouteScope::Link);
    route.attributes.push(RouteAttribute::Oif(index));
    route
        .attributes
        .push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

/// The job's way to the gateway, and by it to everywhere.
pub(crate) fn routes_of_job(index: u32, gateway: Ipv4Addr) -> [Request; 2] {
    let mut to_gateway = route(gateway, 32, RouteType::Unicast, RouteScope::Link);
    to_gateway.attributes.push(RouteAttribute::Oif(index));
    let mut default = route(Ipv4Addr::UNSPECIFIED, 0, RouteType::Unicast, RouteScope::Universe);
    default.header.flags = RouteFlags::Onlink;
    default.attributes.push(RouteAttribute::Oif(index));
    default
        .attributes
        .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    [to_gateway, default].map(|route| Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    })
}

/// The way to all jobs of a peer. Jobs see `source` as the peer of connections from this host.
pub(crate) fn route_to_peer(index: u32, subnet: Subnet, source: Ipv4Addr) -> Request {
    let mut route = route(
        subnet.base(),
        subnet.prefix(),
        RouteType::Unicast,
        RouteScope::Universe,
    );
    // Of the interface alone, as it has no address by which the gateway would be known to be there.
    route.header.flags = RouteFlags::Onlink;
    route.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::Gateway(RouteAddress::Inet(subnet.gateway())),
        RouteAttribute::PrefSource(RouteAddress::Inet(source)),
    ]);
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

/// One that a dump gave.
pub(crate) fn delete_route(route: RouteMessage) -> Request {
    Request {
        message: RouteNetlinkMessage::DelRoute(route),
        flags: NLM_F_REQUEST,
    }
}

/// Routes of the same destination differ by `metric`; the lowest counts.
pub(crate) fn add_unreachable(subnet: Subnet, metric: u32) -> Request {
    let route = unreachable(subnet, metric);
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

pub(crate) fn delete_unreachable(subnet: Subnet, metric: u32) -> Request {
    let route = unreachable(subnet, metric);
    Request {
        message: RouteNetlinkMessage::DelRoute(route),
        flags: NLM_F_REQUEST,
    }
}

fn unreachable(subnet: Subnet, metric: u32) -> RouteMessage {
    let mut route = route(
        subnet.base(),
        subnet.prefix(),
        RouteType::Unreachable,
        RouteScope::Universe,
    );
    if metric > 0 {
        route.attributes.push(RouteAttribute::Priority(metric));
    }
    route
}

fn route(destination: Ipv4Addr, prefix: u8, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = prefix;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = scope;
    route.header.kind = kind;
    if prefix > 0 {
        route
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    }
    route
}

fn set_link(index: u32, attribute: LinkAttribute) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![attribute];
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: NLM_F_REQUEST,
    }
}

fn set_up_flag(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
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
