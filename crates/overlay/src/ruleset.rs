//! The text of our nftables table.
//!
//! The family is `inet`, so both kinds of addresses pass the same chains. What jobs send by IPv6 from or to anything
//! link-local, or to a group, is dropped at the door: else a job could reach the host's services by `fe80::`. Where jobs
//! have no IPv6 addresses, all of it is.
//!
//! Where no IPv6 route leads, jobs are refused at once and by TCP's own word, for a program that tries that first and
//! then IPv4: the kernel's "no route" is said a few times a second to each job, and not heard while it still connects.
//!
//! Connections that were accepted once stay accepted: taking a link between two apps back stops new ones only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::elements::Elements;
use crate::nft::Chain;
use crate::{Config, Former, HostPort, Prefix6, Protocol, Subnet, Subnet6, Underlay};

/// Beginnings of the names of the empty chains that remember what `ip_forward`, and IPv6's switch, were before us.
const FORMER_CHAIN: &str = "former_ip_forward_";
const FORMER_CHAIN6: &str = "former_ipv6_forwarding_";

/// Where clouds serve the machine's own credentials by IPv6 (EC2, Google), and what is this link's only.
const BLOCKED6: [&str; 3] = ["fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128"];

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

/// What kind of packet is inside: the last two bytes of Ethernet's 14, after 8 of UDP and 8 of VXLAN.
const INNER_KIND: &str = "@th,224,16";

/// The inner packet's source: from the 13th byte of an IPv4 head on.
const INNER_SOURCE: &str = "@th,336,32";

/// The same with IPv6: the last four bytes, which are the job's IPv4 address. The others are judged when the packet is
/// out of its wrapping.
const INNER_SOURCE6: &str = "@th,400,32";

