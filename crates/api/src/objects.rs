//! Storage outside of the cluster, as components see it: objects by key in a bucket that speaks S3.
//!
//! What hosts keep is also brought there, where the cluster has a bucket, so that it outlives all hosts that had it.
//! What a reader would get wrong: nothing waits for it. Objects are brought in the background, tried again while the
//! bucket cannot be reached, and asked for only when no host has what is needed. Every object is named by the digest
//! of what it is, and who gets one checks that.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use types::{Bucket, Timestamp};

/// Between two looks at what is not needed any more, and how old it has to be: the same as for files of hosts.
pub const COLLECT_INTERVAL: Duration = Duration::from_secs(600);
pub const GRACE: Duration = Duration::from_secs(3600);

/// What an object is made from.
pub enum Source<'a> {
    File(&'a Path),
    Bytes(Bytes),
}

/// An object's bytes, as they come.
pub type ObjectBytes = BoxStream<'static, io::Result<Bytes>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    /// None where the server does not say.
    pub modified: Option<SystemTime>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// The cluster's bucket, if it has one.
pub trait Objects: Send + Sync + 'static {
    fn is_on(&self) -> bool;
    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, ObjectError>>;
    /// Brings an object there, unless it is there already.
    fn keep<'a>(&'a self, key: &'a str, source: Source<'a>) -> BoxFuture<'a, Result<(), ObjectError>>;
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<ObjectBytes>, ObjectError>>;
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Object>, ObjectError>>;
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>>;
    /// How much of a kind this host has still to bring.
    fn note(&self, kind: &'static str, waiting: usize);
    /// As it was last seen from this host.
    fn status(&self) -> Option<BucketStatus>;
    /// Looks whether it works from this host, for [`Objects::status`].
    fn probe(&self) -> BoxFuture<'_, ()>;
    /// Whether a bucket could be this cluster's: it may be written, listed, read and deleted from, and is no other's.
    fn check<'a>(&'a self, bucket: &'a Bucket) -> BoxFuture<'a, Result<(), ObjectError>>;
}

/// A bucket as it is shown: its secret is told to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BucketView {
    /// `s3://NAME/PREFIX`.
    pub url: String,
    pub endpoint: String,
    pub region: String,
    pub access_key_id: String,
    pub path_style: bool,
}

impl From<&Bucket> for BucketView {
    fn from(bucket: &Bucket) -> BucketView {
        BucketView {
            url: bucket.url(),
            endpoint: bucket.endpoint.clone(),
            region: bucket.region.clone(),
            access_key_id: bucket.access_key_id.clone(),
            path_style: bucket.path_style,
        }
    }
}

/// `GET /internal/here/bucket`: how a host gets on with the cluster's bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BucketStatus {
    pub bucket: BucketView,
    /// Why it did not work when it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_since: Option<Timestamp>,
    /// What this host has still to bring, by kind: layers, images, repositories.
    pub waiting: BTreeMap<String, usize>,
}

/// What of a list goes: what is not needed, is older than the grace, and was neither needed at the look before. Who
/// brings things asks first whether they are there, and so has time to say what needs them.
pub struct Collection {
    doomed: BTreeSet<String>,
}

impl Collection {
    pub fn new() -> Collection {
        Collection {
            doomed: BTreeSet::new(),
        }
    }

    /// Removes what may go below `prefix`; how many objects that were.
    pub async fn round(
        &mut self,
        objects: &dyn Objects,
        prefixes: &[&str],
        is_needed: impl Fn(&str) -> bool,
        grace: Duration,
    ) -> Result<usize, ObjectError> {
        let mut listed = vec![];
        for prefix in prefixes {
            listed.extend(objects.list(prefix).await?);
        }
        let going = self.unneeded(listed, is_needed, SystemTime::now(), grace);
        for key in &going {
            objects.delete(key).await?;
        }
        Ok(going.len())
    }

    fn unneeded(
        &mut self,
        listed: Vec<Object>,
        is_needed: impl Fn(&str) -> bool,
        now: SystemTime,
        grace: Duration,
    ) -> Vec<String> {
        // A clock that was set back makes an object of the future: it stays.
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= grace);
        let unneeded = listed
            .into_iter()
            .filter(|object| object.modified.is_some_and(is_old) && !is_needed(&object.key));
        let now_doomed: BTreeSet<String> = unneeded.map(|object| object.key).collect();
        let before = std::mem::take(&mut self.doomed);
        let (going, doomed) = now_doomed.into_iter().partition(|key| before.contains(key));
        self.doomed = doomed;
        let going: BTreeSet<String> = going;
        going.into_iter().collect()
    }
}

impl Default for Collection {
    fn default() -> Self {
        Collection::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Each look is `KEY@HOURS_OLD …` with what is needed behind `|`; what goes at each.
    fn check(looks: &[&str], expected: &[&str]) {
        let now = SystemTime::UNIX_EPOCH + HOUR * 1000;
        let mut collection = Collection::new();
        let gone = looks.iter().map(|look| {
            let (listed, needed) = look.split_once('|').unwrap();
            let listed = listed.split_whitespace().map(|object| {
                let (key, age) = object.split_once('@').unwrap();
                Object {
                    key: key.into(),
                    modified: age.parse().ok().map(|hours: u32| now - HOUR * hours),
                }
            });
            let needed: Vec<_> = needed.split_whitespace().collect();
            collection
                .unneeded(listed.collect(), |key| needed.contains(&key), now, HOUR)
                .join(" ")
        });
        assert_eq!(gone.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_what_is_old_and_twice_not_needed_goes() {
        check(
            &["a@2 b@2 c@0 d@? | b", "a@2 b@2 c@0 d@? | b", "b@2 c@0 |"],
            &["", "a", ""],
        );
    }

    #[test]
    fn what_was_needed_in_between_stays() {
        check(&["a@2 |", "a@2 | a", "a@2 |", "a@2 |"], &["", "", "", "a"]);
    }
}
