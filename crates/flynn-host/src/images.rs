//! The registry's part in a host: its configuration, and what goes with an app.

use std::sync::Arc;

use anyhow::{Context, Result};
use api::Endpoint;
use daemon::{Secrets, StateDir};
use futures::future::BoxFuture;
use types::AppId;

use crate::config::Config;

pub fn config(
    config: &Config,
    secrets: &Secrets,
    controller: Endpoint,
    forward: Arc<dyn daemon::Forward>,
    objects: Arc<dyn api::objects::Objects>,
) -> Result<registry::Config> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(registry::Config {
        state: config.state(),
        controller,
        keys: secrets.keys(),
        internal_key: secrets.internal_key.clone(),
        worker: registry::layer::converter::Worker::Process(program, vec!["convert-layer".into()]),
        blob_bytes_max: config.images.layer_bytes_max,
        disk_reserve_bytes: config.images.disk_reserve_bytes,
        host: config.host_id()?,
        forward: Some(forward),
        objects: Some(objects),
    })
}

/// Removes an app's images.
pub struct Forget {
    pub state: StateDir,
}

impl controller::Forget for Forget {
    fn forget(&self, app: AppId) -> BoxFuture<'_, Result<(), api::Error>> {
        Box::pin(async move {
            registry::forget(&self.state, app).await.map_err(|error| {
                api::Error::unavailable(format!("cannot remove the app's images: {error:#}"))
            })
        })
    }
}
