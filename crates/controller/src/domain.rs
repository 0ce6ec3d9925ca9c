//! The domains that the cluster answers to, and its moves from one to the next.
//!
//! What a reader would get wrong: the configured domain is only the first one. After a migration the
//! store's word counts, and every domain before it keeps its names and its certificate.

use std::collections::BTreeMap;

use daemon::Shutdown;
use state::{Change, State};
use types::{DomainMigration, DomainMigrationId, TlsCert};

use crate::{Config, Controller, authority};

/// A domain with the certificate for it and everything one level below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub tls: TlsCert,
}

/// The domain that new apps get their names below.
pub fn current(state: &State, config: &Config) -> Domain {
    let Some(migration) = state.domain_in_force() else {
        let configured = configured(config);
        return Domain {
            tls: authority::newest(state, &configured.name, configured.tls),
            name: configured.name,
        };
    };
    let tls = migration.tls_cert.clone().unwrap_or_default();
    Domain {
        tls: authority::newest(state, &migration.domain, tls),
        name: migration.domain.clone(),
    }
}

/// The domains before the current one, each once.
pub fn former(state: &State, config: &Config) -> Vec<Domain> {
    let mut finished: Vec<_> = state
        .domain_migrations
        .values()
        .filter(|migration| migration.finished_at.is_some())
        .collect();
    finished.sort_by_key(|migration| migration.finished_at);
    let mut domains = BTreeMap::from([(config.domain.clone(), configured(config).tls)]);
    // The newest certificate of a name wins, should the cluster have come back to it.
    for migration in finished {
        let leaving = (migration.old_domain.clone(), migration.old_tls_cert.clone());
        let arriving = (migration.domain.clone(), migration.tls_cert.clone());
        for (name, tls) in [leaving, arriving] {
            domains.insert(name, tls.unwrap_or_default());
        }
    }
    domains.remove(&current(state, config).name);
    domains
        .into_iter()
        .map(|(name, tls)| Domain {
            tls: authority::newest(state, &name, tls),
            name,
        })
        .collect()
}

fn configured(config: &Config) -> Domain {
    Domain {
        name: config.domain.clone(),
        tls: TlsCert {
            ca_cert: config.ca_cert.clone(),
            cert: config.cert.clone(),
            pin: api::tls::pin_of_pem(&config.cert).unwrap_or_default(),
            key: config.cert_key.clone(),
        },
    }
}

/// On the leader: carries migrations out. On every host: keeps what the next start needs of them.
pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut changes = controller.changes();
    let mut leadership = controller.store.leadership();
    let mut adopted = None;
    loop {
        changes.borrow_and_update();
        let mut has_failed = false;
        let in_force = in_force(&controller.state(), &controller.config);
        if in_force != adopted {
            match adopt(&controller).await {
                Ok(()) => adopted = in_force,
                Err(error) => {
                    has_failed = true;
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot keep the migrated domain on disk"
                    );
                }
            }
        }
        if *leadership.borrow_and_update()
            && let Some(migration) = controller.state().unfinished_domain_migration().cloned()
            && let Err(error) = carry_out(&controller, &migration).await
        {
            has_failed = true;
            tracing::warn!(domain = %migration.domain, %error, "cannot migrate the domain; trying again");
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(std::time::Duration::from_secs(2)), if has_failed => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

/// What makes the current domain and its certificate: nothing where they are those that the host started with.
fn in_force(state: &State, config: &Config) -> Option<(Option<DomainMigrationId>, Option<TlsCert>)> {
    let migration = state.domain_in_force();
    let name = migration.map_or(&config.domain, |migration| &migration.domain);
    let renewed = state.authority.domains.get(name).cloned();
    let migration = migration.map(|migration| migration.id);
    (migration.is_some() || renewed.is_some()).then_some((migration, renewed))
}

/// A start reads the domain before there is a store to ask.
async fn adopt(controller: &Controller) -> anyhow::Result<()> {
    let state = controller.state();
    let (current, former) = (
        current(&state, &controller.config),
        former(&state, &controller.config),
    );
    let names: Vec<_> = former.into_iter().map(|domain| domain.name).collect();
    let authority = controller.config.authority.clone();
    tokio::task::spawn_blocking(move || authority.adopt(&current.name, &names, &current.tls)).await?
}

async fn carry_out(controller: &Controller, migration: &DomainMigration) -> Result<(), api::Error> {
    let issued = match migration.tls_cert.clone() {
        Some(given) => Ok(given),
        None => {
            let (authority, domain) = (controller.config.authority.clone(), migration.domain.clone());
            let ca_cert = authority::certificate(&controller.state(), &controller.config);
            tokio::task::spawn_blocking(move || authority.issue(&domain))
                .await
                .map_err(|error| error.to_string())
                .and_then(|issued| issued.map_err(|error| format!("{error:#}")))
                .map(|issued| TlsCert { ca_cert, ..issued })
        }
    };
    let id = migration.id;
    let change = match issued {
        Ok(mut tls_cert) => {
            tls_cert.pin = api::tls::pin_of_pem(&tls_cert.cert).unwrap_or_default();
            tracing::info!(from = %migration.old_domain, to = %migration.domain, "the domain is migrated");
            Change::FinishDomainMigration {
                migration: id,
                tls_cert,
            }
        }
        Err(error) => {
            let error = format!("no certificate could be made for {:?}: {error}", migration.domain);
            Change::FailDomainMigration { migration: id, error }
        }
    };
    controller.write(change).await?;
    Ok(())
}
