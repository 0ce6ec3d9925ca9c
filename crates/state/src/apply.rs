//! One command: which part of the state answers for it.

use types::{ScaleRequestState, Timestamp};

use crate::{
    State,
    command::{Applied, Change, Command, Outcome},
};

impl State {
    /// Carries out a command, or refuses it and changes nothing.
    pub fn apply(&mut self, index: u64, command: Command) -> Outcome {
        self.revision = index;
        let outcome = self.change(command.at, command.change);
        if outcome.is_ok() {
            self.last_at = self.last_at.max(command.at);
        }
        outcome
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
            Change::FailAppDeletion { app, error } => self.fail_app_deletion(at, app, error),
            Change::CollectReleases { app } => self.collect_releases_of_app(at, app),
            Change::CollectArtifacts { before } => {
                self.collect_artifacts(before);
                Ok(())
            }
            Change::CreateProvider { provider } => self.create_provider(at, provider),
            Change::PutResource { resource } => self.put_resource(at, resource),
            Change::AddResourceApp { resource, app } => self.add_resource_app(at, resource, app),
            Change::RemoveResourceApp { resource, app } => self.remove_resource_app(at, resource, app),
            Change::DeleteResource { resource } => {
                self.delete_resource(at, resource);
                Ok(())
            }
            Change::CreateDomainMigration { migration } => self.create_domain_migration(at, migration),
            Change::FinishDomainMigration { migration, tls_cert } => {
                self.finish_domain_migration(at, migration, tls_cert)
            }
            Change::FailDomainMigration { migration, error } => {
                self.fail_domain_migration(at, migration, error)
            }
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
            Change::CompleteScaleRequest { request } => {
                self.end_scale_request(at, request, ScaleRequestState::Complete)
            }
            Change::CancelScaleRequest { request } => {
                self.end_scale_request(at, request, ScaleRequestState::Cancelled)
            }
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
            Change::Service { service, app, change } => self.change_service(service, app, change),
            Change::PutContent {
                name,
                app,
                after,
                digest,
            } => self.put_content(at, name, app, after, digest),
            Change::Settings { change } => self.change_settings(change),
            Change::Authority { change } => self.change_authority(at, change),
            Change::PutBackup { backup } => self.put_backup(at, backup),
            Change::Restore { rows, host } => self.restore(rows, &host),
            Change::PutHost { host } => self.put_host(at, host),
            Change::SetHostState { host, state } => self.set_host_state(at, &host, state),
            Change::SetHostDraining { host, is_draining } => self.set_host_draining(&host, is_draining),
            Change::RemoveHost { host } => {
                self.hosts.remove(&host);
                self.forget_volumes_on(at, &host);
                Ok(())
            }
            Change::Membership { change } => self.change_membership(at, change),
            Change::PutVolume { volume } => self.put_volume(at, volume),
            Change::DecommissionVolume { app, volume } => self.decommission_volume(at, app, volume),
            Change::DestroyVolume { volume } => self.destroy_volume(at, volume),
            Change::Volume { host, volume, report } => self.report_volume(at, &host, volume, report),
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
mod collecting;
#[cfg(test)]
mod resources;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volumes;
