//! Which peer a packet goes to or comes from. No sockets: it says whom, others send.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519::PublicKey;

use super::key::{self, Key};
use crate::{Config, Map, Prefix6, Subnet, map};

/// Handshakes a second, of all peers together, beyond which those who ask have to prove that they are where they say.
const HANDSHAKES_PER_S: u64 = 200;

/// A session's number on the wire is the peer's followed by eight bits of its own.
const INDEX_BITS: u32 = 8;

pub struct Peer {
    /// Jobs' addresses: what may come out of this tunnel, and what goes into it.
    pub subnet: Subnet,
    pub endpoint: SocketAddr,
    pub tunnel: Arc<Mutex<Tunn>>,
    key: [u8; 32],
    index: u32,
}

/// All peers at one moment. A new map gives a new table, in which those who stay keep their sessions.
#[derive(Default)]
pub struct Table {
    peers: Vec<Arc<Peer>>,
    by_index: BTreeMap<u32, Arc<Peer>>,
    by_key: BTreeMap<[u8; 32], Arc<Peer>>,
    by_first_address: BTreeMap<u32, Arc<Peer>>,
    ipv6: Option<Prefix6>,
    index_last: u32,
}

impl Table {
    pub fn updated(&self, config: &Config, map: &Map, own: &Identity) -> Table {
        let mut table = Table {
            index_last: self.index_last,
            ipv6: config.ipv6,
            ..Table::default()
        };
        let port = config
            .underlay
            .as_ref()
            .map_or(0, |underlay| underlay.tunnel_port);
        for peer in map::reachable(config, map).0 {
            // Without a key it is not among those that can be reached.
            let Some(key) = peer.public_key.as_deref().and_then(key::decode) else {
                continue;
            };
            let (tunnel, index) = match self.by_key.get(&key) {
                Some(known) => (known.tunnel.clone(), known.index),
                None => {
                    table.index_last += 1;
                    (own.tunnel(key, table.index_last), table.index_last)
                }
            };
            table.insert(Arc::new(Peer {
                subnet: peer.subnet,
                endpoint: SocketAddr::new(peer.underlay, port),
                tunnel,
                key,
                index,
            }));
        }
        table
    }

    fn insert(&mut self, peer: Arc<Peer>) {
        self.by_index.insert(peer.index, peer.clone());
        self.by_key.insert(peer.key, peer.clone());
        self.by_first_address
            .insert(u32::from(peer.subnet.base()), peer.clone());
        self.peers.push(peer);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.iter()
    }

    /// Whether it has a session, or has asked for one, from here.
    pub fn knows(&self, peer: &Peer) -> bool {
        self.by_key.contains_key(&peer.key)
    }

    /// Whose job a packet of ours is for.
    pub fn destined(&self, packet: &[u8]) -> Option<&Arc<Peer>> {
        let destination = destination(packet, self.ipv6)?;
        let (_, peer) = self
            .by_first_address
            .range(..=u32::from(destination))
            .next_back()?;
        peer.subnet.contains(destination).then_some(peer)
    }

    /// Who sent a datagram, as far as can be told before it is decrypted. Somebody who asks for a session is known only
    /// after some work, which `own` limits.
    pub fn sender(&self, datagram: &[u8], own: &Identity) -> Option<&Arc<Peer>> {
        let index = match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(begin) => {
                let known = parse_handshake_anon(own.key.bytes(), &own.public, &begin).ok()?;
                return self.by_key.get(&known.peer_static_public);
            }
            Packet::HandshakeResponse(packet) => packet.receiver_idx,
            Packet::PacketCookieReply(packet) => packet.receiver_idx,
            Packet::PacketData(packet) => packet.receiver_idx,
        };
        self.by_index.get(&(index >> INDEX_BITS))
    }
}

/// This host.
pub struct Identity {
    key: Key,
    public: PublicKey,
    pub limiter: Arc<RateLimiter>,
}

impl Identity {
    pub fn new(key: Key) -> Identity {
        let public = PublicKey::from(key.bytes());
        Identity {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_S)),
            public,
            key,
        }
    }

    fn tunnel(&self, peer: [u8; 32], index: u32) -> Arc<Mutex<Tunn>> {
        let (own, limiter) = (self.key.bytes().clone(), self.limiter.clone());
        let tunnel = Tunn::new(own, PublicKey::from(peer), None, None, index, Some(limiter));
        Arc::new(Mutex::new(tunnel))
    }
}

/// Which job a packet is for, by its IPv4 address, which that of IPv6 ends in.
pub fn destination(packet: &[u8], ipv6: Option<Prefix6>) -> Option<Ipv4Addr> {
    address_at(packet, 16, 24, ipv6)
}

pub fn source(packet: &[u8], ipv6: Option<Prefix6>) -> Option<Ipv4Addr> {
    address_at(packet, 12, 8, ipv6)
}

/// An address of IPv6 that is no job's is none.
fn address_at(packet: &[u8], offset4: usize, offset6: usize, ipv6: Option<Prefix6>) -> Option<Ipv4Addr> {
    match packet.first()? >> 4 {
        4 => {
            let bytes: [u8; 4] = packet.get(offset4..offset4 + 4)?.try_into().ok()?;
            Some(bytes.into())
        }
        6 => {
            let bytes: [u8; 16] = packet.get(offset6..offset6 + 16)?.try_into().ok()?;
            ipv6?.within(bytes.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_of_either_kind_names_the_jobs_it_is_of_and_for() {
        let prefix: Prefix6 = "fd12:3456:789a::/96".parse().unwrap();
        let check = |packet: &[u8], prefix, expected: [Option<&str>; 2]| {
            let found = [source(packet, prefix), destination(packet, prefix)];
            assert_eq!(found, expected.map(|text| text.map(|text| text.parse().unwrap())));
        };
        let mut four = [0; 20];
        four[0] = 0x45;
        four[12..20].copy_from_slice(&[100, 100, 1, 2, 100, 100, 2, 3]);
        check(&four, None, [Some("100.100.1.2"), Some("100.100.2.3")]);
        let six = |source: &str, destination: &str| {
            let mut packet = [0; 40];
            packet[0] = 0x60;
            packet[8..24].copy_from_slice(&source.parse::<std::net::Ipv6Addr>().unwrap().octets());
            packet[24..].copy_from_slice(&destination.parse::<std::net::Ipv6Addr>().unwrap().octets());
            packet
        };
        let honest = six("fd12:3456:789a::6464:102", "fd12:3456:789a::6464:203");
        check(&honest, Some(prefix), [Some("100.100.1.2"), Some("100.100.2.3")]);
        check(&honest, None, [None, None]);
        let forged = six("fd12:3456:789b::6464:102", "fe80::6464:203");
        check(&forged, Some(prefix), [None, None]);
        check(&honest[..30], Some(prefix), [Some("100.100.1.2"), None]);
        check(&[], Some(prefix), [None, None]);
    }
}
