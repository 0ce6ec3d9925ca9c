//! `cluster.toml` in the state directory: what a host is as a member of its cluster.
//!
//! Written once, when the host joins or founds. Where it is missing the host has founded a cluster by
//! itself: it is member 1, and its configuration says the rest. The peers are for the first contact
//! only; later ones are in the cluster's state.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use daemon::{StateDir, files};
use serde::{Deserialize, Serialize};
use types::HostId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub node: u64,
    pub host: HostId,
    /// `HOST:PORT` by which others reach this host, as it was when it joined. The configuration's
    /// `address` comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub subnet: String,
    pub domain: String,
    /// As the cluster had them when the host joined; the configuration's `floating` comes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floating: Vec<String>,
    /// By number.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
}

impl Membership {
    pub fn read(state: &StateDir) -> Result<Option<Membership>> {
        let path = state.cluster();
        let text = files::read_if_exists(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.map(|text| toml::from_str(&text).with_context(|| format!("{} is damaged", path.display())))
            .transpose()
    }

    pub fn write(&self, state: &StateDir) -> Result<()> {
        let path = state.cluster();
        files::write_atomic(&path, toml::to_string(self)?.as_bytes(), 0o600)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn known(&self) -> impl Iterator<Item = (u64, String)> + '_ {
        self.peers
            .iter()
            .filter_map(|(node, addr)| Some((node.parse().ok()?, addr.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert_eq!(Membership::read(&state).unwrap(), None);
        let membership = Membership {
            node: 3,
            host: "host3".parse().unwrap(),
            address: None,
            subnet: "100.100.8.0/22".into(),
            domain: "flynn.test".into(),
            floating: vec!["10.0.0.100/24".into()],
            peers: [("1".to_owned(), "10.0.0.1:1115".to_owned())].into(),
        };
        membership.write(&state).unwrap();
        assert_eq!(Membership::read(&state).unwrap().as_ref(), Some(&membership));
        assert_eq!(
            membership.known().collect::<Vec<_>>(),
            [(1, "10.0.0.1:1115".into())]
        );
    }
}
