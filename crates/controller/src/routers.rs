//! Which routers follow the table, how far each has come, and what each still has in flight.
//!
//! Kept in memory only: a router that reconnects says all of it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use routing::feed::Acknowledgement;
use tokio::{sync::watch, time::Instant};

/// After a start, routers that were running before have this long to connect again before it is
/// taken that there is none.
const CONNECT_GRACE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub struct Routers {
    known: Mutex<BTreeMap<String, Router>>,
    /// Wakes those who wait for a backend to be let go of.
    progress: watch::Sender<u64>,
    /// When this host began to listen to routers.
    began: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Router {
    connections: usize,
    /// The generation of the last message sent, and the backends of the table it led to.
    sent_generation: u64,
    sent_backends: BTreeSet<SocketAddr>,
    acknowledged: Acknowledgement,
}

impl Routers {
    /// From now on routers follow this host.
    pub fn begin(&self) {
        *self.began.lock().expect("no panic while held") = Some(Instant::now());
    }

    pub fn connect(self: &Arc<Self>, id: &str) -> Connection {
        self.update(id, |router| router.connections += 1);
        Connection {
            routers: self.clone(),
            id: id.to_owned(),
        }
    }

    pub fn acknowledge(&self, id: &str, acknowledgement: Acknowledgement) {
        self.update(id, |router| router.acknowledged = acknowledgement);
    }

    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Whether no router sends requests to `backend` any more, nor waits for an answer from it.
    pub fn have_let_go_of(&self, backend: SocketAddr) -> bool {
        let known = self.known.lock().expect("no panic while held");
        let mut connected = known.values().filter(|router| router.connections > 0).peekable();
        if connected.peek().is_none() {
            let began = *self.began.lock().expect("no panic while held");
            return began.is_some_and(|began| began.elapsed() > CONNECT_GRACE);
        }
        connected.all(|router| {
            !router.sent_backends.contains(&backend)
                && router.acknowledged.generation >= router.sent_generation
                && router
                    .acknowledged
                    .in_flight
                    .get(&backend)
                    .is_none_or(|count| *count == 0)
        })
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Router)) {
        let mut known = self.known.lock().expect("no panic while held");
        change(known.entry(id.to_owned()).or_default());
        known.retain(|_, router| router.connections > 0);
        drop(known);
        self.progress.send_modify(|count| *count += 1);
    }
}

/// A router's open stream; dropped with it.
pub struct Connection {
    routers: Arc<Routers>,
    id: String,
}

impl Connection {
    /// Remembers what the router was told. Without a message there is nothing to acknowledge.
    pub fn note_sent(&self, last_message: Option<u64>, backends: BTreeSet<SocketAddr>) {
        self.routers.update(&self.id, |router| {
            router.sent_backends = backends;
            router.sent_generation = last_message.unwrap_or(router.sent_generation);
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.routers.update(&self.id, |router| {
            router.connections = router.connections.saturating_sub(1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_free_when_every_router_has_acknowledged_and_nothing_is_in_flight() {
        let backend: SocketAddr = "100.100.0.2:8080".parse().unwrap();
        let routers = Arc::new(Routers::default());
        routers.begin();
        assert!(!routers.have_let_go_of(backend), "routers may still connect");
        *routers.began.lock().unwrap() = Instant::now().checked_sub(CONNECT_GRACE * 2);
        assert!(routers.have_let_go_of(backend), "no router is connected");
        let connection = routers.connect("a");
        connection.note_sent(Some(5), [backend].into());
        assert!(!routers.have_let_go_of(backend), "it is in the table");
        connection.note_sent(Some(6), BTreeSet::new());
        assert!(
            !routers.have_let_go_of(backend),
            "the router has not said that it knows"
        );
        let in_flight = BTreeMap::from([(backend, 1)]);
        routers.acknowledge(
            "a",
            Acknowledgement {
                generation: 6,
                in_flight,
            },
        );
        assert!(!routers.have_let_go_of(backend), "a request is in flight");
        routers.acknowledge(
            "a",
            Acknowledgement {
                generation: 6,
                in_flight: BTreeMap::new(),
            },
        );
        assert!(routers.have_let_go_of(backend));
        connection.note_sent(None, BTreeSet::new());
        assert!(
            routers.have_let_go_of(backend),
            "a change without a message needs no answer"
        );
        drop(connection);
        assert!(routers.have_let_go_of(backend));
    }
}
