//! Brings the kernel's ways to the other hosts in line with [`Ways`].
//!
//! Compared with what the kernel *has*, not with what was asked of it before: a peer that stays as it is is not
//! touched, so its traffic goes on, and what an earlier daemon left behind is found. Blocking.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;

use crate::map::{self, Mac, Ways};
use crate::netlink::{self, Netlink};
use crate::{Config, Destination, Error, Underlay, attach, forwarding, tunnel};

/// Makes or repairs the interface to the peers and what it knows of them.
pub(crate) fn carry_out(config: &Config, underlay: &Underlay, ways: &Ways, mtu: u32) -> Result<(), Error> {
    let name = config.peer_interface();
    let doing = |what: &str| Error::kernel(format!("{what} {name}"));
    let mut host = Netlink::open().map_err(doing("opening rtnetlink for"))?;
    let index = interface(&mut host, config, underlay, mtu)?;
    update(&mut host, index, config, ways).map_err(doing("setting up the ways by"))
}

/// Whether it is there; what it knows is not looked at.
pub(crate) fn is_there(host: &mut Netlink, config: &Config) -> io::Result<bool> {
    Ok(host.link(&config.peer_interface())?.is_some())
}

/// Its routes and entries go with it.
pub(crate) fn remove(host: &mut Netlink, config: &Config) -> io::Result<()> {
    match host.link(&config.peer_interface())? {
        Some(link) if is_ours(&link) => attach::delete(host, link.header.index),
        _ => Ok(()),
    }
}

/// Of a kind that this crate makes, under our name.
fn is_ours(link: &LinkMessage) -> bool {
    matches!(netlink::kind(link), Some(InfoKind::Vxlan | InfoKind::Tun))
}

fn interface(host: &mut Netlink, config: &Config, underlay: &Underlay, mtu: u32) -> Result<u32, Error> {
    let name = config.peer_interface();
    let doing = |what: &str| Error::kernel(format!("{what} {name}"));
    let mac = map::mac(config.subnet);
    let mut found = host.link(&name).map_err(doing("looking for"))?;
    if let Some(link) = &found {
        if !is_ours(link) {
            let kind = netlink::kind(link);
            let kind = kind.map_or_else(|| "physical".into(), |kind| kind.to_string());
            return Err(Error::InterfaceInUse { name, kind });
        }
        // Of another configuration: most of it cannot be changed while it is there.
        if !is_as_wanted(link, underlay, mac) {
            attach::delete(host, link.header.index).map_err(doing("deleting the old"))?;
            found = None;
        }
    }
    let link = match found {
        Some(link) => link,
        None => {
            match underlay.is_encrypted() {
                true => tunnel::make_device(&name).map_err(doing("making"))?,
                false => host
                    .one(netlink::create_vxlan(&name, underlay, mac, mtu))
                    .map(drop)
                    .map_err(|error| vxlan_refused(error, underlay, &name))?,
            }
            let link = host.link(&name).map_err(doing("looking for"))?;
            link.ok_or_else(|| doing("looking for")(Errno::ENODEV.into()))?
        }
    };
    let index = link.header.index;
    host.all([netlink::set_mtu(index, mtu), netlink::up_without_ipv6(&name, mtu)])
        .map_err(doing("setting up"))?;
    Ok(index)
}

fn vxlan_refused(error: io::Error, underlay: &Underlay, name: &str) -> Error {
    // Another VXLAN of the same number and port is on the machine.
    if netlink::is(&error, Errno::EEXIST) {
        return Error::NetworkNumberInUse {
            vni: underlay.vni,
            port: underlay.vxlan_port,
        };
    }
    Error::kernel(format!("making {name}"))(error)
}

fn is_as_wanted(link: &LinkMessage, underlay: &Underlay, mac: Mac) -> bool {
    if underlay.is_encrypted() {
        return netlink::kind(link) == Some(InfoKind::Tun);
    }
    let Some(InfoData::Vxlan(infos)) = netlink::data(link) else {
        return false;
    };
    let local = match underlay.address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let wanted = [
        InfoVxlan::Id(underlay.vni),
        local,
        InfoVxlan::Port(underlay.vxlan_port),
        InfoVxlan::Learning(false),
    ];
    wanted.iter().all(|info| infos.contains(info)) && netlink::hardware_address(link) == Some(&mac)
}

