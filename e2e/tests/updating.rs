//! Programs of a host are replaced while its apps serve.

use std::{fs, os::unix::fs::PermissionsExt, sync::atomic::Ordering};

use anyhow::{Result, ensure};
use e2e::{Cluster, Hosts, Process, http, kill, program, server};

/// Does something under load, after which no request may have failed.
fn under_load(cluster: &Cluster, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    under_load_of(std::slice::from_ref(cluster), what, act)
}

/// The same with users at every host.
fn under_load_of(hosts: &[Cluster], what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = http::Load::default();
    std::thread::scope(|scope| -> Result<()> {
        for (user, host) in (0..6).flat_map(|user| hosts.iter().map(move |host| (user, host))) {
            let (load, net) = (&load, &host.net);
            let path = if user < 4 { "/" } else { "/slow/150" };
            scope.spawn(move || {
                net.enter().expect("the namespace is there");
                load.user("shop.flynn.localhost", path);
            });
        }
        let acted = act();
        load.stop.store(true, Ordering::Relaxed);
        acted
    })?;
    let (failures, requests) = (load.failures(), load.requests.load(Ordering::Relaxed));
    ensure!(
        failures.is_empty(),
        "{what}: {} of {requests} requests failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    println!("{what}: {requests} requests, none failed");
    Ok(())
}

#[test]
fn an_update_costs_no_request_and_a_bad_one_is_taken_back() -> Result<()> {
    let cluster = Cluster::start_with_own_programs()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 2)?;
    let jobs = |cluster: &Cluster| -> Result<Vec<String>> {
        let mut ids: Vec<_> = cluster
            .jobs("shop", "up")?
            .iter()
            .map(|job| job["id"].to_string())
            .collect();
        ids.sort();
        Ok(ids)
    };
    let parts = |cluster: &Cluster| -> Result<(i32, i32)> {
        Ok((cluster.pid("daemon")?, cluster.pid("router-serving")?))
    };
    let (jobs_before, parts_before) = (jobs(&cluster)?, parts(&cluster)?);

    let release = program("flynn-host").parent().expect("a directory").to_owned();
    under_load(&cluster, "update", || {
        let said = cluster.flynn_host(&["update", "--programs", &release.to_string_lossy()])?;
        ensure!(said.contains("router took over"), "{said}");
        Ok(())
    })?;
    let parts_updated = parts(&cluster)?;
    ensure!(
        parts_before.0 != parts_updated.0 && parts_before.1 != parts_updated.1,
        "daemon and router are still those before: {parts_before:?}, {parts_updated:?}"
    );
    ensure!(jobs(&cluster)? == jobs_before, "jobs did not outlive the update");

    // It says its version, and that is all that it can do.
    let bad = cluster.dir.path().join("bad");
    fs::create_dir(&bad)?;
    let text = "#!/bin/sh\n[ \"$1\" = version ] && echo v0-bad && exit 0\nexit 1\n";
    fs::write(bad.join("flynn-host"), text)?;
    fs::set_permissions(bad.join("flynn-host"), fs::Permissions::from_mode(0o755))?;
    under_load(&cluster, "bad update", || {
        let Err(error) =
            cluster.flynn_host(&["update", "--timeout", "5", "--programs", &bad.to_string_lossy()])
        else {
            anyhow::bail!("a program that does not start was taken");
        };
        let said = format!("{error:#}");
        ensure!(
            said.contains("Updating host0 from") && said.contains("to v0-bad"),
            "{said}"
        );
        ensure!(said.contains("the host was not updated"), "{said}");
        Ok(())
    })?;
    ensure!(
        jobs(&cluster)? == jobs_before,
        "jobs did not outlive the bad update"
    );
    cluster.wait("the API to answer", || Ok(cluster.flynn(&["apps"]).ok()))?;
    cluster.finish()
}

