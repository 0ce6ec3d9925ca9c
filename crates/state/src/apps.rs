//! Apps: created, changed, deleted in two steps.

use std::{collections::BTreeMap, sync::Arc};

use types::{App, AppId, DeploymentStatus, JobState, Route, StopReason, Strategy, Timestamp};

use crate::{
    State,
    command::{JobChange, Rejection},
    event::{DeletedApp, Subject},
};

impl State {
    pub(crate) fn create_app(
        &mut self,
        at: Timestamp,
        app: App,
        route: Option<Route>,
    ) -> Result<(), Rejection> {
        if self.app_names.contains_key(&app.name) || self.apps.contains_key(&app.id) {
            let message = format!("application {:?} already exists", app.name);
            return Err(Rejection::Exists { message });
        }
        if let Some(route) = &route {
            self.check_route(route)?;
        }
        let app = Arc::new(app);
        self.app_names.insert(app.name.clone(), app.id);
        self.apps.insert(app.id, app.clone());
        self.emit(at, Some(app.id), Subject::App { app: app.clone() });
        if let Some(route) = route {
            self.create_route(at, route, None)?;
        }
        Ok(())
    }

    pub(crate) fn update_app(
        &mut self,
        at: Timestamp,
        id: AppId,
        meta: Option<BTreeMap<String, String>>,
        strategy: Option<Strategy>,
        deploy_timeout: Option<i32>,
    ) -> Result<(), Rejection> {
        let mut app = App::clone(self.require_app(id)?);
        app.meta = meta.unwrap_or(app.meta);
        app.strategy = strategy.unwrap_or(app.strategy);
        app.deploy_timeout = deploy_timeout.unwrap_or(app.deploy_timeout);
        app.updated_at = at;
        let app = Arc::new(app);
        self.apps.insert(id, app.clone());
        self.emit(at, Some(id), Subject::App { app });
        Ok(())
    }

    /// The app is gone for everybody from here on; its jobs are told to stop.
    pub(crate) fn delete_app(&mut self, at: Timestamp, id: AppId) -> Result<(), Rejection> {
        let app = self.require_app(id)?.clone();
        let routes: Vec<_> = self.routes_of(id).cloned().collect();
        for route in &routes {
            self.remove_route(at, route);
        }
        let formations: Vec<_> = self
            .formations_of(id)
            .map(|formation| formation.release)
            .collect();
        for release in formations {
            self.formations.remove(&(id, release));
        }
        let unfinished: Vec<_> = self
            .unfinished_deployment(id)
            .map(|deployment| deployment.id)
            .into_iter()
            .collect();
        for deployment in unfinished {
            self.set_deployment_status(
                at,
                deployment,
                DeploymentStatus::Failed,
                "the app was deleted".into(),
            )?;
        }
        let requests: Vec<_> = self
            .scale_requests
            .values()
            .filter(|request| request.app == id)
            .map(|request| request.id)
            .collect();
        for request in requests {
            self.scale_requests.remove(&request);
        }
        let jobs: Vec<_> = self
            .jobs_of(id)
            .filter(|job| job.state < JobState::Stopping)
            .map(|job| job.id)
            .collect();
        for job in jobs {
            self.change_job(
                at,
                job,
                JobChange::Stop {
                    reason: StopReason::Unwanted,
                },
            )?;
        }
        self.app_names.remove(&app.name);
        self.apps.remove(&id);
        self.deleted_apps.insert(
            id,
            Arc::new(DeletedApp {
                app: App::clone(&app),
                routes,
                at,
                resources: vec![],
                error: String::new(),
            }),
        );
        Ok(())
    }

    /// Removes what only waited for the app's jobs to end. Repeating it does nothing.
    pub(crate) fn finish_app_deletion(&mut self, at: Timestamp, id: AppId) -> Result<(), Rejection> {
        let Some(app) = self.deleted_apps.get(&id).cloned() else {
            return Ok(());
        };
        if self.jobs_of(id).any(|job| job.state != JobState::Down) {
            return Err(Rejection::conflict("the app still has jobs that have not ended"));
        }
        if self.resources_only_of(id).next().is_some() {
            return Err(Rejection::conflict(
                "the app's resources are still with their providers",
            ));
        }
        self.deleted_apps.remove(&id);
        self.remove_services_of(id);
        self.remove_contents_of(id);
        self.destroy_volumes_of(at, id)?;
        let jobs: Vec<_> = self.jobs_of(id).map(|job| job.id).collect();
        for job in jobs {
            self.jobs.remove(&job);
            self.jobs_by_app.remove(&(id, job));
        }
        self.leave_resources(at, id)?;
        let deployments: Vec<_> = self
            .deployments
            .values()
            .filter(|found| found.app == id)
            .map(|found| found.id)
            .collect();
        for deployment in deployments {
            self.deployments.remove(&deployment);
        }
        let releases = self.remove_releases_of(at, id);
        let error = String::new();
        self.emit(at, Some(id), Subject::AppDeletion { app, releases, error });
        Ok(())
    }

    /// Says why a deletion does not get on. It goes on all the same, so the same reason is told once.
    pub(crate) fn fail_app_deletion(
        &mut self,
        at: Timestamp,
        id: AppId,
        error: String,
    ) -> Result<(), Rejection> {
        let Some(found) = self.deleted_apps.get(&id).filter(|found| found.error != error) else {
            return Ok(());
        };
        let mut deleted = DeletedApp::clone(found);
        deleted.error = error.clone();
        let app = Arc::new(deleted);
        self.deleted_apps.insert(id, app.clone());
        let releases = vec![];
        self.emit(at, Some(id), Subject::AppDeletion { app, releases, error });
        Ok(())
    }

    pub(crate) fn require_app(&self, id: AppId) -> Result<&Arc<App>, Rejection> {
        self.apps
            .get(&id)
            .ok_or_else(|| Rejection::not_found(format!("app {id}")))
    }
}
