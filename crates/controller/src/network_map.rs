//! What a host is told of the others: how they are reached, and which of their jobs may reach its own.
//!
//! The host that receives decides, so a host hears of an app only what its own jobs of that app have
//! to do with: the addresses of those who may come. A job more or less is one message to each host
//! that it concerns, and none to the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::host::{Assignment, NetworkChange, NetworkHost};
use types::{AppId, HostId};

use crate::by_host::ByHost;

#[derive(Debug, Clone, Default)]
pub struct NetworkMap {
    /// All hosts, and which of them this one is: it is not told of itself.
    hosts: Arc<BTreeMap<HostId, NetworkHost>>,
    own: Option<HostId>,
    /// (app, address): the job there may open connections to this host's jobs of the app.
    admitted: BTreeSet<(AppId, IpAddr)>,
    /// (from, to), both with jobs on this host.
    links: BTreeSet<(AppId, AppId)>,
}

impl NetworkMap {
    fn other(&self, id: &HostId) -> Option<&NetworkHost> {
        self.hosts.get(id).filter(|_| self.own.as_ref() != Some(id))
    }
}

pub fn network_map(sorted: &ByHost, host: &HostId) -> NetworkMap {
    let here = sorted.apps(host);
    let admitted = here
        .iter()
        .flat_map(|app| sorted.sources(*app, host).map(|address| (*app, address)));
    let links = sorted.links().iter();
    NetworkMap {
        hosts: sorted.hosts().clone(),
        own: Some(host.clone()),
        admitted: admitted.collect(),
        links: links
            .filter(|(from, to)| here.contains(from) && here.contains(to))
            .copied()
            .collect(),
    }
}

