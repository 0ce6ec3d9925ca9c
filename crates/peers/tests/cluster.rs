//! Hosts in one process: real stores, controllers and certificates, on ports of loopback.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::{
    Endpoint, Trust,
    host::HostReport,
    logs::{LogSource, Message, Query},
    peers::{ClusterView, NewToken, Part, Peers, TokenView},
};
use daemon::{Shutdown, StateDir, secrets::Authority};
use futures::{StreamExt, stream::BoxStream};
use peers::{Identity, Join, Membership, Network, Token, Wire};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch};
use types::{AppId, Host, HostId, HostState, Timestamp};

const PATIENCE: Duration = Duration::from_secs(60);

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

/// One host: what its daemon would start, but for jobs.
struct Member {
    directory: TempDir,
    store: controller::Store,
    network: Network,
    controller: SocketAddr,
    addr: String,
    shutdown: Shutdown,
    internal_key: String,
    address: watch::Sender<String>,
    /// What it says that it is.
    version: watch::Sender<&'static str>,
}

impl Member {
    async fn found() -> Member {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Member::start(directory, listener, api::VERSION).await
    }

    /// Founded by another version, so long ago.
    async fn found_by(version: &'static str, ago: Duration) -> Member {
        let directory = tempfile::tempdir().unwrap();
        let secrets = StateDir::new(directory.path()).secrets();
        daemon::Secrets::open_at(&secrets, "flynn.test", SystemTime::now() - ago).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Member::start(directory, listener, version).await
    }

    /// Joins by way of another host.
    async fn join(of: &Member, token: &str, host: &str) -> anyhow::Result<Member> {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        peers::join(Join {
            cluster: &of.addr,
            token: &token.parse()?,
            host: host.parse().unwrap(),
            address: Some(&listener.local_addr().unwrap().to_string()),
            port: 1115,
            floating: &[],
            state: &StateDir::new(directory.path()),
        })
        .await?;
        Ok(Member::start(directory, listener, api::VERSION).await)
    }

    async fn start(directory: TempDir, listener: TcpListener, version: &'static str) -> Member {
        let state = StateDir::new(directory.path());
        let membership = Membership::read(&state).unwrap();
        let secrets = daemon::Secrets::open(&state.secrets(), "flynn.test").unwrap();
        let authority = Authority::new(&state.secrets());
        let node = membership.as_ref().map_or(1, |membership| membership.node);
        let host: HostId = match &membership {
            Some(membership) => membership.host.clone(),
            None => "host1".parse().unwrap(),
        };
        let addr = listener.local_addr().unwrap().to_string();
        let (address, own_address) = watch::channel(addr.clone());
        let identity = Identity::new(authority.clone(), node, host.clone()).unwrap();
        let known: Vec<_> = membership
            .iter()
            .flat_map(|membership| membership.known())
            .collect();
        let start = match known.is_empty() {
            true => store::Start::Found(vec![store::Peer {
                id: node,
                address: addr.clone(),
            }]),
            false => store::Start::Join,
        };
        let wire = Wire::new(identity, known);
        let options = store::Options::new(state.raft(), node, start, wire.transport());
        let store = controller::Store::open(options).await.unwrap();
        let forwarding = Arc::new(wire.forwarding(&store));
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let controller = http.local_addr().unwrap();
        let network = Network::new(
            wire,
            peers::Config {
                store: store.clone(),
                secrets: state.secrets(),
                internal_key: secrets.internal_key.clone(),
                local: BTreeMap::from([(Part::Controller.name(), controller)]),
                address: own_address.clone(),
            },
        )
        .unwrap();
        let config = controller::Config {
            domain: "flynn.test".into(),
            http_port: 80,
            https_port: 443,
            keys: secrets.keys(),
            internal_key: secrets.internal_key.clone(),
            ca_cert: secrets.tls.ca_cert,
            cert: secrets.tls.cert,
            cert_key: secrets.tls.key,
            system_routes: vec![],
            logs: Arc::new(NoLogs),
            forget: vec![],
            discoverd: None,
            authority,
            archive: None,
            layers: state.layers(),
            stack: None,
            objects: None,
            forward: Some(forwarding),
            peers: Some(Arc::new(network.clone())),
            membership: Some(controller::Membership {
                node,
                host: host.clone(),
                address: own_address,
                subnet: membership.map_or("100.100.0.0/22".into(), |membership| membership.subnet),
                network: "100.100.0.0/16".into(),
                prefix: 22,
                floating: tokio::sync::watch::channel(vec![]).1,
            }),
        };
        let shutdown = Shutdown::new();
        tokio::spawn(controller::Controller::new(store.clone(), config).run(http, shutdown.clone()));
        tokio::spawn(network.clone().run(listener, shutdown.clone()));
        let member = Member {
            directory,
            store,
            network,
            controller,
            addr,
            shutdown,
            internal_key: secrets.internal_key,
            address,
            version: watch::channel(version).0,
        };
        tokio::spawn(say_that_it_is_there(
            member.client(),
            host,
            member.version.subscribe(),
            member.shutdown.clone(),
        ));
        member
    }

