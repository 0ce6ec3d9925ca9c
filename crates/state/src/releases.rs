//! Artifacts, releases and formations.

use std::{collections::BTreeSet, sync::Arc};

use types::{
    App, AppId, Artifact, Formation, Processes, Release, ReleaseId, ScaleRequest, ScaleRequestId,
    ScaleRequestState, Tags, Timestamp,
};

use crate::{
    FINISHED_MAX, State,
    command::{Applied, Outcome, Rejection},
    event::Subject,
};

impl State {
    pub(crate) fn create_artifact(&mut self, at: Timestamp, artifact: Artifact) -> Outcome {
        if let Some(known) = self.artifact_uris.get(&artifact.uri).copied() {
            // Who asks is about to use it, so it must not be taken for unused.
            self.named_artifacts.insert(known, at);
            return Ok(Applied {
                artifact: Some(known),
            });
        }
        let artifact = Arc::new(artifact);
        self.artifact_uris.insert(artifact.uri.clone(), artifact.id);
        self.artifacts.insert(artifact.id, artifact.clone());
        let id = artifact.id;
        self.emit(at, None, Subject::Artifact { artifact });
        Ok(Applied { artifact: Some(id) })
    }

    pub(crate) fn create_release(&mut self, at: Timestamp, release: Release) -> Result<(), Rejection> {
        self.require_app(release.app_id)?;
        if let Some(missing) = release
            .artifacts
            .iter()
            .find(|id| !self.artifacts.contains_key(*id))
        {
            return Err(Rejection::invalid(
                "artifacts",
                format!("could not find artifact with ID {missing}"),
            ));
        }
        let release = Arc::new(release);
        self.releases.insert(release.id, release.clone());
        self.emit(at, Some(release.app_id), Subject::Release { release });
        Ok(())
    }

    pub(crate) fn set_app_release(
        &mut self,
        at: Timestamp,
        id: AppId,
        release: ReleaseId,
    ) -> Result<(), Rejection> {
        let mut app = App::clone(self.require_app(id)?);
        let release = self.require_release(id, release)?.clone();
        let previous = app
            .release
            .and_then(|previous| self.releases.get(&previous))
            .cloned();
        if app.release == Some(release.id) {
            return Ok(());
        }
        app.release = Some(release.id);
        app.updated_at = at;
        self.apps.insert(id, Arc::new(app));
        self.emit(at, Some(id), Subject::AppRelease { previous, release });
        Ok(())
    }

    pub(crate) fn scale(
        &mut self,
        at: Timestamp,
        id: ScaleRequestId,
        app: AppId,
        release: ReleaseId,
        processes: Option<Processes>,
        tags: Option<Tags>,
    ) -> Result<(), Rejection> {
        self.require_app(app)?;
        if self.scale_requests.contains_key(&id) {
            return Ok(());
        }
        let found = self.require_release(app, release)?;
        if found.artifacts.is_empty() {
            return Err(Rejection::invalid("", "release is not deployable"));
        }
        let named = processes
            .iter()
            .flat_map(|map| map.keys())
            .chain(tags.iter().flat_map(|map| map.keys()));
        let unknown: BTreeSet<_> = named
            .filter(|name| !found.processes.contains_key(*name))
            .map(|name| name.as_str())
            .collect();
        if !unknown.is_empty() {
            let list = unknown.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Rejection::invalid(
                "",
                format!("requested scale includes process types that do not exist in the release: {list}"),
            ));
        }
        let old = self.formations.get(&(app, release)).cloned();
        let (old_processes, old_tags) = old
            .map(|old| (old.processes.clone(), old.tags.clone()))
            .unwrap_or_default();
        // Types that the request does not name keep their count.
        let mut wanted = old_processes.clone();
        wanted.extend(processes.clone().unwrap_or_default());
        let new_tags = match &tags {
            Some(changed) => {
                let mut all = old_tags.clone();
                all.extend(changed.clone());
                all
            }
            None => old_tags.clone(),
        };
        let superseded: Vec<_> = self
            .scale_requests
            .values()
            .filter(|pending| {
                pending.app == app
                    && pending.release == release
                    && pending.state == ScaleRequestState::Pending
            })
            .map(|pending| pending.id)
            .collect();
        for pending in superseded {
            self.end_scale_request(at, pending, ScaleRequestState::Cancelled)?;
        }
        self.set_formation(at, app, release, wanted.clone(), new_tags.clone())?;
        let request = Arc::new(ScaleRequest {
            id,
            app,
            release,
            state: ScaleRequestState::Pending,
            old_processes,
            new_processes: processes.map(|_| wanted),
            old_tags,
            new_tags: tags.map(|_| new_tags),
            created_at: at,
            updated_at: at,
        });
        self.scale_requests.insert(id, request.clone());
        self.emit(at, Some(app), Subject::ScaleRequest { request });
        self.forget_old_scale_requests(app);
        Ok(())
    }

    pub(crate) fn set_formation(
        &mut self,
        at: Timestamp,
        app: AppId,
        release: ReleaseId,
        processes: Processes,
        tags: Tags,
    ) -> Result<(), Rejection> {
        self.require_app(app)?;
        self.require_release(app, release)?;
        let known = self.formations.get(&(app, release));
        // The scheduler takes a newer time for a fresh start after crashes.
        if known.is_some_and(|known| known.processes == processes && known.tags == tags) {
            return Ok(());
        }
        let created_at = known.map_or(at, |known| known.created_at);
        let formation = Formation {
            app,
            release,
            processes,
            tags,
            created_at,
            updated_at: at,
        };
        self.formations.insert((app, release), Arc::new(formation));
        Ok(())
    }

    /// Completes or cancels a request; one that has ended stays as it is.
    pub(crate) fn end_scale_request(
        &mut self,
        at: Timestamp,
        id: ScaleRequestId,
        state: ScaleRequestState,
    ) -> Result<(), Rejection> {
        let Some(pending) = self.scale_requests.get(&id) else {
            return Ok(());
        };
        if pending.state != ScaleRequestState::Pending {
            return Ok(());
        }
        let mut ended = ScaleRequest::clone(pending);
        ended.state = state;
        ended.updated_at = at;
        let request = Arc::new(ended);
        self.scale_requests.insert(id, request.clone());
        let app = request.app;
        let subject = match state {
            ScaleRequestState::Cancelled => Subject::ScaleRequestCancelation { request },
            _ => Subject::ScaleRequest { request },
        };
        self.emit(at, Some(app), subject);
        Ok(())
    }

    pub(crate) fn require_release(&self, app: AppId, id: ReleaseId) -> Result<&Arc<Release>, Rejection> {
        self.releases
            .get(&id)
            .filter(|release| release.app_id == app && !self.deleted_releases.contains_key(&id))
            .ok_or_else(|| Rejection::invalid("", format!("could not find release with ID {id}")))
    }

    fn forget_old_scale_requests(&mut self, app: AppId) {
        let mut finished: Vec<_> = self
            .scale_requests
            .values()
            .filter(|request| request.app == app && request.state != ScaleRequestState::Pending)
            .map(|request| (request.created_at, request.id))
            .collect();
        finished.sort();
        let surplus = finished.len().saturating_sub(FINISHED_MAX);
        for (_, id) in &finished[..surplus] {
            self.scale_requests.remove(id);
        }
    }
}
