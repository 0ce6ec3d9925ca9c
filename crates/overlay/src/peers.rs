//! Brings the kernel's ways to the other hosts in line with [`Ways`].
//!
//! Compared with what the kernel *has*, not with what was asked of it before: a peer that stays as it is is not
//! touched, so its traffic goes on, and what an earlier daemon left behind is found. Blocking.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;

use crate::map::{self, Mac, Ways};
use crate::netlink::{self, Netlink};
use crate::{Config, Error, Subnet, Underlay, attach, tunnel};

/// Makes or repairs the interface to the peers and what it knows of them.
pub(crate) fn carry_out(config: &Config, underlay: &Underlay, ways: &Ways, mtu: u32) -> Result<(), Error> {
    let name = config.peer_interface();
    let doing = |what: &str| Error::kernel(format!("{what} {name}"));
    let mut host = Netlink::open().map_err(doing("opening rtnetlink for"))?;
    let index = interface(&mut host, config, underlay, mtu)?;
    update(&mut host, index, config.subnet.gateway(), ways).map_err(doing("setting up the ways by"))
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
    host.all([netlink::set_mtu(index, mtu), netlink::up_without_ipv6(&name)])
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
fn update(host: &mut Netlink, index: u32, source: Ipv4Addr, ways: &Ways) -> io::Result<()> {
    let ends = host.neighbours(index, AddressFamily::Bridge)?;
    let gateways = host.neighbours(index, AddressFamily::Inet)?;
    let routes: Vec<RouteMessage> = host.routes()?;
    let routes = routes
        .into_iter()
        .filter(|route| route.attributes.contains(&RouteAttribute::Oif(index)))
        .collect::<Vec<_>>();

    let known: BTreeMap<Mac, IpAddr> = ends.iter().filter_map(end).collect();
    let new = ways
        .forwarding
        .iter()
        .filter(|(mac, address)| known.get(*mac) != Some(*address))
        .map(|(mac, address)| netlink::put_forwarding(index, *mac, *address));
    host.all(new)?;
    let known: BTreeMap<Ipv4Addr, Mac> = gateways.iter().filter_map(gateway).collect();
    let new = ways
        .neighbours
        .iter()
        .filter(|(gateway, mac)| known.get(*gateway) != Some(*mac))
        .map(|(gateway, mac)| netlink::put_neighbour(index, *gateway, *mac));
    host.all(new)?;
    let known: BTreeSet<Subnet> = routes
        .iter()
        .filter_map(|route| whole(route, source, ways))
        .collect();
    let new = ways
        .routes
        .difference(&known)
        .map(|subnet| match gateway_of(*subnet, ways) {
            Some(gateway) => netlink::route_by_gateway(index, *subnet, gateway, source),
            None => netlink::route_into_tunnel(index, *subnet, source),
        });
    host.all(new)?;

    let routes = routes
        .into_iter()
        .filter(|route| !destination(route).is_some_and(|subnet| ways.routes.contains(&subnet)))
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
fn gateway(message: &NeighbourMessage) -> Option<(Ipv4Addr, Mac)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    (message.header.state == NeighbourState::Permanent).then_some(())?;
    Some((address, mac_of(message)?))
}

fn destination(route: &RouteMessage) -> Option<Subnet> {
    let base = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(base)) => Some(*base),
        _ => None,
    })?;
    Subnet::new(base, route.header.destination_prefix_length).ok()
}

/// Where a route leads that has all that ours have.
fn whole(route: &RouteMessage, source: Ipv4Addr, ways: &Ways) -> Option<Subnet> {
    let subnet = destination(route)?;
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    });
    let source = RouteAttribute::PrefSource(RouteAddress::Inet(source));
    (gateway == gateway_of(subnet, ways) && route.attributes.contains(&source)).then_some(subnet)
}

fn gateway_of(subnet: Subnet, ways: &Ways) -> Option<Ipv4Addr> {
    let gateway = subnet.gateway();
    ways.neighbours.contains_key(&gateway).then_some(gateway)
}
