//! Who this host is to others, and whom it believes: mutual TLS under the cluster's authority.
//!
//! A certificate names a member by its number. That the number is (still) a member's is asked of the
//! cluster's state for every connection, so a host that was removed is nobody, whatever it can show.

use std::{sync::Arc, time::SystemTime};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use daemon::{
    Shutdown,
    host_cert::{ANY_MEMBER, HOST_CERT_RENEWAL, HostCert, member_name},
    secrets::Authority,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
};
use types::HostId;

/// What a connection carries, agreed on in the handshake.
pub(crate) const HTTP: &[u8] = b"http/1.1";
pub(crate) const RAFT: &[u8] = b"flynn-raft";

/// This host's certificate in use; clones share it.
#[derive(Clone)]
pub struct Identity {
    pub node: u64,
    pub host: HostId,
    authority: Authority,
    current: Arc<ArcSwap<Configs>>,
}

struct Configs {
    server: Arc<ServerConfig>,
    http: Arc<ClientConfig>,
    raft: Arc<ClientConfig>,
}

impl Identity {
    pub fn new(authority: Authority, node: u64, host: HostId) -> Result<Identity> {
        let configs = configs(&authority.host_cert(node, host.as_str(), SystemTime::now())?)?;
        Ok(Identity {
            node,
            host,
            authority,
            current: Arc::new(ArcSwap::from_pointee(configs)),
        })
    }

    /// Connections that are open go on with the certificate that they began with.
    pub fn renew(&self) -> Result<()> {
        let cert = self
            .authority
            .host_cert(self.node, self.host.as_str(), SystemTime::now())?;
        self.current.store(Arc::new(configs(&cert)?));
        Ok(())
    }

    /// Renews it long before its end, until `shutdown`.
    pub async fn keep_fresh(&self, shutdown: Shutdown) {
        // By the clock on the wall and not by time slept: a machine may have been suspended.
        let mut made_at = SystemTime::now();
        let mut look = tokio::time::interval(std::time::Duration::from_secs(600));
        loop {
            tokio::select! {
                _ = look.tick() => {}
                _ = shutdown.cancelled() => return,
            }
            // A clock that was set back, too: the certificate would be one of the future.
            let is_fresh = made_at.elapsed().is_ok_and(|age| age < HOST_CERT_RENEWAL);
            if is_fresh {
                continue;
            }
            match self.renew() {
                Ok(()) => {
                    made_at = SystemTime::now();
                    tracing::info!("the host's certificate was renewed");
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the host's certificate cannot be renewed; trying again"
                ),
            }
        }
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    pub(crate) fn http(&self) -> Arc<ClientConfig> {
        self.current.load().http.clone()
    }

    pub(crate) fn raft(&self) -> Arc<ClientConfig> {
        self.current.load().raft.clone()
    }
}

/// The name to expect of a member's certificate.
pub(crate) fn name_of(node: u64) -> ServerName<'static> {
    ServerName::try_from(member_name(node)).expect("numbers make valid names")
}

/// The name to expect of whichever member answers.
pub(crate) fn name_of_any() -> ServerName<'static> {
    ServerName::try_from(ANY_MEMBER).expect("a constant name is valid")
}

/// Which of `nodes` a certificate names, that the handshake found to be one of the authority's.
pub(crate) fn node_of(certificate: &CertificateDer<'_>, nodes: impl IntoIterator<Item = u64>) -> Option<u64> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    nodes
        .into_iter()
        .find(|node| rustls::client::verify_server_name(&parsed, &name_of(*node)).is_ok())
}

fn configs(cert: &HostCert) -> Result<Configs> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots(&cert.ca_cert)?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert.chain.as_bytes())
        .collect::<Result<_, _>>()
        .context("the host's certificate cannot be read")?;
    let key = || PrivateKeyDer::from_pem_slice(cert.key.as_bytes()).context("the host's key cannot be read");
    // Who has no certificate yet may still ask to join.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key()?)?;
    server.alpn_protocols = vec![HTTP.to_vec(), RAFT.to_vec()];
    // Hosts hold their connections open; a resumed one would only hide whose certificate it was.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let client = |protocol: &[u8]| -> Result<Arc<ClientConfig>> {
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key()?)?;
        client.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(client))
    };
    Ok(Configs {
        server: Arc::new(server),
        http: client(HTTP)?,
        raft: client(RAFT)?,
    })
}

pub(crate) fn roots(ca_cert: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca_cert.as_bytes()).flatten());
    anyhow::ensure!(!roots.is_empty(), "the cluster's authority cannot be read");
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use rustls::client::danger::ServerCertVerifier;

    use super::*;

    /// Whether who trusts `authority` believes a member's certificate, so long from now.
    fn is_believed(cert: &HostCert, authority: &str, from_now: std::time::Duration) -> bool {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots(authority).unwrap());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider);
        let certificate = CertificateDer::from_pem_slice(cert.chain.as_bytes()).unwrap();
        let at = (SystemTime::now() + from_now)
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let at = rustls::pki_types::UnixTime::since_unix_epoch(at);
        let verifier = verifier.build().unwrap();
        verifier
            .verify_server_cert(&certificate, &[], &name_of_any(), &[], at)
            .is_ok()
    }

    #[test]
    fn hosts_believe_each_other_when_the_first_certificate_of_their_authority_has_ended() {
        let year = std::time::Duration::from_secs(365 * 24 * 3600);
        let dir = tempfile::tempdir().unwrap();
        let founded = SystemTime::now() - year * 6;
        let first = daemon::Secrets::open_at(dir.path(), "flynn.test", founded).unwrap();
        let authority = Authority::new(dir.path());
        let cert = authority.host_cert(1, "host1", SystemTime::now()).unwrap();
        let renewed = authority.renewed(&first.tls.ca_cert, daemon::now()).unwrap();
        for trusted in [&first.tls.ca_cert, &renewed] {
            assert!(is_believed(&cert, trusted, year / 365));
            assert!(!is_believed(&cert, trusted, year));
        }
    }

    #[test]
    fn a_certificate_names_one_member_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        daemon::Secrets::open(dir.path(), "flynn.test").unwrap();
        let authority = Authority::new(dir.path());
        let cert = authority.host_cert(12, "host_12.x", SystemTime::now()).unwrap();
        let certificate = CertificateDer::from_pem_slice(cert.chain.as_bytes()).unwrap();
        assert_eq!(node_of(&certificate, 1..20), Some(12));
        assert_eq!(node_of(&certificate, [1, 2, 112]), None);
        let identity = Identity::new(authority, 12, "host12".parse().unwrap()).unwrap();
        let before = identity.server();
        identity.renew().unwrap();
        assert!(!Arc::ptr_eq(&before, &identity.server()));
    }
}
