//! The immutable table that one generation of routes makes.
//!
//! Lookup is by most specific domain (exact, then the longest wildcard, then `*`) and there by the
//! longest path. A wildcard `*.x` covers every depth and `x` itself, as the original's did. If the
//! most specific domain has no route for the path, the next one is asked.
//!
//! Two routes for the same port, domain and path should not exist (the controller refuses them); if
//! they do, the one with the smaller id wins, on every router alike.

use crate::feed;
use crate::sticky;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Asked for one key at a time, for each request; the order of its keys decides nothing.
#[expect(
    clippy::disallowed_types,
    reason = "looked up, and never walked to decide anything"
)]
type ByName<T> = std::collections::HashMap<String, T>;

/// Good for the table that it came from, and only for that.
pub type BackendIndex = usize;
pub type ServiceIndex = usize;

#[derive(Debug, Default)]
pub struct Table {
    pub generation: u64,
    pub domain: String,
    /// The router's host is about to be switched off.
    pub is_draining: bool,
    services: Vec<Service>,
    backends: Vec<Backend>,
    /// By listener port, 0 being the usual ones.
    http: BTreeMap<u16, Domains>,
    http_ports: BTreeMap<u16, HttpPort>,
    tcp: BTreeMap<u16, TcpRoute>,
    certificates: Vec<feed::Certificate>,
    certificate_names: ByName<usize>,
    default_certificate: Option<usize>,
}

#[derive(Debug, Default)]
struct Domains {
    exact: ByName<Vec<HttpRoute>>,
    /// Without the `*.`.
    wildcard: ByName<Vec<HttpRoute>>,
    any: Vec<HttpRoute>,
}

/// What an additional HTTP port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpPort {
    Plain,
    Tls,
}

#[derive(Debug)]
pub struct HttpRoute {
    pub id: String,
    pub path: String,
    pub service: ServiceIndex,
    pub is_sticky: bool,
    pub is_leader_only: bool,
    pub keeps_alive: bool,
}

#[derive(Debug)]
pub struct TcpRoute {
    pub id: String,
    pub service: ServiceIndex,
    pub is_leader_only: bool,
}

#[derive(Debug)]
pub struct Service {
    pub name: String,
    /// Shared, so that a log line can name its app without copying the name.
    pub app_id: Arc<str>,
    pub app_name: String,
    pub leader: Option<BackendIndex>,
    pub response_timeout_ms: Option<u64>,
    /// Its healthy backends.
    pub backends: Range<BackendIndex>,
}

#[derive(Debug)]
pub struct Backend {
    pub id: String,
    pub addr: std::net::SocketAddr,
    /// `web.<job id>`, as the access log shows it.
    pub job: String,
    /// Empty unless a sticky route leads here.
    pub sticky_token: String,
}

impl Table {
    /// Rows that contradict each other are survived: a route to an unknown service leads to a
    /// service without backends, a certificate that does not exist is no certificate.
    pub fn build(rows: &Rows<'_>, sticky_key: &[u8]) -> Table {
        let mut table = Table {
            generation: rows.generation,
            domain: rows.domain.to_string(),
            is_draining: rows.is_draining,
            ..Table::default()
        };
        let mut service_index = BTreeMap::new();
        for service in rows.services.values() {
            service_index.insert(service.name.as_str(), table.services.len());
            table.add_service(service);
        }
        for (index, certificate) in rows.certificates.values().enumerate() {
            if rows.default_certificate == Some(certificate.id.as_str()) {
                table.default_certificate = Some(index);
            }
            for name in &certificate.domains {
                table
                    .certificate_names
                    .entry(name.to_ascii_lowercase())
                    .or_insert(index);
            }
            table.certificates.push(certificate.clone());
        }
        for route in rows.routes.values() {
            let name = match route {
                feed::Route::Http(route) => route.service.as_str(),
                feed::Route::Tcp(route) => route.service.as_str(),
            };
            let service = *service_index.entry(name).or_insert_with(|| {
                table.services.push(Service {
                    name: name.to_string(),
                    app_id: Arc::from(""),
                    app_name: String::new(),
                    leader: None,
                    response_timeout_ms: None,
                    backends: 0..0,
                });
                table.services.len() - 1
            });
            match route {
                feed::Route::Http(route) => table.add_http(route, service, sticky_key),
                feed::Route::Tcp(route) => {
                    table.tcp.entry(route.port).or_insert_with(|| TcpRoute {
                        id: route.id.clone(),
                        service,
                        is_leader_only: route.leader,
                    });
                }
            }
        }
        for domains in table.http.values_mut() {
            domains.sort();
        }
        table
    }

    fn add_service(&mut self, service: &feed::Service) {
        let first = self.backends.len();
        let mut leader = None;
        for backend in service.backends.iter().filter(|backend| backend.healthy) {
            if service.leader.as_ref() == Some(&backend.id) {
                leader = Some(self.backends.len());
            }
            let job_type = if backend.job_type.is_empty() {
                "job"
            } else {
                &backend.job_type
            };
            self.backends.push(Backend {
                id: backend.id.clone(),
                addr: backend.addr,
                job: format!("{job_type}.{}", backend.job_id),
                sticky_token: String::new(),
            });
        }
        self.services.push(Service {
            name: service.name.clone(),
            app_id: Arc::from(service.app_id.as_str()),
            app_name: service.app_name.clone(),
            leader,
            response_timeout_ms: service.response_timeout_ms,
            backends: first..self.backends.len(),
        });
    }

