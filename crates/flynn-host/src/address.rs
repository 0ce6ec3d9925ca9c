//! Where other hosts find this one, as far as it can tell by itself.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use daemon::Shutdown;
use peers::Membership;
use tokio::sync::watch;

use crate::config::Config;

/// How often the address is looked up where it is not configured.
const LOOK: Duration = Duration::from_secs(5);
/// Of a network that is for documentation only: asking the way there sends nothing.
const ELSEWHERE: &str = "198.51.100.1:9";

/// `IP:PORT` of the port for hosts. Configured, or given when joining, or the address from which this
/// host would speak to the others.
pub fn own(config: &Config, membership: Option<&Membership>) -> String {
    let port = config.cluster.port();
    if !config.address.is_empty() {
        return with_port(&config.address, port);
    }
    if let Some(address) = membership.and_then(|membership| membership.address.as_deref()) {
        return with_port(address, port);
    }
    if !config.cluster.ip().is_unspecified() {
        return config.cluster.to_string();
    }
    let others = membership
        .into_iter()
        .flat_map(|membership| membership.peers.values());
    let ip = others
        .map(String::as_str)
        .chain([ELSEWHERE])
        .find_map(towards)
        .unwrap_or(Ipv4Addr::LOCALHOST.into());
    SocketAddr::new(ip, port).to_string()
}

/// With `port` where the address has none.
pub fn with_port(address: &str, port: u16) -> String {
    if let Ok(ip) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
        return SocketAddr::new(ip, port).to_string();
    }
    match address.rsplit_once(':') {
        Some(_) => address.to_owned(),
        None => format!("{address}:{port}"),
    }
}

/// This machine's address on the way there.
fn towards(place: &str) -> Option<IpAddr> {
    let place: SocketAddr = place.parse().ok()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(place).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// Keeps `known` up to date: a machine may be given another address while it runs.
pub async fn watch_own(
    config: Config,
    membership: Option<Membership>,
    known: watch::Sender<String>,
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            _ = tokio::time::sleep(LOOK) => {}
            _ = shutdown.cancelled() => return,
        }
        let now = own(&config, membership.as_ref());
        known.send_if_modified(|before| {
            let has_changed = *before != now;
            if has_changed {
                tracing::info!(from = before, to = now, "this host's address has changed");
                *before = now;
            }
            has_changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_added_where_there_is_none() {
        let check = |text: &str, expected: &str| assert_eq!(with_port(text, 1115), expected);
        check("10.0.0.1", "10.0.0.1:1115");
        check("10.0.0.1:7", "10.0.0.1:7");
        check("fd00::1", "[fd00::1]:1115");
        check("[fd00::1]", "[fd00::1]:1115");
        check("[fd00::1]:7", "[fd00::1]:7");
        check("host1.example.com", "host1.example.com:1115");
    }

    #[test]
    fn what_is_configured_comes_first_and_what_was_given_when_joining_next() {
        let mut membership = Membership {
            node: 2,
            host: "host2".parse().unwrap(),
            address: Some("10.0.0.2:1115".into()),
            subnet: String::new(),
            domain: String::new(),
            floating: vec![],
            peers: Default::default(),
        };
        let mut config = Config::default();
        assert_eq!(own(&config, Some(&membership)), "10.0.0.2:1115");
        config.address = "10.9.9.9".into();
        assert_eq!(own(&config, Some(&membership)), "10.9.9.9:1115");
        config.address = String::new();
        membership.address = None;
        config.cluster = "10.1.1.1:2222".parse().unwrap();
        assert_eq!(own(&config, Some(&membership)), "10.1.1.1:2222");
        config.cluster = "0.0.0.0:2222".parse().unwrap();
        membership.peers.insert("1".into(), "127.0.0.1:1".into());
        assert_eq!(own(&config, Some(&membership)), "127.0.0.1:2222");
    }
}
