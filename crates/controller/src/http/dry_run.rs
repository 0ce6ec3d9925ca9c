//! What a change would do: `POST /apps/:app/dry-run` (an addition).
//!
//! The change goes through the handler that makes it in earnest, on a controller that writes to a
//! copy of the state: what would be refused is refused here, in the same words.

use api::{
    dry_run::{Preview, Trial},
    wire::ReleaseRef,
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};

use state::State;

use super::{Shared, body::Body, deployments, error::Failure, find_app_id, formations, releases, routes};
use crate::preview::preview;

pub async fn create(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Body(trial): Body<Trial>,
) -> Result<Json<Preview>, Failure> {
    let before = controller.state();
    let app_id = find_app_id(&before, &app)?;
    let copy = controller.on_a_copy();
    let to = || Extract(copy.clone());
    let mut route = None;
    match trial {
        Trial::Scale { release, request } => {
            let path = Path((app, release.to_string()));
            let _ = formations::scale(to(), path, Body(request)).await?;
        }
        Trial::Deploy { mut release } => {
            release.app_id = Some(app_id);
            let Json(release) = releases::create(to(), Body(release)).await?;
            let _ = deployments::create(
                to(),
                Path(app),
                Body(ReleaseRef {
                    id: release.release.id,
                }),
            )
            .await?;
        }
        Trial::AddRoute { route: new } => {
            let Json(created) = routes::create(to(), Path(app), Body(new)).await?;
            route = Some(created);
        }
        Trial::RemoveRoute { kind, id } => {
            let path = (app, kind, id);
            let Json(removed) = routes::get(to(), Path(path.clone())).await?;
            routes::delete(to(), Path(path)).await?;
            route = Some(removed);
        }
    }
    let changed = State::clone(&copy.state());
    let now = controller.now();
    let looked_ahead = tokio::task::spawn_blocking(move || preview(&before, changed, app_id, now)).await;
    let answer = looked_ahead.map_err(|error| {
        api::Error::new(api::Code::UnknownError, format!("the look ahead failed: {error}"))
    })?;
    Ok(Json(Preview { route, ..answer }))
}
