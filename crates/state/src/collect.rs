//! What goes when nobody needs it any more: releases, artifacts, and with them layers.
//!
//! The law, held by `apply/collecting.rs`: what a release, a formation, a job that has not ended, or
//! an unfinished deployment refers to is there. So a release that is deleted while its jobs still
//! end is gone for users and takes no new use, but its row goes with the last of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use types::{
    AppId, Artifact, ArtifactId, JobState, META_GC_RELEASES_MAX, Release, ReleaseId, ScaleRequestState,
    Timestamp,
};

use crate::{State, command::Rejection, event::Subject};

/// An artifact that was asked for by its uri this recently stays, though nothing refers to it: a push
/// that found it there is about to.
pub const ARTIFACT_GRACE: Duration = Duration::from_secs(3600);

/// A release that goes when its last job has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeletedRelease {
    pub release: ReleaseId,
    pub app: AppId,
    pub at: Timestamp,
}

impl State {
    pub(crate) fn delete_release(
        &mut self,
        at: Timestamp,
        app: AppId,
        id: ReleaseId,
    ) -> Result<(), Rejection> {
        if self.deleted_releases.contains_key(&id) {
            return Ok(());
        }
        let release = self.require_release(app, id)?.clone();
        if self.apps.get(&app).is_some_and(|app| app.release == Some(id)) {
            return Err(Rejection::invalid("", "cannot delete current app release"));
        }
        if self.is_deploying(app, id) {
            return Err(Rejection::conflict("a deployment of this release is in progress"));
        }
        self.formations.remove(&(app, id));
        let pending: Vec<_> = self
            .scale_requests
            .values()
            .filter(|request| request.release == id && request.state == ScaleRequestState::Pending)
            .map(|request| request.id)
            .collect();
        for request in pending {
            self.end_scale_request(at, request, ScaleRequestState::Cancelled)?;
        }
        self.deleted_releases
            .insert(id, Arc::new(DeletedRelease { release: id, app, at }));
        let unused = self.unused_of(at, &release.artifacts, &self.artifacts_of_releases());
        let subject = Subject::ReleaseDeletion {
            app,
            release,
            deleted_files: self.files_only_of(&unused),
        };
        self.emit(at, Some(app), subject);
        self.finish_release_deletion(at, id);
        Ok(())
    }

    /// Releases that users see: all but those that only wait for their jobs to end.
    pub fn release(&self, id: ReleaseId) -> Option<&Arc<Release>> {
        self.releases
            .get(&id)
            .filter(|_| !self.deleted_releases.contains_key(&id))
    }

    /// Removes a deleted release unless a job still runs it.
    pub(crate) fn finish_release_deletion(&mut self, at: Timestamp, id: ReleaseId) {
        if !self.deleted_releases.contains_key(&id) || self.has_active_jobs(id) {
            return;
        }
        self.deleted_releases.remove(&id);
        if let Some(release) = self.releases.remove(&id) {
            self.remove_unused_artifacts(at, &release.artifacts);
        }
    }

    /// All releases of an app that is gone. What a job of another app runs goes when that has ended.
    pub(crate) fn remove_releases_of(&mut self, at: Timestamp, app: AppId) -> Vec<Arc<Release>> {
        let releases: Vec<_> = self.releases_of(app).cloned().collect();
        let in_use = self.releases_of_active_jobs();
        let (kept, gone): (Vec<_>, Vec<_>) =
            releases.iter().partition(|release| in_use.contains(&release.id));
        for release in kept {
            let row = DeletedRelease {
                release: release.id,
                app,
                at,
            };
            self.deleted_releases.insert(release.id, Arc::new(row));
        }
        for release in &gone {
            self.releases.remove(&release.id);
            self.deleted_releases.remove(&release.id);
        }
        let artifacts: Vec<_> = gone
            .iter()
            .flat_map(|release| release.artifacts.clone())
            .collect();
        self.remove_unused_artifacts(at, &artifacts);
        releases
    }

