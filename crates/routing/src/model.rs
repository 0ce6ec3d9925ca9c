//! The rows as the feed tells them, and the tables made from them.

use crate::feed::{Certificate, Route, Service, Snapshot, Update};
use crate::table::{Rows, Table};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Model {
    generation: u64,
    domain: String,
    sticky_key: String,
    default_certificate: Option<String>,
    is_draining: bool,
    routes: BTreeMap<String, Route>,
    services: BTreeMap<String, Service>,
    certificates: BTreeMap<String, Certificate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Changed,
    /// Not newer than what is known; nothing was done.
    Old,
}

impl Model {
    /// A snapshot replaces everything, even by an older generation: it is what the controller knows
    /// now, and it may have been restored from a backup. A change must be newer than the model.
    pub fn apply(&mut self, update: Update) -> Applied {
        let generation = update.generation();
        if !matches!(update, Update::Snapshot(_)) && generation <= self.generation {
            return Applied::Old;
        }
        self.generation = generation;
        match update {
            Update::Snapshot(snapshot) => self.replace(snapshot),
            Update::SetRoute { route, .. } => {
                self.routes.insert(route.id().to_string(), route);
            }
            Update::RemoveRoute { id, .. } => {
                self.routes.remove(&id);
            }
            Update::SetService { service, .. } => {
                self.services.insert(service.name.clone(), service);
            }
            Update::RemoveService { name, .. } => {
                self.services.remove(&name);
            }
            Update::SetCertificate { certificate, .. } => {
                self.certificates.insert(certificate.id.clone(), certificate);
            }
            Update::RemoveCertificate { id, .. } => {
                self.certificates.remove(&id);
            }
        }
        Applied::Changed
    }

    fn replace(&mut self, snapshot: Snapshot) {
        self.domain = snapshot.domain;
        // A controller that names no key leaves ours alone, so that sessions stay where they are.
        if !snapshot.sticky_key.is_empty() {
            self.sticky_key = snapshot.sticky_key;
        }
        self.default_certificate = snapshot.default_certificate;
        self.is_draining = snapshot.is_draining;
        self.routes = snapshot
            .routes
            .into_iter()
            .map(|row| (row.id().to_string(), row))
            .collect();
        self.services = snapshot
            .services
            .into_iter()
            .map(|row| (row.name.clone(), row))
            .collect();
        self.certificates = snapshot
            .certificates
            .into_iter()
            .map(|row| (row.id.clone(), row))
            .collect();
    }

    /// The key for sticky cookies until the controller names one. Hex.
    pub fn with_sticky_key(mut self, key: String) -> Model {
        if self.sticky_key.is_empty() {
            self.sticky_key = key;
        }
        self
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            generation: self.generation,
            domain: self.domain.clone(),
            sticky_key: self.sticky_key.clone(),
            default_certificate: self.default_certificate.clone(),
            is_draining: self.is_draining,
            routes: self.routes.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            certificates: self.certificates.values().cloned().collect(),
        }
    }

    pub fn table(&self) -> Table {
        let rows = Rows {
            generation: self.generation,
            domain: &self.domain,
            default_certificate: self.default_certificate.as_deref(),
            is_draining: self.is_draining,
            routes: &self.routes,
            services: &self.services,
            certificates: &self.certificates,
        };
        // A key that is no hex is still a key.
        let key = hex::decode(&self.sticky_key).unwrap_or_else(|_| self.sticky_key.clone().into_bytes());
        Table::build(&rows, &key)
    }
}
