//! The cluster's domain as a zone of its own, for those who delegate a name to the cluster: every name in it leads to
//! the hosts that live.
//!
//! ```text
//! DOMAIN, *.DOMAIN      A, AAAA   every living host
//! DOMAIN                NS        HOST.ns.DOMAIN of every living host;  SOA
//! HOST.ns.DOMAIN        A, AAAA   that host
//! ```
//!
//! What a reader would get wrong: there is no name that does not exist, as any may become an app's. A name
//! below `ns` whose host is gone leads to the others, so that a delegation that names a dead host still works.

use std::net::IpAddr;

/// Addresses in one answer: as many as fit the smallest datagram with the longest name.
const ADDRESSES_MAX: usize = 8;
/// More name servers than this help nobody.
const SERVERS_MAX: usize = 4;

/// What the zone is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// The cluster's domain and those that it had before.
    pub domains: Vec<String>,
    /// Those that live, with the addresses that the outside reaches them by.
    pub hosts: Vec<(String, Vec<IpAddr>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneKind {
    A,
    Aaaa,
    Ns,
    Soa,
    /// Whatever there is of a name.
    Any,
    /// Everything else, which our names have nothing of.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZoneAnswer {
    Addresses(Vec<IpAddr>),
    /// The names of servers, with their addresses.
    Servers(Vec<(String, Vec<IpAddr>)>),
    /// The beginning of the zone, and the server that is named there.
    Authority {
        domain: String,
        server: String,
    },
    /// The name has nothing of this kind.
    Nothing {
        domain: String,
        server: String,
    },
    /// No host is known: another server may know more.
    Unknown,
    /// Not a name of ours.
    Refused,
}

/// Answers a question for `name`, lower case and without the final dot. `turn` picks where in the list of hosts an
/// answer begins, as most of those who ask take the first.
pub fn zone_answer(zone: &Zone, name: &str, kind: ZoneKind, turn: usize) -> ZoneAnswer {
    let found = zone.domains.iter().filter_map(|domain| {
        let before = name.strip_suffix(domain.as_str())?;
        (before.is_empty() || before.ends_with('.')).then_some((domain, before.trim_end_matches('.')))
    });
    // One domain may be a part of another that the cluster had before.
    let Some((domain, before)) = found.max_by_key(|(domain, _)| domain.len()) else {
        return ZoneAnswer::Refused;
    };
    let mut hosts: Vec<&(String, Vec<IpAddr>)> = zone
        .hosts
        .iter()
        .filter(|(_, addresses)| !addresses.is_empty())
        .collect();
    if hosts.is_empty() {
        return ZoneAnswer::Unknown;
    }
    let server = |host: &str| format!("{host}.ns.{domain}");
    let first = server(&hosts[0].0);
    let start = turn % hosts.len();
    hosts.rotate_left(start);
    if let Some(named) = before.strip_suffix(".ns")
        && let Some(host) = hosts.iter().find(|(id, _)| id == named)
    {
        hosts = vec![*host];
    }
    let all = |is_wanted: fn(&IpAddr) -> bool| -> Vec<IpAddr> {
        let all = hosts.iter().flat_map(|(_, addresses)| addresses);
        all.copied().filter(is_wanted).take(ADDRESSES_MAX).collect()
    };
    let is_apex = before.is_empty();
    let addresses = match kind {
        ZoneKind::A => all(IpAddr::is_ipv4),
        ZoneKind::Aaaa => all(IpAddr::is_ipv6),
        ZoneKind::Any => all(|_| true),
        ZoneKind::Ns if is_apex => {
            let servers = hosts.iter().take(SERVERS_MAX);
            return ZoneAnswer::Servers(
                servers
                    .map(|(host, addresses)| (server(host), addresses.clone()))
                    .collect(),
            );
        }
        ZoneKind::Soa if is_apex => {
            return ZoneAnswer::Authority {
                domain: domain.clone(),
                server: first,
            };
        }
        ZoneKind::Ns | ZoneKind::Soa | ZoneKind::Other => vec![],
    };
    match addresses.is_empty() {
        true => ZoneAnswer::Nothing {
            domain: domain.clone(),
            server: first,
        },
        false => ZoneAnswer::Addresses(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, kind: ZoneKind, turn: usize, expected: &str) {
        let host = |id: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            (id.to_owned(), addresses.collect())
        };
        let zone = Zone {
            domains: ["apps.example.com", "old.apps.example.com"]
                .map(str::to_owned)
                .into(),
            hosts: vec![
                host("host1", &["192.0.2.1", "2001:db8::1"]),
                host("host2", &["192.0.2.2"]),
                host("host4", &[]),
            ],
        };
        let words = |list: Vec<IpAddr>| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let text = match zone_answer(&zone, name, kind, turn) {
            ZoneAnswer::Addresses(list) => words(list),
            ZoneAnswer::Servers(list) => list
                .into_iter()
                .map(|(name, addresses)| format!("{name} {}", words(addresses)))
                .collect::<Vec<_>>()
                .join(", "),
            ZoneAnswer::Authority { domain, server } => format!("begins at {domain}, {server}"),
            ZoneAnswer::Nothing { domain, .. } => format!("nothing of {domain}"),
            ZoneAnswer::Unknown => "unknown".into(),
            ZoneAnswer::Refused => "refused".into(),
        };
        assert_eq!(text, expected, "{name} {kind:?}");
    }

    #[test]
    fn every_name_leads_to_the_hosts_that_live() {
        use ZoneKind::*;
        check("shop.apps.example.com", A, 0, "192.0.2.1 192.0.2.2");
        check("shop.apps.example.com", A, 1, "192.0.2.2 192.0.2.1");
        check("a.b.c.apps.example.com", A, 2, "192.0.2.1 192.0.2.2");
        check("apps.example.com", Aaaa, 0, "2001:db8::1");
        check("apps.example.com", Any, 1, "192.0.2.2 192.0.2.1 2001:db8::1");
        check("shop.apps.example.com", Other, 0, "nothing of apps.example.com");
        check(
            "shop.old.apps.example.com",
            Other,
            0,
            "nothing of old.apps.example.com",
        );
    }

    #[test]
    fn each_host_is_a_server_of_the_zone_by_a_name_of_its_own() {
        use ZoneKind::*;
        check(
            "apps.example.com",
            Ns,
            0,
            "host1.ns.apps.example.com 192.0.2.1 2001:db8::1, host2.ns.apps.example.com 192.0.2.2",
        );
        check("host2.ns.apps.example.com", A, 0, "192.0.2.2");
        check(
            "host2.ns.apps.example.com",
            Aaaa,
            0,
            "nothing of apps.example.com",
        );
        check("host3.ns.apps.example.com", A, 0, "192.0.2.1 192.0.2.2");
        check(
            "apps.example.com",
            Soa,
            1,
            "begins at apps.example.com, host1.ns.apps.example.com",
        );
        check("shop.apps.example.com", Ns, 0, "nothing of apps.example.com");
    }

    #[test]
    fn other_names_are_refused() {
        use ZoneKind::*;
        check("example.com", A, 0, "refused");
        check("notapps.example.com", A, 0, "refused");
        check("", Ns, 0, "refused");
    }

    #[test]
    fn without_a_host_nothing_is_claimed() {
        let zone = Zone {
            domains: vec!["example.com".into()],
            hosts: vec![("host1".into(), vec![])],
        };
        assert_eq!(
            zone_answer(&zone, "example.com", ZoneKind::A, 0),
            ZoneAnswer::Unknown
        );
    }
}
