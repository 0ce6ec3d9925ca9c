//! Laws of routing over drawn worlds.

use proptest::prelude::*;
use routing::feed::{Backend, HttpRoute, Route, Service, Snapshot, Update};
use routing::{Decision, Load, Model, RequestHead, Table, decide};
use std::collections::BTreeSet;

#[derive(Debug, Default)]
struct Drawn {
    in_flight: Vec<u32>,
    ejected: BTreeSet<usize>,
}

impl Load for Drawn {
    fn in_flight(&self, backend: usize) -> u32 {
        self.in_flight.get(backend).copied().unwrap_or(0)
    }
    fn is_ejected(&self, backend: usize) -> bool {
        self.ejected.contains(&backend)
    }
}

fn http(id: usize, domain: &str, path: &str, service: &str) -> HttpRoute {
    HttpRoute {
        id: format!("r{id}"),
        domain: domain.into(),
        path: path.into(),
        port: 0,
        service: service.into(),
        sticky: false,
        leader: false,
        drain_backends: true,
        disable_keep_alives: false,
        certificate: None,
    }
}

fn service(name: &str, backends: usize) -> Service {
    Service {
        name: name.into(),
        app_id: format!("app-{name}"),
        app_name: name.into(),
        leader: None,
        response_timeout_ms: None,
        backends: (0..backends)
            .map(|n| Backend {
                id: format!("{name}-{n}"),
                addr: ([10, 0, 0, n as u8], 8080).into(),
                job_id: format!("{n}"),
                job_type: "web".into(),
                healthy: true,
            })
            .collect(),
    }
}

fn table(routes: Vec<HttpRoute>, services: Vec<Service>) -> Table {
    let mut model = Model::default();
    let routes = routes.into_iter().map(Route::Http).collect();
    model.apply(Update::Snapshot(Snapshot {
        generation: 1,
        routes,
        services,
        ..Snapshot::default()
    }));
    model.table()
}

fn request<'a>(host: &'a str, path: &'a str) -> RequestHead<'a> {
    RequestHead {
        port: 0,
        host,
        path,
        sticky: None,
    }
}

