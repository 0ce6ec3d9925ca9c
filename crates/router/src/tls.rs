//! TLS towards clients: which certificate for which name, and the settings.

use crate::config::CertificatePem;
use crate::live::LiveTable;
use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwapOption;
use routing::feed::Certificate;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// The certificates in use, for all threads.
#[derive(Debug)]
pub struct Certificates {
    default: Option<Arc<CertifiedKey>>,
    current: ArcSwapOption<Current>,
}

#[derive(Debug)]
struct Current {
    live: Arc<LiveTable>,
    /// By the table's index. `None`: unusable, and said so in the log.
    keys: Vec<Option<Arc<CertifiedKey>>>,
}

impl Certificates {
    pub fn new(default: Option<&CertificatePem>) -> anyhow::Result<Certificates> {
        let default = match default {
            Some(pem) => Some(Arc::new(
                certified_key(&pem.cert, &pem.key).context("the default certificate")?,
            )),
            None => None,
        };
        Ok(Certificates {
            default,
            current: ArcSwapOption::empty(),
        })
    }

    /// A certificate that cannot be used is left out; the names fall back to the default.
    pub fn take_over(&self, live: Arc<LiveTable>) {
        let before = self.current.load();
        let keys = live.table.certificates().iter().map(|row| {
            let known = before.as_ref().and_then(|before| before.find(row));
            known.or_else(|| match certified_key(&row.cert, &row.key) {
                Ok(key) => Some(Arc::new(key)),
                Err(error) => {
                    tracing::warn!(certificate = %row.id, error = format!("{error:#}"), "certificate not usable");
                    None
                }
            })
        });
        let keys = keys.collect();
        self.current.store(Some(Arc::new(Current { live, keys })));
    }
}

impl Current {
    /// Reading keys takes a while; the same rows keep theirs.
    fn find(&self, row: &Certificate) -> Option<Arc<CertifiedKey>> {
        let rows = self.live.table.certificates();
        let index = rows.binary_search_by(|other| other.id.cmp(&row.id)).ok()?;
        if rows[index].cert == row.cert && rows[index].key == row.key {
            self.keys[index].clone()
        } else {
            None
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let chosen = current.as_ref().and_then(|current| {
            let index = current.live.table.certificate_for(hello.server_name())?;
            current.keys[index].clone()
        });
        chosen.or_else(|| self.default.clone())
    }
}

fn certified_key(cert: &str, key: &str) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| anyhow!("the certificate is no PEM: {error}"))?;
    if chain.is_empty() {
        bail!("there is no certificate in the PEM");
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| anyhow!("the key is no PEM: {error}"))?;
    let key = ring::sign::any_supported_type(&key).context("the key is of no known type")?;
    let certified = CertifiedKey::new(chain, key);
    certified
        .keys_match()
        .context("key and certificate do not belong together")?;
    Ok(certified)
}

/// One configuration for all threads, so that a ticket of one is good for the others.
pub fn server_config(certificates: Arc<Certificates>) -> anyhow::Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("the crypto provider knows TLS 1.2 and 1.3")?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().context("making ticket keys")?;
    // Sessions live in the clients' tickets; keeping them here too would only take memory.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}
