//! What routers and discovery follow: routes and services, made from the rows.
//!
//! A service's instances are its jobs that are up and healthy, so there is no second registry that
//! could disagree with the first. Each follower is sent everything once and then what changed.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use api::{
    host::{IngressView, ServiceView, ServicesView},
    sse,
};
use bytes::Bytes;
use routing::feed::{Backend, Certificate, HttpRoute, Route, Service, Snapshot, TcpRoute, Update};
use state::State;
use types::{Host, HostId, HostState, Instance, Job, JobState, RouteKind};

use crate::{Config, Controller, domain, host_job, routers::Connection};

/// The certificate that serves names without one of their own.
const CLUSTER_CERTIFICATE: &str = "cluster";

/// The routing of the whole cluster at one revision of the state.
pub fn snapshot(state: &State, config: &Config, sticky_key: &str) -> Snapshot {
    let mut routes: Vec<_> = state.routes.values().map(|route| routing_route(route)).collect();
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    // A routed service without instances is still known: its page says that nothing runs.
    for route in state.routes.values() {
        let app = route
            .parent_ref
            .rsplit('/')
            .next()
            .and_then(|id| id.parse::<types::AppId>().ok());
        let app = app.and_then(|id| state.apps.get(&id));
        services.entry(route.service.clone()).or_insert_with(|| Service {
            name: route.service.clone(),
            app_id: app.map(|app| app.id.to_string()).unwrap_or_default(),
            app_name: app.map(|app| app.name.clone()).unwrap_or_default(),
            leader: None,
            response_timeout_ms: None,
            backends: vec![],
        });
    }
    for (name, list) in instances(state) {
        let Some(service) = services.get_mut(&name) else {
            continue;
        };
        service.leader = list
            .iter()
            .find(|found| found.is_healthy)
            .map(|found| found.instance.id.clone());
        service.backends = list
            .iter()
            .filter_map(|found| {
                Some(Backend {
                    id: found.instance.id.clone(),
                    addr: found.instance.addr.parse().ok()?,
                    job_id: found.job.id.to_string(),
                    job_type: found.job.process_type.clone(),
                    healthy: found.is_healthy,
                })
            })
            .collect();
    }
    let current = domain::current(state, config);
    let former = domain::former(state, config);
    for system in &config.system_routes {
        let name = format!("flynn-{}", system.subdomain);
        // What the cluster was called before still leads to it.
        let names = former
            .iter()
            .map(|before| (format!("system/{}@{}", system.subdomain, before.name), before));
        let all = [(format!("system/{}", system.subdomain), &current)]
            .into_iter()
            .chain(names);
        routes.extend(all.map(|(id, domain)| {
            Route::Http(HttpRoute {
                id,
                domain: format!("{}.{}", system.subdomain, domain.name),
                path: "/".into(),
                port: 0,
                service: name.clone(),
                sticky: false,
                leader: false,
                drain_backends: false,
                disable_keep_alives: false,
                certificate: None,
            })
        }));
        let backend = Backend {
            id: name.clone(),
            addr: system.address,
            job_id: String::new(),
            job_type: String::new(),
            healthy: true,
        };
        services.insert(
            name.clone(),
            Service {
                name,
                app_id: String::new(),
                app_name: system.subdomain.clone(),
                leader: None,
                response_timeout_ms: Some(0),
                backends: vec![backend],
            },
        );
    }
    let mut certificates: Vec<_> = state
        .certificates
        .values()
        .map(|certificate| Certificate {
            id: certificate.id.to_string(),
            domains: vec![],
            cert: certificate.cert.clone(),
            key: certificate.key.clone(),
        })
        .collect();
    let of_domain = |id: String, domain: &domain::Domain| Certificate {
        id,
        domains: vec![domain.name.clone(), format!("*.{}", domain.name)],
        cert: domain.tls.cert.clone(),
        key: domain.tls.key.clone(),
    };
    certificates.push(of_domain(CLUSTER_CERTIFICATE.into(), &current));
    for before in former.iter().filter(|before| !before.tls.cert.is_empty()) {
        certificates.push(of_domain(
            format!("{CLUSTER_CERTIFICATE}@{}", before.name),
            before,
        ));
    }
    Snapshot {
        generation: first_generation(state.revision),
        domain: current.name,
        sticky_key: sticky_key.to_owned(),
        is_draining: false,
        default_certificate: Some(CLUSTER_CERTIFICATE.into()),
        routes,
        services: services.into_values().collect(),
        certificates,
    }
}

