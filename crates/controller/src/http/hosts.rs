//! Hosts: drained before they are switched off, and taken back. An addition to the original's API.

use axum::extract::{Path, State as Extract};
use state::Change;
use types::HostId;

use super::{Shared, error::Failure, parse_id};

/// Asks for a host's jobs to move elsewhere, and returns at once.
pub async fn drain(controller: Shared, host: Path<String>) -> Result<(), Failure> {
    set_draining(controller, host, true).await
}

pub async fn undrain(controller: Shared, host: Path<String>) -> Result<(), Failure> {
    set_draining(controller, host, false).await
}

async fn set_draining(
    Extract(controller): Shared,
    Path(host): Path<String>,
    is_draining: bool,
) -> Result<(), Failure> {
    let host: HostId = parse_id(&host)?;
    controller
        .write(Change::SetHostDraining { host, is_draining })
        .await?;
    Ok(())
}