fn route_of(table: &Table, host: &str, path: &str) -> String {
    match decide(table, &request(host, path), &Drawn::default(), 0) {
        Decision::Forward(forward) => forward.route.id.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn the_most_specific_domain_wins_then_the_longest_path() {
    let table = table(
        vec![
            http(0, "*", "/", "s"),
            http(1, "*.example.com", "/", "s"),
            http(2, "*.a.example.com", "/", "s"),
            http(3, "x.a.example.com", "/", "s"),
            http(4, "x.a.example.com", "/shop/", "s"),
            http(5, "x.a.example.com", "/shop/cart/", "s"),
            http(6, "only.example.com", "/api/", "s"),
        ],
        vec![service("s", 1)],
    );
    for (host, path, expected) in [
        ("other.org", "/", "r0"),
        ("example.com", "/", "r1"),
        ("b.example.com", "/", "r1"),
        ("deep.b.example.com", "/", "r1"),
        ("y.a.example.com", "/", "r2"),
        ("X.A.Example.COM:8080", "/", "r3"),
        ("x.a.example.com.", "/shopping", "r3"),
        ("x.a.example.com", "/shop", "r4"),
        ("x.a.example.com", "/shop/x", "r4"),
        ("x.a.example.com", "/shop/cart/1", "r5"),
        ("only.example.com", "/api/x", "r6"),
        ("only.example.com", "/", "r1"),
    ] {
        assert_eq!(route_of(&table, host, path), expected, "{host}{path}");
    }
}

#[test]
fn a_certificate_is_found_by_exact_name_then_wildcard_then_default() {
    let certificate = |id: &str, domains: &[&str]| routing::feed::Certificate {
        id: id.into(),
        domains: domains.iter().map(|name| name.to_string()).collect(),
        cert: String::new(),
        key: String::new(),
    };
    let mut with = http(1, "shop.example.com", "/", "s");
    with.certificate = Some("shop".into());
    let mut model = Model::default();
    model.apply(Update::Snapshot(Snapshot {
        generation: 1,
        default_certificate: Some("default".into()),
        routes: vec![Route::Http(with)],
        certificates: vec![
            certificate("default", &[]),
            certificate("shop", &[]),
            certificate("wild", &["*.example.com"]),
        ],
        ..Snapshot::default()
    }));
    let table = model.table();
    let id = |name| {
        table
            .certificate_for(name)
            .map(|index| table.certificates()[index].id.clone())
    };
    assert_eq!(id(Some("SHOP.example.com")).as_deref(), Some("shop"));
    assert_eq!(id(Some("a.example.com")).as_deref(), Some("wild"));
    assert_eq!(id(Some("other.org")).as_deref(), Some("default"));
    assert_eq!(id(None).as_deref(), Some("default"));
}

#[test]
fn a_leader_route_goes_to_the_leader_or_nowhere() {
    let mut leader = http(1, "db.example.com", "/", "db");
    leader.leader = true;
    let mut db = service("db", 3);
    db.leader = Some("db-2".into());
    let with = table(vec![leader.clone()], vec![db.clone()]);
    for seed in 0..20 {
        match decide(&with, &request("db.example.com", "/"), &Drawn::default(), seed) {
            Decision::Forward(forward) => assert_eq!(with.backend(forward.backend).id, "db-2"),
            other => panic!("{other:?}"),
        }
    }
    db.leader = None;
    let without = table(vec![leader], vec![db]);
    let decision = decide(&without, &request("db.example.com", "/"), &Drawn::default(), 0);
    assert!(matches!(decision, Decision::NothingRunning(service) if service.app_name == "db"));
}

#[test]
fn changes_in_order_make_the_same_table_as_a_snapshot() {
    let mut model = Model::default();
    model.apply(Update::Snapshot(Snapshot {
        generation: 5,
        ..Snapshot::default()
    }));
    let set = |generation, id| Update::SetRoute {
        generation,
        route: Route::Http(http(id, "a.b", "/", "s")),
    };
    assert_eq!(model.apply(set(6, 1)), routing::Applied::Changed);
    assert_eq!(model.apply(set(6, 2)), routing::Applied::Old);
    model.apply(Update::SetService {
        generation: 7,
        service: service("s", 2),
    });
    model.apply(Update::SetService {
        generation: 8,
        service: service("t", 2),
    });
    model.apply(Update::RemoveService {
        generation: 9,
        name: "t".into(),
    });
    let mut copy = Model::default();
    copy.apply(Update::Snapshot(model.snapshot()));
    assert_eq!(copy.snapshot(), model.snapshot());
    assert_eq!(copy.table().generation, 9);
    assert_eq!(
        format!("{:?}", copy.table().backends()),
        format!("{:?}", model.table().backends())
    );
}

#[test]
fn a_snapshot_survives_its_json() {
    let snapshot = Snapshot {
        generation: 3,
        routes: vec![Route::Http(http(1, "a.b", "/", "s"))],
        services: vec![service("s", 1)],
        ..Snapshot::default()
    };
    let json = serde_json::to_string(&Update::Snapshot(snapshot.clone())).unwrap();
    assert!(json.starts_with(r#"{"type":"snapshot","generation":3"#), "{json}");
    assert_eq!(
        serde_json::from_str::<Update>(&json).unwrap(),
        Update::Snapshot(snapshot)
    );
}

proptest! {
    #[test]
    fn a_choice_is_one_of_the_service_and_the_same_every_time(
        counts in prop::collection::vec(0usize..6, 1..5),
        which in 0usize..5,
        in_flight in prop::collection::vec(0u32..50, 0..30),
        ejected in prop::collection::btree_set(0usize..30, 0..30),
        seed: u64,
    ) {
        let which = which % counts.len();
        let services: Vec<Service> =
            counts.iter().enumerate().map(|(n, count)| service(&format!("s{n}"), *count)).collect();
        let table = table(vec![http(1, "a.b", "/", &format!("s{which}"))], services);
        let load = Drawn { in_flight, ejected };
        let pick = || match decide(&table, &request("a.b", "/x"), &load, seed) {
            Decision::Forward(forward) => Some(forward.backend),
            Decision::NothingRunning(_) => None,
            Decision::NoSuchRoute => panic!("the route is there"),
        };
        let first = pick();
        prop_assert_eq!(first, pick());
        prop_assert_eq!(first.is_some(), counts[which] > 0, "served whenever somebody is there");
        if let Some(backend) = first {
            let range = table.service(table.http_route(0, "a.b", "/").unwrap().service).backends.clone();
            prop_assert!(range.contains(&backend));
            let somebody_is_good = range.clone().any(|index| !load.ejected.contains(&index));
            prop_assert!(!somebody_is_good || !load.ejected.contains(&backend), "ejected only if all are");
            if range.len() == 2 && somebody_is_good && range.clone().all(|index| !load.ejected.contains(&index)) {
                let least = range.clone().map(|index| load.in_flight(index)).min().unwrap();
                prop_assert_eq!(load.in_flight(backend), least, "of two the lighter");
            }
        }
    }

    #[test]
    fn a_sticky_client_stays_while_its_backend_is_there(count in 1usize..6, seeds in prop::collection::vec(any::<u64>(), 1..10)) {
        let mut sticky = http(1, "a.b", "/", "s");
        sticky.sticky = true;
        let table = table(vec![sticky], vec![service("s", count)]);
        let mut cookie: Option<String> = None;
        let mut home = None;
        for seed in seeds {
            let head = RequestHead { sticky: cookie.as_deref(), ..request("a.b", "/") };
            let Decision::Forward(forward) = decide(&table, &head, &Drawn::default(), seed) else { panic!() };
            prop_assert_eq!(forward.sets_cookie, cookie.is_none());
            prop_assert_eq!(*home.get_or_insert(forward.backend), forward.backend);
            cookie = Some(table.backend(forward.backend).sticky_token.clone());
        }
        let forged = RequestHead { sticky: Some("s-0"), ..request("a.b", "/") };
        let Decision::Forward(forward) = decide(&table, &forged, &Drawn::default(), 0) else { panic!() };
        prop_assert!(forward.sets_cookie);
    }

    #[test]
    fn any_host_and_path_is_survived(host in "\\PC{0,40}", path in "\\PC{0,40}") {
        let table = table(vec![http(1, "*.b", "/", "s"), http(2, "*", "/x/", "s")], vec![service("s", 2)]);
        let _ = decide(&table, &request(&host, &path), &Drawn::default(), 7);
        let _ = table.certificate_for(Some(&host));
    }
}
