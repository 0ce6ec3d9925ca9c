//! The network map: the other hosts, and whom of this host's jobs theirs may reach. Values, nothing else.
//!
//! **The host that receives decides.** What a job sends to a job of another host goes out unasked, from an address
//! that it cannot forge; the host of the other one knows which addresses may open connections to which of its apps.
//! So each host needs to know what concerns its own jobs only, and a job that may not is refused by the side that has
//! something to lose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{Config, Destination, Subnet, Underlay};

/// All that a host has to know of the others. The whole of it each time; what differs is found out by comparing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// By the id of the host; this host is not among them.
    #[serde(default)]
    pub hosts: BTreeMap<String, Peer>,
    /// (app, address): the job at that address, on another host, may open connections to this host's jobs of the app.
    #[serde(default)]
    pub admitted: BTreeSet<(String, Ipv4Addr)>,
    /// (from, to): jobs of one app on this host may open connections to those of another on this host.
    #[serde(default)]
    pub links: BTreeSet<(String, String)>,
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Addresses of its jobs; the first is its gateway.
    pub subnet: Subnet,
    /// Where it is reached.
    pub underlay: IpAddr,
    /// Of its tunnel, base64. With one it takes encrypted traffic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

pub type Mac = [u8; 6];

/// How the peers are reached: entries of the kernel's tables, none of which it may learn or forget by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Where to, and by which gateway: with VXLAN the peer's own, a tunnel needs none.
    pub routes: BTreeMap<Destination, Option<IpAddr>>,
    /// Of VXLAN only: the peers' gateways, and what their ends of the network are called.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Under which address of the underlay each end is.
    pub forwarding: BTreeMap<Mac, IpAddr>,
}

/// The name of a host's end, made from its subnet: no two hosts have the same, and nobody has to tell it.
///
/// The second lowest bit of the first byte says that it was not given out by a manufacturer.
pub fn mac(subnet: Subnet) -> Mac {
    let [a, b, c, d] = subnet.base().octets();
    [0x02, 0xf1, a, b, c, d]
}

/// The peers that can be reached, and why the others cannot.
///
/// Of two hosts that claim the same addresses the first by id is believed: which one it is does not change while
/// both stay, so nothing flaps.
pub fn reachable<'a>(config: &Config, map: &'a Map) -> (Vec<&'a Peer>, Vec<String>) {
    let Some(underlay) = &config.underlay else {
        return (Vec::new(), Vec::new());
    };
    let (mut peers, mut problems): (Vec<&Peer>, Vec<String>) = (Vec::new(), Vec::new());
    for (id, peer) in &map.hosts {
        let problem = if peer.subnet.overlaps(&config.subnet) {
            Some(format!("its subnet {} is this host's", peer.subnet))
        } else if !underlay.cluster.includes(&peer.subnet) {
            Some(format!(
                "its subnet {} is not of {}",
                peer.subnet, underlay.cluster
            ))
        } else if let Some(other) = peers.iter().find(|other| other.subnet.overlaps(&peer.subnet)) {
            Some(format!(
                "its subnet {} is that of {} too",
                peer.subnet, other.underlay
            ))
        } else if peer.underlay.is_ipv4() != underlay.address.is_ipv4() {
            Some(format!(
                "{} and {} are of different kinds",
                peer.underlay, underlay.address
            ))
        } else {
            match (underlay.is_encrypted(), peer.public_key.is_some()) {
                (true, false) => Some("it does not encrypt what jobs send, and this host does".into()),
                (false, true) => Some("it encrypts what jobs send, and this host does not".into()),
                _ => None,
            }
        };
        match problem {
            Some(problem) => problems.push(format!("host {id} cannot be reached: {problem}")),
            None => peers.push(peer),
        }
    }
    (peers, problems)
}

