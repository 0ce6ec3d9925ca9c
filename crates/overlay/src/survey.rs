//! What is on the machine before anything of ours is made: who has our addresses, and which packets its links take.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use tracing::warn;

use crate::netlink::{self, Netlink};
use crate::{Config, Error, forwarding};

/// Where there is no default route to take it from: Ethernet's.
pub(crate) const MTU_DEFAULT: u32 = 1500;

/// On a link that takes less, the kernel has no IPv6 (RFC 8200, section 5).
pub(crate) const MTU_MIN_IPV6: u32 = 1280;

/// In bytes.
#[derive(Clone, Copy)]
pub(crate) struct Mtu {
    /// Of the jobs' interfaces.
    pub jobs: u32,
    /// Of the interface to other hosts: what still fits the underlay when it is wrapped up.
    pub peers: u32,
}

/// The configuration as far as this machine can have it: without IPv6 where its kernel, or a link, has none.
pub(crate) fn possible(config: Config) -> Result<Config, Error> {
    if config.ipv6.is_none() {
        return Ok(config);
    }
    let why_not = if !forwarding::is_ipv6_there() {
        Some("the kernel has it switched off".to_owned())
    } else if !forwarding::is_ipv6_possible() {
        Some("net.ipv6.conf.all.forwarding cannot be written".to_owned())
    } else {
        let doing = || Error::kernel("looking at the machine's network");
        let mut host = Netlink::open().map_err(doing())?;
        let (_, mtu) = survey(&config, &mut host).map_err(doing())?;
        let least = mtu.jobs.min(mtu.peers);
        (least < MTU_MIN_IPV6).then(|| format!("links take {least} bytes only, and it needs {MTU_MIN_IPV6}"))
    };
    let Some(why_not) = why_not else {
        return Ok(config);
    };
    warn!(why_not, "jobs have no IPv6 addresses");
    Ok(Config { ipv6: None, ..config })
}

/// Who else uses our subnet, and what fits the machine's links.
///
/// A wider network around ours (a VPN's 10.0.0.0/8, say) is no conflict: the narrower route, ours, wins.
pub(crate) fn survey(config: &Config, host: &mut Netlink) -> std::io::Result<(Vec<String>, Mtu)> {
    let links = host.links()?;
    let name_of = |index: u32| {
        links
            .iter()
            .find(|link| link.header.index == index)
            .map(netlink::name)
            .unwrap_or("?")
            .to_string()
    };
    let is_ours = |name: &str| {
        name == config.interface_prefix
            || name == config.peer_interface()
            || config.slot_of_interface(name).is_some()
    };
    let mtu_of = |index: u32| {
        let link = links.iter().find(|link| link.header.index == index);
        link.and_then(netlink::mtu)
    };
    let mut uses = Vec::new();
    let mut underlay_mtu = None;
    for address in host.addresses()? {
        let name = name_of(address.header.index);
        if let Some(underlay) = &config.underlay
            && address.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Local(own) | AddressAttribute::Address(own) => *own == underlay.address,
                _ => false,
            })
        {
            underlay_mtu = mtu_of(address.header.index);
        }
        let local = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => Some(*local),
            _ => None,
        });
        if let Some(local) = local
            && config.subnet.contains(local)
            && !is_ours(&name)
        {
            uses.push(format!("address {local} of {name}"));
        }
    }
    let mut mtu = None;
    for route in host.routes(AddressFamily::Inet)? {
        let oif = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let name = oif.map(name_of).unwrap_or_default();
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(destination)) => Some(*destination),
            _ => None,
        });
        let prefix = route.header.destination_prefix_length;
        match destination {
            None if prefix == 0 && route.header.address_family == AddressFamily::Inet => {
                mtu = mtu.or(oif.and_then(mtu_of));
            }
            Some(destination) if config.subnet.contains(destination) && prefix >= config.subnet.prefix() => {
                let is_our_unreachable =
                    route.header.kind == RouteType::Unreachable && prefix == config.subnet.prefix();
                if !is_ours(&name) && !is_our_unreachable {
                    uses.push(format!("route {destination}/{prefix} by {name}"));
                }
            }
            _ => {}
        }
    }
    let outside = mtu.unwrap_or(MTU_DEFAULT);
    // What a job sends must fit both ways: as it is to the outside, wrapped up to another host.
    let peers = match &config.underlay {
        Some(underlay) => underlay_mtu
            .unwrap_or(outside)
            .saturating_sub(underlay.overhead()),
        None => outside,
    };
    let jobs = config.mtu.unwrap_or(outside.min(peers));
    Ok((uses, Mtu { jobs, peers }))
}
