//! The cluster's domain: configured at first, then what the last migration led to.
//!
//! A migration adds names and takes none away: what answered below the old domain still does.

use std::sync::Arc;

use types::{
    Certificate, CertificateId, DomainMigration, DomainMigrationId, Route, RouteId, RouteKind, Timestamp,
    TlsCert, Uuid,
};

use crate::{State, command::Rejection, event::Subject};

impl State {
    /// The migration whose domain the cluster has now; none while it has the configured one.
    pub fn domain_in_force(&self) -> Option<&Arc<DomainMigration>> {
        self.domain_migrations
            .values()
            .filter(|migration| migration.finished_at.is_some())
            .max_by_key(|migration| (migration.finished_at, migration.id))
    }

    pub fn unfinished_domain_migration(&self) -> Option<&Arc<DomainMigration>> {
        self.domain_migrations
            .values()
            .find(|migration| migration.finished_at.is_none())
    }

    pub(crate) fn create_domain_migration(
        &mut self,
        at: Timestamp,
        migration: DomainMigration,
    ) -> Result<(), Rejection> {
        if let Some(other) = self.unfinished_domain_migration() {
            let message = format!("a migration to {:?} is under way", other.domain);
            return Err(Rejection::conflict(message));
        }
        let migration = Arc::new(migration);
        self.domain_migrations.insert(migration.id, migration.clone());
        let error = String::new();
        self.emit(at, None, Subject::DomainMigration { migration, error });
        Ok(())
    }

    /// Gives every name below the old domain a sibling below the new one.
    pub(crate) fn finish_domain_migration(
        &mut self,
        at: Timestamp,
        id: DomainMigrationId,
        tls_cert: TlsCert,
    ) -> Result<(), Rejection> {
        let found = self
            .domain_migrations
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("domain migration {id}")))?;
        if found.finished_at.is_some() {
            return Ok(());
        }
        let mut migration = DomainMigration::clone(found);
        migration.tls_cert = Some(tls_cert);
        migration.finished_at = Some(at);
        let migration = Arc::new(migration);
        self.domain_migrations.insert(id, migration.clone());
        self.forget_renewed(&migration.domain);
        let mut routes: Vec<_> = self
            .routes
            .values()
            .filter(|route| route.kind == RouteKind::Http)
            .cloned()
            .collect();
        // A path needs the root of its domain to be there before it.
        routes.sort_by_key(|route| (route.path.len(), route.id));
        for route in routes {
            if let Some(domain) = moved(&route.domain, &migration) {
                let sibling = Route {
                    // From what it comes from, as ids are not made here.
                    id: RouteId(Uuid::new_v5(&id.0, route.id.0.as_bytes())),
                    domain,
                    created_at: at,
                    updated_at: at,
                    ..Route::clone(&route)
                };
                let certificate = self.sibling_certificate(&route, &migration, at);
                // What is refused is there already, or was never possible for that name.
                let _ = self.create_route(at, sibling, certificate);
            }
        }
        let error = String::new();
        self.emit(at, None, Subject::DomainMigration { migration, error });
        Ok(())
    }

    pub(crate) fn fail_domain_migration(
        &mut self,
        at: Timestamp,
        id: DomainMigrationId,
        error: String,
    ) -> Result<(), Rejection> {
        let unfinished = self
            .domain_migrations
            .get(&id)
            .filter(|found| found.finished_at.is_none());
        if let Some(migration) = unfinished.cloned() {
            self.domain_migrations.remove(&id);
            self.emit(at, None, Subject::DomainMigration { migration, error });
        }
        Ok(())
    }

    /// The cluster's own certificate where the route named that, else the route's.
    fn sibling_certificate(
        &self,
        route: &Route,
        migration: &DomainMigration,
        at: Timestamp,
    ) -> Option<Certificate> {
        let certificate = self.certificates.get(&route.certificate_id?)?;
        let was_the_clusters = migration
            .old_tls_cert
            .as_ref()
            .is_some_and(|old| old.cert.trim() == certificate.cert.trim());
        let cluster = migration.tls_cert.as_ref().filter(|_| was_the_clusters);
        Some(match cluster {
            Some(new) => Certificate {
                id: CertificateId(Uuid::new_v5(&migration.id.0, b"certificate")),
                cert: new.cert.trim().to_owned(),
                key: new.key.trim().to_owned(),
                created_at: at,
                updated_at: at,
            },
            None => Certificate::clone(certificate),
        })
    }
}

/// `shop.old.example` as `shop.new.example`; nothing for names elsewhere.
fn moved(domain: &str, migration: &DomainMigration) -> Option<String> {
    let prefix = domain.strip_suffix(migration.old_domain.as_str())?;
    (prefix.is_empty() || prefix.ends_with('.')).then(|| format!("{prefix}{}", migration.domain))
}
