//! `flynn-host router --serve`: the edge, on sockets that its [keeper](crate::keeper) holds.
//!
//! Standard input is the channel to the keeper: sockets come over it, then the order to let go; its end
//! is the same order, as the keeper is dead then. Where the process is ready it says so there.

use std::{io, os::fd::AsFd};

use anyhow::{Context, Result};
use daemon::{Secrets, files};
use rustix::net::{RecvFlags, SendFlags};

use crate::config::Config;

/// What a serving process says when it serves.
pub const READY: &[u8] = b"ready";

pub async fn run(config: Config) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let state = config.state();
    let table = state.routing_table();
    files::create_private_dir(table.parent().expect("the table is in a directory"))?;
    files::create_private_dir(&state.logs())?;
    let secrets = Secrets::open(&state.secrets(), &config.domain)?;
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    let sockets = router::Sockets::receive(&channel).context("no sockets came over standard input")?;
    // While one takes the other's place there are two on this host, and each answers for itself.
    let router_id = format!("{}-{}", config.host_id()?, std::process::id());
    let feed = router::ControllerFeed {
        controller: config.controller,
        key: secrets.internal_key.clone(),
        router_id: router_id.clone(),
    };
    let router = router::Config {
        router_id,
        ..edge(&config)
    };
    let router = router::Config {
        state_file: Some(table),
        access_log_directory: Some(state.logs()),
        default_certificate: Some(router::CertificatePem {
            cert: secrets.tls.cert,
            key: secrets.tls.key,
        }),
        ..router
    };
    let mut running = router::start_on(sockets, router, Box::new(feed))?;
    running.serves().await;
    rustix::net::send(&channel, READY, SendFlags::NOSIGNAL).context("cannot tell the keeper")?;
    let told = shutdown.clone();
    std::thread::Builder::new().name("keeper".into()).spawn(move || {
        let _ =
            rustix::io::retry_on_intr(|| rustix::net::recv(&channel, &mut [0; 16][..], RecvFlags::empty()));
        told.cancel();
    })?;
    shutdown.cancelled().await;
    running.stop().await
}

/// What the keeper needs to know, too.
pub fn edge(config: &Config) -> router::Config {
    router::Config {
        http_listen: config.http.clone(),
        https_listen: config.https.clone(),
        tcp_bind_ip: config.tcp_bind,
        ..Default::default()
    }
}
