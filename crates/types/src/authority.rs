use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::TlsCert;

/// What the cluster's authority has made anew since the cluster was founded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authority {
    /// Its newest certificate, PEM: the same name and key as in the first one, which stays in the secrets of all
    /// hosts, with a later end. None while the first one is the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The newest certificates of the cluster's domains, where they are not those that the domains came with.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, TlsCert>,
}
