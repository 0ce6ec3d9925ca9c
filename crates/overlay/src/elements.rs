//! What is in the sets of our nftables table, as values, and the script that leads from one content to another.
//!
//! Only what differs is named, so that one job more on another host is one element more here, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::map::{self, Map};
use crate::plan::{self, AppLink};
use crate::{Config, Leases};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    pub links: BTreeSet<AppLink>,
    /// Address of a job on another host, and the group of ours that it may reach.
    pub admitted: BTreeSet<(Ipv4Addr, u32)>,
    /// The same by the other address of each, where jobs have one.
    pub admitted6: BTreeSet<(Ipv6Addr, u32)>,
    pub peers: BTreeSet<PeerElement>,
}

/// What the rules know of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerElement {
    pub gateway: Ipv4Addr,
    pub gateway6: Option<Ipv6Addr>,
    pub underlay: IpAddr,
    /// First and last address of its subnet: what may be in a packet that it sends.
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

pub fn elements(config: &Config, leases: &Leases, map: &Map) -> Elements {
    let admitted = map
        .admitted
        .iter()
        .filter_map(|(app, address)| Some((*address, leases.group(app)?)));
    let admitted: BTreeSet<(Ipv4Addr, u32)> = admitted.collect();
    let admitted6 = config.ipv6.map(|prefix| {
        let other = |(address, group): &(Ipv4Addr, u32)| (prefix.address(*address), *group);
        admitted.iter().map(other).collect()
    });
    let (peers, _) = map::reachable(config, map);
    let peers = peers.into_iter().map(|peer| PeerElement {
        gateway: peer.subnet.gateway(),
        gateway6: config.ipv6.map(|prefix| prefix.address(peer.subnet.gateway())),
        underlay: peer.underlay,
        first: peer.subnet.base(),
        last: peer.subnet.last(),
    });
    Elements {
        links: plan::links(leases, &map.links),
        admitted,
        admitted6: admitted6.unwrap_or_default(),
        peers: peers.collect(),
    }
}

/// By name of the set.
type Texts = BTreeMap<&'static str, BTreeSet<String>>;

impl Elements {
    /// For each of [`SETS`] what its declaration says of its elements: a line, or nothing where there are none.
    pub(crate) fn declared(&self) -> [String; SETS.len()] {
        let texts = differing(self, &Elements::default());
        SETS.map(|set| match texts.get(set) {
            Some(elements) => format!("\n    elements = {{ {} }}", join(elements)),
            None => String::new(),
        })
    }
}

pub(crate) const SETS: [&str; 9] = [
    "links",
    "admitted",
    "admitted6",
    "gateways",
    "gateways6",
    "underlays",
    "underlays6",
    "sources",
    "sources6",
];

/// Script that makes the kernel's sets the wanted ones; empty if they are. `current` is what it has, if that is known
/// for sure.
pub(crate) fn change(config: &Config, current: Option<&Elements>, wanted: &Elements) -> String {
    let table = &config.table;
    let mut script = String::new();
    let mut write = |verb: &str, set: &str, elements: &BTreeSet<String>| {
        if !elements.is_empty() {
            let elements = join(elements);
            writeln!(script, "{verb} element inet {table} {set} {{ {elements} }}")
                .expect("writing to a string");
        }
    };
    match current {
        Some(current) => {
            let (before, after) = (differing(current, wanted), differing(wanted, current));
            let none = BTreeSet::new();
            for set in SETS {
                let (before, after) = (before.get(set).unwrap_or(&none), after.get(set).unwrap_or(&none));
                write("delete", set, &(before - after));
                write("add", set, &(after - before));
            }
            script
        }
        None => {
            for (set, elements) in differing(wanted, &Elements::default()) {
                write("add", set, &elements);
            }
            let flushes: String = SETS
                .iter()
                .map(|set| format!("flush set inet {table} {set}\n"))
                .collect();
            format!("{flushes}{script}")
        }
    }
}

/// What `one` has and `other` has not.
fn differing(one: &Elements, other: &Elements) -> Texts {
    let mut texts = Texts::new();
    let mut put = |set, element: String| {
        texts.entry(set).or_default().insert(element);
    };
    for link in one.links.difference(&other.links) {
        put("links", format!("{} . {}", link.from_group, link.to_group));
    }
    for (address, group) in one.admitted.difference(&other.admitted) {
        put("admitted", format!("{address} . {group}"));
    }
    for (address, group) in one.admitted6.difference(&other.admitted6) {
        put("admitted6", format!("{address} . {group}"));
    }
    for peer in one.peers.difference(&other.peers) {
        let (underlays, sources) = match peer.underlay {
            IpAddr::V4(_) => ("underlays", "sources"),
            IpAddr::V6(_) => ("underlays6", "sources6"),
        };
        let (first, last) = (u32::from(peer.first), u32::from(peer.last));
        put("gateways", peer.gateway.to_string());
        if let Some(gateway) = peer.gateway6 {
            put("gateways6", gateway.to_string());
        }
        put(underlays, peer.underlay.to_string());
        put(sources, format!("{} . {first}-{last}", peer.underlay));
    }
    texts
}

