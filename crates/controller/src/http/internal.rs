//! Between the platform's own parts: hosts follow their assignments, routers their table.

use api::{
    Error,
    host::{HostReport, JobReport, ReportedState},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
    response::Response,
};
use routing::feed::Acknowledgement;
use state::{Change, JobChange};
use types::{AppId, Exit, HostId, JobId};

use super::{Shared, body::Body, error::Failure, event_stream, parse_id};
use crate::{assignments, feed};

pub async fn report_host(
    Extract(controller): Shared,
    Path(host): Path<String>,
    Body(report): Body<HostReport>,
) -> Result<(), Failure> {
    controller.report_host(parse_id(&host)?, report).await?;
    Ok(())
}

pub async fn assignments(Extract(controller): Shared, Path(host): Path<String>) -> Result<Response, Failure> {
    let host: HostId = parse_id(&host)?;
    Ok(event_stream(assignments::follow(controller, host)))
}

pub async fn report_job(
    Extract(controller): Shared,
    Path((host, job)): Path<(String, String)>,
    Body(report): Body<JobReport>,
) -> Result<(), Failure> {
    let (host, job): (HostId, JobId) = (parse_id(&host)?, parse_id(&job)?);
    let state = controller.state();
    let found = state.jobs.get(&job).ok_or_else(Error::not_found)?;
    // A host that comes back after its jobs were given to others hears that they are not its own.
    if found.host.as_ref() != Some(&host) {
        return Err(Error::not_found().into());
    }
    let change = match report.state {
        ReportedState::Starting => JobChange::Started {
            address: report.address,
        },
        ReportedState::Up => JobChange::Up {
            address: report.address,
            ipv6: report.ipv6,
        },
        ReportedState::Unhealthy => JobChange::Unhealthy,
        ReportedState::Down { exit } => JobChange::Down { exit },
        ReportedState::NeverHealthy { why, .. } => JobChange::Down {
            exit: Exit::NotStarted(why),
        },
    };
    controller.write(Change::Job { job, change }).await?;
    Ok(())
}

pub async fn routing(Extract(controller): Shared, headers: http::HeaderMap) -> Response {
    let router = headers
        .get("flynn-router")
        .and_then(|value| value.to_str().ok())
        .unwrap_or("router")
        .to_owned();
    event_stream(feed::follow(controller, router))
}

pub async fn report_router(
    Extract(controller): Shared,
    Path(router): Path<String>,
    Body(report): Body<Acknowledgement>,
) {
    controller.routers.acknowledge(&router, report);
}

/// Layers that must not be removed.
pub async fn layers(Extract(controller): Shared) -> Json<Vec<String>> {
    Json(crate::copies::in_use(&controller.state()))
}

/// Apps whose files must not be removed.
pub async fn apps(Extract(controller): Shared) -> Json<Vec<AppId>> {
    let state = controller.state();
    Json(
        state
            .apps
            .keys()
            .chain(state.deleted_apps.keys())
            .copied()
            .collect(),
    )
}

/// What is known of a service beside its instances, as it is after the change.
pub async fn change_service(
    Extract(controller): Shared,
    Path(service): Path<String>,
    Body(update): Body<api::discoverd::ServiceUpdate>,
) -> Result<Json<Option<std::sync::Arc<types::ServiceRow>>>, Failure> {
    controller
        .write(Change::Service {
            service: service.clone(),
            app: update.app,
            change: update.change,
        })
        .await?;
    Ok(Json(controller.state().services.get(&service).cloned()))
}

/// All instances of all services: what discovery answers from.
pub async fn services(Extract(controller): Shared) -> Response {
    event_stream(feed::follow_services(controller))
}