#[test]
fn a_router_that_crashes_is_back_before_anybody_is_refused() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    for _ in 0..3 {
        let serving = cluster.pid("router-serving")?;
        kill(serving);
        // Its sockets are still there, so that this waits instead of being refused.
        ensure!(cluster.page("shop")?.starts_with("hello"));
        cluster.wait("another router", || {
            Ok((cluster.pid("router-serving")? != serving).then_some(()))
        })?;
    }
    cluster.finish()
}

#[test]
fn all_hosts_are_updated_one_after_the_other_and_go_back_together() -> Result<()> {
    let hosts = Hosts::start_with_own_programs(3)?;
    hosts.wait_for_list(0, "three peers", |list| {
        list.iter()
            .filter(|(_, status)| status.starts_with("peer"))
            .count()
            == 3
    })?;
    hosts.hosts[1].app("shop", &[Process::web(&server("hello"))], 3)?;
    hosts.hosts[1].wait("a job on every host", || {
        Ok((hosts.job_hosts(1, "shop")? == ["host1", "host2", "host3"]).then_some(()))
    })?;
    for host in &hosts.hosts {
        host.wait("the app to answer", || Ok(host.page("shop").ok()))?;
    }
    let pids = |part: &str| -> Result<Vec<i32>> { hosts.hosts.iter().map(|host| host.pid(part)).collect() };
    let parts = ["daemon", "router-serving", "tunnel"];
    let before: Vec<_> = parts.iter().map(|part| pids(part)).collect::<Result<_>>()?;
    let leader = hosts.leader(0)?;
    let by = (leader + 1) % 3;

    // Another file, so that it can be told which one a host has.
    let release = hosts.hosts[0].dir.path().join("release");
    fs::create_dir(&release)?;
    let mut bytes = fs::read(program("flynn-host"))?;
    bytes.push(0);
    fs::write(release.join("flynn-host"), &bytes)?;
    fs::set_permissions(release.join("flynn-host"), fs::Permissions::from_mode(0o755))?;
    let release = release.to_string_lossy().into_owned();
    let lengths = || -> Result<Vec<usize>> {
        let files = hosts
            .hosts
            .iter()
            .map(|host| host.dir.path().join("programs/flynn-host"));
        files.map(|file| Ok(fs::metadata(file)?.len() as usize)).collect()
    };

    // The one that leads cannot be replaced: its turn comes last, when the others have been.
    let block = hosts.hosts[leader]
        .dir
        .path()
        .join("programs/flynn-host.previous");
    fs::create_dir_all(block.join("in-the-way"))?;
    under_load_of(&hosts.hosts, "update of all that fails", || {
        let Err(error) = hosts.hosts[by].flynn_host(&["update", "--programs", &release]) else {
            anyhow::bail!("it was taken");
        };
        let said = format!("{error:#}");
        let last = format!(
            "host{} did not take the update; every host runs the programs before",
            leader + 1
        );
        ensure!(
            said.contains(&last) && said.matches("goes back").count() == 2,
            "{said}"
        );
        Ok(())
    })?;
    ensure!(
        lengths()?.iter().all(|length| *length == bytes.len() - 1),
        "{:?}",
        lengths()?
    );

    fs::remove_dir_all(&block)?;
    let leader = hosts.leader(by)?;
    under_load_of(&hosts.hosts, "update of all", || {
        let said = hosts.hosts[by].flynn_host(&["update", "--programs", &release])?;
        let turn = |host: usize| said.find(&format!("Updating host{} from", host + 1));
        ensure!(
            (0..3).all(|host| turn(host) <= turn(leader)) && turn(leader).is_some(),
            "{said}"
        );
        ensure!(said.contains("3 hosts run"), "{said}");
        Ok(())
    })?;
    ensure!(
        lengths()?.iter().all(|length| *length == bytes.len()),
        "{:?}",
        lengths()?
    );
    for (part, before) in parts.iter().zip(before) {
        let now = pids(part)?;
        ensure!(
            now.iter().zip(&before).all(|(now, before)| now != before),
            "{part}: {before:?}, {now:?}"
        );
    }
    hosts.finish()
}
