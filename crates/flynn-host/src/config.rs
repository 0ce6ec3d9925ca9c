//! The configuration of one host: a TOML file, in which everything has a default.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use daemon::StateDir;
use serde::Deserialize;
use types::HostId;

use crate::floating::Floating;

pub const DEFAULT_PATH: &str = "/etc/flynn/host.toml";

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The cluster's domain: apps are at `NAME.DOMAIN`.
    pub domain: String,
    /// This host's name in the cluster; made from the machine's where it is not given.
    pub host: String,
    pub state_dir: PathBuf,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// Where ports of TCP routes are opened.
    pub tcp_bind: IpAddr,
    pub controller: SocketAddr,
    pub host_api: SocketAddr,
    pub git: SocketAddr,
    /// The port for other hosts of the cluster.
    pub cluster: SocketAddr,
    /// By which others reach this host, `IP` or `IP:PORT`; found out where it is not given.
    pub address: String,
    /// Addresses that one host of the cluster has at a time, `IP/PREFIX` or `IP/PREFIX@INTERFACE`. Where it is not
    /// given, those that the host was told when it joined.
    pub floating: Option<Vec<String>>,
    /// Addresses by which the outside reaches this host's router, where `address` is not one: names of the
    /// cluster's domain lead there.
    pub public_addresses: Vec<IpAddr>,
    /// Where those are answered to whom the cluster's domain was delegated; an unspecified address stands for
    /// `address`.
    pub dns_public: Vec<SocketAddr>,
    /// The registry of images.
    pub registry: SocketAddr,
    pub discoverd_port: u16,
    /// The port of names, on the gateway of the host's jobs.
    pub dns_port: u16,
    pub network: Network,
    /// Name of the cgroup that everything of this cluster on this machine is in.
    pub cgroup: String,
    pub tags: BTreeMap<String, String>,
    pub shim: PathBuf,
    pub buildpacks: PathBuf,
    /// Makes layers of packages that a buildpack asks for.
    pub package_layer: PathBuf,
    /// The authorities that the machine trusts, given to every job.
    pub ca_bundle: PathBuf,
    pub uid_base: u32,
    pub builds: Builds,
    pub images: Images,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Of one layer, as it is pushed.
    pub layer_bytes_max: u64,
    /// What pushes leave free of the disk that the state is on.
    pub disk_reserve_bytes: u64,
}

