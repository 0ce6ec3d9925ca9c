//! The second half of deletions: when an app's last job has ended, everything else that is kept for
//! it goes, and then its rows.

use daemon::Shutdown;
use state::Change;
use types::JobState;

use crate::Controller;

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let mut changes = controller.changes();
    loop {
        changes.borrow_and_update();
        let state = controller.state();
        let mut has_failed = false;
        for id in state.deleted_apps.keys().copied() {
            if state.jobs_of(id).any(|job| job.state != JobState::Down) {
                continue;
            }
            let mut forgotten = controller.config.logs.forget(id).await;
            for keeper in &controller.config.forget {
                forgotten = forgotten.and(keeper.forget(id).await);
            }
            // Only what is gone from disk may be forgotten, or nobody would remove it later.
            let finished = match forgotten {
                Ok(()) => controller
                    .write(Change::FinishAppDeletion { app: id })
                    .await
                    .map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = finished {
                has_failed = true;
                tracing::warn!(app = %id, %error, "cannot finish the deletion of an app; trying again");
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(std::time::Duration::from_secs(2)), if has_failed => {}
            _ = shutdown.cancelled() => return,
        }
    }
}
