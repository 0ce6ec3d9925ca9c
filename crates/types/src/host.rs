use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{HostId, Timestamp};

/// What the cluster believes of a host. `Silent` keeps its first time: a second report of the same
/// absence must not restart the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    Up,
    Silent { since: Timestamp },
}

/// A machine that runs jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Host {
    pub id: HostId,
    /// Where its host API answers, `IP:PORT`.
    pub addr: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether its jobs are moved elsewhere and none are started on it, as an operator asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_draining: bool,
    pub state: HostState,
    pub memory_bytes: i64,
    pub cpu_milli: i64,
    /// The address that jobs reach this host's name server and router by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The addresses of its jobs, such as `100.100.4.0/22`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Where other hosts reach it with what their jobs send; a host that is alone has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// Of its tunnel, base64. With one it takes encrypted traffic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Its number among the members of the cluster's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// `IP:PORT` of its port for other hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_addr: Option<String>,
    /// By which the outside reaches its router, where that is another address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<IpAddr>,
    pub version: String,
    pub created_at: Timestamp,
    /// When the host's daemon last started: jobs that it does not know after that are lost.
    pub started_at: Timestamp,
    /// Since when it has been heard of without a pause.
    #[serde(default, skip_serializing_if = "is_epoch")]
    pub up_since: Timestamp,
    /// How many times in a row it went silent after less than [`Host::UP_LONG_MIN`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub relapses: u32,
}

impl Host {
    /// A host that was up for so long before it went silent is not one that comes and goes.
    pub const UP_LONG_MIN: Duration = Duration::from_secs(600);

    /// Fills in since when this row of a host that is up has been true, given what was known before.
    pub fn follow_up(&mut self, known: Option<&Host>, now: Timestamp) {
        (self.up_since, self.relapses) = match known {
            None => (now, 0),
            Some(known) => match known.state {
                HostState::Up => (known.up_since, known.relapses),
                HostState::Silent { since } if since.since(known.up_since) < Host::UP_LONG_MIN => {
                    (now, known.relapses.saturating_add(1))
                }
                HostState::Silent { .. } => (now, 0),
            },
        };
    }
}

fn is_epoch(at: &Timestamp) -> bool {
    *at == Timestamp::EPOCH
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(state: HostState, up_since: Timestamp, relapses: u32) -> Host {
        let row = serde_json::json!({
            "id": "a", "addr": "", "state": state, "memory_bytes": 0, "cpu_milli": 0, "version": "",
            "created_at": Timestamp::EPOCH, "started_at": Timestamp::EPOCH,
        });
        Host {
            up_since,
            relapses,
            ..serde_json::from_value(row).unwrap()
        }
    }

    #[test]
    fn a_host_that_comes_and_goes_is_known_by_it() {
        let at = |seconds: u64| Timestamp::EPOCH + Duration::from_secs(seconds);
        let after = |state: HostState, relapses: u32| {
            let mut row = host(HostState::Up, Timestamp::EPOCH, 0);
            row.follow_up(Some(&host(state, at(1000), relapses)), at(2000));
            (row.up_since, row.relapses)
        };
        let silent = |seconds: u64| HostState::Silent { since: at(seconds) };
        assert_eq!(after(HostState::Up, 2), (at(1000), 2), "nothing happened to it");
        assert_eq!(
            after(silent(1030), 2),
            (at(2000), 3),
            "it was up for half a minute"
        );
        assert_eq!(after(silent(1600), 2), (at(2000), 0), "it was up for ten");
        let mut new = host(HostState::Up, Timestamp::EPOCH, 0);
        new.follow_up(None, at(2000));
        assert_eq!((new.up_since, new.relapses), (at(2000), 0));
    }
}
