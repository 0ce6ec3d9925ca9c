//! The text of our nftables table.
//!
//! The family is `inet`, so IPv6 passes the same chains; jobs have no IPv6 addresses yet and everything they
//! send by it is dropped at the door, link-local included (else a job could reach the host's services by `fe80::`).
//!
//! Connections that were accepted once stay accepted: taking a link between two apps back stops new ones only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::elements::Elements;
use crate::nft::Chain;
use crate::{Config, HostPort, Protocol, Subnet, Underlay};

/// Beginning of the name of the empty chain that remembers what `ip_forward` was before us.
const FORMER_CHAIN: &str = "former_ip_forward_";

const CHAINS: [&str; 14] = [
    "prerouting",
    "output",
    "input",
    "forward",
    "segment_size",
    "postrouting",
    "underlay",
    "job_to_host",
    "peer_to_host",
    "from_job",
    "job_to_job",
    "from_peer",
    "to_job",
    "refuse",
];

/// In a VXLAN packet, from the head of UDP on, in bits: the number of the network.
const INNER_NETWORK: &str = "@th,96,24";

/// The same for the inner packet's source: 8 bytes of UDP, 8 of VXLAN, 14 of Ethernet, then the 13th byte of an IPv4 head.
const INNER_SOURCE: &str = "@th,336,32";

/// Script that replaces the table in one transaction; conntrack and with it open connections are not touched.
pub(crate) fn table(config: &Config, contents: &Elements, ip_forward_former: bool) -> String {
    let table = &config.table;
    let jobs = format!("\"{}-*\"", config.interface_prefix);
    let gateway = config.subnet.gateway();
    let subnet = config.subnet;
    let peers = config.peer_interface();
    let [
        links,
        admitted,
        gateways,
        underlays,
        underlays6,
        sources,
        sources6,
    ] = contents.declared();
    let router_ports = join(config.router_ports.iter().collect::<BTreeSet<_>>());
    let to_routers: String = match router_ports.is_empty() {
        true => String::new(),
        false => ["ip daddr @underlays", "ip6 daddr @underlays6"]
            .map(|is_host| format!("    {is_host} tcp dport {{ {router_ports} }} accept\n"))
            .concat(),
    };
    let Between {
        untracked_in,
        untracked_out,
        into_underlay,
        underlay,
        cluster,
    } = config.underlay.as_ref().map(between).unwrap_or_default();
    let gateway_tcp_ports = join(
        [config.dns_port]
            .iter()
            .chain(&config.router_ports)
            .chain(&config.discoverd_port)
            .collect::<BTreeSet<_>>(),
    );
    let dns_port = config.dns_port;
    let host_ports: String = config.host_ports.iter().map(host_port).collect();
    let link_local: Subnet = "169.254.0.0/16".parse().expect("a literal network");
    let blocked = join(
        config
            .blocked
            .iter()
            .chain([&link_local])
            .collect::<BTreeSet<_>>(),
    );
    let former = u8::from(ip_forward_former);
    let connections_max = config.connections_per_job_max;
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
  set links {{
    type devgroup . devgroup{links}
  }}

  set admitted {{
    type ipv4_addr . devgroup{admitted}
  }}

  set gateways {{
    type ipv4_addr{gateways}
  }}

  set underlays {{
    type ipv4_addr{underlays}
  }}

  set underlays6 {{
    type ipv6_addr{underlays6}
  }}

  set sources {{
    typeof ip saddr . {INNER_SOURCE}
    flags interval{sources}
  }}

  set sources6 {{
    typeof ip6 saddr . {INNER_SOURCE}
    flags interval{sources6}
  }}

  set blocked {{
    type ipv4_addr
    flags interval
    auto-merge
    elements = {{ {blocked} }}
  }}

  set connections {{
    type ipv4_addr
    size 65535
    flags dynamic
  }}

  chain {FORMER_CHAIN}{former} {{
  }}

  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {jobs} meta nfproto != ipv4 drop
    iifname {jobs} fib saddr . iif oif missing drop
    iifname "{peers}" meta nfproto != ipv4 drop
    iifname "{peers}" fib saddr . iif oif missing drop
{untracked_in}  }}

  chain output {{
    type filter hook output priority raw; policy accept;
{untracked_out}  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {jobs} goto job_to_host
    iifname "{peers}" goto peer_to_host
    ip daddr {gateway} iifname != "lo" goto refuse
{into_underlay}  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {jobs} goto from_job
    iifname "{peers}" goto from_peer
    oifname {jobs} goto to_job
    oifname "{peers}" goto refuse
  }}

  chain segment_size {{
    type filter hook forward priority mangle; policy accept;
    iifname {jobs} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    oifname {jobs} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "lo" oifname != {jobs} oifname != "{peers}" masquerade
  }}

  chain underlay {{
{underlay}    drop
  }}

  chain job_to_host {{
    ct state established,related accept
    ct state new add @connections {{ ip saddr ct count over {connections_max} }} goto refuse
    ip daddr {gateway} udp dport {dns_port} accept
    ip daddr {gateway} tcp dport {{ {gateway_tcp_ports} }} accept
    ip daddr {gateway} icmp type echo-request accept
{host_ports}    goto refuse
  }}

  chain peer_to_host {{
    ct state established,related accept
    ip saddr @gateways icmp type echo-request accept
    goto refuse
  }}

  chain from_job {{
    ct state established,related accept
    ct state invalid drop
    ct state new add @connections {{ ip saddr ct count over {connections_max} }} goto refuse
    oifname {jobs} goto job_to_job
    oifname "{peers}" accept
{to_routers}    ip daddr @underlays goto refuse
    ip6 daddr @underlays6 goto refuse
{cluster}    ip daddr @blocked goto refuse
    accept
  }}

  chain job_to_job {{
    iifgroup . oifgroup @links accept
    goto refuse
  }}

  chain from_peer {{
    oifname != {jobs} goto refuse
    ct state established,related accept
    ct state invalid drop
    ip saddr @gateways accept
    ip saddr . oifgroup @admitted accept
    goto refuse
  }}

  chain to_job {{
    ct state established,related accept
    goto refuse
  }}

  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
}}
"#
    )
}

