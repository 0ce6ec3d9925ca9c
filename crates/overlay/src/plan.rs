//! From a configuration and leases to what shall be on this host, as values.
//!
//! Pure: the same input gives the same plan, so it can be printed, compared and tested without root.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::elements::{self, Elements};
use crate::lease::{Lease, Leases};
use crate::map::{self, Map, Ways};
use crate::{Config, Former, Prefix6, Subnet, ruleset};

/// What the host has, whether or not any job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Interface that carries the gateway's address. A dummy, or a bridge without ports where the kernel has no dummies.
    pub gateway_interface: String,
    pub gateway: Ipv4Addr,
    /// Answered with "unreachable" unless a job's more specific route says otherwise: without it, packets to an
    /// address that no job has would leave by the default route.
    pub unreachable: Subnet,
    /// The same for the addresses of all hosts' jobs, where there are other hosts: what is for a host that is not
    /// known, or whose tunnel is not up, must not leave in the clear.
    pub unreachable_cluster: Option<Subnet>,
    /// All of the above once more, each address with this before it.
    pub ipv6: Option<Prefix6>,
    pub ways: Ways,
    pub elements: Elements,
    /// Script for `nft -f`: replaces our table in one transaction.
    pub ruleset: String,
}

/// The jobs of one app may open connections to those of another (or of the same) one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppLink {
    pub from_group: u32,
    pub to_group: u32,
}

/// What one job has: both ends of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub host_interface: String,
    pub job_interface: &'static str,
    pub group: u32,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub ipv6: Option<AttachmentIpv6>,
    pub mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachmentIpv6 {
    pub address: Ipv6Addr,
    pub gateway: Ipv6Addr,
}

/// The whole host. `former` is what the machine had before any cluster came.
pub fn plan(config: &Config, leases: &Leases, map: &Map, former: Former) -> Plan {
    let elements = elements::elements(config, leases, map);
    Plan {
        gateway_interface: config.interface_prefix.clone(),
        gateway: config.subnet.gateway(),
        unreachable: config.subnet,
        unreachable_cluster: config.underlay.as_ref().map(|underlay| underlay.cluster),
        ipv6: config.ipv6,
        ways: map::ways(config, map),
        ruleset: ruleset::table(config, &elements, former),
        elements,
    }
}

/// One job.
pub fn attachment(config: &Config, lease: &Lease, mtu: u32) -> Attachment {
    Attachment {
        host_interface: config.interface_name(lease.slot),
        job_interface: "eth0",
        group: lease.group,
        address: lease.address,
        gateway: config.subnet.gateway(),
        ipv6: config.ipv6.map(|prefix| AttachmentIpv6 {
            address: prefix.address(lease.address),
            gateway: prefix.address(config.subnet.gateway()),
        }),
        mtu,
    }
}

/// Which groups may reach which: each app itself, and what was allowed by name between apps that are here.
pub fn links(leases: &Leases, allowed: &BTreeSet<(String, String)>) -> BTreeSet<AppLink> {
    let own = leases.groups().map(|group| AppLink {
        from_group: group,
        to_group: group,
    });
    let between = allowed.iter().filter_map(|(from, to)| {
        Some(AppLink {
            from_group: leases.group(from)?,
            to_group: leases.group(to)?,
        })
    });
    own.chain(between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostPort, Peer, Protocol, Underlay};

    const FORMER: Former = Former {
        ipv4: false,
        ipv6: Some(false),
    };

    fn config() -> Config {
        Config {
            ipv6: Some("fd12:3456:789a::/96".parse().unwrap()),
            blocked6: vec!["2001:db8:bad::/48".parse().unwrap()],
            router_ports: vec![80, 443],
            discoverd_port: Some(1111),
            host_ports: vec![HostPort {
                address: None,
                protocol: Protocol::Tcp,
                port: 8443,
            }],
            blocked: vec!["10.0.0.0/8".parse().unwrap()],
            underlay: Some(Underlay {
                vni: 7,
                encryption: crate::Encryption::Off,
                ..Underlay::new("192.0.2.1".parse().unwrap(), "100.100.0.0/16".parse().unwrap())
            }),
            ..Config::new("fl0", "flynn_fl0", "100.100.0.0/22".parse().unwrap())
        }
    }

    fn world(apps: &[&str], allowed: &[(&str, &str)]) -> (Leases, BTreeSet<(String, String)>) {
        let mut leases = Leases::new(config().subnet, []).unwrap();
        for app in apps {
            leases.allocate(app).unwrap();
        }
        (
            leases,
            allowed
                .iter()
                .map(|(from, to)| (from.to_string(), to.to_string()))
                .collect(),
        )
    }

    #[test]
    fn the_ruleset_is_the_one_on_record() {
        let (leases, allowed) = world(&["shop", "blog", "shop"], &[("shop", "blog")]);
        let peer = Peer {
            subnet: "100.100.4.0/22".parse().unwrap(),
            underlay: "192.0.2.2".parse().unwrap(),
            public_key: None,
        };
        let map = Map {
            hosts: [("b".into(), peer)].into(),
            admitted: [("shop".into(), "100.100.4.2".parse().unwrap())].into(),
            links: allowed,
        };
        let plan = plan(&config(), &leases, &map, FORMER);
        let recorded = include_str!("../tests/ruleset.nft");
        assert!(
            plan.ruleset == recorded,
            "the ruleset differs from tests/ruleset.nft; it is now:\n{}",
            plan.ruleset
        );
    }

    #[test]
    fn the_number_of_elements_grows_with_apps_not_with_jobs() {
        let (few, allowed) = world(&["a", "b"], &[]);
        let (many, _) = world(&["a", "b", "a", "b", "a", "a", "a", "b"], &[]);
        assert_eq!(links(&few, &allowed), links(&many, &allowed));
        assert_eq!(links(&many, &allowed).len(), 2);
    }

    #[test]
    fn an_allowed_link_goes_one_way_and_waits_for_both_apps() {
        let (alone, allowed) = world(&["web"], &[("web", "database")]);
        assert_eq!(links(&alone, &allowed).len(), 1);
        let (both, allowed) = world(&["web", "database"], &[("web", "database")]);
        let (web, database) = (both.group("web").unwrap(), both.group("database").unwrap());
        let links = links(&both, &allowed);
        assert!(links.contains(&AppLink {
            from_group: web,
            to_group: database
        }));
        assert!(!links.contains(&AppLink {
            from_group: database,
            to_group: web
        }));
    }

    #[test]
    fn the_same_input_gives_the_same_plan() {
        let (leases, links) = world(&["a", "b"], &[("a", "b")]);
        let map = Map {
            links,
            ..Map::default()
        };
        assert_eq!(
            plan(&config(), &leases, &map, FORMER),
            plan(&config(), &leases, &map, FORMER)
        );
    }
}