/// Script that replaces the table in one transaction; conntrack and with it open connections are not touched.
pub(crate) fn table(config: &Config, contents: &Elements, former: Former) -> String {
    let table = &config.table;
    let jobs = format!("\"{}-*\"", config.interface_prefix);
    let gateway = config.subnet.gateway();
    let subnet = config.subnet;
    let peers = config.peer_interface();
    let [
        links,
        admitted,
        admitted6,
        gateways,
        gateways6,
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
    } = config
        .underlay
        .as_ref()
        .map(|underlay| between(underlay, config.ipv6))
        .unwrap_or_default();
    let Six {
        door,
        no_route,
        peer_door,
        gateway6,
        masquerade6,
        gateway_ports6,
        peer_gateways6,
        cluster6,
        admit6,
    } = match config.ipv6 {
        Some(prefix) => six(config, prefix),
        None => Six {
            door: format!("    iifname {jobs} meta nfproto != ipv4 drop\n"),
            peer_door: format!("    iifname \"{peers}\" meta nfproto != ipv4 drop\n"),
            ..Six::default()
        },
    };
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
    let blocked6 = BLOCKED6.map(|text| text.parse().expect("a literal network"));
    let translated = config.blocked.iter().map(|blocked| Subnet6::translated(*blocked));
    let blocked6 = join(
        (config.blocked6.iter().copied())
            .chain(blocked6)
            .chain(translated)
            .collect::<BTreeSet<Subnet6>>(),
    );
    let former6 = match former.ipv6 {
        Some(is_on) => format!("\n  chain {FORMER_CHAIN6}{} {{\n  }}\n", u8::from(is_on)),
        None => String::new(),
    };
    let former = u8::from(former.ipv4);
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

  set admitted6 {{
    type ipv6_addr . devgroup{admitted6}
  }}

  set gateways {{
    type ipv4_addr{gateways}
  }}

  set gateways6 {{
    type ipv6_addr{gateways6}
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

  set blocked6 {{
    type ipv6_addr
    flags interval
    auto-merge
    elements = {{ {blocked6} }}
  }}

  set connections {{
    typeof iif
    size 65535
    flags dynamic
  }}

  chain {FORMER_CHAIN}{former} {{
  }}
{former6}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
{door}    iifname {jobs} fib saddr . iif oif missing drop
{no_route}{peer_door}    iifname "{peers}" fib saddr . iif oif missing drop
{untracked_in}  }}

  chain output {{
    type filter hook output priority raw; policy accept;
{untracked_out}  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {jobs} goto job_to_host
    iifname "{peers}" goto peer_to_host
    ip daddr {gateway} iifname != "lo" goto refuse
{gateway6}{into_underlay}  }}

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
{masquerade6}  }}

  chain underlay {{
{underlay}    drop
  }}

  chain job_to_host {{
    ct state established,related accept
    ct state new add @connections {{ iif ct count over {connections_max} }} goto refuse
    ip daddr {gateway} udp dport {dns_port} accept
    ip daddr {gateway} tcp dport {{ {gateway_tcp_ports} }} accept
    ip daddr {gateway} icmp type echo-request accept
{gateway_ports6}{host_ports}    goto refuse
  }}

  chain peer_to_host {{
    ct state established,related accept
    ip saddr @gateways icmp type echo-request accept
{peer_gateways6}    goto refuse
  }}

  chain from_job {{
    ct state established,related accept
    ct state invalid drop
    ct state new add @connections {{ iif ct count over {connections_max} }} goto refuse
    oifname {jobs} goto job_to_job
    oifname "{peers}" accept
{to_routers}    ip daddr @underlays goto refuse
    ip6 daddr @underlays6 goto refuse
{cluster}{cluster6}    ip daddr @blocked goto refuse
    ip6 daddr @blocked6 goto refuse
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
{admit6}    goto refuse
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
pub(crate) fn former_ipv4(chain: &str) -> Option<bool> {
    was_on(chain.strip_prefix(FORMER_CHAIN)?)
}

/// The same of IPv6.
pub(crate) fn former_ipv6(chain: &str) -> Option<bool> {
    was_on(chain.strip_prefix(FORMER_CHAIN6)?)
}

fn was_on(digit: &str) -> Option<bool> {
    match digit {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// Rules that stand only where jobs have IPv6 addresses.
#[derive(Default)]
struct Six {
    door: String,
    no_route: String,
    peer_door: String,
    gateway6: String,
    masquerade6: String,
    gateway_ports6: String,
    peer_gateways6: String,
    cluster6: String,
    admit6: String,
}

fn six(config: &Config, prefix: Prefix6) -> Six {
    let jobs = format!("\"{}-*\"", config.interface_prefix);
    let peers = format!("\"{}\"", config.peer_interface());
    let gateway = prefix.address(config.subnet.gateway());
    let subnet = prefix.subnet(config.subnet);
    let router_ports = join(config.router_ports.iter().collect::<BTreeSet<_>>());
    // Names and discovery are answered by IPv4 only: whoever else listens there is none of a job's business.
    let to_router = match router_ports.is_empty() {
        true => String::new(),
        false => format!("    ip6 daddr {gateway} tcp dport {{ {router_ports} }} accept\n"),
    };
    let door = |from: &str| {
        format!(
            "    iifname {from} ip6 saddr != {prefix} drop\n    \
             iifname {from} ip6 daddr {{ fe80::/10, ff00::/8 }} drop\n"
        )
    };
    Six {
        door: door(&jobs),
        no_route: format!("    iifname {jobs} meta nfproto ipv6 fib daddr type unreachable goto refuse\n"),
        peer_door: door(&peers),
        gateway6: format!("    ip6 daddr {gateway} iifname != \"lo\" goto refuse\n"),
        masquerade6: format!(
            "    ip6 saddr {subnet} oifname != \"lo\" oifname != {jobs} oifname != {peers} masquerade\n"
        ),
        gateway_ports6: format!("{to_router}    ip6 daddr {gateway} icmpv6 type echo-request accept\n"),
        peer_gateways6: "    ip6 saddr @gateways6 icmpv6 type echo-request accept\n".into(),
        cluster6: format!("    ip6 daddr {prefix} goto refuse\n"),
        admit6: "    ip6 saddr @gateways6 accept\n    ip6 saddr . oifgroup @admitted6 accept\n".into(),
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

fn between(underlay: &Underlay, ipv6: Option<Prefix6>) -> Between {
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
                let accept = |kind: &str, source: &str| {
                    format!(
                        "    {family} daddr {address} {INNER_KIND} {kind} {family} saddr . {source} @{sources} accept\n"
                    )
                };
                let ipv6 = ipv6.map(|_| accept("0x86dd", INNER_SOURCE6)).unwrap_or_default();
                accept("0x0800", INNER_SOURCE) + &ipv6
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
        let former = Former {
            ipv4: false,
            ipv6: None,
        };
        let text = table(&config, &Elements::default(), former);
        let chains: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"))
            .collect();
        assert_eq!(chains[0], "former_ip_forward_0");
        assert_eq!(chains[1..], CHAINS);
    }
}
