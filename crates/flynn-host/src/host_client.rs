//! Clients for the operator's commands, which run on a host and may read its keys.

use anyhow::{Context, Result};
use api::{Client, Controller, Endpoint, Trust, peers::Part};
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

/// The host API of any host of the cluster.
pub fn host_of(config: &Config, host: &types::Host) -> Result<Client> {
    part_of(config, host, Part::Host)
}

/// The host API of any host of the cluster, or what its controller answers itself.
pub fn part_of(config: &Config, host: &types::Host, part: Part) -> Result<Client> {
    let state = config.state();
    let own = peers::Membership::read(&state)?.map_or(1, |membership| membership.node);
    if host.node.is_none_or(|node| node == own) {
        return match part {
            Part::Controller => Ok(controller(config)?.client().clone()),
            _ => self::host(config),
        };
    }
    let authority = daemon::secrets::Authority::new(&state.secrets());
    let identity = peers::Identity::new(authority, own, config.host_id()?)?;
    Ok(peers::client_of(identity, host, part, &key(config)?)?)
}