    fn client(&self) -> api::Controller {
        api::Controller::new(&Endpoint {
            url: format!("http://{}", self.controller),
            key: self.internal_key.clone(),
            trust: Trust::System,
        })
        .unwrap()
    }

    async fn token(&self) -> String {
        let made: TokenView = self
            .client()
            .client()
            .post("/internal/cluster/tokens", &NewToken { ttl_s: 60 })
            .await
            .unwrap();
        let ca_cert = std::fs::read_to_string(self.directory.path().join("secrets/ca.pem")).unwrap();
        Token::new(&ca_cert, &made.token).unwrap().to_string()
    }

    async fn create(&self, app: &str) -> Result<(), api::ClientError> {
        let new = api::wire::NewApp {
            name: app.into(),
            ..Default::default()
        };
        self.client().create_app(&new).await.map(drop)
    }

    async fn apps(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .client()
            .apps()
            .await
            .unwrap()
            .into_iter()
            .map(|app| app.name)
            .collect();
        names.sort();
        names
    }

    async fn cluster(&self) -> Result<ClusterView, api::ClientError> {
        self.client().client().get("/internal/cluster").await
    }

    /// Waits until this many vote, by this host's word.
    async fn wait_for_voters(&self, count: usize) {
        let began = Instant::now();
        loop {
            let cluster = self.cluster().await;
            let voters = cluster.as_ref().map(|cluster| {
                let voters = cluster.members.iter().filter(|row| row.is_voter);
                voters.count()
            });
            if voters.is_ok_and(|voters| voters == count) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not {count} voters: {cluster:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until this host's word of the cluster is as it should be.
    async fn wait_for(&self, what: &str, is_so: impl Fn(&ClusterView) -> bool) {
        let began = Instant::now();
        loop {
            let cluster = self.cluster().await;
            if cluster.as_ref().is_ok_and(&is_so) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not {what}: {cluster:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn secret(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join("secrets").join(name)).unwrap()
    }

    fn leads(&self) -> bool {
        *self.store.leadership().borrow()
    }

    /// As a power cut does, but for what is on disk.
    async fn kill(&self) {
        self.shutdown.cancel();
        self.store.halt().await;
    }
}

async fn say_that_it_is_there(
    client: api::Controller,
    host: HostId,
    version: watch::Receiver<&'static str>,
    shutdown: Shutdown,
) {
    let report = || HostReport {
        addr: "127.0.0.1:1113".into(),
        tags: BTreeMap::new(),
        memory_bytes: 0,
        cpu_milli: 1000,
        gateway: None,
        subnet: None,
        underlay: None,
        public_key: None,
        public_addresses: vec![],
        version: (*version.borrow()).into(),
        started_at: Timestamp::EPOCH,
    };
    while !shutdown.is_cancelled() {
        let _ = client.report_host(&host, &report()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn three() -> [Member; 3] {
    let first = Member::found().await;
    first.wait_for_voters(1).await;
    let second = Member::join(&first, &first.token().await, "host2").await.unwrap();
    // By way of a host that does not lead.
    first.client().hosts().await.unwrap();
    let third = Member::join(&second, &first.token().await, "host3")
        .await
        .unwrap();
    for member in [&first, &second, &third] {
        member.wait_for_voters(3).await;
    }
    [first, second, third]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_host_takes_requests_for_the_one_that_leads_and_another_leads_when_it_dies() {
    let members = three().await;
    for (index, member) in members.iter().enumerate() {
        member.create(&format!("app{index}")).await.unwrap();
        let other = &members[(index + 1) % 3];
        assert!(other.apps().await.contains(&format!("app{index}")));
    }
    let leader = members.iter().position(Member::leads).unwrap();
    let others: Vec<_> = members.iter().filter(|member| !member.leads()).collect();
    // Streams are passed on, too, and break off for whoever follows to begin anew.
    let mut events = others[0].client().events(None, &["app"], None).await.unwrap();
    others[1].create("followed").await.unwrap();
    let event = tokio::time::timeout(PATIENCE, events.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(event.data["name"], "followed");

    let killed = Instant::now();
    members[leader].kill().await;
    others[0].create("after").await.unwrap();
    println!("writes again after {:?}", killed.elapsed());
    assert!(others[1].apps().await.contains(&"after".to_owned()));
    let ended = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = events.next().await {} });
    ended.await.expect("the stream by the dead leader ends");

    // One of three cannot agree on anything, but goes on telling what it knows.
    others[1].kill().await;
    let mut leadership = others[0].store.leadership();
    tokio::time::timeout(PATIENCE, leadership.wait_for(|leads| !leads))
        .await
        .unwrap()
        .unwrap();
    assert!(others[0].apps().await.contains(&"after".to_owned()));
    let refused = others[0].create("never").await.unwrap_err();
    assert_eq!(refused.code(), Some(api::Code::ServiceUnavailable), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_get_through_the_port_and_a_removed_one_is_nobody() {
    let first = Member::found().await;
    first.wait_for_voters(1).await;
    let token = first.token().await;
    let second = Member::join(&first, &token, "host2").await.unwrap();
    let again = Member::join(&first, &token, "host3")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        again.to_string().contains("was used already, by host host2"),
        "{again}"
    );
    let other = first.token().await;
    let taken = Member::join(&first, &other, "host2")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(taken.to_string().contains("has a host host2 already"), "{taken}");
    let foreign = Member::found().await;
    foreign.wait_for_voters(1).await;
    let stray = Member::join(&foreign, &other, "host4")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        stray.to_string().contains("belongs to another cluster"),
        "{stray}"
    );

    let began = Instant::now();
    while second.cluster().await.is_ok_and(|cluster| {
        let rows = &cluster.members;
        rows.len() < 2 || !rows[1].is_follower || rows[1].host.is_none()
    }) {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let row = |member: &Member| Host {
        id: "host1".parse().unwrap(),
        addr: String::new(),
        tags: BTreeMap::new(),
        is_draining: false,
        state: HostState::Up,
        memory_bytes: 0,
        cpu_milli: 0,
        gateway: None,
        subnet: None,
        underlay: None,
        public_key: None,
        public_addresses: vec![],
        node: Some(1),
        peer_addr: Some(member.addr.clone()),
        version: String::new(),
        created_at: Timestamp::EPOCH,
        started_at: Timestamp::EPOCH,
        up_since: Timestamp::EPOCH,
        relapses: 0,
    };
    let through = second.network.client(&row(&first), Part::Controller).unwrap();
    through.text("/ping").await.unwrap();
    let authority = Authority::new(&first.directory.path().join("secrets"));
    let stranger = Identity::new(authority, 99, "host99".parse().unwrap()).unwrap();
    let stranger = peers::client_of(stranger, &row(&first), Part::Controller, &first.internal_key).unwrap();
    let refused = stranger.text("/ping").await.unwrap_err();
    assert_eq!(refused.code(), Some(api::Code::Unauthorized), "{refused}");

    let removed = first.client().client().clone();
    removed
        .delete("/internal/cluster/members/host2?force=true")
        .await
        .unwrap();
    let refused = through.text("/ping").await.unwrap_err();
    assert_eq!(refused.code(), Some(api::Code::Unauthorized), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_comes_back_at_another_address_is_found_again() {
    let [first, second, third] = three().await;
    let (mover, stays) = if first.leads() {
        (&second, &first)
    } else {
        (&third, &second)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(mover.network.clone().run(listener, mover.shutdown.clone()));
    mover.address.send_replace(addr.clone());
    let began = Instant::now();
    loop {
        let status = stays.store.status();
        if status.voters.iter().any(|voter| voter.address == addr) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_close_to_its_end_is_renewed_while_the_cluster_runs_and_a_host_joins_afterwards() {
    let years = Duration::from_secs(365 * 24 * 3600);
    let first = Member::found_by("v0", years * 9 / 2).await;
    first.wait_for_voters(1).await;
    let second = Member::join(&first, &first.token().await, "host2").await.unwrap();
    let third = Member::join(&second, &first.token().await, "host3")
        .await
        .unwrap();
    let token = first.token().await;
    first.wait_for_voters(3).await;
    let reason = |cluster: &ClusterView| cluster.authority.as_ref()?.waits_for.clone();
    first
        .wait_for("waiting for the host of another version", |cluster| {
            reason(cluster).as_deref() == Some("host1 has another version, v0")
        })
        .await;
    let (authority, certificate) = (first.secret("ca.pem"), first.secret("cluster.pem"));
    assert_eq!(first.client().ca_cert().await.unwrap(), authority);

    first.version.send_replace(api::VERSION);
    let now = daemon::now();
    let is_renewed = |cluster: &ClusterView| {
        let authority = cluster.authority.as_ref();
        authority.is_some_and(|authority| authority.waits_for.is_none() && authority.renewal_at > now)
    };
    first.wait_for("renewed", is_renewed).await;
    // With the token of before, by way of a host that has heard of it or has not.
    let fourth = Member::join(&third, &token, "host4").await.unwrap();
    fourth.wait_for("told of the renewal", is_renewed).await;
    fourth.create("after").await.unwrap();
    let renewed = first.client().ca_cert().await.unwrap();
    assert_ne!(renewed, authority);
    let began = Instant::now();
    for member in [&first, &second, &third, &fourth] {
        let has_all = || {
            let state = member.store.read().state;
            state.authority.certificate.as_ref() == Some(&renewed)
                && member.secret("cluster.pem") != certificate
        };
        while !has_all() {
            assert!(began.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(member.client().ca_cert().await.unwrap(), renewed);
        assert_eq!(member.secret("cluster.pem"), first.secret("cluster.pem"));
        // What the cluster is known by, and what the addresses of jobs are made from.
        assert_eq!(member.secret("ca.pem"), authority);
    }
    assert_eq!(first.apps().await, ["after"]);
}
