//! Whom a client trusts: a certificate named by its pin, a cluster's own CA, or the system's bundle.

use std::{path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};

/// Where Debian, and most others, keep the authorities that the machine trusts.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How a server proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Base64 of the SHA-256 of the server's certificate (DER): exactly this one.
    Pin(String),
    /// The one with this pin, or another for the server's name that this authority (PEM) signed: what follows the
    /// pinned one when that ends.
    PinOrAuthority(String, String),
    /// Certificates signed by these authorities, PEM.
    Authorities(String),
    /// What the machine trusts.
    System,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the TLS pin {0:?} is not the base64 of a SHA-256")]
    BadPin(String),
    #[error("no certificate could be read from {0}")]
    NoCertificates(String),
}

/// The pin of a certificate, as `flynn cluster add -p` takes it.
pub fn pin(certificate: &CertificateDer<'_>) -> String {
    BASE64_STANDARD.encode(Sha256::digest(certificate))
}

/// The pin of the first certificate in a PEM text.
pub fn pin_of_pem(pem: &str) -> Option<String> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .ok()
        .map(|certificate| pin(&certificate))
}

pub fn client_config(trust: &Trust) -> Result<ClientConfig, TrustError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default protocol versions");
    let roots = match trust {
        Trust::Pin(text) => {
            let accepts = Accepts::Certificate(pin_bytes(text)?);
            return Ok(trusting(accepts, rustls::DEFAULT_VERSIONS));
        }
        Trust::PinOrAuthority(text, pem) => {
            let accepts = Accepts::CertificateOrSigned(
                pin_bytes(text)?,
                roots_of(pem.as_bytes(), "the cluster's authority")?,
            );
            return Ok(trusting(accepts, rustls::DEFAULT_VERSIONS));
        }
        Trust::Authorities(pem) => roots_of(pem.as_bytes(), "the given authorities")?,
        Trust::System => {
            let path = std::env::var("SSL_CERT_FILE").unwrap_or_else(|_| SYSTEM_BUNDLE.to_owned());
            let pem =
                std::fs::read(Path::new(&path)).map_err(|_| TrustError::NoCertificates(path.clone()))?;
            roots_of(&pem, &path)?
        }
    };
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn pin_bytes(text: &str) -> Result<Vec<u8>, TrustError> {
    let bytes = BASE64_STANDARD.decode(text).ok();
    bytes
        .filter(|bytes| bytes.len() == 32)
        .ok_or_else(|| TrustError::BadPin(text.to_owned()))
}

/// Any certificate will do, as long as the server has its key: for a receiver that nobody vouches for, where
/// the operator says so.
pub fn unchecked_client_config() -> ClientConfig {
    trusting(Accepts::Any, rustls::DEFAULT_VERSIONS)
}

/// What the authority signed whose certificate (DER) has this SHA-256; the server has to send it along.
/// TLS 1.3 only.
pub fn authority_client_config(pin: [u8; 32]) -> ClientConfig {
    trusting(Accepts::SignedBy(pin), &[&rustls::version::TLS13])
}

fn trusting(accepts: Accepts, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .expect("ring has these protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { accepts, provider }))
        .with_no_client_auth()
}

fn roots_of(pem: &[u8], source: &str) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
    if roots.is_empty() {
        Err(TrustError::NoCertificates(source.to_owned()))
    } else {
        Ok(roots)
    }
}

/// What a [`PinVerifier`] believes.
#[derive(Debug)]
enum Accepts {
    /// Whatever name, authority and dates it has.
    Any,
    /// One with this digest, whatever name, authority and dates it has.
    Certificate(Vec<u8>),
    /// One with this digest, or one for the server's name that one of these authorities signed.
    CertificateOrSigned(Vec<u8>, RootCertStore),
    /// One for the server's name that the authority with this digest signed.
    SignedBy([u8; 32]),
}

/// The handshake's signature is checked whatever is accepted: the server must hold the certificate's key.
#[derive(Debug)]
struct PinVerifier {
    accepts: Accepts,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = match &self.accepts {
            Accepts::Any => return Ok(ServerCertVerified::assertion()),
            Accepts::Certificate(pin) | Accepts::CertificateOrSigned(pin, _)
                if Sha256::digest(end_entity).as_slice() == pin =>
            {
                return Ok(ServerCertVerified::assertion());
            }
            Accepts::Certificate(_) => {
                return Err(rustls::Error::General(
                    "the server's certificate is not the pinned one".into(),
                ));
            }
            Accepts::CertificateOrSigned(_, roots) => roots.clone(),
            Accepts::SignedBy(pin) => {
                let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
                let authority = intermediates
                    .iter()
                    .find(|certificate| Sha256::digest(certificate).as_slice() == pin);
                let mut roots = RootCertStore::empty();
                roots.add(authority.ok_or(unknown)?.clone().into_owned())?;
                roots
            }
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
