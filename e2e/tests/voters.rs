//! Who votes is changed while the cluster runs; and where most of those who did are gone for good, the one that is left
//! goes on with what it has.

use anyhow::{Result, ensure};
use e2e::{Hosts, Process};

const JOBS: u32 = 3;

fn votes(list: &[(String, String)]) -> usize {
    list.iter()
        .filter(|(_, status)| status.starts_with("peer"))
        .count()
}

fn leads(list: &[(String, String)]) -> bool {
    list.iter().any(|(_, status)| status == "peer (leader)")
}

#[test]
fn votes_move_and_one_host_goes_on_alone_when_told_so() -> Result<()> {
    let mut hosts = Hosts::start(3)?;
    hosts.wait_for_list(0, "three peers", |list| (votes(list), leads(list)) == (3, true))?;
    hosts.hosts[0].app("shop", &[Process::worker("exec sleep 1000")], JOBS)?;
    let jobs = |hosts: &Hosts, on: usize| -> Result<Vec<String>> {
        let rows = hosts.hosts[on].jobs("shop", "up")?;
        let mut ids: Vec<_> = rows.iter().map(|row| row["id"].to_string()).collect();
        ids.sort();
        Ok(ids)
    };
    let before = jobs(&hosts, 0)?;

    // The one that leads, too, without a job ending.
    let leader = hosts.leader(0)?;
    let name = format!("host{}", leader + 1);
    let other = (leader + 1) % 3;
    hosts.hosts[other].flynn_host(&["demote", &name])?;
    // Two voters would be no better than one: either's end would end writes.
    hosts.wait_for_list(other, "another leads, and nobody else votes", |list| {
        let is_proxy = list
            .iter()
            .any(|(host, status)| *host == name && status == "proxy");
        is_proxy && leads(list) && votes(list) == 1
    })?;
    for on in 0..3 {
        hosts.write(on, &format!("one-votes-{on}"))?;
    }
    hosts.hosts[leader].flynn_host(&["promote", &name])?;
    hosts.wait_for_list(0, "three peers again", |list| {
        (votes(list), leads(list)) == (3, true)
    })?;
    ensure!(jobs(&hosts, 0)? == before, "votes are no matter of jobs");

    // While it runs, and without the words, nothing is recovered.
    let refused = hosts.hosts[0].flynn_host(&["recover"]);
    ensure!(refused.is_err(), "recovery has to be meant");
    const WORDS: &str = "--i-understand-that-the-other-hosts-must-never-come-back";
    let refused = hosts.hosts[0].flynn_host(&["recover", WORDS]);
    ensure!(refused.is_err(), "a daemon that runs has the state");

    hosts.write(1, "the-last")?;
    hosts.hosts[1].cut_power()?;
    hosts.hosts[2].cut_power()?;
    ensure!(
        hosts.write(0, "by-one-of-three").is_err(),
        "one of three took a write"
    );
    hosts.hosts[0].cut_power()?;
    let told = hosts.hosts[0].flynn_host(&["recover", WORDS])?;
    ensure!(told.contains("WARNING"), "{told}");
    hosts.hosts[0].boot()?;
    hosts.wait_for_list(0, "one host that leads", |list| {
        list == [("host1".to_owned(), "peer (leader)".to_owned())]
    })?;
    hosts.write(0, "alone")?;
    let apps = hosts.apps(0)?;
    for name in ["one-votes-0", "one-votes-1", "one-votes-2", "the-last", "alone"] {
        ensure!(apps.contains(&name.to_owned()), "{name} is lost: {apps:?}");
    }
    hosts.hosts[0].wait("all jobs on the host that is left", || {
        Ok((hosts.job_hosts(0, "shop")? == ["host1"; JOBS as usize]).then_some(()))
    })?;

    // One of the others comes back as a new host.
    hosts.hosts[1].flynn_host(&["teardown", "--remove-state"])?;
    hosts.join(1)?;
    hosts.wait_for_list(0, "two hosts", |list| list.len() == 2 && leads(list))?;
    hosts.finish()
}
