use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AppId, ReleaseId, Timestamp};

/// The original's default: a job has two minutes to come up before its deployment fails.
pub const DEFAULT_DEPLOY_TIMEOUT_S: i32 = 120;

/// App metadata: how many inactive releases made by git are kept, a number or `false`.
pub const META_GC_RELEASES_MAX: &str = "gc.max_inactive_slug_releases";

/// App metadata: ids of the apps whose jobs this one's may connect to, with commas between them.
pub const META_LINKS: &str = "flynn-links";

/// How a new release takes over from the old one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Start everything new, wait until it is up, then stop everything old.
    #[default]
    AllAtOnce,
    /// Per type: one new up, one old down, until all are replaced.
    OneByOne,
    /// Per type: one old down, one new up, until all are replaced.
    OneDownOneUp,
    /// Like one-by-one with several at a time.
    InBatches,
    /// Replicated databases: asyncs, then the sync, then the primary.
    Sirenia,
    /// Kept for the contract's sake: the original's own discovery service used it.
    DiscoverdMeta,
}

/// Something a user deploys: a name, its releases, and how they are deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct App {
    pub id: AppId,
    pub name: String,
    pub meta: BTreeMap<String, String>,
    pub strategy: Strategy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Seconds that each job of a deployment has to come up.
    pub deploy_timeout: i32,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl App {
    /// Jobs that one step of an in-batches deployment replaces, if the app says.
    pub fn deploy_batch_size(&self) -> Option<u32> {
        self.meta
            .get("flynn-deploy-batch-size")
            .and_then(|size| size.parse().ok())
            .filter(|size| *size > 0)
    }

    /// Apps whose jobs this one's may connect to. What is no id is nobody's.
    pub fn links(&self) -> impl Iterator<Item = AppId> {
        let ids = self.meta.get(META_LINKS).map(String::as_str).unwrap_or_default();
        ids.split(',').filter_map(|id| id.trim().parse().ok())
    }
}
