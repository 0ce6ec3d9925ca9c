//! What operators choose for the whole cluster: `/internal/cluster/copies`.

use api::contents::Copies;
use axum::{Json, extract::State as Extract};
use state::{Change, SettingsChange};

use super::{Shared, body::Body, error::Failure};

pub async fn copies(Extract(controller): Shared) -> Json<Copies> {
    let copies = controller.state().settings.copies;
    Json(Copies { copies })
}

pub async fn set_copies(
    Extract(controller): Shared,
    Body(new): Body<Copies>,
) -> Result<Json<Copies>, Failure> {
    let change = SettingsChange::SetCopies { copies: new.copies };
    controller.write(Change::Settings { change }).await?;
    Ok(copies(Extract(controller)).await)
}
