//! Certificates that are made anew: of the cluster's authority, and of its domains.
//!
//! What a reader would get wrong: the file with the authority's certificate is never written again. What is made
//! here is kept in the cluster's state; the first certificate stays what tokens and addresses are derived from.

use std::time::SystemTime;

use anyhow::{Result, ensure};
use rcgen::{KeyIdMethod, SerialNumber};
use types::{Timestamp, TlsCert};
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, pem::Pem};

use crate::secrets::{Authority, ca_params, leaf_params};

/// From when until when a certificate (PEM, the first one) is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Validity {
    pub fn of(certificate: &str) -> Result<Validity> {
        let pem = first(certificate)?;
        Ok(validity(&parse(&pem)?))
    }
}

impl Authority {
    /// The certificate that follows `current`: for the same name and the same key, five years from `now` on.
    ///
    /// It is valid from when the one before was, so that neither what was signed long ago nor a clock that is ahead
    /// when it is made leaves a time at which it is not valid.
    pub fn renewed(&self, current: &str, now: Timestamp) -> Result<String> {
        let pem = first(current)?;
        let before = parse(&pem)?;
        let mut params = ca_params(at(now));
        params.not_before = at(validity(&before).from).into();
        // As what was signed before names it.
        if let Some(id) = key_id(&before) {
            params.key_identifier_method = KeyIdMethod::PreSpecified(id);
        }
        // By default it follows from the key. Clients refuse two of one authority that have the same.
        params.serial_number = Some(serial());
        let made = params.self_signed(&self.key()?)?.pem();
        let pem = first(&made)?;
        let after = parse(&pem)?;
        let is_same = after.subject().as_raw() == before.subject().as_raw()
            && after.public_key().raw == before.public_key().raw;
        ensure!(
            is_same,
            "ca.key in {} does not belong to the authority's certificate, or the certificate has another name",
            self.directory().display()
        );
        Ok(made)
    }

    /// The certificate that follows `current` for a domain and everything one level below it, with a key of its own.
    pub fn reissued(&self, domain: &str, current: &str, now: Timestamp) -> Result<TlsCert> {
        let mut params = leaf_params(domain, at(now))?;
        params.not_before = at(Validity::of(current)?.from).into();
        self.signed(params)
    }
}

/// Whether the authority with this certificate signed the other one.
pub fn is_signed_by(certificate: &str, authority: &str) -> Result<bool> {
    let (pem, by) = (first(certificate)?, first(authority)?);
    let (certificate, by) = (parse(&pem)?, parse(&by)?);
    Ok(certificate.verify_signature(Some(by.public_key())).is_ok())
}

fn first(certificate: &str) -> Result<Pem> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
        .map_err(|error| anyhow::anyhow!("a certificate cannot be read: {error}"))?;
    Ok(pem)
}

fn parse(pem: &Pem) -> Result<X509Certificate<'_>> {
    pem.parse_x509()
        .map_err(|error| anyhow::anyhow!("a certificate cannot be read: {error}"))
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let time = |seconds: i64| Timestamp::from_micros(seconds.saturating_mul(1_000_000));
    let validity = certificate.validity();
    Validity {
        from: time(validity.not_before.timestamp()),
        until: time(validity.not_after.timestamp()),
    }
}

fn key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
}

fn at(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + time.since(Timestamp::EPOCH)
}

fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers");
    // A positive number that is as long as it looks.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Secrets;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn founded(ago: Duration) -> (tempfile::TempDir, Authority, Secrets) {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open_at(dir.path(), "flynn.test", SystemTime::now() - ago).unwrap();
        let authority = Authority::new(dir.path());
        (dir, authority, secrets)
    }

    fn issuer_and_serial(certificate: &str) -> (Vec<u8>, Vec<u8>) {
        let pem = first(certificate).unwrap();
        let parsed = parse(&pem).unwrap();
        (parsed.issuer().as_raw().to_vec(), parsed.raw_serial().to_vec())
    }

    #[test]
    fn a_renewed_authority_begins_when_it_was_founded_and_ends_five_years_from_now() {
        let (dir, authority, old) = founded(YEAR * 4);
        let now = crate::now();
        let first_one = Validity::of(&old.tls.ca_cert).unwrap();
        let renewed = authority.renewed(&old.tls.ca_cert, now).unwrap();
        let next = Validity::of(&renewed).unwrap();
        assert_eq!(next.from, first_one.from);
        assert!(next.until.since(now) > YEAR * 5 - Duration::from_secs(60));
        let (issuer, serial) = issuer_and_serial(&renewed);
        assert_eq!(issuer, issuer_and_serial(&old.tls.ca_cert).0);
        let id = |certificate: &str| key_id(&parse(&first(certificate).unwrap()).unwrap());
        assert_eq!(id(&renewed), id(&old.tls.ca_cert));
        assert!(id(&renewed).is_some());
        assert_ne!(serial, issuer_and_serial(&old.tls.ca_cert).1);
        let again = authority.renewed(&renewed, now + YEAR * 4).unwrap();
        assert_ne!(issuer_and_serial(&again).1, serial);
        // What hosts have on disk is what it was.
        assert_eq!(
            std::fs::read_to_string(dir.path().join("ca.pem")).unwrap(),
            old.tls.ca_cert
        );
    }

    #[test]
    fn an_authority_does_not_speak_for_another() {
        let (_dir, authority, own) = founded(YEAR);
        let (_other_dir, _, other) = founded(YEAR);
        assert!(is_signed_by(&own.tls.cert, &own.tls.ca_cert).unwrap());
        assert!(!is_signed_by(&other.tls.cert, &own.tls.ca_cert).unwrap());
        let refused = authority.renewed(&other.tls.ca_cert, crate::now()).unwrap_err();
        assert!(refused.to_string().contains("does not belong"), "{refused}");
        let next = authority
            .reissued("flynn.test", &own.tls.cert, crate::now())
            .unwrap();
        assert!(is_signed_by(&next.cert, &own.tls.ca_cert).unwrap());
        assert_ne!(next.key, own.tls.key);
    }
}
