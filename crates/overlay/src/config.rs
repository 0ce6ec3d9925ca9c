//! What a cluster may call its own on this machine.
//!
//! Nothing here has a global name: several clusters live side by side when their prefix, table and subnet differ.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{Error, Prefix6, Subnet, Subnet6};

/// Linux's limit for the name of an interface (IFNAMSIZ less the final zero).
const INTERFACE_NAME_LENGTH_MAX: usize = 15;

/// The smallest IPv4 MTU a host must be able to take (RFC 791 says 576; below it real stacks misbehave).
const MTU_MIN: u32 = 576;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `fl0`: the gateway's interface has this name, a job's is `fl0-<slot>`.
    pub interface_prefix: String,
    /// Name of the nftables table (family inet), ours from first to last rule.
    pub table: String,
    /// Addresses of this host's jobs; the first is the gateway.
    pub subnet: Subnet,
    /// Of the jobs' interfaces; without it that of the interface with the default route.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// TCP ports of the router, reachable on the gateway's address.
    #[serde(default)]
    pub router_ports: Vec<u16>,
    /// UDP and TCP, on the gateway's address.
    #[serde(default = "dns_port_default")]
    pub dns_port: u16,
    /// TCP, on the gateway's address.
    #[serde(default)]
    pub discoverd_port: Option<u16>,
    /// What else of the host jobs may reach.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// Outside networks that jobs must not reach. Link-local is always among them: clouds serve the
    /// machine's own credentials there.
    #[serde(default)]
    pub blocked: Vec<Subnet>,
    /// The same of IPv6; where clouds serve those by it is always among them.
    #[serde(default)]
    pub blocked6: Vec<Subnet6>,
    /// What the IPv6 addresses of jobs begin with, the same on all hosts; without it jobs have none.
    #[serde(default)]
    pub ipv6: Option<Prefix6>,
    /// How many connections a job may have opened at a time, UDP exchanges of the last 30 s among them. The kernel's
    /// table of connections is one for the whole machine; without a limit one job could fill it for all.
    #[serde(default = "connections_per_job_max_default")]
    pub connections_per_job_max: u32,
    /// How this host and the others of its cluster reach each other; a host that is alone has none.
    #[serde(default)]
    pub underlay: Option<Underlay>,
}

/// The network between hosts, by which jobs of different hosts reach each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// This host's address on it.
    pub address: IpAddr,
    /// Addresses of all hosts' jobs. What is in here and is of no host that is known goes nowhere.
    pub cluster: Subnet,
    /// Tells clusters apart that share a machine or a network.
    #[serde(default = "vni_default")]
    pub vni: u32,
    /// UDP, of VXLAN.
    #[serde(default = "vxlan_port_default")]
    pub vxlan_port: u16,
    /// UDP, of the encrypted tunnel.
    #[serde(default = "tunnel_port_default")]
    pub tunnel_port: u16,
    #[serde(default)]
    pub encryption: Encryption,
}

/// Whether what jobs of different hosts send each other can be read on the way. A host that encrypts takes nothing that
/// is not, and sends nothing that is not, whatever the others do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// VXLAN, for networks that nobody else listens on.
    Off,
    /// The best that there is on this machine.
    #[default]
    Auto,
    /// WireGuard's protocol by [`crate::tunnel`].
    Userspace,
}

impl Underlay {
    /// As most clusters have it.
    pub fn new(address: IpAddr, cluster: Subnet) -> Underlay {
        Underlay {
            address,
            cluster,
            vni: vni_default(),
            vxlan_port: vxlan_port_default(),
            tunnel_port: tunnel_port_default(),
            encryption: Encryption::default(),
        }
    }

    pub fn is_encrypted(&self) -> bool {
        self.encryption != Encryption::Off
    }

