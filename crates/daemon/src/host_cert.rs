//! Certificates by which the hosts of a cluster know each other.
//!
//! Each is signed by the cluster's authority for one member, named by its number. A host makes its
//! own, at every start and well before the end of the one it has, and keeps none: any member may come
//! to lead the cluster, so every member has the authority's key.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::secrets::Authority;

/// How long a host's certificate is good.
pub const HOST_CERT_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// After this a host makes itself another.
pub const HOST_CERT_RENEWAL: Duration = Duration::from_secs(10 * 24 * 3600);
/// For clocks that are behind: of hosts, of clients.
pub(crate) const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// The name that any member's certificate has.
pub const ANY_MEMBER: &str = "member.flynn.internal";

/// The name that only this member's certificate has.
pub fn member_name(node: u64) -> String {
    format!("node-{node}.{ANY_MEMBER}")
}

/// PEM texts.
#[derive(Clone)]
pub struct HostCert {
    /// With the authority's own behind it, for joiners, who know no more of it than its pin: the first one, which is
    /// what all hosts have and tokens hold. Its end is looked at by nobody: an anchor is a name and a key.
    pub chain: String,
    pub key: String,
    pub ca_cert: String,
}

impl Authority {
    /// A certificate for member `node`, from `now` on.
    pub fn host_cert(&self, node: u64, host: &str, now: SystemTime) -> Result<HostCert> {
        let ca_cert = self.read("ca.pem")?;
        let issuer = self.issuer()?;
        let mut params = CertificateParams::new(vec![ANY_MEMBER.to_owned(), member_name(node)])?;
        params.distinguished_name.push(DnType::OrganizationName, "Flynn");
        params.distinguished_name.push(DnType::CommonName, host);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + HOST_CERT_VALIDITY).into();
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &issuer)?.pem();
        Ok(HostCert {
            chain: format!("{cert}{ca_cert}"),
            key: key.serialize_pem(),
            ca_cert,
        })
    }
}