    fn add_http(&mut self, route: &feed::HttpRoute, service: ServiceIndex, sticky_key: &[u8]) {
        if route.sticky {
            let name = &self.services[service].name;
            for backend in &mut self.backends[self.services[service].backends.clone()] {
                if backend.sticky_token.is_empty() {
                    backend.sticky_token = sticky::token(sticky_key, name, &backend.id);
                }
            }
        }
        let domain = route.domain.to_ascii_lowercase();
        let certificate = route
            .certificate
            .as_ref()
            .and_then(|id| self.certificates.iter().position(|row| row.id == *id));
        if let Some(index) = certificate {
            self.certificate_names.insert(domain.clone(), index);
        }
        if route.port != 0 {
            let kind = if certificate.is_some() {
                HttpPort::Tls
            } else {
                HttpPort::Plain
            };
            self.http_ports.entry(route.port).or_insert(kind);
        }
        let domains = self.http.entry(route.port).or_default();
        let routes = if domain == "*" {
            &mut domains.any
        } else if let Some(suffix) = domain.strip_prefix("*.") {
            domains.wildcard.entry(suffix.to_string()).or_default()
        } else {
            domains.exact.entry(domain).or_default()
        };
        if routes.iter().any(|other| other.path == route.path) {
            return;
        }
        routes.push(HttpRoute {
            id: route.id.clone(),
            path: route.path.clone(),
            service,
            is_sticky: route.sticky,
            is_leader_only: route.leader,
            keeps_alive: !route.disable_keep_alives,
        });
    }

    /// `host` is lower case and without port, as [`crate::normal_host`] makes it.
    pub fn http_route(&self, port: u16, host: &str, path: &str) -> Option<&HttpRoute> {
        let domains = self.http.get(&port)?;
        let by_path =
            |routes: &'_ Vec<HttpRoute>| routes.iter().position(|route| path_matches(&route.path, path));
        if let Some(routes) = domains.exact.get(host)
            && let Some(at) = by_path(routes)
        {
            return Some(&routes[at]);
        }
        if !domains.wildcard.is_empty() {
            for suffix in suffixes(host) {
                if let Some(routes) = domains.wildcard.get(suffix)
                    && let Some(at) = by_path(routes)
                {
                    return Some(&routes[at]);
                }
            }
        }
        by_path(&domains.any).map(|at| &domains.any[at])
    }

    pub fn tcp_route(&self, port: u16) -> Option<&TcpRoute> {
        self.tcp.get(&port)
    }

    pub fn tcp_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.tcp.keys().copied()
    }

    /// Additional HTTP listeners that routes ask for.
    pub fn http_ports(&self) -> impl Iterator<Item = (u16, HttpPort)> + '_ {
        self.http_ports.iter().map(|(port, kind)| (*port, *kind))
    }

    pub fn service(&self, index: ServiceIndex) -> &Service {
        &self.services[index]
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    pub fn backend(&self, index: BackendIndex) -> &Backend {
        &self.backends[index]
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    pub fn certificates(&self) -> &[feed::Certificate] {
        &self.certificates
    }

    /// The index into [`Table::certificates`] for a name that a client asks for: the exact name,
    /// then the longest wildcard, then the default. `None`: whatever the router has itself.
    pub fn certificate_for(&self, name: Option<&str>) -> Option<usize> {
        let Some(name) = name else {
            return self.default_certificate;
        };
        let name = crate::normal_host(name);
        if let Some(index) = self.certificate_names.get(name.as_ref()) {
            return Some(*index);
        }
        let mut pattern = String::with_capacity(name.len() + 2);
        for suffix in suffixes(&name) {
            pattern.clear();
            pattern.push_str("*.");
            pattern.push_str(suffix);
            if let Some(index) = self.certificate_names.get(&pattern) {
                return Some(*index);
            }
        }
        self.certificate_names
            .get("*")
            .copied()
            .or(self.default_certificate)
    }
}

/// What a table is built from, ordered by key so that the same rows make the same table.
pub struct Rows<'a> {
    pub generation: u64,
    pub domain: &'a str,
    pub default_certificate: Option<&'a str>,
    pub is_draining: bool,
    pub routes: &'a BTreeMap<String, feed::Route>,
    pub services: &'a BTreeMap<String, feed::Service>,
    pub certificates: &'a BTreeMap<String, feed::Certificate>,
}

impl Domains {
    fn sort(&mut self) {
        let longest_first =
            |routes: &mut Vec<HttpRoute>| routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        longest_first(&mut self.any);
        self.exact.values_mut().for_each(longest_first);
        self.wildcard.values_mut().for_each(longest_first);
    }
}

/// `a.b.c`, `b.c`, `c`: from the most specific on.
fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(host);
    std::iter::from_fn(move || {
        let now = rest?;
        rest = now.split_once('.').map(|(_, tail)| tail);
        Some(now)
    })
}

/// `/shop/` takes `/shop`, `/shop/` and `/shop/x`, not `/shopping`.
fn path_matches(prefix: &str, path: &str) -> bool {
    prefix == "/" || path.starts_with(prefix) || prefix.strip_suffix('/') == Some(path)
}
