//! The cluster's bucket: an object store outside that speaks S3, in which layers, images and repositories outlive all
//! hosts that had them.
//!
//! ```text
//!  controller (layers) ─┐
//!  registry (images)   ─┼─▶ Bucket ─▶ remote (signs, sends) ─▶ https://…
//!  builder (git)       ─┘     │
//!                             └ known: what is there · trouble: not again before
//! ```
//!
//! What a reader would get wrong:
//! * Which bucket it is, is a row of the cluster's state. It may change at any time, and what is known goes with it.
//! * After a failure nothing is tried for a while, by anybody: who brings things goes on with the next round, and
//!   a job that needs a layer hears at once that it cannot be had.
//! * What was seen to be there is believed for an hour. Somebody may have deleted it since.
//!
//! It does not decide what is kept or removed; who keeps it on disk does.

mod error;
mod remote;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use api::objects::{BucketStatus, BucketView, Object, ObjectBytes, ObjectError, Objects, Source};
use futures::future::BoxFuture;
use types::{Settings, Timestamp};

use remote::Remote;

/// How long what was seen is believed to be there.
const BELIEVED_FOR: Duration = Duration::from_secs(3600);
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Says whose bucket it is: two clusters in one would remove each other's objects.
const OWNER_KEY: &str = "flynn-cluster";
/// Made and removed by a check.
const CHECK_KEY: &str = "flynn-check";

/// The cluster's settings, as they are at the moment.
pub type Read = Box<dyn Fn() -> Arc<Settings> + Send + Sync>;

pub struct Bucket {
    settings: Read,
    /// What tells this cluster from others.
    cluster: String,
    clock: fn() -> Timestamp,
    part_bytes: u64,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    bucket: Option<types::Bucket>,
    remote: Option<Result<Arc<Remote>, ObjectError>>,
    known: HashMap<String, Instant>,
    trouble: Option<Trouble>,
    waiting: BTreeMap<&'static str, usize>,
}

struct Trouble {
    error: ObjectError,
    since: Timestamp,
    pause: Duration,
    again_at: Instant,
}

impl Bucket {
    pub fn new(settings: Read, cluster: String, clock: fn() -> Timestamp) -> Bucket {
        Bucket {
            settings,
            cluster,
            clock,
            part_bytes: remote::PART_BYTES,
            now: Mutex::default(),
        }
    }

    /// Sends files in parts of this size; no object store takes less than 5 MiB but for the last.
    pub fn with_part_bytes(self, part_bytes: u64) -> Bucket {
        Bucket { part_bytes, ..self }
    }

