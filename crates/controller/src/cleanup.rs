//! The second half of deletions: when an app's last job has ended, its resources go back to their
//! providers, everything else that is kept for it goes, and then its rows.
//!
//! Each app has a task of its own, as a provider may take long or not answer at all. What fails is
//! told in an `app_deletion` event and tried again, ever more slowly; a restart begins from the rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use daemon::Shutdown;
use state::Change;
use tokio::{task::JoinSet, time::Instant};
use types::{AppId, JobState};

use crate::Controller;

const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How often artifacts that nothing refers to are looked for, and how old they must be: a push takes
/// no day between its image and its release.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
const UNUSED_MIN: Duration = Duration::from_secs(24 * 3600);

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut changes = controller.changes();
    let mut leadership = controller.store.leadership();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let mut tasks: JoinSet<(AppId, Result<(), api::Error>)> = JoinSet::new();
    let mut under_way = BTreeSet::new();
    let mut failed: BTreeMap<AppId, (Duration, Instant)> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        if *leadership.borrow_and_update() {
            let state = controller.state();
            failed.retain(|app, _| state.deleted_apps.contains_key(app));
            let now = Instant::now();
            for app in state.deleted_apps.keys().copied() {
                let has_ended = state.jobs_of(app).all(|job| job.state == JobState::Down);
                let may_begin = failed.get(&app).is_none_or(|(_, again)| *again <= now);
                if has_ended && may_begin && under_way.insert(app) {
                    let controller = controller.clone();
                    tasks.spawn(async move { (app, finish(&controller, app).await) });
                }
            }
        }
        let again = failed
            .iter()
            .filter(|(app, _)| !under_way.contains(*app))
            .map(|(_, (_, at))| *at)
            .min();
        tokio::select! {
            Some(ended) = tasks.join_next() => {
                let Ok((app, result)) = ended else { continue };
                under_way.remove(&app);
                match result {
                    Ok(()) => {
                        failed.remove(&app);
                    }
                    Err(error) => {
                        let pause = failed.get(&app).map_or(RETRY_MIN, |(last, _)| (*last * 2).min(RETRY_MAX));
                        failed.insert(app, (pause, Instant::now() + pause));
                        tell(&controller, app, error).await;
                    }
                }
            }
            changed = changes.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            _ = sweep.tick() => collect_artifacts(&controller).await,
            _ = shutdown.cancelled() => return,
        }
    }
}

async fn finish(controller: &Controller, id: AppId) -> Result<(), api::Error> {
    let state = controller.state();
    for resource in state.resources_only_of(id) {
        let _busy = controller.providers.begin(resource.id)?;
        // As it is now that nobody else changes it: another app may use it since.
        let now = controller.state().resources.get(&resource.id).cloned();
        if let Some(resource) = now.filter(|now| now.apps == [id]) {
            controller.give_back(&resource).await?;
        }
    }
    let mut forgotten = controller.config.logs.forget(id).await;
    for keeper in &controller.config.forget {
        forgotten = forgotten.and(keeper.forget(id).await);
    }
    // Only what is gone from disk may be forgotten, or nobody would remove it later.
    forgotten?;
    controller.write(Change::FinishAppDeletion { app: id }).await?;
    Ok(())
}

async fn tell(controller: &Controller, app: AppId, error: api::Error) {
    tracing::warn!(%app, %error, "cannot finish the deletion of an app; trying again");
    let error = error.message;
    if let Err(error) = controller.write(Change::FailAppDeletion { app, error }).await {
        tracing::warn!(%app, %error, "cannot note that a deletion does not get on");
    }
}

async fn collect_artifacts(controller: &Controller) {
    let before = controller.now() - UNUSED_MIN;
    let is_leader = *controller.store.leadership().borrow();
    if !is_leader || controller.state().unused_artifacts(before).is_empty() {
        return;
    }
    if let Err(error) = controller.write(Change::CollectArtifacts { before }).await {
        tracing::warn!(%error, "cannot remove artifacts that nothing uses");
    }
}
