//! Routes and certificates, with the original's rules for what may stand beside what.

use std::sync::Arc;

use types::{AppId, Certificate, CertificateId, Route, RouteId, RouteKind, Timestamp};

use crate::{State, TCP_PORTS, command::Rejection, event::Subject, parent_ref};

impl State {
    pub(crate) fn create_route(
        &mut self,
        at: Timestamp,
        mut route: Route,
        certificate: Option<Certificate>,
    ) -> Result<(), Rejection> {
        if route.kind == RouteKind::Tcp && route.port == 0 {
            route.port = self.free_tcp_port()?;
        }
        self.check_route(&route)?;
        route.certificate_id = certificate.map(|certificate| self.put_certificate(certificate));
        let app = self.app_of(&route);
        let route = Arc::new(route);
        self.routes.insert(route.id, route.clone());
        self.emit(at, app, Subject::Route { route });
        Ok(())
    }

    pub(crate) fn update_route(
        &mut self,
        at: Timestamp,
        mut route: Route,
        certificate: Option<Certificate>,
    ) -> Result<(), Rejection> {
        let old = self
            .routes
            .get(&route.id)
            .filter(|old| old.parent_ref == route.parent_ref)
            .cloned();
        let Some(old) = old else {
            return Err(Rejection::not_found(route.formatted_id()));
        };
        // What a route listens to is fixed; what it leads to may change.
        (route.kind, route.domain, route.path) = (old.kind, old.domain.clone(), old.path.clone());
        (route.port, route.created_at) = (old.port, old.created_at);
        let drains = self.routes.values().any(|other| {
            other.id != route.id
                && other.service == route.service
                && other.drain_backends != route.drain_backends
        });
        if drains {
            return Err(drain_mismatch());
        }
        route.certificate_id = match certificate {
            Some(certificate) => Some(self.put_certificate(certificate)),
            None => old.certificate_id,
        };
        let app = self.app_of(&route);
        let route = Arc::new(route);
        self.routes.insert(route.id, route.clone());
        if let Some(former) = old
            .certificate_id
            .filter(|former| Some(*former) != route.certificate_id)
        {
            self.remove_unused_certificate(former);
        }
        self.emit(at, app, Subject::Route { route });
        Ok(())
    }

    pub(crate) fn delete_route(&mut self, at: Timestamp, app: AppId, id: RouteId) -> Result<(), Rejection> {
        let parent = parent_ref(app);
        let Some(route) = self
            .routes
            .get(&id)
            .filter(|route| route.parent_ref == parent)
            .cloned()
        else {
            return Err(Rejection::not_found(format!("route {id}")));
        };
        let leaves_paths_behind = route.kind == RouteKind::Http
            && route.path == "/"
            && self.same_domain(&route).any(|other| other.id != id);
        if leaves_paths_behind {
            let message = "cannot delete default route whilst dependent routes exist";
            return Err(Rejection::conflict(message));
        }
        self.remove_route(at, &route);
        Ok(())
    }

    pub(crate) fn remove_route(&mut self, at: Timestamp, route: &Arc<Route>) {
        let app = self.app_of(route);
        self.routes.remove(&route.id);
        if let Some(certificate) = route.certificate_id {
            self.remove_unused_certificate(certificate);
        }
        self.emit(at, app, Subject::RouteDeletion { route: route.clone() });
    }

    /// Whether a new route may stand beside the others.
    pub(crate) fn check_route(&self, route: &Route) -> Result<(), Rejection> {
        match route.kind {
            RouteKind::Tcp => {
                if route.port == 80 || route.port == 443 {
                    return Err(Rejection::conflict("Port reserved for HTTP/HTTPS traffic"));
                }
                if self
                    .routes
                    .values()
                    .any(|other| other.kind == RouteKind::Tcp && other.port == route.port)
                {
                    return Err(Rejection::conflict("Duplicate route"));
                }
            }
            RouteKind::Http => {
                if self.same_domain(route).any(|other| other.path == route.path) {
                    return Err(Rejection::conflict("Duplicate route"));
                }
                if route.path != "/" && !self.same_domain(route).any(|other| other.path == "/") {
                    return Err(Rejection::invalid("", "Invalid route"));
                }
            }
        }
        let mismatch = self
            .routes
            .values()
            .any(|other| other.service == route.service && other.drain_backends != route.drain_backends);
        if mismatch { Err(drain_mismatch()) } else { Ok(()) }
    }

    fn same_domain<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = &'a Arc<Route>> {
        self.routes.values().filter(move |other| {
            other.kind == RouteKind::Http && other.domain == route.domain && other.port == route.port
        })
    }

    fn free_tcp_port(&self) -> Result<u16, Rejection> {
        let taken: std::collections::BTreeSet<_> = self
            .routes
            .values()
            .filter(|route| route.kind == RouteKind::Tcp)
            .map(|route| route.port)
            .collect();
        TCP_PORTS
            .into_iter()
            .find(|port| !taken.contains(port))
            .ok_or_else(|| Rejection::conflict("No free TCP port is left in 3000-3500"))
    }

    /// Keeps one row per certificate: the same PEM twice is the same certificate.
    fn put_certificate(&mut self, certificate: Certificate) -> CertificateId {
        let known = self
            .certificates
            .values()
            .find(|known| known.cert == certificate.cert)
            .map(|known| known.id);
        if let Some(known) = known {
            return known;
        }
        let id = certificate.id;
        self.certificates.insert(id, Arc::new(certificate));
        id
    }

    fn remove_unused_certificate(&mut self, id: CertificateId) {
        if !self.routes.values().any(|route| route.certificate_id == Some(id)) {
            self.certificates.remove(&id);
        }
    }

    fn app_of(&self, route: &Route) -> Option<AppId> {
        route.parent_ref.rsplit('/').next()?.parse().ok()
    }
}

fn drain_mismatch() -> Rejection {
    Rejection::invalid(
        "",
        "Invalid route: all routes of a service have the same drain_backends, and the others of this one differ",
    )
}