    /// What is known, of the bucket that the cluster has now.
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        let settings = (self.settings)();
        let mut now = self.now.lock().expect("nothing panics while it holds this");
        if now.bucket != settings.bucket {
            *now = Now {
                remote: settings
                    .bucket
                    .as_ref()
                    .map(|bucket| Remote::new(bucket, self.part_bytes).map(Arc::new)),
                bucket: settings.bucket.clone(),
                ..Now::default()
            };
        }
        now
    }

    /// Where to ask, unless it is too soon after a failure.
    fn remote(&self) -> Result<Arc<Remote>, ObjectError> {
        let now = self.now();
        if let Some(trouble) = now
            .trouble
            .as_ref()
            .filter(|trouble| trouble.again_at > Instant::now())
        {
            return Err(trouble.error.clone());
        }
        match &now.remote {
            Some(remote) => remote.clone(),
            None => Err(error::none()),
        }
    }

    fn noted<T>(&self, result: Result<T, ObjectError>) -> Result<T, ObjectError> {
        let mut now = self.now();
        match &result {
            Ok(_) => {
                if now.trouble.take().is_some() {
                    tracing::info!("the cluster's bucket works again");
                }
            }
            Err(error) => {
                let before = now.trouble.take();
                if before.as_ref().is_none_or(|before| before.error != *error) {
                    let ObjectError { message, hint } = error;
                    tracing::warn!(
                        error = message,
                        hint,
                        "the cluster's bucket does not work; trying again"
                    );
                }
                let pause = before
                    .as_ref()
                    .map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
                now.trouble = Some(Trouble {
                    error: error.clone(),
                    since: before.map_or_else(self.clock, |before| before.since),
                    pause,
                    again_at: Instant::now() + pause,
                });
            }
        }
        result
    }

    fn knows(&self, key: &str) -> bool {
        let now = self.now();
        now.known
            .get(key)
            .is_some_and(|seen| seen.elapsed() < BELIEVED_FOR)
    }

    fn saw(&self, key: &str) {
        self.now().known.insert(key.to_owned(), Instant::now());
    }

    async fn is_there(&self, key: &str) -> Result<bool, ObjectError> {
        if self.knows(key) {
            return Ok(true);
        }
        let remote = self.remote()?;
        let is_there = self.noted(remote.has(key).await)?;
        if is_there {
            self.saw(key);
        }
        Ok(is_there)
    }

    async fn bring(&self, key: &str, source: Source<'_>) -> Result<(), ObjectError> {
        if self.is_there(key).await? {
            return Ok(());
        }
        let remote = self.remote()?;
        self.noted(remote.put(key, source).await)?;
        self.saw(key);
        Ok(())
    }

    async fn check_with(&self, remote: &Remote) -> Result<(), ObjectError> {
        remote.check_bucket().await?;
        match remote.get_small(OWNER_KEY).await? {
            Some(owner) if owner == self.cluster.as_bytes() => {}
            Some(_) => return Err(error::of_another_cluster()),
            None => {
                let own = self.cluster.clone().into_bytes().into();
                remote.put(OWNER_KEY, Source::Bytes(own)).await?;
            }
        }
        remote.put(CHECK_KEY, Source::Bytes("x".into())).await?;
        let listed = remote.list(CHECK_KEY).await?;
        if !listed.iter().any(|object| object.key == CHECK_KEY) {
            return Err(error::bad_answer("what was just written is not in its list"));
        }
        remote.delete(CHECK_KEY).await
    }
}

impl Objects for Bucket {
    fn is_on(&self) -> bool {
        self.now().bucket.is_some()
    }

    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, ObjectError>> {
        Box::pin(self.is_there(key))
    }

    fn keep<'a>(&'a self, key: &'a str, source: Source<'a>) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.bring(key, source))
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<ObjectBytes>, ObjectError>> {
        Box::pin(async move {
            let remote = self.remote()?;
            self.noted(remote.get(key).await)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Object>, ObjectError>> {
        Box::pin(async move {
            let remote = self.remote()?;
            self.noted(remote.list(prefix).await)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let remote = self.remote()?;
            self.now().known.remove(key);
            self.noted(remote.delete(key).await)
        })
    }

    fn note(&self, kind: &'static str, waiting: usize) {
        self.now().waiting.insert(kind, waiting);
    }

    fn status(&self) -> Option<BucketStatus> {
        let now = self.now();
        let trouble = now.trouble.as_ref();
        let waiting = now.waiting.iter();
        Some(BucketStatus {
            bucket: BucketView::from(now.bucket.as_ref()?),
            error: trouble.map(|trouble| trouble.error.message.clone()),
            hint: trouble
                .map(|trouble| trouble.error.hint.clone())
                .unwrap_or_default(),
            error_since: trouble.map(|trouble| trouble.since),
            waiting: waiting
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
        })
    }

    fn probe(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Whoever asks wants to know it now.
            let remote = self.now().remote.clone();
            if let Some(Ok(remote)) = remote {
                let _ = self.noted(remote.get_small(OWNER_KEY).await);
            }
        })
    }

    fn check<'a>(&'a self, bucket: &'a types::Bucket) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move { self.check_with(&Remote::new(bucket, self.part_bytes)?).await })
    }
}