/// Adds before it removes, and a route after what it needs.
fn update(host: &mut Netlink, index: u32, config: &Config, ways: &Ways) -> io::Result<()> {
    let source = |destination: &Destination| match destination.address {
        IpAddr::V4(_) => IpAddr::V4(config.subnet.gateway()),
        IpAddr::V6(_) => {
            let gateway = config.gateway6();
            IpAddr::V6(gateway.expect("there are such routes only where there is one"))
        }
    };
    let ends = host.neighbours(index, AddressFamily::Bridge)?;
    let mut gateways = host.neighbours(index, AddressFamily::Inet)?;
    let mut routes: Vec<RouteMessage> = host.routes(AddressFamily::Inet)?;
    if forwarding::is_ipv6_there() {
        gateways.extend(host.neighbours(index, AddressFamily::Inet6)?);
        routes.extend(host.routes(AddressFamily::Inet6)?);
    }
    routes.retain(|route| route.attributes.contains(&RouteAttribute::Oif(index)));
    // The kernel's own, of groups.
    gateways.retain(|message| message.header.state != NeighbourState::Noarp);

    let known: BTreeMap<Mac, IpAddr> = ends.iter().filter_map(end).collect();
    let new = ways
        .forwarding
        .iter()
        .filter(|(mac, address)| known.get(*mac) != Some(*address))
        .map(|(mac, address)| netlink::put_forwarding(index, *mac, *address));
    host.all(new)?;
    let known: BTreeMap<IpAddr, Mac> = gateways.iter().filter_map(gateway).collect();
    let new = ways
        .neighbours
        .iter()
        .filter(|(gateway, mac)| known.get(*gateway) != Some(*mac))
        .map(|(gateway, mac)| netlink::put_neighbour(index, *gateway, *mac));
    host.all(new)?;
    let is_whole = |(destination, gateway): &(&Destination, &Option<IpAddr>)| {
        routes.iter().any(|route| {
            destination_of(route) == Some(**destination)
                && gateway_of(route) == **gateway
                && route
                    .attributes
                    .contains(&RouteAttribute::PrefSource(source(destination).into()))
        })
    };
    let new: Vec<_> = ways
        .routes
        .iter()
        .filter(|way| !is_whole(way))
        .map(|(destination, gateway)| {
            netlink::route_to_peer(index, *destination, *gateway, source(destination))
        })
        .collect();
    host.all(new)?;

    let routes = routes
        .into_iter()
        .filter(|route| !destination_of(route).is_some_and(|known| ways.routes.contains_key(&known)))
        .map(netlink::delete_route);
    let gateways = gateways
        .into_iter()
        .filter(|message| !gateway(message).is_some_and(|(it, _)| ways.neighbours.contains_key(&it)))
        .map(netlink::delete_neighbour);
    let ends = ends
        .into_iter()
        .filter(|message| !end(message).is_some_and(|(it, _)| ways.forwarding.contains_key(&it)))
        .map(netlink::delete_neighbour);
    for request in routes.chain(gateways).chain(ends) {
        match host.one(request) {
            // It went by itself: a neighbour that was asked for and never answered, say.
            Err(error) if netlink::is(&error, Errno::ESRCH) || netlink::is(&error, Errno::ENOENT) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

fn end(message: &NeighbourMessage) -> Option<(Mac, IpAddr)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        // In this table the kind of an address is told by its length only.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    })?;
    Some((mac_of(message)?, address))
}

/// Only entries of ours, which are permanent.
fn gateway(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    (message.header.state == NeighbourState::Permanent).then_some(())?;
    Some((address, mac_of(message)?))
}

fn destination_of(route: &RouteMessage) -> Option<Destination> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    })?;
    Some(Destination {
        address,
        prefix: route.header.destination_prefix_length,
    })
}

fn gateway_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        _ => None,
    })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