    /// Of the app's inactive releases made by pushes, keeps those with the newest distinct images, as
    /// many as the app's metadata say. Gives what it deleted.
    pub(crate) fn collect_releases(&mut self, at: Timestamp, id: AppId) -> Result<Vec<ReleaseId>, Rejection> {
        let app = self.require_app(id)?;
        let Some(kept_max) = app
            .meta
            .get(META_GC_RELEASES_MAX)
            .and_then(|kept| kept.parse::<usize>().ok())
        else {
            return Ok(vec![]);
        };
        let in_use = self.releases_of_active_jobs();
        let is_active = |release: &Release| {
            let formation = self.formations.get(&(id, release.id));
            app.release == Some(release.id)
                || formation.is_some_and(|found| found.processes.values().any(|count| *count > 0))
                || self.is_deploying(id, release.id)
                || in_use.contains(&release.id)
                || self.deleted_releases.contains_key(&release.id)
        };
        let mut inactive: Vec<_> = self
            .releases_of(id)
            .filter(|release| is_of_push(release))
            .filter(|release| !is_active(release))
            .cloned()
            .collect();
        inactive.sort_by_key(|release| std::cmp::Reverse((release.created_at, release.id)));
        let mut kept_images = BTreeSet::new();
        let mut surplus = vec![];
        for release in &inactive {
            let image = self.own_image(release);
            let is_kept = image.is_some_and(|image| kept_images.contains(&image));
            if kept_images.len() < kept_max {
                kept_images.extend(image);
            } else if !is_kept {
                surplus.push(release.id);
            }
        }
        for release in &surplus {
            self.delete_release(at, id, *release)?;
        }
        Ok(surplus)
    }

    pub(crate) fn collect_releases_of_app(&mut self, at: Timestamp, app: AppId) -> Result<(), Rejection> {
        let deleted_releases = self.collect_releases(at, app)?;
        self.emit(
            at,
            Some(app),
            Subject::AppGarbageCollection {
                app,
                deleted_releases,
            },
        );
        Ok(())
    }

    /// After each deployment; says something only where there was something to do.
    pub(crate) fn collect_releases_after_deployment(&mut self, at: Timestamp, app: AppId) {
        let deleted_releases = self.collect_releases(at, app).unwrap_or_default();
        if !deleted_releases.is_empty() {
            let subject = Subject::AppGarbageCollection {
                app,
                deleted_releases,
            };
            self.emit(at, Some(app), subject);
        }
    }

    /// The platform's own artifacts that nothing refers to, and that were last asked for before `before`:
    /// left by pushes that came to nothing, and by images that were replaced.
    pub fn unused_artifacts(&self, before: Timestamp) -> Vec<ArtifactId> {
        let used = self.artifacts_in_use();
        self.artifacts
            .values()
            .filter(|artifact| is_our_own(artifact) && !used.contains(&artifact.id))
            .filter(|artifact| self.last_named(artifact) < before)
            .map(|artifact| artifact.id)
            .collect()
    }

    pub(crate) fn collect_artifacts(&mut self, before: Timestamp) {
        for id in self.unused_artifacts(before) {
            self.remove_artifact(id);
        }
    }

    /// Removes those of `candidates` that nothing needs any more.
    fn remove_unused_artifacts(&mut self, at: Timestamp, candidates: &[ArtifactId]) {
        if !candidates.is_empty() {
            for artifact in self.unused_of(at, candidates, &self.artifacts_in_use()) {
                self.remove_artifact(artifact.id);
            }
        }
    }

    /// Those of `candidates` that go when they are not in `used`.
    fn unused_of(
        &self,
        at: Timestamp,
        candidates: &[ArtifactId],
        used: &BTreeSet<ArtifactId>,
    ) -> Vec<Arc<Artifact>> {
        let grace_began = at - ARTIFACT_GRACE;
        let candidates: BTreeSet<_> = candidates.iter().copied().collect();
        let unused = candidates.difference(used);
        let unused = unused.filter(|id| self.named_artifacts.get(*id).is_none_or(|at| *at <= grace_began));
        // Images that the platform itself made for apps; others may be named again by their uri.
        unused
            .filter_map(|id| self.artifacts.get(id))
            .filter(|artifact| artifact.meta.contains_key("blobstore"))
            .cloned()
            .collect()
    }

