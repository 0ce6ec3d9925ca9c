//! The cluster's keys, its certificate authority and its certificate, made once and kept.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use types::TlsCert;

use crate::{
    auth::{Keys, Principal},
    files,
};

/// How long the authority's certificate is good, and those of domains: the original's five years.
const VALIDITY: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

#[derive(Clone)]
pub struct Secrets {
    /// What users give: `flynn cluster add … KEY`.
    pub controller_key: String,
    /// What the platform's parts give each other.
    pub internal_key: String,
    pub tls: TlsFiles,
}

/// PEM texts.
#[derive(Clone)]
pub struct TlsFiles {
    pub ca_cert: String,
    /// For the cluster's domain and everything one level below it.
    pub cert: String,
    pub key: String,
}

impl Secrets {
    /// Reads what is in `directory` and makes what lacks. The certificate is made anew when it is
    /// for another domain than `domain`; its authority stays.
    pub fn open(directory: &Path, domain: &str) -> Result<Secrets> {
        Secrets::open_at(directory, domain, SystemTime::now())
    }

    /// With certificates as they are made at `now`.
    pub fn open_at(directory: &Path, domain: &str, now: SystemTime) -> Result<Secrets> {
        files::create_private_dir(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        // Daemon and router start at the same moment: without the lock each would make its own.
        let lock =
            std::fs::File::create(directory.join("lock")).context("cannot make the lock of the secrets")?;
        lock.lock().context("cannot lock the secrets")?;
        Ok(Secrets {
            controller_key: key_file(&directory.join("controller.key"))?,
            internal_key: key_file(&directory.join("internal.key"))?,
            tls: tls_files(directory, domain, now)?,
        })
    }

    pub fn keys(&self) -> Keys {
        Keys::new([
            (self.controller_key.as_str(), Principal::User),
            (self.internal_key.as_str(), Principal::Internal),
        ])
    }
}

/// 128 random bits in hex, the form of the original's keys.
pub fn random_key() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers");
    hex::encode(bytes)
}

