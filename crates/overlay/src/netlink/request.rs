//! What the kernel is asked for, one function each: links, addresses, routes, neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::LazyLock;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};

use super::Request;
use crate::map::Mac;
use crate::plan::Attachment;
use crate::survey::MTU_MIN_IPV6;
use crate::{Destination, Underlay};

/// A kernel that was started without IPv6 refuses whatever names it.
static HAS_IPV6: LazyLock<bool> = LazyLock::new(|| Path::new("/proc/sys/net/ipv6").exists());

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

/// Under which hardware address a neighbour is known, for good: nobody is asked, and nobody's answer is believed.
pub(crate) fn put_neighbour(index: u32, neighbour_address: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(index, family_of(neighbour_address));
    message
        .attributes
        .push(NeighbourAttribute::Destination(match neighbour_address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
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
///
/// `mtu` is that of the link: to one that takes less than IPv6 needs the kernel does not even listen about it.
pub(crate) fn up_without_ipv6(name: &str, mtu: u32) -> Request {
    let mut link = LinkMessage::default();
    set_up_flag(&mut link);
    link.attributes = vec![LinkAttribute::IfName(name.into())];
    let has_ipv6 = *HAS_IPV6 && mtu >= MTU_MIN_IPV6;
    link.attributes.extend(has_ipv6.then(no_generated_address));
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: NLM_F_REQUEST,
    }
}

/// The same without bringing it up, for where the other end is up already: the kernel would bring the link up, and give
/// it its address, before it looks at this.
pub(crate) fn without_ipv6(index: u32) -> Request {
    set_link(index, no_generated_address())
}

fn no_generated_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
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

fn single_address(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address);
    message.header.prefix_len = bits_of(address);
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

pub(crate) fn remove_address(index: u32, address: IpAddr) -> Request {
    delete_address(single_address(index, address))
}

/// In use at once: nobody else can have it.
pub(crate) fn add_address(index: u32, address: IpAddr) -> Request {
    let mut message = single_address(index, address);
    if address.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
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
    message.header.family = family_of(address);
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
pub(crate) fn route_to_job(index: u32, address: IpAddr, source: IpAddr) -> Request {
    let mut route = route(address.into(), RouteType::Unicast, RouteScope::Link);
    route.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(source.into()),
    ]);
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

/// The job's way to the gateway, and by it to everywhere.
pub(crate) fn routes_of_job(index: u32, gateway: IpAddr) -> [Request; 2] {
    let mut to_gateway = route(gateway.into(), RouteType::Unicast, RouteScope::Link);
    to_gateway.attributes.push(RouteAttribute::Oif(index));
    let everywhere = Destination {
        address: match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        },
        prefix: 0,
    };
    let mut default = route(everywhere, RouteType::Unicast, RouteScope::Universe);
    default.header.flags = RouteFlags::Onlink;
    default.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::Gateway(gateway.into()),
    ]);
    [to_gateway, default].map(|route| Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    })
}

/// The way to all jobs of a peer, by its gateway with VXLAN; a tunnel finds out by itself who is meant. Jobs see `source`
/// as the peer of connections from this host.
pub(crate) fn route_to_peer(
    index: u32,
    destination: Destination,
    gateway: Option<IpAddr>,
    source: IpAddr,
) -> Request {
    let scope = match gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    let mut route = route(destination, RouteType::Unicast, scope);
    route.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(source.into()),
    ]);
    if let Some(gateway) = gateway {
        // Of the interface alone, as it has no address by which the gateway would be known to be there.
        route.header.flags = RouteFlags::Onlink;
        route.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
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
pub(crate) fn add_unreachable(destination: Destination, metric: u32) -> Request {
    let route = unreachable(destination, metric);
    Request {
        message: RouteNetlinkMessage::NewRoute(route),
        flags: CREATE_OR_REPLACE,
    }
}

pub(crate) fn delete_unreachable(destination: Destination, metric: u32) -> Request {
    let route = unreachable(destination, metric);
    Request {
        message: RouteNetlinkMessage::DelRoute(route),
        flags: NLM_F_REQUEST,
    }
}

fn unreachable(destination: Destination, metric: u32) -> RouteMessage {
    let mut route = route(destination, RouteType::Unreachable, RouteScope::Universe);
    if metric > 0 {
        route.attributes.push(RouteAttribute::Priority(metric));
    }
    route
}

fn route(destination: Destination, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family_of(destination.address);
    route.header.destination_prefix_length = destination.prefix;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = scope;
    route.header.kind = kind;
    if destination.prefix > 0 {
        route
            .attributes
            .push(RouteAttribute::Destination(destination.address.into()));
    }
    route
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
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
