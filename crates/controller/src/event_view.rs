//! Events of the state in the contract's form.

use std::sync::Arc;

use api::{
    provision::{AppGarbageCollection, AppGarbageCollectionEvent, DomainMigrationEvent, without_keys},
    wire,
};
use state::{State, StateEvent, Subject};
use types::{Certificate, Event, Job, Route};

/// The event as watchers get it. Jobs are shown with their command, which is looked up now; a release
/// that is gone since leaves it out.
pub fn event(state: &State, event: &StateEvent) -> Event {
    let subject = &*event.subject;
    let data = match subject {
        Subject::App { app } => json(app),
        Subject::AppDeletion { app, releases, error } => json(&wire::AppDeletionEvent {
            app_deletion: Some(wire::AppDeletion {
                app: app.app.id.to_string(),
                deleted_routes: app.routes.iter().map(|found| route(state, found)).collect(),
                deleted_resources: app.resources.clone(),
                deleted_releases: releases.iter().cloned().map(Into::into).collect(),
            }),
            error: error.clone(),
        }),
        Subject::AppRelease { previous, release } => json(&wire::AppRelease {
            prev_release: previous.clone().map(Into::into),
            release: release.clone().into(),
        }),
        Subject::Artifact { artifact } => json(artifact),
        Subject::Release { release } => json(release),
        Subject::ReleaseDeletion {
            app,
            release,
            deleted_files,
        } => json(&wire::ReleaseDeletionEvent {
            release_deletion: Some(wire::ReleaseDeletion {
                app: app.to_string(),
                release: release.id.to_string(),
                remaining_apps: vec![],
                deleted_files: deleted_files.clone(),
            }),
            error: String::new(),
        }),
        Subject::AppGarbageCollection {
            app,
            deleted_releases,
        } => json(&AppGarbageCollectionEvent {
            app_garbage_collection: Some(AppGarbageCollection {
                app_id: *app,
                deleted_releases: deleted_releases.clone(),
            }),
            error: String::new(),
        }),
        Subject::Volume { volume, .. } => json(volume),
        Subject::Provider { provider } => json(provider),
        Subject::Resource { resource }
        | Subject::ResourceDeletion { resource }
        | Subject::ResourceAppDeletion { resource } => json(resource),
        Subject::DomainMigration { migration, error } => json(&DomainMigrationEvent {
            domain_migration: without_keys(migration),
            error: error.clone(),
        }),
        Subject::ScaleRequest { request } | Subject::ScaleRequestCancelation { request } => json(request),
        Subject::Deployment {
            deployment,
            status,
            error,
        } => json(&wire::DeploymentEvent {
            app: Some(deployment.app),
            deployment: Some(deployment.id),
            release: Some(deployment.new_release),
            status: serde_json::to_value(status)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            error: error.clone(),
            ..Default::default()
        }),
        Subject::DeploymentJob {
            deployment,
            job,
            state,
        } => json(&wire::DeploymentEvent {
            app: Some(deployment.app),
            deployment: Some(deployment.id),
            release: job.release,
            status: "running".into(),
            job_type: job.process_type.clone(),
            job_state: Some(*state),
            error: job
                .exit
                .as_ref()
                .filter(|_| job.stop_reason.is_none())
                .map(ToString::to_string)
                .unwrap_or_default(),
        }),
        Subject::ClusterBackup { backup } => json(backup),
        Subject::Job { job } => json(&self::job(state, job)),
        Subject::Sink { sink } | Subject::SinkDeletion { sink } => json(&api::sinks::SinkView::of(sink)),
        Subject::Route { route: found } | Subject::RouteDeletion { route: found } => {
            json(&route(state, found))
        }
    };
    Event {
        id: event.id,
        app: event.app,
        object_type: subject.object_type(),
        object_id: subject.object_id(),
        data: Arc::new(data),
        created_at: event.at,
    }
}

pub fn job(state: &State, job: &Job) -> wire::Job {
    wire::Job::of(job, crate::host_job::args(state, job))
}

/// A route with its certificate; the private key stays here.
pub fn route(state: &State, route: &Route) -> wire::RouteView {
    let certificate = route.certificate_id.and_then(|id| state.certificates.get(&id));
    wire::RouteView {
        route: Route::clone(route),
        certificate: certificate.map(|found| certificate_view(found)),
    }
}

fn certificate_view(certificate: &Certificate) -> wire::CertificateView {
    wire::CertificateView {
        id: Some(certificate.id),
        routes: vec![],
        cert: certificate.cert.clone(),
        key: String::new(),
        created_at: Some(certificate.created_at),
        updated_at: Some(certificate.updated_at),
    }
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("API values always serialise")
}
