//! What hosts keep beside the state and pass among themselves (see [`types::Content`]): repositories
//! of git and of the registry, and layers.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::{AppId, Content, Digest, HostId};

use crate::{ClientError, Controller, client::escape};

/// How many hosts keep each.
pub const COPIES: usize = 2;

/// How long a silent host still counts as keeping what it was chosen for.
pub const LOST_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

/// Who keeps something: those whose name fits it best. One more or one less host moves only what is
/// that host's, and every host finds out for itself.
pub fn keepers<'a>(name: &str, hosts: &'a [HostId]) -> Vec<&'a HostId> {
    let mut hosts: Vec<_> = hosts.iter().collect();
    hosts.sort_by_cached_key(|host| Sha256::digest(format!("{name} {host}")));
    hosts.truncate(COPIES);
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
