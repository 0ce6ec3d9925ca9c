//! Connections to other hosts: where each is, and a handshake that proves that it is the one.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::peers::{Connection, Dial};
use futures::{FutureExt, future::BoxFuture};
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::identity::{Identity, name_of};

/// A host that is there answers within milliseconds; one that is not must not hold up a request.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// What has been sent and not been acknowledged for so long never will be. A receiver that does not
/// read counts, too, so it is long where streams may stand still.
pub(crate) const HTTP_SILENCE_MAX: Duration = Duration::from_secs(30);
pub(crate) const RAFT_SILENCE_MAX: Duration = Duration::from_secs(3);

/// Where members are: as the cluster's state says, or as they have said themselves since.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    now: BTreeMap<u64, String>,
    /// As the state said last: only what changes there is news.
    rows: BTreeMap<u64, String>,
}

impl Addresses {
    pub fn of(&self, node: u64) -> Option<String> {
        self.book().now.get(&node).cloned()
    }

    pub fn all(&self) -> Vec<(u64, String)> {
        let book = self.book();
        book.now
            .iter()
            .map(|(node, addr)| (*node, addr.clone()))
            .collect()
    }

    /// A member said where it is.
    pub fn announce(&self, node: u64, addr: String) {
        self.book().now.insert(node, addr);
    }

    /// The members as the state has them.
    pub fn learn(&self, rows: BTreeMap<u64, String>) {
        let book = &mut *self.book();
        for (node, addr) in &rows {
            if book.rows.get(node) != Some(addr) {
                book.now.insert(*node, addr.clone());
            }
        }
        for node in book.rows.keys().filter(|node| !rows.contains_key(node)) {
            book.now.remove(node);
        }
        book.rows = rows;
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().expect("no panic while held")
    }
}

/// Dials members.
#[derive(Clone)]
pub struct Dialer {
    pub identity: Identity,
    pub addresses: Addresses,
}

impl Dialer {
    /// A connection for HTTP.
    pub(crate) async fn http(&self, node: u64) -> io::Result<TlsStream<TcpStream>> {
        let addr = self.addresses.of(node);
        let addr =
            addr.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no member {node}")))?;
        self.open(node, &addr, self.identity.http(), HTTP_SILENCE_MAX)
            .await
    }

    /// `otherwise` is the address where none is known.
    pub(crate) async fn raft(&self, node: u64, otherwise: &str) -> io::Result<TlsStream<TcpStream>> {
        let addr = self.addresses.of(node).unwrap_or_else(|| otherwise.to_owned());
        self.open(node, &addr, self.identity.raft(), RAFT_SILENCE_MAX)
            .await
    }

    async fn open(
        &self,
        node: u64,
        addr: &str,
        config: Arc<ClientConfig>,
        silence_max: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let open = async {
            let stream = connect(addr).await?;
            tune(&stream, silence_max)?;
            TlsConnector::from(config).connect(name_of(node), stream).await
        };
        tokio::time::timeout(CONNECT_MAX, open)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{addr} does not answer")))?
            .map_err(|error| io::Error::new(error.kind(), format!("{addr}: {error}")))
    }
}

/// `IP:PORT` or `NAME:PORT`.
pub(crate) async fn connect(addr: &str) -> io::Result<TcpStream> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidInput, format!("{addr:?} is not HOST:PORT"));
    let (host, port) = addr.rsplit_once(':').ok_or_else(malformed)?;
    api::client::connect(host, port.parse().map_err(|_| malformed())?).await
}

pub(crate) fn tune(stream: &TcpStream, silence_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(silence_max))?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// Dials one member.
pub(crate) struct DialMember {
    pub dialer: Dialer,
    pub node: u64,
}

impl Dial for DialMember {
    fn dial(&self) -> BoxFuture<'static, io::Result<Box<dyn Connection>>> {
        let (dialer, node) = (self.dialer.clone(), self.node);
        async move { Ok(Box::new(dialer.http(node).await?) as Box<dyn Connection>) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_says_counts_until_the_state_says_something_new() {
        let addresses = Addresses::default();
        let rows = |addr: &str| BTreeMap::from([(2, addr.to_owned())]);
        addresses.learn(rows("old:1"));
        addresses.announce(2, "new:1".into());
        addresses.learn(rows("old:1"));
        assert_eq!(addresses.of(2).as_deref(), Some("new:1"));
        addresses.learn(rows("newer:1"));
        assert_eq!(addresses.of(2).as_deref(), Some("newer:1"));
        addresses.learn(BTreeMap::new());
        assert_eq!(addresses.of(2), None);
    }
}