fn join(elements: &BTreeSet<String>) -> String {
    elements.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(links: &[(u32, u32)], admitted: &[(&str, u32)], peers: &[(&str, &str)]) -> Elements {
        let link = |(from_group, to_group): &(u32, u32)| AppLink {
            from_group: *from_group,
            to_group: *to_group,
        };
        let peer = |(subnet, underlay): &(&str, &str)| {
            let subnet: crate::Subnet = subnet.parse().unwrap();
            PeerElement {
                gateway: subnet.gateway(),
                gateway6: None,
                underlay: underlay.parse().unwrap(),
                first: subnet.base(),
                last: subnet.last(),
            }
        };
        Elements {
            links: links.iter().map(link).collect(),
            admitted: admitted
                .iter()
                .map(|(address, group)| (address.parse().unwrap(), *group))
                .collect(),
            admitted6: BTreeSet::new(),
            peers: peers.iter().map(peer).collect(),
        }
    }

    fn check(current: &Elements, wanted: &Elements, expected: &str) {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        assert_eq!(change(&config, Some(current), wanted), expected);
        assert_eq!(change(&config, Some(wanted), wanted), "");
    }

    #[test]
    fn a_change_names_only_what_differs() {
        check(
            &world(&[(1, 1), (2, 2)], &[], &[]),
            &world(&[(1, 1), (1, 3), (3, 3)], &[], &[]),
            "delete element inet t links { 2 . 2 }\nadd element inet t links { 1 . 3, 3 . 3 }\n",
        );
        check(
            &world(&[], &[("100.100.4.2", 1), ("100.100.4.3", 1)], &[]),
            &world(&[], &[("100.100.4.2", 1), ("100.100.4.9", 1)], &[]),
            "delete element inet t admitted { 100.100.4.3 . 1 }\nadd element inet t admitted { 100.100.4.9 . 1 }\n",
        );
    }

    #[test]
    fn a_peer_with_a_new_address_keeps_its_gateway() {
        check(
            &world(
                &[],
                &[],
                &[("100.100.4.0/24", "10.0.0.2"), ("100.100.8.0/24", "10.0.0.3")],
            ),
            &world(
                &[],
                &[],
                &[("100.100.4.0/24", "10.0.0.9"), ("100.100.8.0/24", "10.0.0.3")],
            ),
            "delete element inet t underlays { 10.0.0.2 }\nadd element inet t underlays { 10.0.0.9 }\n\
             delete element inet t sources { 10.0.0.2 . 1684276224-1684276479 }\n\
             add element inet t sources { 10.0.0.9 . 1684276224-1684276479 }\n",
        );
    }

    #[test]
    fn an_unknown_state_is_replaced() {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        let script = change(
            &config,
            None,
            &world(&[(1, 1)], &[], &[("100.100.4.0/24", "fd00::2")]),
        );
        for set in SETS {
            assert!(script.contains(&format!("flush set inet t {set}\n")), "{set}");
        }
        assert!(script.ends_with(
            "add element inet t gateways { 100.100.4.1 }\nadd element inet t links { 1 . 1 }\n\
             add element inet t sources6 { fd00::2 . 1684276224-1684276479 }\n\
             add element inet t underlays6 { fd00::2 }\n"
        ));
    }

    #[test]
    fn only_apps_that_have_jobs_here_admit_anybody() {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        let mut leases = Leases::new(config.subnet, []).unwrap();
        let here = leases.allocate("here").unwrap();
        let far: Ipv4Addr = "100.100.4.2".parse().unwrap();
        let map = Map {
            admitted: [("here".into(), far), ("elsewhere".into(), far)].into(),
            ..Map::default()
        };
        let elements = elements(&config, &leases, &map);
        assert_eq!(elements.admitted, [(far, here.group)].into());
    }

    #[test]
    fn with_ipv6_each_address_is_there_twice() {
        let config = Config {
            ipv6: Some("fd12:3456:789a::/96".parse().unwrap()),
            underlay: Some(crate::Underlay {
                encryption: crate::Encryption::Off,
                ..crate::Underlay::new("10.0.0.1".parse().unwrap(), "100.100.0.0/16".parse().unwrap())
            }),
            ..Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap())
        };
        let mut leases = Leases::new(config.subnet, []).unwrap();
        let group = leases.allocate("here").unwrap().group;
        let peer = map::Peer {
            subnet: "100.100.4.0/22".parse().unwrap(),
            underlay: "10.0.0.2".parse().unwrap(),
            public_key: None,
        };
        let map = Map {
            hosts: [("b".into(), peer)].into(),
            admitted: [("here".into(), "100.100.4.2".parse().unwrap())].into(),
            ..Map::default()
        };
        let wanted = elements(&config, &leases, &map);
        let script = change(&config, Some(&Elements::default()), &wanted);
        let script = script.replace(&group.to_string(), "GROUP");
        assert_eq!(
            script,
            "add element inet t links { GROUP . GROUP }\n\
             add element inet t admitted { 100.100.4.2 . GROUP }\n\
             add element inet t admitted6 { fd12:3456:789a::6464:402 . GROUP }\n\
             add element inet t gateways { 100.100.4.1 }\n\
             add element inet t gateways6 { fd12:3456:789a::6464:401 }\n\
             add element inet t underlays { 10.0.0.2 }\n\
             add element inet t sources { 10.0.0.2 . 1684276224-1684277247 }\n"
        );
    }
}
