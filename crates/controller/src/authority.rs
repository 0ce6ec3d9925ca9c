//! On the leader: makes the certificates of the cluster's authority and of its domains anew, long before they end.
//!
//! What a reader would get wrong: hosts need none of this among themselves. They hold to the authority's key, by its
//! first certificate, whose end they do not look at. It is for everybody else: browsers, git, engines that pull images.

use std::{sync::Mutex, time::Duration};

use api::peers::AuthorityView;
use daemon::{Shutdown, Validity};
use state::{AuthorityChange, Change, RENEWED_BEFORE_END, Renewal, State};
use types::{HostId, TlsCert};

use crate::{Config, Controller, domain};

/// How often the dates are looked at. By the clock on the wall: a machine may have been suspended.
const LOOK: Duration = Duration::from_secs(600);
/// While something waits or has failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The authority's newest certificate, PEM.
pub fn certificate(state: &State, config: &Config) -> String {
    let renewed = state.authority.certificate.clone();
    renewed.unwrap_or_else(|| config.ca_cert.clone())
}

/// The newest certificate of a domain that came with `tls`.
pub fn newest(state: &State, domain: &str, tls: TlsCert) -> TlsCert {
    state.authority.domains.get(domain).cloned().unwrap_or(tls)
}

/// Why the last attempt of this host to make one anew failed.
#[derive(Default)]
pub struct Failure(Mutex<Option<String>>);

impl Failure {
    fn note(&self, failure: Option<String>) {
        *self.0.lock().expect("no panic while held") = failure;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().expect("no panic while held").clone()
    }
}

/// One certificate that the cluster renews.
struct Renewable {
    /// None for the authority's own.
    domain: Option<String>,
    pem: String,
    validity: Validity,
}

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut leadership = controller.store.leadership();
    let mut told = None;
    loop {
        let leads = *leadership.borrow_and_update();
        // A host that has just founded a cluster is not in its own list yet.
        let is_founded = controller.config.membership.is_none() || !controller.state().members.is_empty();
        let mut pause = LOOK_AGAIN;
        if leads && is_founded {
            let waits = match round(&controller).await {
                Ok(waits) => {
                    controller.renewal_failure.note(None);
                    waits.map(|(host, version)| waiting(&host, &version))
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    controller.renewal_failure.note(Some(error.clone()));
                    Some(error)
                }
            };
            if waits.is_none() {
                pause = LOOK;
            }
            // Once, and not every second.
            if let Some(reason) = &waits
                && waits != told
            {
                tracing::warn!(reason, "the cluster's certificates are not made anew yet");
            }
            told = waits;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(pause), if leads => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

fn waiting(host: &HostId, version: &str) -> String {
    match version {
        "" => format!("{host} has not been started yet"),
        _ => format!("{host} has another version, {version}"),
    }
}

/// Makes anew what is due; gives the host that has to be waited for.
async fn round(controller: &Controller) -> anyhow::Result<Option<(HostId, String)>> {
    let state = controller.state();
    let now = controller.now();
    let mut waits = None;
    for found in renewables(&state, &controller.config)? {
        match state.renewal(found.validity.until, api::VERSION, now) {
            Renewal::At(_) => {}
            Renewal::WaitsFor { host, version } => waits = Some((host, version)),
            Renewal::Due => {
                let config = controller.config.clone();
                let own = certificate(&controller.state(), &config);
                let renewed = tokio::task::spawn_blocking(move || renew(&config, own, found, now));
                let (change, of) = renewed.await??;
                controller.write(Change::Authority { change }).await?;
                tracing::info!(of, "a certificate was made anew, as it ends within a year");
            }
        }
    }
    Ok(waits)
}

fn renew(
    config: &Config,
    own: String,
    found: Renewable,
    now: types::Timestamp,
) -> anyhow::Result<(AuthorityChange, String)> {
    let authority = &config.authority;
    let replaces = found.pem;
    Ok(match found.domain {
        None => {
            let certificate = authority.renewed(&replaces, now)?;
            let change = AuthorityChange::Renew {
                certificate,
                replaces,
            };
            (change, "the cluster's authority".to_owned())
        }
        Some(domain) => {
            let mut tls_cert = authority.reissued(&domain, &replaces, now)?;
            tls_cert.ca_cert = own;
            tls_cert.pin = api::tls::pin_of_pem(&tls_cert.cert).unwrap_or_default();
            let change = AuthorityChange::RenewDomain {
                domain: domain.clone(),
                tls_cert,
                replaces,
            };
            (change, domain)
        }
    })
}

/// The authority's, and those that it made for domains that the cluster has or had.
fn renewables(state: &State, config: &Config) -> anyhow::Result<Vec<Renewable>> {
    let own = certificate(state, config);
    let mut found = vec![Renewable {
        domain: None,
        validity: Validity::of(&own)?,
        pem: own,
    }];
    let domains = [domain::current(state, config)].into_iter();
    for domain in domains.chain(domain::former(state, config)) {
        // What somebody gave is his to replace.
        if !daemon::is_signed_by(&domain.tls.cert, &config.ca_cert).unwrap_or(false) {
            continue;
        }
        found.push(Renewable {
            domain: Some(domain.name),
            validity: Validity::of(&domain.tls.cert)?,
            pem: domain.tls.cert,
        });
    }
    Ok(found)
}

/// What operators are told: of the certificate that ends first.
pub fn view(controller: &Controller) -> Option<AuthorityView> {
    let state = controller.state();
    let renewables = renewables(&state, &controller.config).ok()?;
    let first = renewables.iter().min_by_key(|found| found.validity.until)?;
    let end = first.validity.until;
    let waits_for = match state.renewal(end, api::VERSION, controller.now()) {
        Renewal::At(_) => None,
        Renewal::WaitsFor { host, version } => Some(waiting(&host, &version)),
        Renewal::Due => controller.renewal_failure.get(),
    };
    Some(AuthorityView {
        ends_at: renewables[0].validity.until,
        domains_end_at: renewables[1..].iter().map(|found| found.validity.until).min(),
        renewal_at: end - RENEWED_BEFORE_END,
        waits_for,
    })
}
