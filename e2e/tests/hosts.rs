//! Three hosts: they join with one command each, and no one's end takes the cluster down.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{Hosts, Process, server};

/// The target is 2 s, which `script/chaos leader` measures; other tests run beside this one.
const WRITES_AGAIN_MAX: Duration = Duration::from_secs(8);

/// The target for a power cut, from the last start.
const SERVES_AGAIN_MAX: Duration = Duration::from_secs(10);
const POWER_CUTS: usize = 20;

#[test]
fn three_hosts_become_a_cluster_that_outlives_its_leader() -> Result<()> {
    let mut hosts = Hosts::start(3)?;
    for on in 0..3 {
        hosts.wait_for_list(on, "three peers", |list| {
            let votes = list
                .iter()
                .filter(|(_, status)| status.starts_with("peer"))
                .count();
            let leads = list
                .iter()
                .filter(|(_, status)| status == "peer (leader)")
                .count();
            (list.len(), votes, leads) == (3, 3, 1)
        })?;
    }
    // Any host takes a write, and what was written by one is read by another at once.
    for (on, name) in ["one", "two", "three"].into_iter().enumerate() {
        hosts.write(on, name)?;
        ensure!(hosts.apps((on + 1) % 3)?.contains(&name.to_owned()));
    }

    hosts.hosts[1].app("shop", &[Process::worker("echo working; exec sleep 1000")], 3)?;
    hosts.hosts[1].wait("a job on every host", || {
        Ok((hosts.job_hosts(1, "shop")? == ["host1", "host2", "host3"]).then_some(()))
    })?;
    let log = |hosts: &Hosts, on: usize| hosts.hosts[on].api_text(&format!("/apps/{}/log", "shop"));
    hosts.hosts[2].wait("the log of all hosts", || {
        let text = log(&hosts, 2)?;
        Ok((text.matches("working").count() >= 3).then_some(()))
    })?;

    let leader = hosts.leader(0)?;
    let others: Vec<usize> = (0..3).filter(|host| *host != leader).collect();
    let killed = Instant::now();
    hosts.hosts[leader].cut_power()?;
    hosts.write(others[0], "after-the-end")?;
    let took = killed.elapsed();
    println!("writes again after {took:?}");
    ensure!(took <= WRITES_AGAIN_MAX, "writes only after {took:?}");
    hosts.write(others[1], "by-the-other")?;

    hosts.hosts[others[0]].wait("the jobs to be replaced", || {
        let on = hosts.job_hosts(others[0], "shop")?;
        let gone = format!("host{}", leader + 1);
        Ok((on.len() == 3 && !on.contains(&gone)).then_some(()))
    })?;
    println!("jobs replaced after {:?}", killed.elapsed());

    hosts.hosts[leader].boot()?;
    hosts.wait_for_list(leader, "all three back", |list| {
        list.len() == 3 && list.iter().all(|(_, status)| !status.contains("silent"))
    })?;
    // What a host tells that has just come back is not what it knew before.
    ensure!(hosts.apps(leader)?.contains(&"after-the-end".to_owned()));

    hosts.finish()
}

/// Twenty times, the hosts start in every order; `script/chaos power 200` does more of it.
#[test]
fn a_power_cut_of_all_three_is_over_when_they_are_back() -> Result<()> {
    const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut hosts = Hosts::start(3)?;
    hosts.hosts[0].app("shop", &[Process::web(&server("open"))], 3)?;
    let mut longest = Duration::ZERO;
    for run in 0..POWER_CUTS {
        let written = format!("before-{run}");
        hosts.write(run % 3, &written)?;
        for host in &mut hosts.hosts {
            host.cut_power()?;
        }
        for host in ORDERS[run % ORDERS.len()] {
            hosts.hosts[host].power_on()?;
        }
        let began = Instant::now();
        for (on, host) in hosts.hosts.iter().enumerate() {
            host.wait("the app to answer", || {
                Ok(host.page("shop")?.starts_with("open ").then_some(()))
            })?;
            // A name for each try: one that was not answered may have been taken.
            let mut tries = 0;
            host.wait("writes", || {
                tries += 1;
                hosts.write(on, &format!("after-{run}-{on}-{tries}")).map(Some)
            })?;
            ensure!(hosts.apps(on)?.contains(&written), "run {run}: {written} is lost");
        }
        longest = longest.max(began.elapsed());
    }
    println!("{POWER_CUTS} power cuts: serving again after {longest:?} at most");
    ensure!(longest <= SERVES_AGAIN_MAX, "it took {longest:?}");
    hosts.finish()
}

#[test]
fn joining_is_refused_for_reasons_that_are_told() -> Result<()> {
    let mut hosts = Hosts::prepare(3)?;
    hosts.hosts[0].flynn_host(&["init", "--address", "10.77.0.1"])?;
    hosts.hosts[0].boot()?;
    let refused = |host: &e2e::Cluster, args: &[&str], expected: &str| -> Result<()> {
        let error = host.flynn_host(args).map(|_| ()).unwrap_err().to_string();
        ensure!(error.contains(expected) && error.contains("hint: "), "{error}");
        Ok(())
    };
    let token = hosts.hosts[0].flynn_host(&["token", "--ttl", "10m"])?;
    let token = token.trim();
    let second = &hosts.hosts[1];
    refused(second, &["join", "10.77.0.1", "--token", "flynn-x"], "no token")?;
    refused(
        second,
        &["join", "10.77.0.1:9", "--token", token],
        "cannot be reached",
    )?;
    refused(
        second,
        &["join", "10.77.0.1", "--token", token, "--address", "0.0.0.0"],
        "no address that other hosts can reach",
    )?;
    second.flynn_host(&["join", "10.77.0.1", "--token", token])?;
    refused(
        second,
        &["join", "10.77.0.1", "--token", token],
        "is a member of a cluster already",
    )?;
    refused(
        &hosts.hosts[2],
        &["join", "10.77.0.1", "--token", token],
        "was used already, by host host2",
    )?;
    refused(&hosts.hosts[0], &["init"], "already")?;
    refused(&hosts.hosts[0], &["demote", "host1"], "nobody to vote")?;
    refused(&hosts.hosts[0], &["promote", "host9"], "no host host9")?;
    hosts.hosts[1].boot()?;
    hosts.wait_for_list(0, "the second to follow", |list| {
        list == [
            ("host1".into(), "peer (leader)".into()),
            ("host2".into(), "proxy".into()),
        ]
    })?;
    refused(&hosts.hosts[0], &["remove", "host2"], "is up")?;
    hosts.hosts[0].flynn_host(&["remove", "host2", "--force"])?;
    hosts.wait_for_list(0, "one host", |list| list.len() == 1)?;
    hosts.finish()
}
