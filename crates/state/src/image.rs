//! The whole state as bytes, for snapshots: JSON, so that neighbouring versions read each other's.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use types::{
    App, Artifact, ArtifactId, Certificate, Deployment, DomainMigration, Formation, Host, Job, Provider,
    Release, Resource, Route, ScaleRequest, Timestamp,
};

use crate::{DeletedApp, DeletedRelease, State, StateEvent};

#[derive(Debug, thiserror::Error)]
#[error("the snapshot cannot be read or written: {0}")]
pub struct ImageError(#[from] serde_json::Error);

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Image {
    apps: Vec<Arc<App>>,
    artifacts: Vec<Arc<Artifact>>,
    releases: Vec<Arc<Release>>,
    formations: Vec<Arc<Formation>>,
    scale_requests: Vec<Arc<ScaleRequest>>,
    deployments: Vec<Arc<Deployment>>,
    jobs: Vec<Arc<Job>>,
    routes: Vec<Arc<Route>>,
    certificates: Vec<Arc<Certificate>>,
    hosts: Vec<Arc<Host>>,
    volumes: Vec<Arc<types::Volume>>,
    sinks: Vec<Arc<types::Sink>>,
    services: Vec<Arc<types::ServiceRow>>,
    contents: Vec<Arc<types::Content>>,
    deleted_apps: Vec<Arc<DeletedApp>>,
    deleted_releases: Vec<Arc<DeletedRelease>>,
    providers: Vec<Arc<Provider>>,
    resources: Vec<Arc<Resource>>,
    domain_migrations: Vec<Arc<DomainMigration>>,
    named_artifacts: Vec<(ArtifactId, Timestamp)>,
    settings: Arc<types::Settings>,
    authority: Arc<types::Authority>,
    last_backup: Option<Arc<types::ClusterBackup>>,
    members: Vec<Arc<types::Member>>,
    tokens: Vec<Arc<types::JoinToken>>,
    last_node: u64,
    last_at: Timestamp,
    events: Vec<StateEvent>,
    last_event: u64,
    revision: u64,
}

impl State {
    pub fn write_image(&self, out: &mut dyn Write) -> Result<(), ImageError> {
        let image = Image {
            apps: self.apps.values().cloned().collect(),
            artifacts: self.artifacts.values().cloned().collect(),
            releases: self.releases.values().cloned().collect(),
            formations: self.formations.values().cloned().collect(),
            scale_requests: self.scale_requests.values().cloned().collect(),
            deployments: self.deployments.values().cloned().collect(),
            jobs: self.jobs.values().cloned().collect(),
            routes: self.routes.values().cloned().collect(),
            certificates: self.certificates.values().cloned().collect(),
            hosts: self.hosts.values().cloned().collect(),
            volumes: self.volumes.values().cloned().collect(),
            sinks: self.sinks.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            contents: self.contents.values().cloned().collect(),
            deleted_apps: self.deleted_apps.values().cloned().collect(),
            deleted_releases: self.deleted_releases.values().cloned().collect(),
            providers: self.providers.values().cloned().collect(),
            resources: self.resources.values().cloned().collect(),
            domain_migrations: self.domain_migrations.values().cloned().collect(),
            named_artifacts: self.named_artifacts.iter().map(|(id, at)| (*id, *at)).collect(),
            settings: self.settings.clone(),
            authority: self.authority.clone(),
            last_backup: self.last_backup.clone(),
            members: self.members.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            last_node: self.last_node,
            last_at: self.last_at,
            events: self.events.iter().cloned().collect(),
            last_event: self.last_event,
            revision: self.revision,
        };
        Ok(serde_json::to_writer(out, &image)?)
    }

    pub fn read_image(input: &mut dyn Read) -> Result<State, ImageError> {
        let image: Image = serde_json::from_reader(input)?;
        Ok(State {
            app_names: image.apps.iter().map(|row| (row.name.clone(), row.id)).collect(),
            artifact_uris: image
                .artifacts
                .iter()
                .map(|row| (row.uri.clone(), row.id))
                .collect(),
            jobs_by_app: image.jobs.iter().map(|row| (row.app, row.id)).collect(),
            apps: image.apps.into_iter().map(|row| (row.id, row)).collect(),
            artifacts: image.artifacts.into_iter().map(|row| (row.id, row)).collect(),
            releases: image.releases.into_iter().map(|row| (row.id, row)).collect(),
            formations: image
                .formations
                .into_iter()
                .map(|row| ((row.app, row.release), row))
                .collect(),
            scale_requests: image
                .scale_requests
                .into_iter()
                .map(|row| (row.id, row))
                .collect(),
            deployments: image.deployments.into_iter().map(|row| (row.id, row)).collect(),
            jobs: image.jobs.into_iter().map(|row| (row.id, row)).collect(),
            routes: image.routes.into_iter().map(|row| (row.id, row)).collect(),
            certificates: image.certificates.into_iter().map(|row| (row.id, row)).collect(),
            sinks: image.sinks.into_iter().map(|row| (row.id, row)).collect(),
            services: image
                .services
                .into_iter()
                .map(|row| (row.name.clone(), row))
                .collect(),
            contents: image
                .contents
                .into_iter()
                .map(|row| (row.name.clone(), row))
                .collect(),
            hosts: image.hosts.into_iter().map(|row| (row.id.clone(), row)).collect(),
            volumes: image.volumes.into_iter().map(|row| (row.id, row)).collect(),
            deleted_apps: image
                .deleted_apps
                .into_iter()
                .map(|row| (row.app.id, row))
                .collect(),
            deleted_releases: image
                .deleted_releases
                .into_iter()
                .map(|row| (row.release, row))
                .collect(),
            providers: image.providers.into_iter().map(|row| (row.id, row)).collect(),
            resources: image.resources.into_iter().map(|row| (row.id, row)).collect(),
            domain_migrations: image
                .domain_migrations
                .into_iter()
                .map(|row| (row.id, row))
                .collect(),
            named_artifacts: image.named_artifacts.into_iter().collect(),
            settings: image.settings,
            authority: image.authority,
            last_backup: image.last_backup,
            members: image.members.into_iter().map(|row| (row.node, row)).collect(),
            tokens: image
                .tokens
                .into_iter()
                .map(|row| (row.hash.clone(), row))
                .collect(),
            last_node: image.last_node,
            last_at: image.last_at,
            events: image.events.into_iter().collect(),
            last_event: image.last_event,
            revision: image.revision,
        })
    }
}
