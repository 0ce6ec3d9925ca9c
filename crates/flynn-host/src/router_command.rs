//! `flynn-host router`: the edge, in a process of its own.

use anyhow::Result;
use daemon::{Secrets, files};

use crate::config::Config;

pub async fn run(config: Config) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let state = config.state();
    let table = state.routing_table();
    files::create_private_dir(table.parent().expect("the table is in a directory"))?;
    files::create_private_dir(&state.logs())?;
    let secrets = Secrets::open(&state.secrets(), &config.domain)?;
    let host = config.host_id()?;
    let feed = router::ControllerFeed {
        controller: config.controller,
        key: secrets.internal_key.clone(),
        router_id: host.to_string(),
    };
    let router = router::Config {
        router_id: host.to_string(),
        http_listen: config.http.clone(),
        https_listen: config.https.clone(),
        tcp_bind_ip: config.tcp_bind,
        state_file: Some(table),
        access_log_directory: Some(state.logs()),
        default_certificate: Some(router::CertificatePem {
            cert: secrets.tls.cert,
            key: secrets.tls.key,
        }),
        ..Default::default()
    };
    router::run(router, Box::new(feed), async move { shutdown.cancelled().await }).await
}
