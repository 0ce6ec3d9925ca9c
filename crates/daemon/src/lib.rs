//! What every long-running part of the platform shares: where files are, who may call, how to
//! listen, log and stop.
//!
//! A daemon is killed without warning as a rule (power cuts, upgrades), so nothing here relies on a
//! shutdown having been clean: files are replaced atomically and secrets are made once.

pub mod app_token;
pub mod auth;
pub mod files;
pub mod forward;
pub mod host_cert;
pub mod paths;
mod renewal;
pub mod secrets;
pub mod server;

pub use app_token::{AppToken, AppTokens};
pub use auth::{Keys, Principal};
pub use forward::Forward;
pub use paths::StateDir;
pub use renewal::{Validity, is_signed_by};
pub use secrets::Secrets;
pub use tokio_util::sync::CancellationToken as Shutdown;

use types::Timestamp;

/// The time by this machine's clock.
pub fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// Starts logging to standard error: one line per event, level by `FLYNN_LOG` (default `info`).
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLYNN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(true)
        .init();
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn shutdown_on_signals() -> std::io::Result<Shutdown> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = Shutdown::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(token)
}
