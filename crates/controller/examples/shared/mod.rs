//! A controller alone, with its store, for the benchmarks: no agent, no router, no logs.

use std::{net::SocketAddr, path::Path, sync::Arc};

use api::{
    Endpoint, Trust,
    logs::{LogSource, Message, Query},
};
use daemon::{Keys, Principal, Shutdown};
use futures::{StreamExt, stream::BoxStream};
use types::AppId;

const KEY: &str = "0123456789abcdef";
const INTERNAL_KEY: &str = "internal-0123456789abcdef";

struct NoLogs;

#[async_trait::async_trait]
impl LogSource for NoLogs {
    async fn query(&self, _: AppId, _: Query) -> Result<BoxStream<'static, Message>, api::Error> {
        Ok(futures::stream::empty().boxed())
    }

    async fn forget(&self, _: AppId) -> Result<(), api::Error> {
        Ok(())
    }
}

/// What was started, until it is stopped.
pub struct Serving {
    pub address: SocketAddr,
    store: controller::Store,
    shutdown: Shutdown,
}

impl Serving {
    /// With its state, fsynced, in a directory.
    pub async fn start(directory: &Path) -> Serving {
        let secrets = directory.join("secrets");
        let tls = daemon::Secrets::open(&secrets, "flynn.localhost")
            .expect("secrets can be made")
            .tls;
        let store = controller::Store::open(store::Options::single(directory.join("raft")))
            .await
            .expect("the store opens");
        let config = controller::Config {
            domain: "flynn.localhost".into(),
            http_port: 80,
            https_port: 443,
            keys: Keys::new([(KEY, Principal::User), (INTERNAL_KEY, Principal::Internal)]),
            internal_key: INTERNAL_KEY.into(),
            ca_cert: tls.ca_cert,
            cert: tls.cert,
            cert_key: tls.key,
            system_routes: vec![],
            logs: Arc::new(NoLogs),
            forget: vec![],
            discoverd: None,
            authority: daemon::secrets::Authority::new(&secrets),
            archive: None,
            layers: directory.join("layers"),
            stack: None,
            objects: None,
            forward: None,
            peers: None,
            membership: None,
        };
        let listener = daemon::server::listen(([127, 0, 0, 1], 0).into())
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shutdown = Shutdown::default();
        tokio::spawn(controller::Controller::new(store.clone(), config).run(listener, shutdown.clone()));
        Serving {
            address,
            store,
            shutdown,
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.store.shutdown().await;
    }
}

/// As a user, or as a part of the platform.
pub fn client(address: SocketAddr, is_internal: bool) -> api::Controller {
    let endpoint = Endpoint {
        url: format!("http://{address}"),
        key: if is_internal { INTERNAL_KEY } else { KEY }.into(),
        trust: Trust::System,
    };
    api::Controller::new(&endpoint).expect("the endpoint is one")
}
