//! What else on the machine stands in the way of jobs.
//!
//! Accepting a packet in our table does not end its way: every base chain on the same hook is asked, and one that
//! drops wins. Docker sets the policy of `FORWARD` to drop, firewalls often that of `INPUT`. Those tables are other
//! people's, so they are named here and left alone. Only policies are seen: a single foreign rule that drops is not,
//! nor is anything of iptables' old kernel interface beyond its being there.

use std::fmt;
use std::fs;

use crate::nft::{self, Chain};
use crate::{Config, Error};

/// Something that keeps jobs from what they should reach, and what a person can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub problem: String,
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}; hint: {}", self.problem, self.hint)
    }
}

pub(crate) async fn diagnose(config: &Config) -> Result<Vec<Finding>, Error> {
    let chains = nft::chains().await?;
    let mut findings = judge_chains(config, &chains);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    findings.extend(judge_forwarding(
        "net.ipv4.ip_forward",
        &read("/proc/sys/net/ipv4/ip_forward"),
    ));
    if config.ipv6.is_some() {
        findings.extend(judge_forwarding(
            "net.ipv6.conf.all.forwarding",
            &read("/proc/sys/net/ipv6/conf/all/forwarding"),
        ));
    }
    // Names the tables of the old interface; the file is absent where that was never loaded.
    findings.extend(judge_legacy(
        config,
        &fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default(),
    ));
    Ok(findings)
}

fn judge_chains(config: &Config, chains: &[Chain]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !chains
        .iter()
        .any(|chain| chain.family == "inet" && chain.table == config.table)
    {
        findings.push(Finding {
            problem: format!("table inet {} is gone: jobs are neither filtered nor reach the outside", config.table),
            hint: "something flushed the ruleset; restart the daemon, and load other rules without `flush ruleset`".into(),
        });
    }
    for chain in chains {
        let is_foreign = !(chain.family == "inet" && chain.table == config.table);
        let concerns_jobs = match chain.family.as_str() {
            "ip" | "inet" => true,
            "ip6" => config.ipv6.is_some(),
            _ => false,
        };
        if !is_foreign || !concerns_jobs || chain.policy.as_deref() != Some("drop") {
            continue;
        }
        let place = format!("chain {} of table {} {}", chain.name, chain.family, chain.table);
        match chain.hook.as_deref() {
            Some("forward") => findings.push(Finding {
                problem: format!("{place} drops what is forwarded unless one of its own rules accepts it"),
                hint: forward_hint(config),
            }),
            Some("input") => findings.push(Finding {
                problem: format!("{place} drops what comes to this host unless one of its own rules accepts it"),
                hint: format!(
                    "if jobs cannot resolve names, accept what comes from them: iptables -I INPUT -i {}-+ -j ACCEPT",
                    config.interface_prefix
                ),
            }),
            _ => {}
        }
    }
    findings
}

fn judge_forwarding(setting: &str, text: &str) -> Option<Finding> {
    (text.trim() == "0").then(|| Finding {
        problem: format!("{setting} is 0: jobs reach neither each other nor the outside by it"),
        hint: "something turned it off after the daemon's start; set it to 1 or restart the daemon".into(),
    })
}

fn judge_legacy(config: &Config, tables: &str) -> Option<Finding> {
    tables.lines().any(|table| table == "filter").then(|| Finding {
        problem: "iptables-legacy has a filter table, whose policies cannot be seen from here".into(),
        hint: format!(
            "look with `iptables-legacy -S`; if FORWARD drops: {}",
            forward_hint(config)
        ),
    })
}

fn forward_hint(config: &Config) -> String {
    let prefix = &config.interface_prefix;
    format!(
        "accept the jobs' interfaces there (with Docker in DOCKER-USER, else in FORWARD): \
         iptables -I DOCKER-USER -i {prefix}-+ -j ACCEPT; iptables -I DOCKER-USER -o {prefix}-+ -j ACCEPT"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("fl0", "flynn_fl0", "100.100.0.0/22".parse().unwrap())
    }

    fn chain(family: &str, table: &str, hook: Option<&str>, policy: Option<&str>) -> Chain {
        Chain {
            family: family.into(),
            table: table.into(),
            name: "C".into(),
            hook: hook.map(Into::into),
            policy: policy.map(Into::into),
        }
    }

    fn check(foreign: Chain, expected: &[&str]) {
        let findings = judge_chains(&config(), &[chain("inet", "flynn_fl0", None, None), foreign]);
        let problems: Vec<&str> = findings.iter().map(|finding| finding.problem.as_str()).collect();
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, word) in problems.iter().zip(expected) {
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn a_foreign_policy_that_drops_is_named() {
        check(
            chain("ip", "filter", Some("forward"), Some("drop")),
            &["chain C of table ip filter drops what is forwarded"],
        );
        check(
            chain("inet", "firewalld", Some("input"), Some("drop")),
            &["drops what comes to this host"],
        );
    }

    #[test]
    fn what_does_no_harm_is_not_named() {
        check(chain("ip", "filter", Some("forward"), Some("accept")), &[]);
        check(chain("ip6", "filter", Some("forward"), Some("drop")), &[]);
        check(chain("ip", "filter", None, None), &[]);
    }

    #[test]
    fn a_flushed_ruleset_is_named() {
        assert!(
            judge_chains(&config(), &[])[0]
                .problem
                .contains("flynn_fl0 is gone")
        );
    }
}