/// Messages that lead from one map to another.
pub fn changes(before: &NetworkMap, now: &NetworkMap) -> Vec<Assignment> {
    // With thousands of hosts this is what takes time, and hosts hardly change.
    let are_same_hosts = Arc::ptr_eq(&before.hosts, &now.hosts);
    let ids = |map: &NetworkMap| match are_same_hosts {
        true => vec![],
        false => map.hosts.keys().cloned().collect(),
    };
    let hosts = ids(now).into_iter().filter_map(|id| {
        let host = now.other(&id)?;
        (before.other(&id) != Some(host)).then(|| NetworkChange::Host(host.clone()))
    });
    let hosts_gone = ids(before)
        .into_iter()
        .filter(|id| before.other(id).is_some() && now.other(id).is_none())
        .map(NetworkChange::HostGone);
    let admitted = now.admitted.difference(&before.admitted);
    let admitted = admitted.map(|(app, address)| NetworkChange::Admit {
        app: *app,
        address: *address,
    });
    let no_longer = before.admitted.difference(&now.admitted);
    let no_longer = no_longer.map(|(app, address)| NetworkChange::AdmitNoLonger {
        app: *app,
        address: *address,
    });
    let links = now.links.difference(&before.links);
    let links = links.map(|(from, to)| NetworkChange::Link { from: *from, to: *to });
    let unlinked = before.links.difference(&now.links);
    let unlinked = unlinked.map(|(from, to)| NetworkChange::Unlink { from: *from, to: *to });
    // Who may no longer comes first: an address may be given from one app to another in one change.
    no_longer
        .chain(unlinked)
        .chain(hosts_gone)
        .chain(hosts)
        .chain(admitted)
        .chain(links)
        .map(|change| Assignment::Network { change })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use state::State;
    use types::{Host, Job, Uuid};

    use super::*;

    const NOW: &str = "2026-11-23T00:00:00Z";

    /// `host1` is at 10.0.0.1 with 100.100.1.0/24, unless it is `alone`; `a1 on host1 up` is job 1 of app a, at
    /// 100.100.1.1.
    fn state(text: &str) -> State {
        let mut state = State::default();
        for line in text.split(", ") {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["host", name, ref rest @ ..] => {
                    let number = name.trim_start_matches("host");
                    let mut row = json!({
                        "id": name, "addr": "", "state": "up", "memory_bytes": 0, "cpu_milli": 0, "version": "",
                        "created_at": NOW, "started_at": NOW,
                    });
                    if *rest != ["alone"] {
                        row["subnet"] = format!("100.100.{number}.0/24").into();
                        row["underlay"] = rest
                            .first()
                            .map_or(format!("10.0.0.{number}"), |it| it.to_string())
                            .into();
                    }
                    let host: Host = serde_json::from_value(row).unwrap();
                    state.hosts.insert(host.id.clone(), Arc::new(host));
                }
                ["app", from, "to", to] => {
                    let app: types::App = serde_json::from_value(json!({
                        "id": app_id(from), "name": from, "meta": { types::META_LINKS: format!("x,{}", app_id(to)) },
                        "strategy": "all-at-once", "deploy_timeout": 1, "created_at": NOW, "updated_at": NOW,
                    }))
                    .unwrap();
                    state.apps.insert(app.id, Arc::new(app));
                }
                [job, "on", host, job_state] => {
                    let (app, number) = job.split_at(1);
                    let address = match job_state {
                        "starting" => None,
                        _ => Some(format!("100.100.{}.{number}", host.trim_start_matches("host"))),
                    };
                    let id = format!("{app}{number}{host}")
                        .bytes()
                        .fold(0, |id, byte| id * 131 + u128::from(byte));
                    let job: Job = serde_json::from_value(json!({
                        "id": Uuid::from_u128(id), "app": app_id(app), "process_type": "web", "state": job_state,
                        "host": host, "address": address, "created_at": NOW, "updated_at": NOW,
                    }))
                    .unwrap();
                    state.jobs.insert(job.id, Arc::new(job));
                }
                _ => panic!("{line}"),
            }
        }
        state
    }

    fn app_id(name: &str) -> AppId {
        AppId(Uuid::from_bytes([name.as_bytes()[0]; 16]))
    }

    fn name(app: AppId) -> char {
        app.0.as_bytes()[0] as char
    }

    /// What host1 is told when the cluster goes from `before` to `after`.
    fn check(before: &str, after: &str, expected: &str) {
        let host: HostId = "host1".parse().unwrap();
        let map = |text: &str| match text {
            "" => NetworkMap::default(),
            text => network_map(&ByHost::new(&state(text), None), &host),
        };
        let (before, after) = (map(before), map(after));
        let messages = changes(&before, &after);
        let lines = messages.into_iter().map(|message| match message {
            Assignment::Network { change } => match change {
                NetworkChange::Host(host) => format!("{} {} at {}", host.id, host.subnet, host.underlay),
                NetworkChange::HostGone(host) => format!("{host} gone"),
                NetworkChange::Admit { app, address } => format!("{} from {address}", name(app)),
                NetworkChange::AdmitNoLonger { app, address } => format!("{} not from {address}", name(app)),
                NetworkChange::Link { from, to } => format!("{} to {}", name(from), name(to)),
                NetworkChange::Unlink { from, to } => format!("{} not to {}", name(from), name(to)),
            },
            other => panic!("{other:?}"),
        });
        assert_eq!(lines.collect::<Vec<_>>().join(", "), expected);
        assert!(changes(&after, &after).is_empty());
    }

    const HOSTS: &str = "host host1, host host2, host host3";

    #[test]
    fn a_host_hears_of_other_hosts_and_of_jobs_of_apps_that_it_has() {
        check(
            "",
            &format!("{HOSTS}, a1 on host1 up, a2 on host2 up, a3 on host3 stopping, b4 on host2 up"),
            "host2 100.100.2.0/24 at 10.0.0.2, host3 100.100.3.0/24 at 10.0.0.3, \
             a from 100.100.2.2, a from 100.100.3.3",
        );
    }

    #[test]
    fn a_job_more_or_less_is_one_message() {
        let before = format!("{HOSTS}, a1 on host1 starting, a2 on host2 up, a3 on host3 up");
        check(
            &before,
            &format!("{before}, a4 on host3 up"),
            "a from 100.100.3.4",
        );
        check(
            &format!("{before}, a4 on host3 up"),
            &before,
            "a not from 100.100.3.4",
        );
        check(&before, &format!("{before}, b4 on host3 up"), "");
        check(
            &before,
            &before.replace("a2 on host2 up", "a2 on host2 down"),
            "a not from 100.100.2.2",
        );
    }

    #[test]
    fn with_its_last_job_an_app_is_forgotten_and_with_its_first_all_of_it_is_told() {
        let with = format!("{HOSTS}, a1 on host1 up, a2 on host2 up, a3 on host3 up");
        let without = format!("{HOSTS}, a1 on host1 down, a2 on host2 up, a3 on host3 up");
        check(&with, &without, "a not from 100.100.2.2, a not from 100.100.3.3");
        check(&without, &with, "a from 100.100.2.2, a from 100.100.3.3");
    }

    #[test]
    fn an_address_that_goes_to_another_app_is_first_taken_from_the_one_before() {
        check(
            &format!("{HOSTS}, b9 on host1 up, a9 on host1 up, b2 on host2 up"),
            &format!("{HOSTS}, b9 on host1 up, a9 on host1 up, a2 on host2 up"),
            "b not from 100.100.2.2, a from 100.100.2.2",
        );
    }

    #[test]
    fn a_host_that_moves_is_told_of_and_one_without_an_underlay_is_not() {
        check(
            HOSTS,
            "host host1, host host2 10.0.0.22, host host3 alone",
            "host3 gone, host2 100.100.2.0/24 at 10.0.0.22",
        );
    }

    #[test]
    fn a_link_admits_one_way_on_this_host_and_from_others() {
        let before = format!("{HOSTS}, a1 on host1 up, b2 on host1 up, a3 on host2 up, b4 on host2 up");
        check(HOSTS, &before, "a from 100.100.2.3, b from 100.100.2.4");
        let after = format!("{before}, app a to b");
        check(&before, &after, "b from 100.100.2.3, a to b");
        check(&after, &before, "b not from 100.100.2.3, a not to b");
    }

    #[test]
    fn a_link_to_an_app_without_jobs_here_is_told_when_it_has_one() {
        let before = format!("{HOSTS}, app a to b, a1 on host1 up, a3 on host2 up, b4 on host2 up");
        check(HOSTS, &before, "a from 100.100.2.3");
        check(
            &before,
            &format!("{before}, b2 on host1 up"),
            "b from 100.100.2.3, b from 100.100.2.4, a to b",
        );
        check(
            "host host1",
            "host host1, app a to b, a1 on host1 up, b2 on host1 up",
            "a to b",
        );
    }
}
