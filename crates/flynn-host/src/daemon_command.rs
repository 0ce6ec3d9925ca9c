//! `flynn-host daemon`: every component of a host but the router, in one process.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use api::{Endpoint, Trust, peers::Part};
use controller::{Forget, SystemRoute};
use daemon::{Secrets, StateDir, files, server};
use futures::future::BoxFuture;
use types::AppId;

use crate::config::Config;

pub async fn run(config: Config, config_path: &Path) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let state = config.state();
    prepare(&state)?;
    crate::restore::check_not_under_way(&state)?;
    let secrets = Secrets::open(&state.secrets(), &config.domain)?;
    let host = config.host_id()?;
    let membership = peers::Membership::read(&state)?;
    let node = membership.as_ref().map_or(1, |membership| membership.node);
    let (address, own_address) =
        tokio::sync::watch::channel(crate::address::own(&config, membership.as_ref()));
    let (floating, floating_told) = crate::floating::Keeper::new(&config, own_address.clone())?;
    let public = config.dns_public(&own_address.borrow())?;
    let authority = daemon::secrets::Authority::new(&state.secrets());
    let identity = peers::Identity::new(authority.clone(), node, host.clone())?;
    let known: Vec<_> = membership
        .iter()
        .flat_map(|membership| membership.known())
        .collect();
    let start = match known.is_empty() {
        true => store::Start::Found(vec![store::Peer {
            id: node,
            address: own_address.borrow().clone(),
        }]),
        false => store::Start::Join,
    };
    let wire = peers::Wire::new(identity, known);
    let options = store::Options::new(state.raft(), node, start, wire.transport());
    let store = controller::Store::open(options)
        .await
        .map_err(|error| anyhow::anyhow!("{error}\nhint: {}", error.hint()))?;

    // All sockets first: a port that is taken is told before anything has begun.
    let controller_listener = server::listen(config.controller).await?;
    let host_listener = server::listen(config.host_api).await?;
    let git_listener = server::listen(config.git).await?;
    let cluster_listener = server::listen(config.cluster).await?;
    let registry_listener = server::listen(config.registry).await?;

    let endpoint = Endpoint {
        url: format!("http://{}", controller_listener.local_addr()?),
        key: secrets.internal_key.clone(),
        trust: Trust::System,
    };
    let git_endpoint = Endpoint {
        url: format!("http://{}", git_listener.local_addr()?),
        ..endpoint.clone()
    };
    let objects: Arc<dyn api::objects::Objects> = Arc::new(bucket::Bucket::new(
        Box::new({
            let store = store.clone();
            move || store.read().state.settings.clone()
        }),
        api::tls::pin_of_pem(&secrets.tls.ca_cert).context("the cluster's authority cannot be read")?,
        daemon::now,
    ));
    let forwarding = Arc::new(wire.forwarding(&store));
    let network = peers::Network::new(
        wire,
        peers::Config {
            store: store.clone(),
            secrets: state.secrets(),
            internal_key: secrets.internal_key.clone(),
            local: [
                (Part::Controller.name(), controller_listener.local_addr()?),
                (Part::Host.name(), host_listener.local_addr()?),
                (Part::Git.name(), git_listener.local_addr()?),
                (Part::Images.name(), registry_listener.local_addr()?),
            ]
            .into(),
            address: own_address.clone(),
        },
    )?;
    let logs = logs::Logs::new(state.clone(), host.clone());
    let shipper = logs::Shipper::new(
        state.clone(),
        host.clone(),
        api::Controller::new(&endpoint)?,
        shutdown.clone(),
    );
    let route = |subdomain: &str, listener: &tokio::net::TcpListener| -> Result<SystemRoute> {
        Ok(SystemRoute {
            subdomain: subdomain.into(),
            address: listener.local_addr()?,
        })
    };
    let controller = controller::Controller::new(
        store.clone(),
        controller::Config {
            domain: config.domain.clone(),
            http_port: config.http_port(),
            https_port: config.https_port(),
            keys: secrets.keys(),
            internal_key: secrets.internal_key.clone(),
            ca_cert: secrets.tls.ca_cert.clone(),
            cert: secrets.tls.cert.clone(),
            cert_key: secrets.tls.key.clone(),
            system_routes: vec![
                route("controller", &controller_listener)?,
                route("git", &git_listener)?,
                route("images", &registry_listener)?,
                // The original's name for what `docker push` talks to.
                route("docker", &registry_listener)?,
            ],
            logs: Arc::new(logs.clone()),
            forget: vec![
                Arc::new(ForgetBuilds { state: state.clone() }),
                Arc::new(crate::images::Forget { state: state.clone() }),
            ],
            discoverd: Some(Endpoint {
                url: format!("http://127.0.0.1:{}", config.discoverd_port),
                key: secrets.internal_key.clone(),
                trust: Trust::System,
            }),
            authority,
            archive: Some(Arc::new(crate::backup::Files::new(
                state.clone(),
                vec![(api::Client::new(&git_endpoint)?, "/.cluster/repos")],
            ))),
            layers: state.layers(),
            stack: Some(state.stack()),
            objects: Some(objects.clone()),
            forward: Some(forwarding.clone()),
            peers: Some(Arc::new(network.clone())),
            membership: Some(controller::Membership {
                node,
                host: host.clone(),
                address: own_address,
                subnet: config.network.subnet.clone(),
                network: config.network.cluster.clone(),
                prefix: config.network.prefix,
                floating: floating_told,
            }),
        },
    );
    let agent = agent::Config {
        host: host.clone(),
        state: state.clone(),
        controller: endpoint.clone(),
        listener: host_listener,
        keys: secrets.keys(),
        advertised: None,
        network: config.overlay()?,
        public_key: match config.encrypts() {
            true => Some(crate::tunnel_command::key(&state)?.public()),
            false => None,
        },
        public_addresses: config.public_addresses.clone(),
        cgroup_parent: config.cgroup.clone(),
        shim: config.shim.clone(),
        dns: config.overlay()?.subnet.gateway(),
        tags: config.tags.clone(),
        ca_bundle: Some(config.ca_bundle.clone()),
        sinks: Arc::new(shipper.clone()),
        uid_base: config.uid_base,
        more: crate::update_taken::routes(&state, config_path, secrets.keys()),
    };
    let discoverd = discoverd::Config {
        domain: config.domain.clone(),
        controller: endpoint.clone(),
        keys: secrets.keys(),
        gateway: config.overlay()?.subnet.gateway(),
        dns_port: config.dns_port,
        http_port: config.discoverd_port,
        public,
    };
    let registry = crate::images::config(
        &config,
        &secrets,
        endpoint.clone(),
        forwarding.clone(),
        objects.clone(),
    )?;
    let builder = builder::Config {
        host,
        state: state.clone(),
        controller: endpoint,
        keys: secrets.keys(),
        registry_url: format!("http://{}", registry_listener.local_addr()?),
        registry_host: format!("images.{}:{}", config.domain, config.https_port()),
        buildpacks: config.buildpacks.clone(),
        package_layer: config.package_layer.clone(),
        hook: std::env::current_exe().context("cannot find this program's own file")?,
        at_once: config.builds.at_once,
        memory_bytes: config.builds.memory_bytes,
        disk_bytes: config.builds.disk_bytes,
        timeout: std::time::Duration::from_secs(config.builds.timeout_s),
        http_port: config.http_port(),
        https_port: config.https_port(),
        forward: Some(forwarding),
        objects: Some(objects),
    };

    tracing::info!(domain = %config.domain, state = %state.root().display(), "starting");
    let mut tasks = tokio::task::JoinSet::new();
    let stop = shutdown.clone();
    tasks.spawn(async move {
        controller.run(controller_listener, stop).await;
        Ok(())
    });
    tasks.spawn(agent::run(agent, shutdown.clone()));
    tasks.spawn(discoverd::run(discoverd, shutdown.clone()));
    tasks.spawn(builder::run(builder, git_listener, shutdown.clone()));
    tasks.spawn({
        let (config, shutdown) = (config.clone(), shutdown.clone());
        async move {
            crate::address::watch_own(config, membership, address, shutdown).await;
            Ok(())
        }
    });
    tasks.spawn({
        let (store, shutdown) = (store.clone(), shutdown.clone());
        async move {
            floating.run(store, shutdown).await;
            Ok(())
        }
    });
    // It serves until the lead has been handed over, which other hosts have a word in.
    let port_shutdown = daemon::Shutdown::new();
    let port = tokio::spawn(network.run(cluster_listener, port_shutdown.clone()));
    tasks.spawn(registry::run(registry, registry_listener, shutdown.clone()));
    let logging = tokio::spawn(logs.run(shipper, shutdown.clone()));
    let stopped = store.clone();
    tasks.spawn(async move { anyhow::bail!("the store has stopped: {}", stopped.stopped().await) });

    // A part that ends before it was told to takes the rest along: the supervisor starts all of it
    // anew, which is the one way back that is exercised every day.
    let ended = tokio::select! {
        ended = tasks.join_next() => ended,
        _ = shutdown.cancelled() => None,
    };
    shutdown.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    let rest = tokio::time::timeout(std::time::Duration::from_secs(3), rest);
    let (_, ()) = tokio::join!(rest, store.shutdown());
    port_shutdown.cancel();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), port).await;
    // Receivers of logs may say what they have read, which is then not sent again.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), logging).await;
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(panic.into()),
        _ => Ok(()),
    }
}

fn prepare(state: &StateDir) -> Result<()> {
    for directory in [
        state.root().to_owned(),
        state.layers(),
        state.jobs(),
        state.logs(),
        state.repos(),
        state.builds(),
        state.run(),
    ] {
        files::create_private_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(())
}

/// Removes an app's repository and build files.
struct ForgetBuilds {
    state: StateDir,
}

impl Forget for ForgetBuilds {
    fn forget(&self, app: AppId) -> BoxFuture<'_, Result<(), api::Error>> {
        Box::pin(async move {
            builder::forget(&self.state, app).await.map_err(|error| {
                api::Error::unavailable(format!("cannot remove the app's builds: {error:#}"))
            })
        })
    }
}
