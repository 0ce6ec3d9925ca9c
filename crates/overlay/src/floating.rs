//! An address that one host of several holds at a time, for clients that know only one.
//!
//! What a reader would get wrong: the address is given to the interface *for some seconds* and has to be
//! given again before they are over. So it is the kernel that takes it from a host whose daemon died or
//! hangs; nobody else has to be sure that it did.
//!
//! Neighbours are told with each taking over: a broadcast ARP request for one's own address (RFC 5227,
//! section 3), or an unsolicited neighbour advertisement (RFC 4861, section 7.2.6). Without it they would
//! go on sending to the host before for a minute or so.
//!
//! Who holds it is not decided here.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nix::sys::socket::{self, MsgFlags, SockFlag, SockProtocol, SockType};

use crate::Error;
use crate::map::Mac;
use crate::netlink::{self, Netlink};

/// An address and the length of its network's prefix, as in `192.0.2.7/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FloatingAddress {
    pub address: IpAddr,
    pub prefix: u8,
}

impl FromStr for FloatingAddress {
    type Err = String;

    /// Without a prefix it is a network of its own.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{text:?} is no address such as 192.0.2.7/24"))?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" => bits_max,
            digits => digits
                .parse()
                .ok()
                .filter(|bits| (1..=bits_max).contains(bits))
                .ok_or_else(|| format!("the prefix of {text:?} is not within 1 and {bits_max}"))?,
        };
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(format!("{address} cannot be an address of a host"));
        }
        Ok(FloatingAddress { address, prefix })
    }
}

impl fmt::Display for FloatingAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The interface that has `address`.
pub fn interface_of(address: IpAddr) -> Result<Option<String>, Error> {
    let mut netlink = open()?;
    let holds = |message: &AddressMessage| address_of(message) == Some(address);
    let addresses = netlink.addresses().map_err(Error::kernel("listing addresses"))?;
    let Some(index) = addresses
        .iter()
        .find(|message| holds(message))
        .map(|found| found.header.index)
    else {
        return Ok(None);
    };
    let links = netlink.links().map_err(Error::kernel("listing interfaces"))?;
    let link = links.iter().find(|link| link.header.index == index);
    Ok(link.map(|link| netlink::name(link).to_owned()))
}

/// The interface on whose network the address is: it has another of the same network, or this one already.
pub fn interface_for(floating: FloatingAddress) -> Result<Option<String>, Error> {
    if let Some(interface) = interface_of(floating.address)? {
        return Ok(Some(interface));
    }
    let mut netlink = open()?;
    let addresses = netlink.addresses().map_err(Error::kernel("listing addresses"))?;
    let neighbour = addresses
        .iter()
        .find(|message| {
            let own = address_of(message);
            own.is_some_and(|own| is_same_network(own, floating.address, message.header.prefix_len))
        })
        .and_then(address_of);
    neighbour.map_or(Ok(None), interface_of)
}

/// A network of one address has no neighbours.
fn is_same_network(own: IpAddr, other: IpAddr, prefix: u8) -> bool {
    match (own, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let differ = own.to_bits() ^ other.to_bits();
            (1..32).contains(&prefix) && differ >> (32 - prefix) == 0
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            let differ = own.to_bits() ^ other.to_bits();
            (1..128).contains(&prefix) && differ >> (128 - prefix) == 0
        }
        _ => false,
    }
}

/// Gives `interface` the address for `lease`, cut to whole seconds, from now on. Whether it did not have
/// it before, in which case the neighbours have been told.
pub fn hold(floating: FloatingAddress, interface: &str, lease: Duration) -> Result<bool, Error> {
    let doing = || format!("giving {interface} the address {floating}");
    let mut netlink = open()?;
    let link = netlink.link(interface).map_err(Error::kernel(doing()))?;
    let link = link.ok_or_else(|| {
        let missing = io::Error::new(io::ErrorKind::NotFound, "there is no such interface");
        Error::kernel(doing())(missing)
    })?;
    let index = link.header.index;
    let is_new = !has(&mut netlink, index, floating.address)?;
    let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1);
    netlink
        .one(netlink::put_address_for(
            index,
            floating.address,
            floating.prefix,
            seconds,
        ))
        .map_err(Error::kernel(doing()))?;
    if is_new && let Some(mac) = netlink::hardware_address(&link).and_then(|mac| mac.try_into().ok()) {
        announce(floating.address, mac, interface).map_err(Error::kernel(doing()))?;
    }
    Ok(is_new)
}

/// Takes the address from whatever interface has it. Whether one had.
pub fn release(address: IpAddr) -> Result<bool, Error> {
    let doing = || format!("taking the address {address} back");
    let mut netlink = open()?;
    let addresses = netlink.addresses().map_err(Error::kernel(doing()))?;
    let mut was_there = false;
    for message in addresses {
        if address_of(&message) == Some(address) {
            netlink
                .one(netlink::delete_address(message))
                .map_err(Error::kernel(doing()))?;
            was_there = true;
        }
    }
    Ok(was_there)
}

