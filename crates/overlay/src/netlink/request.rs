//! What the kernel is asked for, one function each: links, addresses, routes, neighbours.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
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
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};

use super::Request;
use crate::map::Mac;
use crate::plan::Attachment;
use crate::{Subnet, Underlay};

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

/// For some seconds from now; given again, they begin anew. In use at once: what takes an address over cannot wait for
/// others to say that they have it. Not preferred, so that what the host itself sends never comes from it.
pub(crate) fn put_address_for(index: u32, address: IpAddr, prefix: u8, seconds: u32) -> Request {
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = 0;
    lifetime.ifa_valid = seconds;
    let mut message = AddressMessage::default();
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::CacheInfo(lifetime),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    Request {
        message: RouteNetlinkMessage::NewAddress(message),
        flags: CREATE_OR_REPLACE,
    }
}

/// One that a dump gave.
pub(crate) fn delete_address(message: AddressMessage) -> Request {
    Request {
        message: RouteNetlinkMessage::DelAddress(message),
        flags: NLM_F_REQUEST,
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

/// The way to all jobs of a peer by VXLAN. Jobs see `source` as the peer of connections from this host.
pub(crate) fn route_by_gateway(index: u32, subnet: Subnet, gateway: Ipv4Addr, source: Ipv4Addr) -> Request {
    let mut route = route_to_peer(index, subnet, source, RouteScope::Universe);
    // Of the interface alone, as it has no address by which the gateway would be known to be there.
    route.header.flags = RouteFlags::Onlink;
    route
        .attributes
        .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

/// The same where the other end finds out by itself who is meant.
pub(crate) fn route_into_tunnel(index: u32, subnet: Subnet, source: Ipv4Addr) -> Request {
    Request {
        message: RouteNetlinkMessage::NewRoute(route_to_peer(index, subnet, source, RouteScope::Link)),
        flags: CREATE_OR_REPLACE,
    }
}

fn route_to_peer(index: u32, subnet: Subnet, source: Ipv4Addr, scope: RouteScope) -> RouteMessage {
    let mut route = route(subnet.base(), subnet.prefix(), RouteType::Unicast, scope);
    route.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(RouteAddress::Inet(source)),
    ]);
    route
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
