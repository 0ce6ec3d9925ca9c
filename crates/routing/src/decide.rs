//! Chooses the backend for a request.
//!
//! Two backends are drawn at random and the one with fewer requests in flight is taken: as good as
//! looking at all of them in practice, and a backend that has just come up is not trampled by every
//! router at once. Backends that refused connections lately are passed over while there is another.

use crate::table::{BackendIndex, HttpRoute, Service, ServiceIndex, Table};
use std::borrow::Cow;

/// What a choice depends on beside the table.
pub trait Load {
    /// Requests that the backend is answering now.
    fn in_flight(&self, backend: BackendIndex) -> u32;
    /// It refused connections lately (see [`crate::ejection_ms`]).
    fn is_ejected(&self, backend: BackendIndex) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// 0 for the usual ports.
    pub port: u16,
    /// As the client sent it; may have a port and upper case letters.
    pub host: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// The value of the sticky cookie.
    pub sticky: Option<&'a str>,
}

#[derive(Debug)]
pub enum Decision<'t> {
    Forward(Forward<'t>),
    NoSuchRoute,
    /// There is a route, but nobody to take the request.
    NothingRunning(&'t Service),
}

#[derive(Debug)]
pub struct Forward<'t> {
    pub route: &'t HttpRoute,
    pub backend: BackendIndex,
    /// The client should be told to come back to this backend.
    pub sets_cookie: bool,
}

/// `seed` is a fresh random number.
pub fn decide<'t>(table: &'t Table, request: &RequestHead<'_>, load: &impl Load, seed: u64) -> Decision<'t> {
    let host = normal_host(request.host);
    let Some(route) = table.http_route(request.port, &host, request.path) else {
        return Decision::NoSuchRoute;
    };
    if route.is_sticky
        && !route.is_leader_only
        && let Some(backend) = sticky_backend(table, route.service, request.sticky)
        && !load.is_ejected(backend)
    {
        return Decision::Forward(Forward {
            route,
            backend,
            sets_cookie: false,
        });
    }
    match choose(table, route.service, route.is_leader_only, load, seed, &[]) {
        Some(backend) => Decision::Forward(Forward {
            route,
            backend,
            sets_cookie: route.is_sticky && !route.is_leader_only,
        }),
        None => Decision::NothingRunning(table.service(route.service)),
    }
}

/// The backend for a connection to a TCP route's port.
pub fn decide_tcp(table: &Table, port: u16, load: &impl Load, seed: u64) -> Option<BackendIndex> {
    let route = table.tcp_route(port)?;
    choose(table, route.service, route.is_leader_only, load, seed, &[])
}

fn sticky_backend(table: &Table, service: ServiceIndex, cookie: Option<&str>) -> Option<BackendIndex> {
    let cookie = cookie.filter(|value| !value.is_empty())?;
    table
        .service(service)
        .backends
        .clone()
        .find(|index| table.backend(*index).sticky_token == cookie)
}

/// A backend of the service that is not in `tried`.
///
/// If every one left is ejected, ejection says more about us than about them: all are used.
pub fn choose(
    table: &Table,
    service: ServiceIndex,
    is_leader_only: bool,
    load: &impl Load,
    seed: u64,
    tried: &[BackendIndex],
) -> Option<BackendIndex> {
    let service = table.service(service);
    if is_leader_only {
        return service.leader.filter(|leader| !tried.contains(leader));
    }
    let all = service.backends.clone();
    let is_good = |index: &BackendIndex| !tried.contains(index) && !load.is_ejected(*index);
    let (one, two) = two_of(all.len(), seed)?;
    let (one, two) = (all.start + one, all.start + two);
    if is_good(&one) && is_good(&two) {
        return Some(lighter(load, one, two));
    }
    let good = all.clone().filter(is_good).count();
    if let Some((one, two)) = two_of(good, seed) {
        let nth = |n| all.clone().filter(is_good).nth(n).expect("there are that many");
        return Some(lighter(load, nth(one), nth(two)));
    }
    let untried = |index: &BackendIndex| !tried.contains(index);
    let (one, two) = two_of(all.clone().filter(untried).count(), seed)?;
    let nth = |n| all.clone().filter(untried).nth(n).expect("there are that many");
    Some(lighter(load, nth(one), nth(two)))
}

/// Two different numbers below `count`, or twice 0 if there is only one.
fn two_of(count: usize, seed: u64) -> Option<(usize, usize)> {
    match count as u64 {
        0 => None,
        1 => Some((0, 0)),
        count => {
            let one = (seed & 0xffff_ffff) % count;
            let step = 1 + (seed >> 32) % (count - 1);
            Some((one as usize, ((one + step) % count) as usize))
        }
    }
}

fn lighter(load: &impl Load, one: BackendIndex, two: BackendIndex) -> BackendIndex {
    if load.in_flight(two) < load.in_flight(one) {
        two
    } else {
        one
    }
}

/// Lower case, no port, no final dot.
pub fn normal_host(host: &str) -> Cow<'_, str> {
    let without_port = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(host, |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = without_port.strip_suffix('.').unwrap_or(without_port);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}