fn open() -> Result<Netlink, Error> {
    Netlink::open().map_err(Error::kernel("opening a netlink socket"))
}

fn has(netlink: &mut Netlink, index: u32, address: IpAddr) -> Result<bool, Error> {
    let addresses = netlink.addresses().map_err(Error::kernel("listing addresses"))?;
    Ok(addresses
        .iter()
        .any(|message| message.header.index == index && address_of(message) == Some(address)))
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    // IPv4 interfaces that are no point-to-point links have both, the same; IPv6 has the second only.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => found = Some(*address),
            _ => {}
        }
    }
    found
}

/// Tells everybody on the link who has the address now.
fn announce(address: IpAddr, mac: Mac, interface: &str) -> io::Result<()> {
    let frame = match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac).to_vec(),
        IpAddr::V6(address) => unsolicited_advertisement(address, mac).to_vec(),
    };
    let link = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied());
    let Some(link) = link else { return Ok(()) };
    let socket = socket::socket(
        socket::AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    socket::sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
    Ok(())
}

const BROADCAST: Mac = [0xff; 6];

/// A whole Ethernet frame: "who has `address`? Tell `address`", from its new owner.
fn gratuitous_arp(address: Ipv4Addr, mac: Mac) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[0..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    // Ethertype ARP, Ethernet and IPv4 with their lengths, a request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// A whole Ethernet frame to all nodes of the link, which makes them forget where the address was.
fn unsolicited_advertisement(address: Ipv6Addr, mac: Mac) -> [u8; 86] {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMP: usize = 54;
    let mut frame = [0; 86];
    frame[0..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac);
    // Ethertype IPv6, version 6, 32 bytes of ICMPv6, hop limit 255 as the RFC demands.
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame[22..38].copy_from_slice(&address.octets());
    frame[38..54].copy_from_slice(&ALL_NODES.octets());
    // Neighbour advertisement with the override flag, then the target and its link-layer address.
    frame[ICMP] = 136;
    frame[ICMP + 4] = 0x20;
    frame[ICMP + 8..ICMP + 24].copy_from_slice(&address.octets());
    frame[ICMP + 24..ICMP + 26].copy_from_slice(&[2, 1]);
    frame[ICMP + 26..ICMP + 32].copy_from_slice(&mac);
    let sum = checksum(&frame[22..54], &frame[ICMP..]);
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Of ICMPv6: over both addresses, length and protocol, and the message (RFC 8200, section 8.1).
fn checksum(addresses: &[u8], message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
            .sum()
    };
    let mut sum = words(addresses) + words(message) + message.len() as u32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_their_prefix_and_mistakes_are_named() {
        let check = |text: &str, expected: &str| {
            let said = match text.parse::<FloatingAddress>() {
                Ok(address) => address.to_string(),
                Err(error) => error,
            };
            assert!(said.contains(expected), "{text}: {said}");
        };
        check("192.0.2.7/24", "192.0.2.7/24");
        check("192.0.2.7", "192.0.2.7/32");
        check("2001:db8::7/64", "2001:db8::7/64");
        check("192.0.2.7/33", "not within 1 and 32");
        check("192.0.2.7/0", "not within 1 and 32");
        check("router", "is no address such as");
        check("127.0.0.1/8", "cannot be an address of a host");
        check("224.0.0.1", "cannot be an address of a host");
    }

    #[test]
    fn neighbours_are_those_of_one_network() {
        let check = |own: &str, other: &str, prefix, expected| {
            let found = is_same_network(own.parse().unwrap(), other.parse().unwrap(), prefix);
            assert_eq!(found, expected, "{own}/{prefix} {other}");
        };
        check("10.0.0.1", "10.0.0.200", 24, true);
        check("10.0.0.1", "10.0.1.200", 24, false);
        check("10.0.0.1", "10.0.0.1", 32, false);
        check("fd00::1", "fd00::2", 64, true);
        check("fd00::1", "fd00:0:0:1::2", 64, false);
        check("10.0.0.1", "fd00::2", 0, false);
    }

    #[test]
    fn an_advertisement_has_the_checksum_that_receivers_expect() {
        let frame = unsolicited_advertisement("2001:db8::7".parse().unwrap(), [2, 0, 0, 0, 0, 1]);
        // Summed with the checksum in it, the whole is zero.
        assert_eq!(checksum(&frame[22..54], &frame[54..]), 0);
    }

    #[test]
    fn a_gratuitous_arp_names_the_owner_twice() {
        let frame = gratuitous_arp(Ipv4Addr::new(192, 0, 2, 7), [2, 0, 0, 0, 0, 1]);
        assert_eq!(frame[28..32], frame[38..42]);
        assert_eq!(frame[6..12], frame[22..28]);
    }
}
