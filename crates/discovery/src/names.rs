//! Questions by name: which are ours, and what to answer.
//!
//! `SVC.discoverd` is every healthy instance, `leader.SVC.discoverd` the one that leads,
//! `ID.SVC._i.discoverd` one instance; SRV records of the first two carry ports, as does
//! `_SVC._tcp.discoverd`. The cluster's own domain leads to the router.

use std::net::{IpAddr, SocketAddr};

use types::Instance;

use crate::Registry;

/// Addresses in one answer; more would not fit a datagram (the original's limit).
const ADDRESSES_MAX: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    Srv,
    /// Everything else, which our names have nothing of.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without the final dot.
    pub name: String,
    pub kind: QuestionKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    /// Port, and the name and address of its target.
    Services(Vec<(u16, String, IpAddr)>),
    /// The name is ours and does not exist.
    NoSuchName,
    /// Not our name: ask the machine's own resolver.
    Forward,
}

/// What an instance's part of a name may be read as.
enum Whom<'a> {
    All(&'a str),
    Leader(&'a str),
    One { service: &'a str, id: &'a str },
}

/// Answers from the registry. `router` is where the cluster's `domains` lead, the one it has and those
/// that it had; `turn` picks where in a long list an answer begins, so that many askers spread over all
/// instances.
pub fn answer(
    registry: &Registry,
    question: &Question,
    domains: &[String],
    router: IpAddr,
    turn: usize,
) -> Answer {
    let name = question.name.as_str();
    let is_below = |domain: &String| {
        let before = name.strip_suffix(domain.as_str());
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    if domains.iter().any(is_below) {
        return of_kind(question.kind, &[], vec![router]);
    }
    let Some(before) = name.strip_suffix(".discoverd") else {
        return if name == "discoverd" {
            Answer::Addresses(vec![])
        } else {
            Answer::Forward
        };
    };
    let Some(whom) = whom(before) else {
        return Answer::NoSuchName;
    };
    let found: Vec<Instance> = match whom {
        Whom::All(service) => match registry.service(service) {
            Some(service) => service.instances,
            None => return Answer::NoSuchName,
        },
        Whom::Leader(service) => match registry.service(service) {
            Some(service) => service.leader().cloned().into_iter().collect(),
            None => return Answer::NoSuchName,
        },
        Whom::One { service, id } => {
            let instances = registry
                .service(service)
                .map(|service| service.instances)
                .unwrap_or_default();
            match instances.into_iter().find(|instance| instance.id == id) {
                Some(instance) => vec![instance],
                None => return Answer::NoSuchName,
            }
        }
    };
    let addr = |instance: &Instance| match question.kind {
        // Only instances that answer there: a client that prefers IPv6 must not find the others dead.
        QuestionKind::Aaaa => {
            let other = instance.meta.get(Instance::IPV6).unwrap_or(&instance.addr);
            other.parse::<SocketAddr>().ok().filter(SocketAddr::is_ipv6)
        }
        _ => instance.addr.parse().ok(),
    };
    let mut places: Vec<(SocketAddr, String)> = found
        .iter()
        .filter_map(|instance| Some((addr(instance)?, format!("{}.{}", instance.id, service_of(before)))))
        .collect();
    if !places.is_empty() {
        let start = turn % places.len();
        places.rotate_left(start);
    }
    places.truncate(ADDRESSES_MAX);
    let services: Vec<_> = places
        .iter()
        .map(|(place, target)| (place.port(), format!("{target}._i.discoverd"), place.ip()))
        .collect();
    of_kind(
        question.kind,
        &services,
        places.iter().map(|(place, _)| place.ip()).collect(),
    )
}

fn of_kind(kind: QuestionKind, services: &[(u16, String, IpAddr)], addresses: Vec<IpAddr>) -> Answer {
    match kind {
        QuestionKind::A => Answer::Addresses(addresses.into_iter().filter(IpAddr::is_ipv4).collect()),
        QuestionKind::Aaaa => Answer::Addresses(addresses.into_iter().filter(IpAddr::is_ipv6).collect()),
        QuestionKind::Srv => Answer::Services(services.to_vec()),
        QuestionKind::Other => Answer::Addresses(vec![]),
    }
}

fn whom(before: &str) -> Option<Whom<'_>> {
    if let Some(named) = before.strip_suffix("._i") {
        let (id, service) = named.split_once('.')?;
        return Some(Whom::One { service, id });
    }
    if let Some(service) = before.strip_suffix("._tcp") {
        return service.strip_prefix('_').map(Whom::All);
    }
    match before.strip_prefix("leader.") {
        Some(service) if !service.is_empty() => Some(Whom::Leader(service)),
        _ if !before.is_empty() => Some(Whom::All(before)),
        _ => None,
    }
}

pub(crate) fn service_of(before: &str) -> &str {
    match whom(before) {
        Some(Whom::All(service) | Whom::Leader(service) | Whom::One { service, .. }) => service,
        None => "",
    }
}

/// A name as questions have it: lower case, without the final dot.
pub fn reads_as(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Service;

    fn registry() -> Registry {
        let instance = |id: &str, last: u8| Instance {
            id: id.into(),
            addr: format!("100.100.0.{last}:8080"),
            proto: "tcp".into(),
            meta: match last % 2 {
                0 => BTreeMap::new(),
                _ => [(Instance::IPV6.to_owned(), format!("[fd00::6464:{last}]:8080"))].into(),
            },
            index: u64::from(last),
        };
        let instances = (2..7).map(|last| instance(&format!("i{last}"), last)).collect();
        let mut registry = Registry::default();
        let shop = Service {
            instances,
            leader: Some("i4".into()),
            row: None,
        };
        registry.set_cluster([
            ("shop-web".to_owned(), shop),
            ("empty".to_owned(), Service::default()),
        ]);
        registry
    }

    fn check(name: &str, kind: QuestionKind, turn: usize, expected: &str) {
        let question = Question {
            name: reads_as(name),
            kind,
        };
        let router = "100.100.0.1".parse().unwrap();
        let domains = ["flynn.localhost", "flynn.example.com"].map(str::to_owned);
        let text = match answer(&registry(), &question, &domains, router, turn) {
            Answer::Addresses(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Answer::Services(list) => list
                .iter()
                .map(|(port, target, _)| format!("{target}:{port}"))
                .collect::<Vec<_>>()
                .join(" "),
            Answer::NoSuchName => "no such name".into(),
            Answer::Forward => "forward".into(),
        };
        assert_eq!(text, expected, "{name} {kind:?}");
    }

    #[test]
    fn names_lead_to_instances() {
        use QuestionKind::*;
        check("shop-web.discoverd.", A, 0, "100.100.0.2 100.100.0.3 100.100.0.4");
        check("SHOP-WEB.Discoverd", A, 4, "100.100.0.6 100.100.0.2 100.100.0.3");
        check("shop-web.discoverd", Aaaa, 0, "fd00::6464:3 fd00::6464:5");
        check("shop-web.discoverd", Aaaa, 1, "fd00::6464:5 fd00::6464:3");
        check("leader.shop-web.discoverd", Aaaa, 0, "");
        check("i5.shop-web._i.discoverd", Aaaa, 0, "fd00::6464:5");
        check("leader.shop-web.discoverd", A, 3, "100.100.0.4");
        check("i5.shop-web._i.discoverd", A, 0, "100.100.0.5");
        check(
            "leader.shop-web.discoverd",
            Srv,
            0,
            "i4.shop-web._i.discoverd:8080",
        );
        check(
            "_shop-web._tcp.discoverd",
            Srv,
            1,
            "i3.shop-web._i.discoverd:8080 i4.shop-web._i.discoverd:8080 i5.shop-web._i.discoverd:8080",
        );
        check("empty.discoverd", A, 0, "");
        check("nobody.discoverd", A, 0, "no such name");
        check("nobody.shop-web._i.discoverd", A, 0, "no such name");
        check("shop-web.discoverd", Other, 0, "");
    }

    #[test]
    fn the_clusters_domain_leads_to_the_router_and_other_names_elsewhere() {
        use QuestionKind::*;
        check("git.flynn.localhost", A, 0, "100.100.0.1");
        check("flynn.localhost", A, 0, "100.100.0.1");
        check("git.flynn.example.com", A, 0, "100.100.0.1");
        check("git.flynn.localhost", Aaaa, 0, "");
        check("notflynn.localhost", A, 0, "forward");
        check("example.com", A, 0, "forward");
        check("mydiscoverd", A, 0, "forward");
    }
}
