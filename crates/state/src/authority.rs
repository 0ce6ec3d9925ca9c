//! The certificate of the cluster's authority, and those that it made for the cluster's domains: when each is made
//! anew, and what is in force.
//!
//! What a reader would get wrong: the authority's key never changes here, only the dates that its certificate has.
//! Old and new certificates vouch for whatever was signed before and since, so no host has to have heard of a
//! renewal before another goes by it. The first certificate stays on all hosts, as what the cluster is known by:
//! tokens, the addresses of jobs and the bucket go by it, and nobody between hosts looks at its end.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use types::{HostId, HostState, Timestamp, TlsCert};

use crate::{State, command::Rejection};

/// A certificate is made anew so long before its end: everybody who keeps a copy of the authority's has this time to
/// ask for the next one.
pub const RENEWED_BEFORE_END: Duration = Duration::from_secs(365 * 24 * 3600);

/// From then on hosts that are down are not waited for.
pub const URGENT_BEFORE_END: Duration = Duration::from_secs(60 * 24 * 3600);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum AuthorityChange {
    /// Its certificate is this one from now on, in place of the one that the proposer knew.
    Renew { certificate: String, replaces: String },
    /// So is that of one of the cluster's domains, also for routes that had it as their own.
    RenewDomain {
        domain: String,
        tls_cert: TlsCert,
        replaces: String,
    },
}

/// Whether it is time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// Not before then.
    At(Timestamp),
    /// It is, but this host's version might not know the command and stop at it; empty where it is not known.
    WaitsFor {
        host: HostId,
        version: String,
    },
    Due,
}

impl State {
    /// Whether a certificate that ends at `end` is to be made anew by a host of this version.
    pub fn renewal(&self, end: Timestamp, version: &str, now: Timestamp) -> Renewal {
        let begins = end - RENEWED_BEFORE_END;
        if now < begins {
            return Renewal::At(begins);
        }
        let is_urgent = now >= end - URGENT_BEFORE_END;
        for member in self.members.values() {
            let host = self.hosts.get(&member.host);
            let known = host.map_or("", |host| &host.version);
            let is_up = host.is_some_and(|host| host.state == HostState::Up);
            if known != version && (is_up || !is_urgent) {
                return Renewal::WaitsFor {
                    host: member.host.clone(),
                    version: known.to_owned(),
                };
            }
        }
        Renewal::Due
    }

    pub(crate) fn change_authority(
        &mut self,
        at: Timestamp,
        change: AuthorityChange,
    ) -> Result<(), Rejection> {
        let mut authority = types::Authority::clone(&self.authority);
        let check = |known: Option<&str>, replaces: &str| match known {
            Some(known) if known.trim() != replaces.trim() => Err(Rejection::Stale {
                message: "the certificate was made anew already".into(),
            }),
            _ => Ok(()),
        };
        match change {
            AuthorityChange::Renew {
                certificate,
                replaces,
            } => {
                check(authority.certificate.as_deref(), &replaces)?;
                authority.certificate = Some(certificate);
            }
            AuthorityChange::RenewDomain {
                domain,
                tls_cert,
                replaces,
            } => {
                check(
                    authority.domains.get(&domain).map(|known| &*known.cert),
                    &replaces,
                )?;
                self.replace_certificate(at, &replaces, &tls_cert);
                authority.domains.insert(domain, tls_cert);
            }
        }
        self.authority = Arc::new(authority);
        Ok(())
    }

    /// A domain comes with a certificate that is newer than what was made for it before.
    pub(crate) fn forget_renewed(&mut self, domain: &str) {
        if self.authority.domains.contains_key(domain) {
            let mut authority = types::Authority::clone(&self.authority);
            authority.domains.remove(domain);
            self.authority = Arc::new(authority);
        }
    }

