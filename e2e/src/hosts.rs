//! Several hosts of one cluster, each in a network namespace of its own, with a switch between them.
//!
//! Each is a [`Cluster`] value: what is done to it is done on that host.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Cluster, Switch};

pub struct Hosts {
    pub hosts: Vec<Cluster>,
    pub switch: Switch,
}

impl Hosts {
    /// `count` hosts that know nothing of each other.
    pub fn prepare(count: usize) -> Result<Hosts> {
        let name = format!("fe{}", std::process::id());
        let switch = Switch::new(&format!("{name}s"))?;
        let mut hosts = vec![];
        for number in 1..=count {
            let name = format!("{name}{}", char::from(b'a' + number as u8 - 1));
            let net = switch.host(&name, &address(number))?;
            hosts.push(Cluster::prepare_host(name, net, &format!("host{number}"))?);
        }
        Ok(Hosts { hosts, switch })
    }

    /// A cluster: the first host founds it, the others join.
    pub fn start(count: usize) -> Result<Hosts> {
        Hosts::prepare(count)?.started()
    }

    /// The same, each with programs of its own, which may be replaced.
    pub fn start_with_own_programs(count: usize) -> Result<Hosts> {
        let Hosts { hosts, switch } = Hosts::prepare(count)?;
        let hosts = hosts.into_iter().map(Cluster::with_own_programs);
        let hosts = hosts.collect::<Result<_>>()?;
        Hosts { hosts, switch }.started()
    }

    fn started(self) -> Result<Hosts> {
        let mut hosts = self;
        let count = hosts.hosts.len();
        hosts.hosts[0].flynn_host(&["init", "--address", &address(1)])?;
        hosts.hosts[0].boot()?;
        for number in 1..count {
            hosts.join(number)?;
        }
        for host in &hosts.hosts {
            host.add_to_cli()?;
        }
        Ok(hosts)
    }

    /// Makes the host a member and starts it.
    pub fn join(&mut self, host: usize) -> Result<()> {
        let token = self.hosts[0].flynn_host(&["token"])?;
        self.hosts[host].flynn_host(&["join", &address(1), "--token", token.trim()])?;
        self.hosts[host].boot()
    }

    /// What `flynn-host list` says on a host, without the head: id and status.
    pub fn list(&self, on: usize) -> Result<Vec<(String, String)>> {
        let text = self.hosts[on].flynn_host(&["list"])?;
        let rows = text.lines().skip(1).filter_map(|line| {
            let (id, rest) = line.split_once(' ')?;
            let (_, status) = rest.trim_start().split_once(' ')?;
            Some((id.to_owned(), status.trim().to_owned()))
        });
        Ok(rows.collect())
    }

    /// Waits until the list on a host is this.
    pub fn wait_for_list(
        &self,
        on: usize,
        what: &str,
        is_so: impl Fn(&[(String, String)]) -> bool,
    ) -> Result<()> {
        self.hosts[on].wait(what, || {
            let list = self.list(on)?;
            match is_so(&list) {
                true => Ok(Some(())),
                false => anyhow::bail!("the list is {list:?}"),
            }
        })
    }

    /// The index of the host that leads, as the others see it.
    pub fn leader(&self, on: usize) -> Result<usize> {
        self.hosts[on].wait("a leader", || {
            let list = self.list(on)?;
            Ok(list.iter().position(|(_, status)| status == "peer (leader)"))
        })
    }

    /// Creates an app by the API of a host; how long it took.
    pub fn write(&self, on: usize, name: &str) -> Result<Duration> {
        let began = Instant::now();
        let body = json!({"name": name});
        self.hosts[on].api("POST", "/apps", Some(&body))?;
        Ok(began.elapsed())
    }

    pub fn apps(&self, on: usize) -> Result<Vec<String>> {
        let apps = self.hosts[on].api("GET", "/apps", None)?;
        let apps = apps.as_array().context("a list of apps")?;
        Ok(apps
            .iter()
            .filter_map(|app| app["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// On which hosts an app's jobs are that are up.
    pub fn job_hosts(&self, on: usize, app: &str) -> Result<Vec<String>> {
        let jobs: Vec<Value> = self.hosts[on].jobs(app, "up")?;
        let mut hosts: Vec<_> = jobs
            .iter()
            .filter_map(|job| job["host_id"].as_str().map(str::to_owned))
            .collect();
        hosts.sort();
        Ok(hosts)
    }

    /// Ends all hosts and checks that nothing is left of them.
    pub fn finish(self) -> Result<()> {
        for host in self.hosts {
            host.finish()?;
        }
        Ok(())
    }
}

pub fn address(number: usize) -> String {
    format!("10.77.0.{number}")
}
