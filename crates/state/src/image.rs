//! The whole state as bytes, for snapshots: JSON, so that neighbouring versions read each other's.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use types::{App, Artifact, Certificate, Deployment, Formation, Host, Job, Release, Route, ScaleRequest};

use crate::{DeletedApp, State, StateEvent};

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
    sinks: Vec<Arc<types::Sink>>,
    deleted_apps: Vec<Arc<DeletedApp>>,
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
            sinks: self.sinks.values().cloned().collect(),
            deleted_apps: self.deleted_apps.values().cloned().collect(),
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
            hosts: image.hosts.into_iter().map(|row| (row.id.clone(), row)).collect(),
            deleted_apps: image
                .deleted_apps
                .into_iter()
                .map(|row| (row.app.id, row))
                .collect(),
            events: image.events.into_iter().collect(),
            last_event: image.last_event,
            revision: image.revision,
        })
    }
}
