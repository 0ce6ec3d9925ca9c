//! What hosts keep beside the state and pass among themselves (see [`types::Content`]): repositories
//! of git and of the registry, and layers.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::{AppId, Content, Digest, HostId, Settings};

use crate::{ClientError, Controller, client::escape};

/// How long a silent host still counts as keeping what it was chosen for.
pub const LOST_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

/// `GET` and `PUT /internal/cluster/copies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Copies {
    /// How many hosts keep each layer, repository and image.
    pub copies: u32,
}

/// Who keeps something: those whose name fits it best, as many as asked, the best first. One more or one less host
/// moves only what is that host's, one more or one less copy nobody else's, and every host finds out for itself.
pub fn keepers<'a>(name: &str, hosts: &'a [HostId], copies: u32) -> Vec<&'a HostId> {
    let mut hosts: Vec<_> = hosts.iter().collect();
    hosts.sort_by_cached_key(|host| Sha256::digest(format!("{name} {host}")));
    hosts.truncate(copies as usize);
    hosts
}

/// `PUT /internal/contents`: another version, by who had the one before.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewContent {
    pub name: String,
    pub app: AppId,
    /// The serial of the version before; 0 where there was none.
    pub after: u64,
    #[schemars(with = "String")]
    pub digest: Digest,
}

impl Controller {
    pub async fn contents(&self) -> Result<Vec<Content>, ClientError> {
        self.client().get("/internal/contents").await
    }

    /// How many hosts keep each.
    pub async fn copies(&self) -> Result<u32, ClientError> {
        match self.client().get::<Copies>("/internal/cluster/copies").await {
            Ok(copies) => Ok(copies.copies),
            // The host that leads is of a version that had no choice.
            Err(error) if error.is_not_found() => Ok(Settings::COPIES_DEFAULT),
            Err(error) => Err(error),
        }
    }

    /// `KIND/KEY`, if a version of it was ever recorded.
    pub async fn content(&self, name: &str) -> Result<Option<Content>, ClientError> {
        let path = format!("/internal/contents?name={}", escape(name));
        let found: Vec<Content> = self.client().get(&path).await?;
        Ok(found.into_iter().next())
    }

    /// Refused as [`crate::Code::PreconditionFailed`] where the version before is not the one meant.
    pub async fn put_content(&self, content: &NewContent) -> Result<Content, ClientError> {
        self.client().put("/internal/contents", content).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn hosts(count: usize) -> Vec<HostId> {
        (1..=count).map(|n| format!("host{n}").parse().unwrap()).collect()
    }

    fn names() -> Vec<String> {
        (0..200).map(|n| format!("{n:064x}")).collect()
    }

    #[test]
    fn the_end_of_a_host_moves_only_what_it_kept() {
        let hosts = hosts(5);
        let mut kept = BTreeMap::<&HostId, usize>::new();
        for name in names() {
            let before = keepers(&name, &hosts, 2);
            assert_eq!(before.len(), 2);
            before.iter().for_each(|host| *kept.entry(host).or_default() += 1);
            let after = keepers(&name, &hosts[1..], 2);
            for host in before.iter().filter(|host| **host != &hosts[0]) {
                assert!(after.contains(host));
            }
        }
        assert!(kept.values().all(|count| (50..110).contains(count)), "{kept:?}");
    }

    #[test]
    fn another_number_of_copies_adds_or_takes_away_the_last_keepers_only() {
        let hosts = hosts(5);
        for name in names() {
            let most = keepers(&name, &hosts, 4);
            for copies in 1..4 {
                assert_eq!(keepers(&name, &hosts, copies), most[..copies as usize]);
            }
        }
    }

    #[test]
    fn fewer_hosts_than_copies_all_keep_everything() {
        let hosts = hosts(2);
        assert_eq!(keepers("x", &hosts, 3).len(), 2);
        assert_eq!(keepers("x", &hosts[..1], 2), [&hosts[0]]);
    }
}
