//! Deployments: begun one at a time per app, and their ends.

use std::sync::Arc;

use types::{AppId, Deployment, DeploymentId, DeploymentStatus, Processes, Timestamp};

use crate::{FINISHED_MAX, State, command::Rejection, event::Subject};

impl State {
    pub(crate) fn create_deployment(
        &mut self,
        at: Timestamp,
        mut deployment: Deployment,
    ) -> Result<(), Rejection> {
        let app = self.require_app(deployment.app)?.clone();
        self.require_release(app.id, deployment.new_release)?;
        if self.unfinished_deployment(app.id).is_some() {
            let message = "Cannot create deploy, there is already one in progress for this app.";
            return Err(Rejection::invalid("", message));
        }
        deployment.old_release = app.release;
        let running = app
            .release
            .and_then(|old| self.formations.get(&(app.id, old)))
            .cloned();
        if let Some(formation) = &running {
            deployment.processes = formation.processes.clone();
            deployment.tags = formation.tags.clone();
        }
        let has_running = deployment.processes.values().any(|count| *count > 0);
        let is_change = app.release != Some(deployment.new_release);
        if has_running && is_change {
            deployment.status = DeploymentStatus::Pending;
            let new = self.releases.get(&deployment.new_release);
            if new.is_none_or(|release| release.artifacts.is_empty()) {
                return Err(Rejection::invalid("", "release is not deployable"));
            }
        } else {
            deployment.status = DeploymentStatus::Complete;
            deployment.finished_at = Some(at);
        }
        let id = deployment.id;
        let status = deployment.status;
        let new_release = deployment.new_release;
        let deployment = Arc::new(deployment);
        self.deployments.insert(id, deployment.clone());
        self.emit(
            at,
            Some(app.id),
            Subject::Deployment {
                deployment,
                status,
                error: String::new(),
            },
        );
        self.forget_old_deployments(app.id);
        if status == DeploymentStatus::Complete {
            self.set_app_release(at, app.id, new_release)?;
            self.collect_releases_after_deployment(at, app.id);
        }
        Ok(())
    }

    pub(crate) fn set_deployment_status(
        &mut self,
        at: Timestamp,
        id: DeploymentId,
        status: DeploymentStatus,
        error: String,
    ) -> Result<(), Rejection> {
        let found = self
            .deployments
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("deployment {id}")))?;
        if found.status.is_finished() || found.status == status {
            return Ok(());
        }
        let mut deployment = Deployment::clone(found);
        deployment.status = status;
        deployment.error = error.clone();
        deployment.finished_at = status.is_finished().then_some(at);
        let deployment = Arc::new(deployment);
        self.deployments.insert(id, deployment.clone());
        let app = deployment.app;
        self.emit(
            at,
            Some(app),
            Subject::Deployment {
                deployment,
                status,
                error,
            },
        );
        if status == DeploymentStatus::Complete {
            self.collect_releases_after_deployment(at, app);
        }
        Ok(())
    }

    pub(crate) fn retarget_deployment(
        &mut self,
        id: DeploymentId,
        processes: Processes,
    ) -> Result<(), Rejection> {
        let found = self
            .deployments
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("deployment {id}")))?;
        if !found.status.is_finished() {
            let mut deployment = Deployment::clone(found);
            deployment.processes = processes;
            self.deployments.insert(id, Arc::new(deployment));
        }
        Ok(())
    }

    fn forget_old_deployments(&mut self, app: AppId) {
        let mut finished: Vec<_> = self
            .deployments
            .values()
            .filter(|deployment| deployment.app == app && deployment.status.is_finished())
            .map(|deployment| (deployment.created_at, deployment.id))
            .collect();
        finished.sort();
        let surplus = finished.len().saturating_sub(FINISHED_MAX);
        for (_, id) in &finished[..surplus] {
            self.deployments.remove(id);
        }
    }
}