    /// What is put around each packet that goes to another host, in bytes: an outer IP head, UDP, and then VXLAN's
    /// head and an inner one of Ethernet, or WireGuard's head and the cipher's tag.
    pub fn overhead(&self) -> u32 {
        let ip = match self.address {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        let inner = match self.is_encrypted() {
            true => 16 + 16,
            false => 8 + 14,
        };
        ip + 8 + inner
    }
}

fn vni_default() -> u32 {
    1
}

/// IANA's.
fn vxlan_port_default() -> u16 {
    4789
}

/// WireGuard's.
fn tunnel_port_default() -> u16 {
    51820
}

fn dns_port_default() -> u16 {
    53
}

/// A sixteenth of the kernel's table on a machine with more than 4 GiB (262 144), a quarter on a small one.
fn connections_per_job_max_default() -> u32 {
    16_384
}

/// One port of the host that jobs may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `None`: on every address of the host, for example the router on the public one.
    pub address: Option<Ipv4Addr>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Config {
    /// A configuration with nothing but DNS open.
    pub fn new(interface_prefix: impl Into<String>, table: impl Into<String>, subnet: Subnet) -> Config {
        Config {
            interface_prefix: interface_prefix.into(),
            table: table.into(),
            subnet,
            mtu: None,
            router_ports: Vec::new(),
            dns_port: dns_port_default(),
            discoverd_port: None,
            host_ports: Vec::new(),
            blocked: Vec::new(),
            blocked6: Vec::new(),
            ipv6: None,
            connections_per_job_max: connections_per_job_max_default(),
            underlay: None,
        }
    }

    /// Names end up in an nft script and as file names under /proc/sys, so only harmless characters pass.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::InvalidConfig(text));
        let is_plain = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        if !is_plain(&self.interface_prefix) || self.interface_prefix == "lo" {
            return invalid(format!(
                "interface prefix {:?} must be lower-case letters, digits and _, beginning with a letter",
                self.interface_prefix
            ));
        }
        if !is_plain(&self.table) || self.table.len() > 64 {
            return invalid(format!(
                "table name {:?} must be at most 64 lower-case letters, digits and _, beginning with a letter",
                self.table
            ));
        }
        if !(16..=28).contains(&self.subnet.prefix()) {
            return invalid(format!("subnet {} must be between /16 and /28", self.subnet));
        }
        let names = [
            self.interface_name(self.subnet.job_slots().end - 1),
            self.peer_interface(),
        ];
        let longest = names.iter().max_by_key(|name| name.len()).expect("there are two");
        if longest.len() > INTERFACE_NAME_LENGTH_MAX {
            return invalid(format!(
                "interface prefix {:?} is too long: {longest} has more than {INTERFACE_NAME_LENGTH_MAX} characters",
                self.interface_prefix
            ));
        }
        if let Some(mtu) = self.mtu
            && !(MTU_MIN..=65535).contains(&mtu)
        {
            return invalid(format!("mtu {mtu} must be between {MTU_MIN} and 65535"));
        }
        if self.connections_per_job_max == 0 {
            return invalid("connections_per_job_max 0 would leave jobs without a network".into());
        }
        if let Some(underlay) = &self.underlay {
            if !(1..1 << 24).contains(&underlay.vni) {
                return invalid(format!("vni {} must be between 1 and 16777215", underlay.vni));
            }
            if !underlay.cluster.includes(&self.subnet) {
                return invalid(format!(
                    "subnet {} is not of the cluster's network {}",
                    self.subnet, underlay.cluster
                ));
            }
        }
        let mut ports = self
            .router_ports
            .iter()
            .chain([&self.dns_port])
            .chain(&self.discoverd_port)
            .chain(self.underlay.iter().map(|underlay| &underlay.vxlan_port))
            .chain(self.underlay.iter().map(|underlay| &underlay.tunnel_port))
            .chain(self.host_ports.iter().map(|h| &h.port));
        if ports.any(|port| *port == 0) {
            return invalid("port 0 cannot be opened".into());
        }
        Ok(())
    }

    /// The gateway's other address.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.ipv6.map(|prefix| prefix.address(self.subnet.gateway()))
    }

    /// The host's end of the link of the job in `slot`.
    pub fn interface_name(&self, slot: u32) -> String {
        format!("{}-{slot}", self.interface_prefix)
    }

    /// Leads to the other hosts. Neither a job's link, whose names begin with `PREFIX-`, nor another cluster's: no
    /// prefix has a dot.
    pub fn peer_interface(&self) -> String {
        format!("{}.peers", self.interface_prefix)
    }

    /// The slot whose link has this name, if it is one of ours.
    pub fn slot_of_interface(&self, name: &str) -> Option<u32> {
        let slot = name
            .strip_prefix(&self.interface_prefix)?
            .strip_prefix('-')?
            .parse()
            .ok()?;
        (self.interface_name(slot) == name).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("fl0", "flynn_fl0", "100.100.0.0/22".parse().unwrap())
    }

    #[test]
    fn an_interface_name_leads_back_to_its_slot_and_no_other_name_does() {
        let config = config();
        assert_eq!(config.slot_of_interface("fl0-12"), Some(12));
        for name in [
            "fl0",
            "fl0-",
            "fl0.peers",
            "fl0-012",
            "fl01-12",
            "fl0-x",
            "eth0",
            "fl0-1-2",
        ] {
            assert_eq!(config.slot_of_interface(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_could_break_out_of_the_script_are_refused() {
        for name in [
            "",
            "a b",
            "x;y",
            "x\"",
            "é",
            "../x",
            "0a",
            "lo",
            "a\n",
            "muchtoolongname",
            "longforpeers",
        ] {
            assert!(
                Config {
                    interface_prefix: name.into(),
                    ..config()
                }
                .validate()
                .is_err(),
                "{name}"
            );
        }
        for name in ["", "a b", "x;y", "x\"", "t}", "a\n"] {
            assert!(
                Config {
                    table: name.into(),
                    ..config()
                }
                .validate()
                .is_err(),
                "{name}"
            );
        }
        config().validate().unwrap();
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for subnet in ["100.0.0.0/8", "100.100.0.0/29"] {
            assert!(
                Config {
                    subnet: subnet.parse().unwrap(),
                    ..config()
                }
                .validate()
                .is_err()
            );
        }
        assert!(
            Config {
                mtu: Some(100),
                ..config()
            }
            .validate()
            .is_err()
        );
        for (cluster, vni) in [
            ("100.100.0.0/16", 0),
            ("100.100.0.0/16", 1 << 24),
            ("10.0.0.0/8", 1),
        ] {
            let underlay = Underlay {
                vni,
                ..Underlay::new("10.0.0.1".parse().unwrap(), cluster.parse().unwrap())
            };
            assert!(
                Config {
                    underlay: Some(underlay),
                    ..config()
                }
                .validate()
                .is_err(),
                "{cluster} {vni}"
            );
        }
        assert!(
            Config {
                router_ports: vec![0],
                ..config()
            }
            .validate()
            .is_err()
        );
    }
}