/// The same whichever host leads: sessions stick to their backends for longer than that.
fn sticky_key(internal_key: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest(format!("flynn sticky sessions {internal_key}"))[..16])
}

struct Found {
    instance: Instance,
    job: Arc<Job>,
    is_healthy: bool,
}

/// Instances by service, the oldest first.
/// What runs on a silent host gets nothing new, though it may be fine: nobody knows. With no host up it is
/// rather we who are deaf.
fn instances(state: &State) -> BTreeMap<String, Vec<Found>> {
    let is_up = |host: &types::Host| host.state == HostState::Up;
    let is_any_up = state.hosts.values().any(|host| is_up(host));
    let is_silent = |job: &Job| {
        let host = job.host.as_ref().and_then(|host| state.hosts.get(host));
        is_any_up && host.is_some_and(|host| !is_up(host))
    };
    let mut services: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    for job in state
        .jobs
        .values()
        .filter(|job| job.state == JobState::Up && job.one_off.is_none())
    {
        let (Some(address), Some(app)) = (job.address, state.apps.get(&job.app)) else {
            continue;
        };
        let Some(release) = job.release.and_then(|id| state.releases.get(&id)) else {
            continue;
        };
        let Some(process) = release.processes.get(&job.process_type) else {
            continue;
        };
        for (name, port) in host_job::services(&app.name, &job.process_type, process) {
            let mut meta = BTreeMap::from([
                ("FLYNN_APP_ID".to_owned(), app.id.to_string()),
                ("FLYNN_APP_NAME".to_owned(), app.name.clone()),
                ("FLYNN_JOB_ID".to_owned(), job.reference().to_string()),
                ("FLYNN_PROCESS_TYPE".to_owned(), job.process_type.clone()),
                ("FLYNN_RELEASE_ID".to_owned(), release.id.to_string()),
            ]);
            if let Some(ipv6) = job.ipv6 {
                let other = SocketAddr::new(ipv6.into(), port.port);
                meta.insert(Instance::IPV6.to_owned(), other.to_string());
            }
            let instance = Instance {
                id: format!("{}-{}", job.id, port.port),
                addr: SocketAddr::new(address, port.port).to_string(),
                proto: if port.proto.is_empty() {
                    "tcp".into()
                } else {
                    port.proto.clone()
                },
                meta,
                index: job.up_at.map_or(0, |at| at.as_micros() as u64),
            };
            services.entry(name).or_default().push(Found {
                instance,
                is_healthy: !job.is_unhealthy && !is_silent(job),
                job: job.clone(),
            });
        }
    }
    for list in services.values_mut() {
        list.sort_by(|a, b| (a.instance.index, &a.instance.id).cmp(&(b.instance.index, &b.instance.id)));
    }
    services
}

fn routing_route(route: &types::Route) -> Route {
    match route.kind {
        RouteKind::Http => Route::Http(HttpRoute {
            id: route.formatted_id(),
            domain: route.domain.clone(),
            path: route.path.clone(),
            port: route.port,
            service: route.service.clone(),
            sticky: route.sticky,
            leader: route.leader,
            drain_backends: route.drain_backends,
            disable_keep_alives: route.disable_keep_alives,
            certificate: route.certificate_id.map(|id| id.to_string()),
        }),
        RouteKind::Tcp => Route::Tcp(TcpRoute {
            id: route.formatted_id(),
            port: route.port,
            service: route.service.clone(),
            leader: route.leader,
            drain_backends: route.drain_backends,
        }),
    }
}

