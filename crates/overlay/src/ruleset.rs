//! The text of our nftables table.
//!
//! The family is `inet`, so IPv6 passes the same chains; jobs have no IPv6 addresses yet and everything they
//! send by it is dropped at the door, link-local included (else a job could reach the host's services by `fe80::`).
//!
//! Connections that were accepted once stay accepted: taking a link between two apps back stops new ones only.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::nft::Chain;
use crate::plan::AppLink;
use crate::{Config, HostPort, Protocol, Subnet};

/// Beginning of the name of the empty chain that remembers what `ip_forward` was before us.
const FORMER_CHAIN: &str = "former_ip_forward_";

const CHAINS: [&str; 10] = [
    "prerouting",
    "input",
    "forward",
    "segment_size",
    "postrouting",
    "job_to_host",
    "from_job",
    "job_to_job",
    "to_job",
    "refuse",
];

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
    let connections_max = config.connections_per_job_max;
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
    ct state new add @connections {{ ip saddr ct count over {connections_max} }} goto refuse
    ip daddr {gateway} udp dport {dns_port} accept
    ip daddr {gateway} tcp dport {{ {gateway_tcp_ports} }} accept
    ip daddr {gateway} icmp type echo-request accept
{host_ports}    goto refuse
  }}

  chain from_job {{
    ct state established,related accept
    ct state invalid drop
    ct state new add @connections {{ ip saddr ct count over {connections_max} }} goto refuse
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

/// Script that makes the kernel's links the wanted ones. `current` is what it has, if that is known for sure.
pub(crate) fn change_links(
    config: &Config,
    current: Option<&BTreeSet<AppLink>>,
    wanted: &BTreeSet<AppLink>,
) -> String {
    let table = &config.table;
    let mut script = String::new();
    let mut change = |verb: &str, links: &BTreeSet<AppLink>| {
        if !links.is_empty() {
            writeln!(
                script,
                "{verb} element inet {table} links {{ {} }}",
                elements(links)
            )
            .expect("writing to a string");
        }
    };
    match current {
        Some(current) => {
            change("delete", &(current - wanted));
            change("add", &(wanted - current));
            script
        }
        None => {
            change("add", wanted);
            format!("flush set inet {table} links\n{script}")
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn links(pairs: &[(u32, u32)]) -> BTreeSet<AppLink> {
        pairs
            .iter()
            .map(|(from_group, to_group)| AppLink {
                from_group: *from_group,
                to_group: *to_group,
            })
            .collect()
    }

    #[test]
    fn a_change_names_only_what_differs_and_an_unknown_state_is_replaced() {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        let (old, new) = (links(&[(1, 1), (2, 2)]), links(&[(1, 1), (1, 3), (3, 3)]));
        assert_eq!(
            change_links(&config, Some(&old), &new),
            "delete element inet t links { 2 . 2 }\nadd element inet t links { 1 . 3, 3 . 3 }\n"
        );
        assert_eq!(change_links(&config, Some(&new), &new), "");
        assert_eq!(
            change_links(&config, None, &old),
            "flush set inet t links\nadd element inet t links { 1 . 1, 2 . 2 }\n"
        );
        assert_eq!(
            change_links(&config, None, &links(&[])),
            "flush set inet t links\n"
        );
    }

    #[test]
    fn the_list_of_chains_is_that_of_the_table() {
        let config = Config::new("fl0", "t", "100.100.0.0/22".parse().unwrap());
        let text = table(&config, &links(&[]), false);
        let chains: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"))
            .collect();
        assert_eq!(chains[0], "former_ip_forward_0");
        assert_eq!(chains[1..], CHAINS);
    }
}
