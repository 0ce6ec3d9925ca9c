//! One command: which part of the state answers for it.

use types::Timestamp;

use crate::{
    State,
    command::{Applied, Change, Command, Outcome},
};

impl State {
    /// Carries out a command, or refuses it and changes nothing.
    pub fn apply(&mut self, index: u64, command: Command) -> Outcome {
        self.revision = index;
        self.change(command.at, command.change)
    }

    fn change(&mut self, at: Timestamp, change: Change) -> Outcome {
        match change {
            Change::CreateApp { app, route } => self.create_app(at, app, route),
            Change::UpdateApp {
                app,
                meta,
                strategy,
                deploy_timeout,
            } => self.update_app(at, app, meta, strategy, deploy_timeout),
            Change::DeleteApp { app } => self.delete_app(at, app),
            Change::FinishAppDeletion { app } => self.finish_app_deletion(at, app),
            Change::CreateArtifact { artifact } => return self.create_artifact(at, artifact),
            Change::CreateRelease { release } => self.create_release(at, release),
            Change::SetAppRelease { app, release } => self.set_app_release(at, app, release),
            Change::DeleteRelease { app, release } => self.delete_release(at, app, release),
            Change::Scale {
                request,
                app,
                release,
                processes,
                tags,
            } => self.scale(at, request, app, release, processes, tags),
            Change::SetFormation {
                app,
                release,
                processes,
                tags,
            } => self.set_formation(at, app, release, processes, tags),
            Change::DeleteFormation { app, release } => {
                self.formations.remove(&(app, release));
                Ok(())
            }
            Change::CompleteScaleRequest { request } => self.complete_scale_request(at, request),
            Change::CreateDeployment { deployment } => self.create_deployment(at, deployment),
            Change::SetDeploymentStatus {
                deployment,
                status,
                error,
            } => self.set_deployment_status(at, deployment, status, error),
            Change::RetargetDeployment {
                deployment,
                processes,
            } => self.retarget_deployment(deployment, processes),
            Change::CreateJob { job } => self.create_job(at, job),
            Change::Job { job, change } => self.change_job(at, job, change),
            Change::CreateRoute { route, certificate } => self.create_route(at, route, certificate),
            Change::UpdateRoute { route, certificate } => self.update_route(at, route, certificate),
            Change::DeleteRoute { app, route } => self.delete_route(at, app, route),
            Change::CreateSink { sink } => self.create_sink(at, sink),
            Change::DeleteSink { sink } => self.delete_sink(at, sink),
            Change::PutHost { host } => self.put_host(host),
            Change::SetHostState { host, state } => self.set_host_state(&host, state),
            Change::RemoveHost { host } => {
                self.hosts.remove(&host);
                Ok(())
            }
            Change::All { changes } => {
                for change in changes {
                    // What is refused was overtaken by another change; the next plan knows.
                    let _ = self.change(at, change);
                }
                Ok(())
            }
        }
        .map(|()| Applied::default())
    }
}

#[cfg(test)]
mod tests;