/// Each message has a generation of its own, or a router that has applied the first of several would
/// acknowledge them all. They grow with the state's revision, which outlives this process.
const fn first_generation(revision: u64) -> u64 {
    revision << 20
}

/// What turns `old` into `new`, in an order in which nothing is ever missing: certificates and
/// services before the routes that name them, removals last.
pub fn difference(old: &Snapshot, new: &Snapshot) -> Vec<Update> {
    if old.domain != new.domain || old.is_draining != new.is_draining {
        // No smaller update says this.
        return vec![Update::Snapshot(new.clone())];
    }
    let mut last = new.generation;
    let mut next = || {
        last += 1;
        last
    };
    let mut updates = vec![];
    let (before, after) = (by(&old.certificates, |c| &c.id), by(&new.certificates, |c| &c.id));
    let (services_before, services_after) = (by(&old.services, |s| &s.name), by(&new.services, |s| &s.name));
    let (routes_before, routes_after) = (by(&old.routes, |r| r.id()), by(&new.routes, |r| r.id()));
    for (id, certificate) in &after {
        if before.get(id) != Some(certificate) {
            updates.push(Update::SetCertificate {
                generation: next(),
                certificate: (*certificate).clone(),
            });
        }
    }
    for (name, service) in &services_after {
        if services_before.get(name) != Some(service) {
            updates.push(Update::SetService {
                generation: next(),
                service: (*service).clone(),
            });
        }
    }
    for (id, route) in &routes_after {
        if routes_before.get(id) != Some(route) {
            updates.push(Update::SetRoute {
                generation: next(),
                route: (*route).clone(),
            });
        }
    }
    for id in routes_before.keys().filter(|id| !routes_after.contains_key(*id)) {
        updates.push(Update::RemoveRoute {
            generation: next(),
            id: (*id).to_owned(),
        });
    }
    for name in services_before
        .keys()
        .filter(|name| !services_after.contains_key(*name))
    {
        updates.push(Update::RemoveService {
            generation: next(),
            name: (*name).to_owned(),
        });
    }
    for id in before.keys().filter(|id| !after.contains_key(*id)) {
        updates.push(Update::RemoveCertificate {
            generation: next(),
            id: (*id).to_owned(),
        });
    }
    updates
}

fn by<T>(rows: &[T], key: impl Fn(&T) -> &str) -> BTreeMap<&str, &T> {
    rows.iter().map(|row| (key(row), row)).collect()
}