pub fn ways(config: &Config, map: &Map) -> Ways {
    let mut ways = Ways::default();
    // A tunnel finds the peer by the packet's destination.
    let is_encrypted = config.underlay.as_ref().is_some_and(Underlay::is_encrypted);
    for peer in reachable(config, map).0 {
        let mac = mac(peer.subnet);
        let mut lead = |destination: Destination, gateway: IpAddr| {
            let gateway = (!is_encrypted).then_some(gateway);
            ways.routes.insert(destination, gateway);
            ways.neighbours.extend(gateway.map(|gateway| (gateway, mac)));
        };
        let gateway = peer.subnet.gateway();
        lead(peer.subnet.into(), gateway.into());
        if let Some(prefix) = config.ipv6 {
            lead(prefix.subnet(peer.subnet).into(), prefix.address(gateway).into());
        }
        if !is_encrypted {
            ways.forwarding.insert(mac, peer.underlay);
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Encryption;

    fn config() -> Config {
        Config {
            underlay: Some(Underlay {
                encryption: Encryption::Off,
                ..Underlay::new("10.0.0.1".parse().unwrap(), "100.100.0.0/16".parse().unwrap())
            }),
            ..Config::new("fl0", "flynn_fl0", "100.100.0.0/22".parse().unwrap())
        }
    }

    fn map(text: &str) -> Map {
        let hosts = text.split(", ").map(|host| {
            let mut words = host.split(' ');
            let id = words.next().unwrap().to_string();
            let peer = Peer {
                subnet: words.next().unwrap().parse().unwrap(),
                underlay: words.next().unwrap().parse().unwrap(),
                public_key: None,
            };
            (id, peer)
        });
        Map {
            hosts: hosts.collect(),
            ..Map::default()
        }
    }

    fn check(text: &str, expected: &str) {
        check_with(config(), text, expected);
    }

    fn check_with(config: Config, text: &str, expected: &str) {
        let ways = ways(&config, &map(text));
        let mut lines = String::new();
        for (destination, gateway) in &ways.routes {
            let gateway = gateway.expect("without encryption there is one");
            let mac = ways.neighbours[&gateway];
            let hex = mac.map(|byte| format!("{byte:02x}")).join(":");
            lines += &format!("{destination} by {gateway} {hex} at {}\n", ways.forwarding[&mac]);
        }
        for problem in reachable(&config, &map(text)).1 {
            lines += &format!("{problem}\n");
        }
        assert_eq!(lines, expected);
    }

    #[test]
    fn each_peer_has_a_route_a_neighbour_and_an_entry_for_forwarding() {
        check(
            "b 100.100.4.0/22 10.0.0.2, c 100.100.8.0/22 10.0.0.3",
            "100.100.4.0/22 by 100.100.4.1 02:f1:64:64:04:00 at 10.0.0.2\n\
             100.100.8.0/22 by 100.100.8.1 02:f1:64:64:08:00 at 10.0.0.3\n",
        );
    }

    #[test]
    fn both_kinds_of_addresses_lead_to_the_same_end() {
        let both = Config {
            ipv6: Some("fd12:3456:789a::/96".parse().unwrap()),
            ..config()
        };
        check_with(
            both,
            "b 100.100.4.0/22 10.0.0.2",
            "100.100.4.0/22 by 100.100.4.1 02:f1:64:64:04:00 at 10.0.0.2\n\
             fd12:3456:789a::6464:400/118 by fd12:3456:789a::6464:401 02:f1:64:64:04:00 at 10.0.0.2\n",
        );
    }

    #[test]
    fn a_peer_that_contradicts_another_or_this_host_is_left_out_with_a_reason() {
        check(
            "b 100.100.0.0/24 10.0.0.2, c 10.1.0.0/22 10.0.0.3, d 100.100.8.0/22 10.0.0.4, \
             e 100.100.9.0/24 10.0.0.5, f 100.100.12.0/22 fd00::6",
            "100.100.8.0/22 by 100.100.8.1 02:f1:64:64:08:00 at 10.0.0.4\n\
             host b cannot be reached: its subnet 100.100.0.0/24 is this host's\n\
             host c cannot be reached: its subnet 10.1.0.0/22 is not of 100.100.0.0/16\n\
             host e cannot be reached: its subnet 100.100.9.0/24 is that of 10.0.0.4 too\n\
             host f cannot be reached: fd00::6 and 10.0.0.1 are of different kinds\n",
        );
    }

    #[test]
    fn a_host_without_an_underlay_has_no_peers() {
        let alone = Config {
            underlay: None,
            ..config()
        };
        assert_eq!(ways(&alone, &map("b 100.100.4.0/22 10.0.0.2")), Ways::default());
    }

    #[test]
    fn hosts_that_encrypt_and_hosts_that_do_not_do_not_reach_each_other() {
        let mut map = map("b 100.100.4.0/22 10.0.0.2, c 100.100.8.0/22 10.0.0.3");
        map.hosts.get_mut("c").unwrap().public_key = Some("key".into());
        let open = config();
        let mut encrypting = config();
        encrypting.underlay.as_mut().unwrap().encryption = Encryption::Auto;
        for (config, reached, why_not) in [
            (
                open,
                "100.100.4.0/22",
                "host c cannot be reached: it encrypts what jobs send, and this host does not",
            ),
            (
                encrypting,
                "100.100.8.0/22",
                "host b cannot be reached: it does not encrypt what jobs send, and this host does",
            ),
        ] {
            let reached: Subnet = reached.parse().unwrap();
            assert_eq!(
                ways(&config, &map).routes.into_keys().collect::<Vec<_>>(),
                [reached.into()]
            );
            assert_eq!(reachable(&config, &map).1, [why_not]);
            assert_eq!(
                ways(&config, &map).forwarding.is_empty(),
                config.underlay.unwrap().is_encrypted(),
                "nothing by VXLAN"
            );
        }
    }
}