fn key_file(path: &Path) -> Result<String> {
    if let Some(key) = files::read_if_exists(path)? {
        let key = key.trim();
        if key.len() >= 16 {
            return Ok(key.to_owned());
        }
    }
    let key = random_key();
    files::write_atomic(path, format!("{key}\n").as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn tls_files(directory: &Path, domain: &str, now: SystemTime) -> Result<TlsFiles> {
    let read = |name: &str| files::read_if_exists(&directory.join(name));
    let write = |name: &str, text: &str, mode| {
        files::write_atomic(&directory.join(name), text.as_bytes(), mode)
            .with_context(|| format!("cannot write {name} in {}", directory.display()))
    };
    let (ca_cert, ca_key) = match (read("ca.pem")?, read("ca.key")?) {
        (Some(cert), Some(key)) => (cert, KeyPair::from_pem(&key).context("ca.key is damaged")?),
        _ => {
            let key = KeyPair::generate()?;
            let cert = ca_params(now).self_signed(&key)?.pem();
            write("ca.key", &key.serialize_pem(), 0o600)?;
            write("ca.pem", &cert, 0o644)?;
            (cert, key)
        }
    };
    if let (Some(cert), Some(key), Some(made_for)) = (
        read("cluster.pem")?,
        read("cluster.key")?,
        read("cluster.domain")?,
    ) && made_for.trim() == domain
    {
        return Ok(TlsFiles { ca_cert, cert, key });
    }
    let issuer = Issuer::from_ca_cert_pem(&ca_cert, ca_key).context("ca.pem is damaged")?;
    let (cert, key) = sign(leaf_params(domain, now)?, &issuer)?;
    let made = TlsFiles { ca_cert, cert, key };
    write("cluster.key", &made.key, 0o600)?;
    write("cluster.pem", &made.cert, 0o644)?;
    write("cluster.domain", domain, 0o600)?;
    Ok(made)
}

/// A certificate with a new key.
fn sign(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, issuer)?.pem();
    Ok((cert, key.serialize_pem()))
}

/// The cluster's certificate authority, and the domain that its certificate is for.
#[derive(Debug, Clone)]
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    /// That of the secrets in `directory`.
    pub fn new(directory: &Path) -> Authority {
        Authority {
            directory: directory.to_owned(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a certificate for a domain and everything one level below it, and keeps none of it.
    pub fn issue(&self, domain: &str) -> Result<TlsCert> {
        self.signed(leaf_params(domain, SystemTime::now())?)
    }

    pub(crate) fn signed(&self, params: CertificateParams) -> Result<TlsCert> {
        let (cert, key) = sign(params, &self.issuer()?)?;
        Ok(TlsCert {
            ca_cert: self.read("ca.pem")?,
            cert,
            pin: String::new(),
            key,
        })
    }

    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        Issuer::from_ca_cert_pem(&self.read("ca.pem")?, self.key()?).context("ca.pem is damaged")
    }

    pub(crate) fn key(&self) -> Result<KeyPair> {
        KeyPair::from_pem(&self.read("ca.key")?).context("ca.key is damaged")
    }

    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let text = files::read_if_exists(&self.directory.join(name))?;
        text.with_context(|| format!("there is no {name} in {}", self.directory.display()))
    }

    /// Makes `domain` the one that this host starts with, whichever of the `former` ones it is
    /// configured with. Repeating it changes nothing.
    pub fn adopt(&self, domain: &str, former: &[String], tls: &TlsCert) -> Result<()> {
        let names = [&[domain.to_owned()], former].concat().join("\n");
        let known = files::read_if_exists(&self.directory.join("domains"))?;
        let cert = files::read_if_exists(&self.directory.join("cluster.pem"))?;
        if known.as_deref() == Some(&names) && cert.as_deref() == Some(&tls.cert) {
            return Ok(());
        }
        let write = |name: &str, text: &str, mode| {
            files::write_atomic(&self.directory.join(name), text.as_bytes(), mode)
                .with_context(|| format!("cannot write {name} in {}", self.directory.display()))
        };
        files::create_private_dir(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        let lock = std::fs::File::create(self.directory.join("lock"))
            .context("cannot make the lock of the secrets")?;
        lock.lock().context("cannot lock the secrets")?;
        // Who is stopped between the two makes a pair of its own when it starts, until it does this again.
        files::remove_all(&self.directory.join("cluster.domain"))?;
        write("cluster.key", &tls.key, 0o600)?;
        write("cluster.pem", &tls.cert, 0o644)?;
        write("cluster.domain", domain, 0o600)?;
        // Last: who is stopped before it starts with the old domain and does all of this again.
        write("domains", &names, 0o600)
    }

    /// The domain to start with: what a configured one has become by migrations.
    pub fn domain(&self, configured: &str) -> Result<String> {
        let names = files::read_if_exists(&self.directory.join("domains"))?.unwrap_or_default();
        let mut names = names.lines();
        let current = names.next();
        let is_former = names.any(|former| former == configured);
        Ok(current.filter(|_| is_former).unwrap_or(configured).to_owned())
    }
}

/// The original's names and its five years; keys are P-256 instead of RSA, which signs faster. A name that is changed
/// here is another authority's: clusters that were founded before could not renew theirs.
pub(crate) fn ca_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Flynn");
    params
        .distinguished_name
        .push(DnType::CommonName, "Flynn cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now);
    params
}

pub(crate) fn leaf_params(domain: &str, now: SystemTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![domain.to_owned(), format!("*.{domain}")])
        .with_context(|| format!("no certificate can be made for the domain {domain:?}"))?;
    params.distinguished_name.push(DnType::OrganizationName, "Flynn");
    params.distinguished_name.push(DnType::CommonName, domain);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, now: SystemTime) {
    // A day back, for clients and hosts whose clocks are behind.
    params.not_before = (now - crate::host_cert::BACKDATED).into();
    params.not_after = (now + VALIDITY).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_that_start_at_once_get_the_same_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Secrets::open(dir.path(), "flynn.localhost").unwrap();
        let (one, other) = std::thread::scope(|scope| {
            let handles = [scope.spawn(open), scope.spawn(open)];
            let mut opened = handles.map(|handle| handle.join().unwrap()).into_iter();
            (opened.next().unwrap(), opened.next().unwrap())
        });
        assert_eq!(one.internal_key, other.internal_key);
        assert_eq!(one.tls.cert, other.tls.cert);
    }

    #[test]
    fn a_migrated_domain_is_what_its_former_names_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path());
        let old = Secrets::open(dir.path(), "old.test").unwrap();
        assert_eq!(authority.domain("old.test").unwrap(), "old.test");
        let issued = authority.issue("new.test").unwrap();
        assert_eq!(issued.ca_cert, old.tls.ca_cert);
        for _ in 0..2 {
            authority
                .adopt("new.test", &["older.test".into(), "old.test".into()], &issued)
                .unwrap();
        }
        for configured in ["older.test", "old.test", "new.test"] {
            assert_eq!(authority.domain(configured).unwrap(), "new.test");
        }
        assert_eq!(authority.domain("other.test").unwrap(), "other.test");
        assert_eq!(
            Secrets::open(dir.path(), "new.test").unwrap().tls.cert,
            issued.cert
        );
    }

    #[test]
    fn secrets_are_made_once_and_the_certificate_follows_the_domain() {
        let dir = tempfile::tempdir().unwrap();
        let first = Secrets::open(dir.path(), "one.localhost").unwrap();
        let again = Secrets::open(dir.path(), "one.localhost").unwrap();
        assert_eq!(first.controller_key, again.controller_key);
        assert_eq!(first.tls.cert, again.tls.cert);
        let other = Secrets::open(dir.path(), "two.localhost").unwrap();
        assert_eq!(other.tls.ca_cert, first.tls.ca_cert);
        assert_ne!(other.tls.cert, first.tls.cert);
        assert_ne!(first.controller_key, first.internal_key);
    }
}