impl Default for Images {
    fn default() -> Self {
        Images {
            layer_bytes_max: 10 << 30,
            disk_reserve_bytes: 1 << 30,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    pub interface_prefix: String,
    pub table: String,
    pub subnet: String,
    /// Networks of the outside that jobs must not reach.
    pub blocked: Vec<String>,
    /// Addresses of the jobs of all hosts: every host's `subnet` is a part of it.
    pub cluster: String,
    /// How long the prefix of subnets of hosts that join is.
    pub prefix: u8,
    /// This host's address at which other hosts deliver what their jobs send to its jobs. Without one, jobs of
    /// different hosts do not reach each other. Found out on hosts that joined, or were made to be joined.
    pub underlay: Option<IpAddr>,
    /// Tells clusters apart whose hosts share a machine or a network.
    pub vni: u32,
    /// UDP, of VXLAN.
    pub vxlan_port: u16,
    /// UDP, of the encrypted tunnel.
    pub tunnel_port: u16,
    pub encryption: overlay::Encryption,
    /// `auto`, `off`, or what the IPv6 addresses of jobs begin with: 96 bits, the same on all hosts.
    pub ipv6: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Builds {
    /// Builds at the same time; more wait.
    pub at_once: usize,
    pub memory_bytes: i64,
    /// Of one app's sources, build results and cache.
    pub disk_bytes: u64,
    pub timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let both = |port| vec![any(port), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))];
        Config {
            domain: "flynn.localhost".into(),
            host: String::new(),
            state_dir: StateDir::DEFAULT.into(),
            http: both(80),
            https: both(443),
            tcp_bind: Ipv4Addr::UNSPECIFIED.into(),
            controller: loopback(1112),
            // The original's port.
            host_api: loopback(1113),
            git: loopback(1114),
            cluster: any(1115),
            address: String::new(),
            floating: None,
            public_addresses: vec![],
            dns_public: vec![],
            registry: loopback(1116),
            discoverd_port: 1111,
            dns_port: 53,
            network: Network::default(),
            cgroup: "flynn".into(),
            tags: BTreeMap::new(),
            shim: "/usr/local/lib/flynn/flynn-shim".into(),
            buildpacks: "/usr/local/lib/flynn/buildpacks".into(),
            package_layer: "/usr/local/lib/flynn/script/package-layer".into(),
            ca_bundle: "/etc/ssl/certs/ca-certificates.crt".into(),
            uid_base: 1 << 24,
            builds: Builds::default(),
            images: Images::default(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network {
            interface_prefix: "flynn".into(),
            table: "flynn".into(),
            subnet: "100.100.0.0/22".into(),
            prefix: 22,
            blocked: vec![],
            cluster: "100.100.0.0/16".into(),
            underlay: None,
            vni: 1,
            vxlan_port: 4789,
            tunnel_port: 51820,
            encryption: overlay::Encryption::Auto,
            ipv6: "auto".into(),
        }
    }
}

impl Default for Builds {
    fn default() -> Self {
        Builds {
            at_once: 2,
            memory_bytes: 2 << 30,
            disk_bytes: 4 << 30,
            timeout_s: 900,
        }
    }
}

impl Config {
    /// Reads `path`. The default path may be missing: then everything is the default.
    pub fn load(path: &Path) -> Result<Config> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                String::new()
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut config: Config =
            toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        if let Some(membership) = peers::Membership::read(&config.state())? {
            config.host = membership.host.to_string();
            config.network.subnet = membership.subnet.clone();
            config.domain = membership.domain.clone();
            if config.floating.is_none() {
                config.floating = Some(membership.floating.clone());
            }
            if config.network.underlay.is_none() {
                let own: Option<SocketAddr> = crate::address::own(&config, Some(&membership)).parse().ok();
                config.network.underlay = own.map(|own| own.ip()).filter(|ip| !ip.is_loopback());
            }
        }
        config.check()?;
        // Where the cluster was migrated, the file may still have the domain before.
        let authority = daemon::secrets::Authority::new(&config.state().secrets());
        config.domain = authority.domain(&config.domain)?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let is_domain = !self.domain.is_empty()
            && self.domain.len() <= 200
            && self.domain.split('.').all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            });
        if !is_domain {
            bail!(
                "the domain {:?} is not a lower-case domain name such as flynn.localhost",
                self.domain
            );
        }
        if self.http.is_empty() && self.https.is_empty() {
            bail!(
                "the router has nothing to listen on: give `http` or `https` an address such as 0.0.0.0:80"
            );
        }
        self.host_id()?;
        self.overlay()?;
        self.check_floating(self.floating.as_deref().unwrap_or_default())
    }

    /// Whether a host with this configuration could have these addresses.
    pub fn check_floating(&self, floating: &[String]) -> Result<()> {
        for text in floating {
            let wish: Floating = text
                .parse()
                .map_err(|error| anyhow::anyhow!("floating: {error}"))?;
            let address = wish.address.address;
            let hears = |listener: &SocketAddr| {
                let ip = listener.ip();
                // One on all IPv6 addresses hears IPv4, too, unless another does.
                ip.is_unspecified() && (ip.is_ipv6() || address.is_ipv4())
            };
            if !self.http.iter().chain(&self.https).any(hears) {
                let all = if address.is_ipv4() { "0.0.0.0" } else { "[::]" };
                bail!(
                    "the router would not hear what comes to the floating address {address}\nhint: let `http` and \
                     `https` listen on all addresses, such as \"{all}:80\""
                );
            }
        }
        Ok(())
    }

    /// `own` is what other hosts reach this one by.
    pub fn dns_public(&self, own: &str) -> Result<Vec<SocketAddr>> {
        let own: Option<SocketAddr> = own.parse().ok();
        let place = |place: &SocketAddr| {
            if !place.ip().is_unspecified() {
                return Ok(*place);
            }
            let own = own.with_context(|| {
                format!(
                    "dns_public: {place} stands for this host's own address, which is no IP address\nhint: name the \
                     address to listen on, such as 192.0.2.1:53"
                )
            })?;
            Ok(SocketAddr::new(own.ip(), place.port()))
        };
        self.dns_public.iter().map(place).collect()
    }

    pub fn floating(&self) -> Result<Vec<Floating>> {
        let all = self.floating.iter().flatten();
        all.map(|text| text.parse().map_err(|error| anyhow::anyhow!("floating: {error}")))
            .collect()
    }

    pub fn host_id(&self) -> Result<HostId> {
        if self.host.is_empty() {
            let name = rustix::system::uname();
            return Ok(HostId::from_hostname(&name.nodename().to_string_lossy()));
        }
        Ok(self.host.parse()?)
    }

    pub fn state(&self) -> StateDir {
        StateDir::new(&self.state_dir)
    }

    /// Where other hosts deliver what their jobs send to this host's.
    pub fn underlay(&self) -> Option<IpAddr> {
        self.network.underlay
    }

    /// Whether what jobs send to other hosts is encrypted.
    pub fn encrypts(&self) -> bool {
        self.underlay().is_some() && self.network.encryption != overlay::Encryption::Off
    }

    pub fn http_port(&self) -> u16 {
        self.http.first().map_or(80, SocketAddr::port)
    }

    pub fn https_port(&self) -> u16 {
        self.https.first().map_or(443, SocketAddr::port)
    }

    /// `DOMAIN`, with the port that HTTPS is at where that is not the usual one.
    pub fn domain_with_port(&self) -> String {
        match self.https_port() {
            443 => self.domain.clone(),
            port => format!("{}:{port}", self.domain),
        }
    }

    /// What the IPv6 addresses of jobs begin with. `auto`: made from the certificate of the cluster's authority, which
    /// every host has and which stays, so that nobody has to be told. None before there is one.
    fn ipv6(&self) -> Result<Option<overlay::Prefix6>> {
        match self.network.ipv6.as_str() {
            "off" => Ok(None),
            "auto" => {
                let path = self.state().secrets().join("ca.pem");
                let authority = daemon::files::read_if_exists(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok(authority.map(|text| prefix_of(&text)))
            }
            prefix => match prefix.parse() {
                Ok(prefix) => Ok(Some(prefix)),
                Err(error) => {
                    bail!("network.ipv6: {error}\nhint: `auto` makes one for the cluster, `off` does without")
                }
            },
        }
    }

    /// What jobs may reach of this host beside names: the router, on whatever address it has.
    pub fn overlay(&self) -> Result<overlay::Config> {
        let subnet: overlay::Subnet = self
            .network
            .subnet
            .parse()
            .map_err(|error| anyhow::anyhow!("network.subnet: {error}"))?;
        let mut config = overlay::Config::new(&self.network.interface_prefix, &self.network.table, subnet);
        let ports: BTreeSet<u16> = self
            .http
            .iter()
            .chain(&self.https)
            .map(SocketAddr::port)
            .collect();
        config.router_ports = ports.iter().copied().collect();
        config.host_ports = ports
            .into_iter()
            .map(|port| overlay::HostPort {
                address: None,
                protocol: overlay::Protocol::Tcp,
                port,
            })
            .collect();
        config.dns_port = self.dns_port;
        config.discoverd_port = Some(self.discoverd_port);
        for blocked in &self.network.blocked {
            let failed = |error| anyhow::anyhow!("network.blocked {blocked:?}: {error}");
            match blocked.contains(':') {
                true => config.blocked6.push(blocked.parse().map_err(failed)?),
                false => config.blocked.push(blocked.parse().map_err(failed)?),
            }
        }
        config.ipv6 = self.ipv6()?;
        if let Some(address) = self.underlay() {
            let cluster = self.network.cluster.parse();
            let cluster = cluster.map_err(|error| anyhow::anyhow!("network.cluster: {error}"))?;
            config.underlay = Some(overlay::Underlay {
                vni: self.network.vni,
                vxlan_port: self.network.vxlan_port,
                tunnel_port: self.network.tunnel_port,
                encryption: self.network.encryption,
                ..overlay::Underlay::new(address, cluster)
            });
        }
        config.validate()?;
        Ok(config)
    }
}

