//! The text of our nftables table.
//!
//! The family is `inet`, so IPv6 passes the same chains; jobs have no IPv6 addresses yet and everything they
//! send by it is dropped at the door, link-local included (else a job could reach the host's services by `fe80::`).
//!
//! Connections that were accepted once stay accepted: taking a link between two apps back stops new ones only.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::plan::AppLink;
use crate::{Config, HostPort, Protocol, Subnet};

/// Beginning of the name of the empty chain that remembers what `ip_forward` was before us.
const FORMER_CHAIN: &str = "former_ip_forward_";

/// Script that replaces the table in one transaction; conntrack and with it open connections are not touched.
pub(crate) fn table(config: &Config, links: &BTreeSet<AppLink>, ip_forward_former: bool) -> String {
    let table = &config.table;
    let jobs = format!("\"{}-*\"", config.interface_prefix);
    let gateway = config.subnet.gateway();
    let subnet = config.subnet;
    let elements = match links.is_empty() {
        true => String::new(),
        false => format!("\n    elements = {{ {} }}", elements(links)),
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
    let former = u8::from(ip_forward_former);
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
  set links {{
    type devgroup . devgroup{elements}
  }}

  set blocked {{
    type ipv4_addr
    flags interval
    auto-merge
    elements = {{ {blocked} }}
  }}

  chain {FORMER_CHAIN}{former} {{
  }}

  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {jobs} meta nfproto != ipv4 drop
    iifname {jobs} fib saddr . iif oif missing drop
  }}

  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {jobs} goto job_to_host
    ip daddr {gateway} iifname != "lo" goto refuse
  }}

  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {jobs} goto from_job
    oifname {jobs} goto to_job
  }}

  chain segment_size {{
    type filter hook forward priority mangle; policy accept;
    iifname {jobs} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    oifname {jobs} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }}

  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "lo" oifname != {jobs} masquerade
  }}

  chain job_to_host {{
    ct state established,related accept
    ip daddr {gateway} udp dport {dns_port} accept
    ip daddr {gateway} tcp dport {{ {gateway_tcp_ports} }} accept
    ip daddr {gateway} icmp type echo-request accept
{host_ports}    goto refuse
  }}

  chain from_job {{
    ct state established,related accept
    ct state invalid drop
    oifname {jobs} goto job_to_job
    ip daddr @blocked goto refuse
    accept
  }}

  chain job_to_job {{
    iifgroup . oifgroup @links accept
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

/// Script that turns one set of links into another; empty if they are the same.
pub(crate) fn change_links(config: &Config, from: &BTreeSet<AppLink>, to: &BTreeSet<AppLink>) -> String {
    let mut script = String::new();
    for (verb, links) in [("delete", from - to), ("add", to - from)] {
        if !links.is_empty() {
            writeln!(
                script,
                "{verb} element inet {} links {{ {} }}",
                config.table,
                elements(&links)
            )
            .expect("writing to a string");
        }
    }
    script
}

/// What `ip_forward` was before the first cluster came, if this is the chain that remembers it.
pub(crate) fn former_ip_forward(chain: &str) -> Option<bool> {
    match chain.strip_prefix(FORMER_CHAIN)? {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
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

fn elements(links: &BTreeSet<AppLink>) -> String {
    join(
        links
            .iter()
            .map(|link| format!("{} . {}", link.from_group, link.to_group)),
    )
}

fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
