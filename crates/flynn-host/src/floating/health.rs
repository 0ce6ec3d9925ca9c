//! Whether routers serve: asked as a load balancer would.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use api::{Client, Endpoint, Trust, client::Method};
use daemon::Shutdown;
use tokio::sync::watch;
use types::HostState;

use super::moving::LOOK;

const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Tells whether this host's router does.
pub async fn watch(port: u16, serving: watch::Sender<bool>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            _ = tokio::time::sleep(LOOK) => {}
            _ = shutdown.cancelled() => return,
        }
        serving.send_replace(serves(Ipv4Addr::LOCALHOST.into(), port).await);
    }
}

async fn serves(host: IpAddr, port: u16) -> bool {
    let endpoint = Endpoint {
        url: format!("http://{}", SocketAddr::new(host, port)),
        key: String::new(),
        trust: Trust::System,
    };
    let Ok(client) = Client::new(&endpoint) else {
        return false;
    };
    let asked = client.send(Method::GET, router::HEALTH_PATH, None::<&()>);
    tokio::time::timeout(ANSWER_MAX, asked)
        .await
        .is_ok_and(|answer| answer.is_ok())
}

/// Other voters that are up, are not drained, and whose routers serve where this host reaches them.
pub async fn others_that_serve(store: &controller::Store, port: u16) -> BTreeSet<u64> {
    let (state, status) = (store.read().state, store.status());
    let mut found = BTreeSet::new();
    for voter in status.voters.iter().filter(|voter| voter.id != status.node_id) {
        let host = state
            .members
            .get(&voter.id)
            .and_then(|member| state.hosts.get(&member.host));
        let is_open = host.is_some_and(|host| host.state == HostState::Up && !host.is_draining);
        let Some(address) = voter.address.parse::<SocketAddr>().ok().filter(|_| is_open) else {
            continue;
        };
        if serves(address.ip(), port).await {
            found.insert(voter.id);
        }
    }
    found
}
