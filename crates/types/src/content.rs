use serde::{Deserialize, Serialize};

use crate::{AppId, Digest, Timestamp};

/// What hosts keep beside the state and pass among themselves: which version of it is the valid one.
///
/// The digest is of what the version consists of, so whoever has a copy can tell by itself whether it
/// is this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Content {
    /// `KIND/KEY`: `git/APP` for an app's repository, `images/REPOSITORY` for one of the registry.
    pub name: String,
    /// With which it goes.
    pub app: AppId,
    /// Grows by one with each version.
    pub serial: u64,
    #[schemars(with = "String")]
    pub digest: Digest,
    pub updated_at: Timestamp,
}
