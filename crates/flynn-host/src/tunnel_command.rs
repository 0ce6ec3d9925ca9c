//! `flynn-host tunnel`: what encrypts traffic between hosts where the kernel cannot, in a process of its own.
//!
//! Where traffic is not encrypted it has nothing to do, and waits: a host that is alone may get company.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use daemon::{Shutdown, StateDir, files};
use overlay::tunnel::{self, Key};

use crate::config::Config;

/// How often it is looked whether there is something to do.
const CONFIG_INTERVAL: Duration = Duration::from_secs(2);

/// The same for whether the daemon has made the interface.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub async fn run(config_path: &Path) -> Result<()> {
    daemon::init_logging();
    let shutdown = daemon::shutdown_on_signals()?;
    let Some(config) = encrypting(config_path, &shutdown).await else {
        return Ok(());
    };
    while !tunnel::is_ready(&config.overlay()?) {
        tokio::select! {
            _ = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = shutdown.cancelled() => return Ok(()),
        }
    }
    let settings = tunnel::Settings {
        // Read when the daemon is there: it makes what the addresses follow from.
        network: config.overlay()?,
        key: key(&config.state())?,
        map: config.state().network_map(),
    };
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("tunnel".into())
        .spawn(move || ended.send(tunnel::run(settings)))
        .context("cannot start a thread")?;
    // Its threads wait for packets, and end with the process.
    tokio::select! {
        result = end => result.context("the tunnel panicked")?.context("the tunnel cannot go on"),
        _ = shutdown.cancelled() => Ok(()),
    }
}

/// The configuration, once it says that traffic between hosts is encrypted; `None` if this is to end before.
pub async fn encrypting(config_path: &Path, shutdown: &Shutdown) -> Option<Config> {
    loop {
        // One that cannot be read is the daemon's to complain about.
        if let Ok(config) = Config::load(config_path)
            && config.encrypts()
        {
            return Some(config);
        }
        tokio::select! {
            _ = tokio::time::sleep(CONFIG_INTERVAL) => {}
            _ = shutdown.cancelled() => return None,
        }
    }
}

/// This host's key, made when it is first asked for.
pub fn key(state: &StateDir) -> Result<Key> {
    let path = state.secrets().join("tunnel.key");
    // Daemon and tunnel start at the same moment.
    files::create_private_dir(&state.secrets())?;
    let lock =
        std::fs::File::create(state.secrets().join("lock")).context("cannot make the lock of the secrets")?;
    lock.lock().context("cannot lock the secrets")?;
    if let Some(text) = files::read_if_exists(&path)? {
        return parse(&text, &path);
    }
    let key = Key::generate();
    files::write_atomic(&path, format!("{}\n", key.secret()).as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn parse(text: &str, path: &Path) -> Result<Key> {
    text.parse()
        .with_context(|| format!("{} is damaged; without it, a new one is made", path.display()))
}
