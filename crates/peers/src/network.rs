//! What the port, the transport and the clients of one host share.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use api::{
    Client, ClientError, Endpoint, Trust,
    peers::{Announcement, Part, Peers},
};
use daemon::Shutdown;
use state::State;
use store::Store;
use tokio::{net::TcpListener, sync::watch};
use types::Host;

use crate::{
    dial::{Addresses, DialMember, Dialer},
    forward::Forwarding,
    identity::Identity,
    pool::Pool,
    port,
    raft::PeerTransport,
};

/// How often a host looks whether the others know where it is.
const LOOK: Duration = Duration::from_secs(2);

/// What is there before the store is: who this host is, and how messages travel.
#[derive(Clone)]
pub struct Wire {
    dialer: Dialer,
    pool: Pool,
}

impl Wire {
    /// `known` are the members as far as this host was told when it joined.
    pub fn new(identity: Identity, known: impl IntoIterator<Item = (u64, String)>) -> Wire {
        let addresses = Addresses::default();
        for (node, addr) in known {
            addresses.announce(node, addr);
        }
        let dialer = Dialer { identity, addresses };
        Wire {
            pool: Pool::new(dialer.clone()),
            dialer,
        }
    }

    pub fn transport(&self) -> Arc<PeerTransport> {
        Arc::new(PeerTransport::new(self.dialer.clone(), self.pool.clone()))
    }

    pub fn forwarding(&self, store: &Store<State>) -> Forwarding {
        Forwarding {
            node: self.dialer.identity.node,
            pool: self.pool.clone(),
            leader: store.leader(),
            leadership: store.leadership(),
        }
    }
}

pub struct Config {
    pub store: Store<State>,
    /// Of the cluster's secrets, which new members are given.
    pub secrets: PathBuf,
    pub internal_key: String,
    /// Where this host's own parts listen.
    pub local: BTreeMap<&'static str, SocketAddr>,
    /// `IP:PORT` by which others reach this host; it may change.
    pub address: watch::Receiver<String>,
}

/// One host among the others; clones share it.
#[derive(Clone)]
pub struct Network {
    wire: Wire,
    inner: Arc<Inner>,
}

struct Inner {
    store: Store<State>,
    secrets: PathBuf,
    internal_key: String,
    local: port::Local,
    address: watch::Receiver<String>,
    controller: Client,
}

impl Network {
    pub fn new(wire: Wire, config: Config) -> Result<Network, ClientError> {
        let place = config.local[Part::Controller.name()];
        let controller = Client::new(&loopback(place, &config.internal_key))?;
        Ok(Network {
            wire,
            inner: Arc::new(Inner {
                store: config.store,
                secrets: config.secrets,
                internal_key: config.internal_key,
                local: config.local,
                address: config.address,
                controller,
            }),
        })
    }

    /// Serves other hosts, and sees to it that they find this one, until `shutdown`.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let identity = self.identity().clone();
        tokio::join!(
            port::serve(self.clone(), listener, shutdown.clone()),
            self.follow_members(shutdown.clone()),
            self.be_found(shutdown.clone()),
            identity.keep_fresh(shutdown),
        );
    }

    async fn follow_members(&self, shutdown: Shutdown) {
        let mut views = self.store().watch();
        loop {
            let members = views.borrow_and_update().state.members.clone();
            let rows = members.values().map(|member| (member.node, member.addr.clone()));
            self.addresses().learn(rows.collect());
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                _ = shutdown.cancelled() => return,
            }
        }
    }

    /// Tells others where this host is, until the state says so: after joining, and after a change of
    /// address. What the leader finds out about itself it writes itself.
    async fn be_found(&self, shutdown: Shutdown) {
        let node = self.identity().node;
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                _ = shutdown.cancelled() => return,
            }
            let addr = self.inner.address.borrow().clone();
            let status = self.store().status();
            let mut nodes = status.voters.iter().chain(&status.learners);
            let is_known = nodes.any(|known| known.id == node && known.address == addr);
            if addr.is_empty() || is_known || status.is_leader() {
                continue;
            }
            self.announce(&Announcement { node, addr }).await;
        }
    }

    async fn announce(&self, announcement: &Announcement) {
        for (other, addr) in self.addresses().all() {
            if other == announcement.node {
                continue;
            }
            let client = self.dialed(other, "");
            let told = async {
                client?
                    .send(http::Method::POST, "/announce", Some(announcement))
                    .await
            };
            match tokio::time::timeout(LOOK * 2, told).await {
                Ok(Ok(())) => {
                    tracing::info!(
                        to = addr,
                        address = announcement.addr,
                        "told the cluster where this host is"
                    );
                    return;
                }
                Ok(Err(error)) => tracing::debug!(to = addr, %error, "cannot tell where this host is"),
                Err(_) => tracing::debug!(to = addr, "no answer when telling where this host is"),
            }
        }
    }

    fn dialed(&self, node: u64, path: &str) -> Result<Client, ClientError> {
        let dial = DialMember {
            dialer: self.wire.dialer.clone(),
            node,
        };
        let url = format!("http://node-{node}{path}");
        Client::dialed(&url, &self.inner.internal_key, Arc::new(dial))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.wire.dialer.identity
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.wire.dialer.addresses
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.wire.pool
    }

    pub(crate) fn store(&self) -> &Store<State> {
        &self.inner.store
    }

    pub(crate) fn secrets(&self) -> &Path {
        &self.inner.secrets
    }

    pub(crate) fn controller(&self) -> &Client {
        &self.inner.controller
    }

    pub(crate) fn local(&self, part: Part) -> Option<SocketAddr> {
        self.inner.local.get(part.name()).copied()
    }
}

impl Peers for Network {
    fn client(&self, host: &Host, part: Part) -> Result<Client, ClientError> {
        match (host.node, self.local(part)) {
            (Some(node), _) if node != self.identity().node => {
                self.dialed(node, &format!("/{}", part.name()))
            }
            (_, Some(place)) => Client::new(&loopback(place, &self.inner.internal_key)),
            (_, None) => Err(ClientError::BadUrl(host.addr.clone())),
        }
    }
}

/// A client of a part of another host, for who has this host's identity and nothing else.
pub fn client_of(identity: Identity, host: &Host, part: Part, key: &str) -> Result<Client, ClientError> {
    let unknown = || ClientError::BadUrl(host.addr.clone());
    let (node, addr) = (
        host.node.ok_or_else(unknown)?,
        host.peer_addr.clone().ok_or_else(unknown)?,
    );
    let addresses = Addresses::default();
    addresses.announce(node, addr);
    let dialer = Dialer { identity, addresses };
    let url = format!("http://node-{node}/{}", part.name());
    Client::dialed(&url, key, Arc::new(DialMember { dialer, node }))
}

fn loopback(place: SocketAddr, key: &str) -> Endpoint {
    Endpoint {
        url: format!("http://{place}"),
        key: key.to_owned(),
        trust: Trust::System,
    }
}
