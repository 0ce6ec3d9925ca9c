//! The change of the cluster's domain: `PUT /domain`.

use api::{
    Error,
    provision::{NewDomainMigration, without_keys},
};
use axum::{Json, extract::State as Extract};
use state::Change;
use types::{DomainMigration, DomainMigrationId, TlsCert, Uuid};

use super::{Shared, body::Body, error::Failure, routes::check_key_pair};
use crate::domain;

/// Begins it; the second event of the migration tells its end.
pub async fn migrate(
    Extract(controller): Shared,
    Body(new): Body<NewDomainMigration>,
) -> Result<Json<DomainMigration>, Failure> {
    let state = controller.state();
    let current = domain::current(&state, &controller.config);
    if new.old_domain != current.name {
        let message = format!(
            "Can't migrate from {:?} when currently using {:?}",
            new.old_domain, current.name
        );
        return Err(Error::invalid(message).into());
    }
    let name = check_domain(&new.domain)?;
    if name == current.name {
        return Err(Error::validation("domain", "is the cluster's domain already").into());
    }
    let tls_cert = match new
        .tls_cert
        .filter(|given| !given.cert.is_empty() || !given.key.is_empty())
    {
        Some(given) => Some(check_cert(given)?),
        None => None,
    };
    let migration = DomainMigration {
        id: DomainMigrationId(Uuid::new_v4()),
        old_tls_cert: Some(current.tls),
        tls_cert,
        old_domain: new.old_domain,
        domain: name,
        created_at: controller.now(),
        finished_at: None,
    };
    let answer = without_keys(&migration);
    controller
        .write(Change::CreateDomainMigration { migration })
        .await?;
    Ok(Json(answer))
}

/// A name with at least one dot: `localhost` alone has no names below it in browsers.
fn check_domain(domain: &str) -> Result<String, Error> {
    let domain = domain.to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // Room for the name of an app and its dot.
    if domain.len() <= 189 && domain.contains('.') && domain.split('.').all(is_label) {
        return Ok(domain);
    }
    let reason = format!("{domain:?} is no domain name");
    Err(Error::validation("domain", reason).with_hint("give a name such as flynn.example.com"))
}

fn check_cert(given: TlsCert) -> Result<TlsCert, Error> {
    check_key_pair(&given.cert, &given.key)
        .map_err(|error| Error::validation("tls_cert", error.message.trim_start_matches("certificate ")))?;
    let pin = api::tls::pin_of_pem(&given.cert).unwrap_or_default();
    Ok(TlsCert { pin, ..given })
}
