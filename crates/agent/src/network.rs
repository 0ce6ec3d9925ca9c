//! The network map: what the controller's stream says of other hosts, kept on disk and carried out.
//!
//! What was told before stays until a new map is complete: a daemon that starts, or that lost its
//! controller, goes on with the last one, and its jobs with their connections. Nothing is taken away
//! for not having been named *yet*.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use api::host::{NetworkChange, NetworkHost};
use overlay::{Map, Peer};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::agent::Agent;

/// How often it is looked whether something else on the machine has taken rules or interfaces away.
const REPAIR_INTERVAL: Duration = Duration::from_secs(5);
/// After a map that could not be carried out.
const RETRY: Duration = Duration::from_secs(1);

pub struct Network {
    path: PathBuf,
    said: Mutex<Said>,
    news: Notify,
}

#[derive(Default)]
struct Said {
    /// What is to be so now.
    map: Map,
    /// What has been named since the stream was (re)connected, until its first list is complete.
    coming: Option<Map>,
}

impl Network {
    /// With the map of before, if there is one.
    pub fn read(path: &Path) -> Network {
        let map = daemon::files::read_if_exists(path)
            .map_err(anyhow::Error::from)
            .and_then(|text| text.map(|text| Ok(serde_json::from_str(&text)?)).transpose())
            .unwrap_or_else(|error| {
                warn!(%error, path = %path.display(), "the last map of the network cannot be read; a new one will come");
                None
            });
        Network {
            path: path.to_owned(),
            said: Mutex::new(Said {
                map: map.unwrap_or_default(),
                coming: None,
            }),
            news: Notify::new(),
        }
    }

    pub fn map(&self) -> Map {
        self.said().map.clone()
    }

    /// A new stream: everything will be named again.
    pub fn reconnected(&self) {
        self.said().coming = Some(Map::default());
    }

    pub fn hear(&self, change: NetworkChange) {
        let mut said = self.said();
        if let Some(coming) = &mut said.coming {
            change_map(coming, &change);
        }
        change_map(&mut said.map, &change);
        self.news.notify_one();
    }

    /// The first list is complete: what is not in it is no longer so.
    pub fn complete(&self) {
        let mut said = self.said();
        if let Some(coming) = said.coming.take() {
            said.map = coming;
            self.news.notify_one();
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("nothing panics while it holds this")
    }
}

fn change_map(map: &mut Map, change: &NetworkChange) {
    match change {
        NetworkChange::Host(host) => match peer(host) {
            Some(peer) => drop(map.hosts.insert(host.id.to_string(), peer)),
            None => {
                warn!(host = %host.id, subnet = host.subnet, "a host has what is no network of jobs");
                map.hosts.remove(&host.id.to_string());
            }
        },
        NetworkChange::HostGone(host) => drop(map.hosts.remove(&host.to_string())),
        NetworkChange::Admit {
            app,
            address: IpAddr::V4(address),
        } => drop(map.admitted.insert((app.to_string(), *address))),
        NetworkChange::AdmitNoLonger {
            app,
            address: IpAddr::V4(address),
        } => drop(map.admitted.remove(&(app.to_string(), *address))),
        // A job's address of the other kind follows from this one.
        NetworkChange::Admit { .. } | NetworkChange::AdmitNoLonger { .. } => {}
        NetworkChange::Link { from, to } => drop(map.links.insert((from.to_string(), to.to_string()))),
        NetworkChange::Unlink { from, to } => drop(map.links.remove(&(from.to_string(), to.to_string()))),
    }
}

fn peer(host: &NetworkHost) -> Option<Peer> {
    Some(Peer {
        subnet: host.subnet.parse().ok()?,
        underlay: host.underlay,
        public_key: host.public_key.clone(),
    })
}

/// Carries maps out, and keeps what was carried out as it is.
pub async fn run(agent: Arc<Agent>) {
    let mut done = agent.network.map();
    let mut wait = REPAIR_INTERVAL;
    loop {
        tokio::select! {
            _ = agent.network.news.notified() => {}
            _ = tokio::time::sleep(wait) => {}
            _ = agent.shutdown.cancelled() => return,
        }
        wait = REPAIR_INTERVAL;
        let map = agent.network.map();
        let result = match map == done {
            true => agent.net.repair().await.map(drop),
            false => carry_out(&agent, &map).await,
        };
        match result {
            Ok(()) => done = map,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the network is not as it should be; it is tried again"
                );
                wait = RETRY;
            }
        }
    }
}