/// Everything for one router, then changes, for as long as it stays connected.
pub fn follow(controller: Controller, router: String) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    let connection = controller.routers.connect(&router);
    let state = (
        controller,
        (router, connection),
        changes,
        None::<Snapshot>,
        VecDeque::<Bytes>::new(),
    );
    futures::stream::unfold(
        state,
        |(controller, (router, connection), mut changes, mut sent, mut ready)| async move {
            loop {
                if let Some(message) = ready.pop_front() {
                    let router = (router, connection);
                    return Some((message, (controller, router, changes, sent, ready)));
                }
                changes.borrow_and_update();
                let state = controller.state();
                let key = sticky_key(&controller.config.internal_key);
                let new = Snapshot {
                    is_draining: is_draining(&state, &router),
                    ..snapshot(&state, &controller.config, &key)
                };
                let updates = match &sent {
                    None => vec![Update::Snapshot(new.clone())],
                    Some(old) => difference(old, &new),
                };
                ready.extend(updates.iter().map(sse::message));
                note_sent(&connection, &new, updates.last().map(Update::generation));
                sent = Some(new);
                if ready.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

/// A router is named `HOST-PID`.
fn is_draining(state: &State, router: &str) -> bool {
    let host = router.rsplit_once('-').map_or(router, |(host, _)| host);
    let host = host.parse().ok().and_then(|id: HostId| state.hosts.get(&id));
    host.is_some_and(|host| host.is_draining)
}

fn note_sent(connection: &Connection, sent: &Snapshot, last_message: Option<u64>) {
    let backends = sent
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.addr));
    connection.note_sent(last_message, backends.collect());
}

/// All services, again after every change of one.
pub fn follow_services(controller: Controller) -> impl futures::Stream<Item = Bytes> + Send {
    let changes = controller.changes();
    futures::stream::unfold(
        (controller, changes, None),
        |(controller, mut changes, mut sent)| async move {
            loop {
                changes.borrow_and_update();
                let state = controller.state();
                let services = ServicesView {
                    domains: domains(&state, &controller.config),
                    services: services(&state),
                    ingress: ingress(&state),
                };
                if sent.as_ref() != Some(&services) {
                    let message = sse::message(&services);
                    sent = Some(services);
                    return Some((message, (controller, changes, sent)));
                }
                if changes.changed().await.is_err() {
                    return None;
                }
            }
        },
    )
}

fn domains(state: &State, config: &Config) -> Vec<String> {
    let former = domain::former(state, config).into_iter();
    let all = [domain::current(state, config)].into_iter().chain(former);
    all.map(|domain| domain.name).collect()
}

/// Hosts that the outside should be led to: those that live and stay. With none of them up it is rather we who
/// are deaf.
fn ingress(state: &State) -> Vec<IngressView> {
    let wanted: [fn(&Host) -> bool; 3] = [
        |host| host.state == HostState::Up && !host.is_draining,
        |host| host.state == HostState::Up,
        |_| true,
    ];
    let found = wanted.iter().find_map(|is_wanted| {
        let hosts: Vec<_> = state.hosts.values().filter(|host| is_wanted(host)).collect();
        (!hosts.is_empty()).then_some(hosts)
    });
    let view = |host: &Arc<Host>| IngressView {
        host: host.id.clone(),
        addresses: public_addresses(host),
    };
    found.iter().flatten().copied().map(view).collect()
}

/// As it was configured, else what other hosts reach it by.
fn public_addresses(host: &Host) -> Vec<IpAddr> {
    if !host.public_addresses.is_empty() {
        return host.public_addresses.clone();
    }
    let peer = host.peer_addr.as_ref().and_then(|addr| addr.parse().ok());
    let peer = peer.map(|addr: SocketAddr| addr.ip());
    let is_reached = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    peer.or(host.underlay).filter(is_reached).into_iter().collect()
}

fn services(state: &State) -> Vec<ServiceView> {
    let view = |(name, list): (String, Vec<Found>)| {
        let healthy: Vec<_> = list
            .into_iter()
            .filter(|found| found.is_healthy)
            .map(|found| found.instance)
            .collect();
        ServiceView {
            row: state.services.get(&name).cloned(),
            name,
            leader: healthy.first().map(|first| first.id.clone()),
            instances: healthy,
        }
    };
    let running = instances(state);
    let known = state
        .services
        .values()
        .filter(|row| !running.contains_key(&row.name));
    let mut services: Vec<_> = known
        .map(|row| ServiceView {
            name: row.name.clone(),
            leader: None,
            instances: vec![],
            row: Some(row.clone()),
        })
        .collect();
    services.extend(running.into_iter().map(view));
    let hosts = state
        .hosts
        .values()
        .filter(|host| host.state == types::HostState::Up)
        .map(|host| Instance {
            id: host.id.to_string(),
            addr: host.addr.clone(),
            proto: "http".into(),
            meta: host
                .tags
                .iter()
                .map(|(key, value)| (format!("tag:{key}"), value.clone()))
                .collect(),
            index: host.created_at.as_micros() as u64,
        });
    let hosts: Vec<_> = hosts.collect();
    services.push(ServiceView {
        name: "flynn-host".into(),
        leader: hosts.first().map(|first| first.id.clone()),
        instances: hosts,
        row: None,
    });
    services
}
