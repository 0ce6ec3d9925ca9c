//! Deployments: `/apps/:app/deploy`, `/apps/:app/deployments`, `/deployments/:id`.

use std::sync::Arc;

use api::{Error, wire::ReleaseRef};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use serde::Deserialize;
use state::Change;
use types::{Deployment, DeploymentId, DeploymentStatus, Processes, Tags, Uuid};

use super::{Shared, body::Body, error::Failure, find_app, find_app_id, parse_id};

/// A release that is none is refused in the original's words.
pub async fn post(
    shared: Shared,
    app: Path<String>,
    Body(release): Body<AnyRelease>,
) -> Result<Json<Arc<Deployment>>, Failure> {
    let release = release.parse()?;
    create(shared, app, Body(release)).await
}

/// A body that names a release, or something that is none.
#[derive(Deserialize)]
pub struct AnyRelease {
    #[serde(default)]
    id: String,
}

impl AnyRelease {
    pub fn parse(&self) -> Result<ReleaseRef, Error> {
        let id = self.id.parse();
        let unknown = |_| Error::invalid(format!("could not find release with ID {}", self.id));
        Ok(ReleaseRef {
            id: id.map_err(unknown)?,
        })
    }
}

pub async fn create(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Body(release): Body<ReleaseRef>,
) -> Result<Json<Arc<Deployment>>, Failure> {
    let app = find_app(&controller.state(), &app)?;
    let id = DeploymentId(Uuid::new_v4());
    let deployment = Deployment {
        id,
        app: app.id,
        old_release: None,
        new_release: release.id,
        strategy: app.strategy,
        status: DeploymentStatus::Pending,
        processes: Processes::new(),
        tags: Tags::new(),
        deploy_timeout: app.deploy_timeout,
        deploy_batch_size: app.deploy_batch_size(),
        error: String::new(),
        created_at: controller.now(),
        finished_at: None,
    };
    controller.write(Change::CreateDeployment { deployment }).await?;
    Ok(Json(
        controller
            .state()
            .deployments
            .get(&id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}

pub async fn list(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<Arc<Deployment>>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    let mut deployments: Vec<_> = state
        .deployments
        .values()
        .filter(|deployment| deployment.app == app)
        .cloned()
        .collect();
    deployments.sort_by_key(|deployment| std::cmp::Reverse((deployment.created_at, deployment.id)));
    Ok(Json(deployments))
}

pub async fn get(
    Extract(controller): Shared,
    Path(id): Path<String>,
) -> Result<Json<Arc<Deployment>>, Failure> {
    let id: DeploymentId = parse_id(&id)?;
    Ok(Json(
        controller
            .state()
            .deployments
            .get(&id)
            .cloned()
            .ok_or_else(Error::not_found)?,
    ))
}