    fn replace_certificate(&mut self, at: Timestamp, replaces: &str, by: &TlsCert) {
        let same: Vec<_> = self
            .certificates
            .values()
            .filter(|row| row.cert.trim() == replaces.trim())
            .cloned()
            .collect();
        for row in same {
            let mut row = types::Certificate::clone(&row);
            row.cert = by.cert.trim().to_owned();
            row.key = by.key.trim().to_owned();
            row.updated_at = at;
            self.certificates.insert(row.id, Arc::new(row));
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{Certificate, CertificateId, Host, Uuid};

    use super::*;
    use crate::{Change, Command, MembershipChange};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn apply(state: &mut State, change: Change) -> Result<(), String> {
        let at = Timestamp::from_micros(1);
        let outcome = state.apply(state.revision + 1, Command { at, change });
        outcome.map(drop).map_err(|rejection| rejection.to_string())
    }

    fn authority(state: &mut State, change: AuthorityChange) -> Result<(), String> {
        apply(state, Change::Authority { change })
    }

    fn domain(cert: &str, replaces: &str) -> AuthorityChange {
        AuthorityChange::RenewDomain {
            domain: "flynn.test".into(),
            tls_cert: TlsCert {
                cert: cert.into(),
                key: format!("key of {cert}"),
                ..TlsCert::default()
            },
            replaces: replaces.into(),
        }
    }

    /// `v2 v1x -`: hosts with their versions; silent; not started yet.
    fn cluster(hosts: &str) -> State {
        let mut state = State::default();
        for (index, word) in hosts.split_whitespace().enumerate() {
            let node = index as u64 + 1;
            let id: HostId = format!("host{node}").parse().unwrap();
            let found = MembershipChange::Found {
                node,
                host: id.clone(),
                addr: String::new(),
                subnet: format!("100.100.{}.0/22", index * 4),
            };
            apply(&mut state, Change::Membership { change: found }).unwrap();
            let since = Timestamp::EPOCH;
            let host_state = match word.ends_with('x') {
                true => HostState::Silent { since },
                false => HostState::Up,
            };
            let row = serde_json::json!({
                "id": id, "addr": "", "state": host_state, "memory_bytes": 0, "cpu_milli": 0,
                "version": word.trim_end_matches('x'), "created_at": since, "started_at": since,
            });
            if word != "-" {
                let host: Host = serde_json::from_value(row).unwrap();
                state.hosts.insert(id, Arc::new(host));
            }
        }
        state
    }

    #[track_caller]
    fn check(hosts: &str, days_left: i64, expected: &str) {
        let now = Timestamp::EPOCH + DAY * 10_000;
        let end = Timestamp::from_micros(now.as_micros() + days_left * DAY.as_micros() as i64);
        let found = match cluster(hosts).renewal(end, "v2", now) {
            Renewal::At(at) => format!("in {} days", at.since(now).as_secs() / DAY.as_secs()),
            Renewal::WaitsFor { host, version } => format!("waits for {host} {version}"),
            Renewal::Due => "due".into(),
        };
        assert_eq!(found, expected, "{hosts} {days_left}");
    }

    #[test]
    fn a_certificate_is_made_anew_a_year_before_its_end() {
        check("v2", 1825, "in 1460 days");
        check("v2", 366, "in 1 days");
        check("v2", 365, "due");
        check("v2 v2 v2", 1, "due");
        // After years in which the cluster was switched off.
        check("v2", -700, "due");
        check("", 365, "due");
    }

    #[test]
    fn hosts_that_are_down_are_waited_for_only_where_they_have_another_version() {
        check("v2 v2x v2", 365, "due");
        check("v2 v1 v2", 365, "waits for host2 v1");
        check("v2 v1x v2", 365, "waits for host2 v1");
        check("v2 v2 -", 365, "waits for host3 ");
        // One that is up would stop; one that is down can be updated before it comes back.
        check("v2 v1 v2", 60, "waits for host2 v1");
        check("v2 v1x -", 61, "waits for host2 v1");
        check("v2 v1x -", 60, "due");
    }

    #[test]
    fn of_two_who_made_one_anew_at_once_the_first_counts() {
        let mut state = State::default();
        let renew = |certificate: &str, replaces: &str| AuthorityChange::Renew {
            certificate: certificate.into(),
            replaces: replaces.into(),
        };
        authority(&mut state, renew("second", "first\n")).unwrap();
        let refused = authority(&mut state, renew("another second", "first")).unwrap_err();
        assert_eq!(refused, "the certificate was made anew already");
        authority(&mut state, renew("third", "second\n")).unwrap();
        assert_eq!(state.authority.certificate.as_deref(), Some("third"));

        authority(&mut state, domain("b", "a")).unwrap();
        authority(&mut state, domain("c", "a")).unwrap_err();
        assert_eq!(state.authority.domains["flynn.test"].cert, "b");
    }

    #[test]
    fn routes_that_had_the_clusters_certificate_have_the_new_one() {
        let mut state = State::default();
        for (n, cert) in [(1, "a"), (2, "of somebody else")] {
            let id = CertificateId(Uuid::from_u128(n));
            let row = Certificate {
                id,
                cert: cert.into(),
                key: "key".into(),
                created_at: Timestamp::EPOCH,
                updated_at: Timestamp::EPOCH,
            };
            state.certificates.insert(id, Arc::new(row));
        }
        authority(&mut state, domain("b\n", "a\n")).unwrap();
        let rows: Vec<_> = state
            .certificates
            .values()
            .map(|row| (row.cert.as_str(), row.key.as_str()))
            .collect();
        assert_eq!(rows, [("b", "key of b"), ("of somebody else", "key")]);
    }

    #[test]
    fn what_was_made_anew_outlives_snapshots_and_restores_and_older_ones_have_nothing() {
        let mut state = State::default();
        authority(&mut state, domain("b", "a")).unwrap();
        let mut image = vec![];
        state.write_image(&mut image).unwrap();
        let again = State::read_image(&mut &*image).unwrap();
        assert_eq!(again.authority, state.authority);
        let mut restored = State::default();
        for rows in crate::pieces(&image).unwrap() {
            let host = "host1".parse().unwrap();
            apply(&mut restored, Change::Restore { rows, host }).unwrap();
        }
        assert_eq!(restored.authority, state.authority);
        let before = State::read_image(&mut &b"{}"[..]).unwrap();
        assert_eq!(*before.authority, types::Authority::default());
    }
}