    /// What has no use without these artifacts: their uris, and layers that no other one has.
    fn files_only_of(&self, artifacts: &[Arc<Artifact>]) -> Vec<String> {
        let mut layers: BTreeMap<_, _> = artifacts
            .iter()
            .flat_map(|artifact| layer_files(artifact))
            .collect();
        if !layers.is_empty() {
            let is_other = |other: &&Arc<Artifact>| artifacts.iter().all(|going| going.id != other.id);
            for other in self.artifacts.values().filter(is_other) {
                for layer in other.manifest.iter().flat_map(|manifest| manifest.layers()) {
                    layers.remove(layer.id.as_str());
                }
            }
        }
        let uris = artifacts.iter().map(|artifact| artifact.uri.clone());
        uris.chain(layers.into_values()).collect()
    }

    fn remove_artifact(&mut self, id: ArtifactId) {
        if let Some(artifact) = self.artifacts.remove(&id) {
            self.artifact_uris.remove(&artifact.uri);
            self.named_artifacts.remove(&id);
        }
    }

    /// By releases, and by jobs that have not ended.
    fn artifacts_in_use(&self) -> BTreeSet<ArtifactId> {
        let of_releases = self.releases.values().flat_map(|release| &release.artifacts);
        let of_jobs = self
            .jobs
            .values()
            .filter(|job| job.state != JobState::Down)
            .filter_map(|job| job.one_off.as_ref())
            .flat_map(|one_off| &one_off.artifacts);
        of_releases.chain(of_jobs).copied().collect()
    }

    /// By releases that stay.
    fn artifacts_of_releases(&self) -> BTreeSet<ArtifactId> {
        let rows = self.releases.values();
        let staying = rows.filter(|release| !self.deleted_releases.contains_key(&release.id));
        staying
            .flat_map(|release| release.artifacts.iter().copied())
            .collect()
    }

    fn releases_of_active_jobs(&self) -> BTreeSet<ReleaseId> {
        let active = self.jobs.values().filter(|job| job.state != JobState::Down);
        active.filter_map(|job| job.release).collect()
    }

    fn has_active_jobs(&self, release: ReleaseId) -> bool {
        self.jobs
            .values()
            .any(|job| job.state != JobState::Down && job.release == Some(release))
    }

    fn is_deploying(&self, app: AppId, release: ReleaseId) -> bool {
        self.unfinished_deployment(app)
            .is_some_and(|found| found.new_release == release || found.old_release == Some(release))
    }

    fn last_named(&self, artifact: &Artifact) -> Timestamp {
        let named = self.named_artifacts.get(&artifact.id).copied();
        named.map_or(artifact.created_at, |named| named.max(artifact.created_at))
    }

    /// The image that a push made: the topmost one that is kept for this app.
    fn own_image(&self, release: &Release) -> Option<ArtifactId> {
        let is_own = |id: &&ArtifactId| {
            self.artifacts
                .get(*id)
                .is_some_and(|artifact| artifact.meta.contains_key("blobstore"))
        };
        release.artifacts.iter().rev().find(is_own).copied()
    }
}

/// Made by `git push`, or of an image that was pushed.
fn is_of_push(release: &Release) -> bool {
    ["git", "docker-receive"]
        .iter()
        .any(|name| release.meta.get(*name).is_some_and(|value| value == "true"))
}

fn is_our_own(artifact: &Artifact) -> bool {
    artifact.meta.contains_key("blobstore") || artifact.uri.starts_with("flynn://")
}

/// Layers by id, with where each is found.
fn layer_files(artifact: &Artifact) -> impl Iterator<Item = (String, String)> {
    let template = &artifact.layer_url_template;
    let layers = artifact.manifest.iter().flat_map(|manifest| manifest.layers());
    layers.map(move |layer| {
        let file = match template.as_str() {
            "" => format!("flynn://layer/{}", layer.id),
            template => template.replace("{id}", &layer.id),
        };
        (layer.id.clone(), file)
    })
}