/// Whether the table in the kernel has every chain that [`table`] makes. What is *in* the chains is not looked at:
/// this is for another program's `flush ruleset`, not for an administrator who edits rules on purpose.
pub(crate) fn is_complete(config: &Config, chains: &[Chain]) -> bool {
    let names: BTreeSet<&str> = chains
        .iter()
        .filter(|chain| chain.family == "inet" && chain.table == config.table)
        .map(|chain| chain.name.as_str())
        .collect();
    CHAINS.iter().all(|name| names.contains(name))
}

/// What `ip_forward` was before the first cluster came, if this is the chain that remembers it.
pub(crate) fn former_ip_forward(chain: &str) -> Option<bool> {
    match chain.strip_prefix(FORMER_CHAIN)? {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Rules that only a host with others has.
#[derive(Default)]
struct Between {
    untracked_in: String,
    untracked_out: String,
    into_underlay: String,
    underlay: String,
    cluster: String,
}

fn between(underlay: &Underlay) -> Between {
    let Underlay {
        address,
        cluster,
        vni,
        vxlan_port,
        tunnel_port,
        ..
    } = underlay;
    let is_vxlan = format!("udp dport {vxlan_port} {INNER_NETWORK} {vni}");
    let is_ours = match underlay.is_encrypted() {
        true => format!("udp dport {tunnel_port}"),
        false => is_vxlan.clone(),
    };
    let (family, sources) = match address {
        IpAddr::V4(_) => ("ip", "sources"),
        IpAddr::V6(_) => ("ip6", "sources6"),
    };
    Between {
        // The outside of a packet needs no connection in the kernel's table; the inside has its own.
        untracked_in: format!("    {family} daddr {address} {is_ours} notrack\n"),
        untracked_out: format!("    {family} saddr {address} {is_ours} notrack\n"),
        into_underlay: format!("    {is_vxlan} goto underlay\n"),
        // A host that encrypts takes nothing that is not, whoever sends it.
        underlay: match underlay.is_encrypted() {
            true => String::new(),
            false => {
                format!("    {family} daddr {address} {family} saddr . {INNER_SOURCE} @{sources} accept\n")
            }
        },
        cluster: format!("    ip daddr {cluster} goto refuse\n"),
    }
}

fn host_port(port: &HostPort) -> String {
    let address = port
        .address
        .map(|address| format!("ip daddr {address} "))
        .unwrap_or_default();
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("    {address}{protocol} dport {} accept\n", port.port)
}

fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_chains_is_that_of_the_table() {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        let text = table(&config, &Elements::default(), false);
        let chains: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"))
            .collect();
        assert_eq!(chains[0], "former_ip_forward_0");
        assert_eq!(chains[1..], CHAINS);
    }
}