fn prefix_of(authority: &str) -> overlay::Prefix6 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("flynn addresses of jobs {}", authority.trim()));
    let [a, b, c, d, e, ..]: [u8; 32] = digest.into();
    overlay::Prefix6::unique_local([a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        std::fs::write(&path, text).unwrap();
        let answer = match Config::load(&path) {
            Ok(config) => config.domain_with_port(),
            Err(error) => format!("{error:#}"),
        };
        assert!(answer.contains(expected), "{answer}");
    }

    #[test]
    fn names_are_answered_at_the_hosts_own_address_where_no_other_is_given() {
        let config = Config {
            dns_public: ["0.0.0.0:53", "192.0.2.1:5353"]
                .map(|place| place.parse().unwrap())
                .into(),
            ..Config::default()
        };
        let places = config.dns_public("10.0.0.1:1115").unwrap();
        assert_eq!(
            places,
            ["10.0.0.1:53", "192.0.2.1:5353"].map(|place| place.parse().unwrap())
        );
        let error = config
            .dns_public("host1.example.com:1115")
            .unwrap_err()
            .to_string();
        assert!(error.contains("hint: name the address"), "{error}");
    }

    #[test]
    fn everything_has_a_default_and_mistakes_are_named() {
        check("", "flynn.localhost");
        check(
            "domain = \"paas.example.com\"\nhttps = [\"127.0.0.1:8443\"]",
            "paas.example.com:8443",
        );
        check("domian = \"x\"", "unknown field `domian`");
        check("domain = \"Not A Domain\"", "lower-case domain name");
        check("host = \"a-b\"", "a host id has");
        check("http = []\nhttps = []", "nothing to listen on");
        check("[network]\nipv6 = \"off\"", "flynn.localhost");
        check("[network]\nipv6 = \"fd12:3456:789a::/96\"", "flynn.localhost");
        check("[network]\nipv6 = \"2001:db8::/96\"", "hint: `auto` makes one");
        check(
            "[network]\nblocked = [\"2001:db8::/32\", \"10.0.0.0/8\"]",
            "flynn.localhost",
        );
        check("[network]\nblocked = [\"2001:db8::/200\"]", "network.blocked");
        check("[network]\nsubnet = \"10.0.0.0/33\"", "network.subnet");
        check("floating = [\"192.0.2.7/24\"]", "flynn.localhost");
        check("floating = [\"192.0.2.7/24@eth1\"]", "flynn.localhost");
        check(
            "floating = [\"router\"]",
            "floating: \"router\" is no address such as",
        );
        check("floating = [\"2001:db8::7/64\"]", "flynn.localhost");
        check(
            "floating = [\"2001:db8::7/64\"]\nhttp = [\"0.0.0.0:80\"]\nhttps = []",
            "such as \"[::]:80\"",
        );
        check(
            "floating = [\"192.0.2.7/24\"]\nhttp = [\"10.0.0.1:80\"]\nhttps = []",
            "would not hear what comes to the floating address 192.0.2.7",
        );
        check(
            "[network]\nsubnet = \"10.0.0.0/22\"\nunderlay = \"192.0.2.1\"",
            "not of the cluster's network 100.100.0.0/16",
        );
    }

    #[test]
    fn hosts_of_one_authority_have_one_prefix_of_ipv6_and_others_another() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let prefix = || config.overlay().unwrap().ipv6;
        assert_eq!(prefix(), None);
        daemon::secrets::Secrets::open(&config.state().secrets(), "flynn.test").unwrap();
        let first = prefix().unwrap();
        // Another domain, and an editor that ends the file otherwise.
        let ca = config.state().secrets().join("ca.pem");
        let text = std::fs::read_to_string(&ca).unwrap();
        std::fs::write(&ca, format!("{}\n\n", text.trim())).unwrap();
        assert_eq!(prefix(), Some(first));
        std::fs::write(&ca, "another").unwrap();
        assert_ne!(prefix(), Some(first));
    }
}