async fn carry_out(agent: &Agent, map: &Map) -> anyhow::Result<()> {
    agent.net.apply(map.clone()).await?;
    let (path, bytes) = (agent.network.path.clone(), serde_json::to_vec(map)?);
    tokio::task::spawn_blocking(move || daemon::files::write_atomic(&path, &bytes, 0o600)).await??;
    debug!(
        hosts = map.hosts.len(),
        admitted = map.admitted.len(),
        "the network is as it was told"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, underlay: &str) -> NetworkChange {
        NetworkChange::Host(NetworkHost {
            id: id.parse().unwrap(),
            subnet: format!("100.100.{}.0/24", id.trim_start_matches("host")),
            underlay: underlay.parse().unwrap(),
            public_key: None,
        })
    }

    fn admit(app: u8, address: &str) -> NetworkChange {
        NetworkChange::Admit {
            app: types::AppId(uuid::Uuid::from_bytes([app; 16])),
            address: address.parse().unwrap(),
        }
    }

    fn hears(network: &Network, changes: &[NetworkChange]) {
        for change in changes {
            network.hear(change.clone());
        }
    }

    fn text(network: &Network) -> String {
        let map = network.map();
        let hosts = map
            .hosts
            .iter()
            .map(|(id, peer)| format!("{id}@{}", peer.underlay));
        let admitted = map.admitted.iter().map(|(_, address)| address.to_string());
        hosts.chain(admitted).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_was_known_stays_until_a_new_list_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::read(&dir.path().join("network.json"));
        network.reconnected();
        hears(
            &network,
            &[
                host("host1", "10.0.0.1"),
                host("host2", "10.0.0.2"),
                admit(1, "100.100.1.2"),
            ],
        );
        network.complete();
        network.reconnected();
        hears(&network, &[host("host2", "10.0.0.22"), admit(1, "100.100.2.2")]);
        assert_eq!(
            text(&network),
            "host1@10.0.0.1 host2@10.0.0.22 100.100.1.2 100.100.2.2"
        );
        network.complete();
        assert_eq!(text(&network), "host2@10.0.0.22 100.100.2.2");
    }

    #[test]
    fn a_change_is_one_message() {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::read(&dir.path().join("network.json"));
        hears(
            &network,
            &[
                host("host1", "10.0.0.1"),
                admit(1, "100.100.1.2"),
                admit(1, "100.100.1.3"),
            ],
        );
        let app = types::AppId(uuid::Uuid::from_bytes([1; 16]));
        hears(
            &network,
            &[
                NetworkChange::AdmitNoLonger {
                    app,
                    address: "100.100.1.2".parse().unwrap(),
                },
                NetworkChange::HostGone("host1".parse().unwrap()),
            ],
        );
        assert_eq!(text(&network), "100.100.1.3");
    }

    #[test]
    fn the_last_map_is_found_again_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        let network = Network::read(&path);
        hears(&network, &[host("host1", "10.0.0.1"), admit(1, "100.100.1.2")]);
        std::fs::write(&path, serde_json::to_vec(&network.map()).unwrap()).unwrap();
        assert_eq!(text(&Network::read(&path)), "host1@10.0.0.1 100.100.1.2");
        std::fs::write(&path, "{").unwrap();
        assert_eq!(text(&Network::read(&path)), "");
    }
}
