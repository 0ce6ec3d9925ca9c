//! Clients for the operator's commands, which run on a host and may read its keys.

use anyhow::{Context, Result};
use api::{Client, Controller, Endpoint, Trust};
use daemon::files;

use crate::config::Config;

fn key(config: &Config) -> Result<String> {
    let path = config.state().secrets().join("internal.key");
    let key = files::read_if_exists(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = key.with_context(|| {
        format!(
            "there is no cluster on this machine yet: {} is missing\nhint: `script/up` starts one",
            path.display()
        )
    })?;
    Ok(key.trim().to_owned())
}

pub fn controller(config: &Config) -> Result<Controller> {
    Ok(Controller::new(&endpoint(config, config.controller)?)?)
}

pub fn host(config: &Config) -> Result<Client> {
    Ok(Client::new(&endpoint(config, config.host_api)?)?)
}

fn endpoint(config: &Config, address: std::net::SocketAddr) -> Result<Endpoint> {
    Ok(Endpoint {
        url: format!("http://{address}"),
        key: key(config)?,
        trust: Trust::System,
    })
}

/// Another host of the cluster.
pub fn host_at(config: &Config, address: std::net::SocketAddr) -> Result<Client> {
    Ok(Client::new(&endpoint(config, address)?)?)
}
