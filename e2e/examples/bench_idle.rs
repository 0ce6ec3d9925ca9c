//! What the platform takes while nothing happens. `script/bench-idle` builds what this needs and calls
//! it with the seconds of each look.
//!
//! Counted is everything but the apps' own processes: supervisor, daemon, router (its keeper and the process that
//! serves), tunnel, and for each job its shim and the container's first process. Memory is the sum of proportional set sizes, so that pages
//! which processes share count once.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result};
use e2e::{
    Cluster, Hosts, Process,
    measure::{self, memory_kb, processor_time},
    server,
};

fn main() -> Result<()> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(30), |seconds| seconds.parse())?;
    println!("{}", measure::machine());
    let cluster = Cluster::start()?;
    look(&cluster, "a fresh cluster without jobs", seconds)?;
    cluster.app("shop", &[Process::web(&server("hello"))], 10)?;
    look(&cluster, "10 web jobs, checked every two seconds", seconds)?;
    // Traffic and deployments leave caches and pools behind; what stays afterwards is the figure that
    // somebody sees who looks at a host that has been up for long.
    for round in 0..5 {
        cluster.flynn(&["-a", "shop", "env", "set", &format!("MARK={round}")])?;
        for _ in 0..2_000 {
            cluster.page("shop")?;
        }
    }
    cluster.wait("the old jobs to end", || {
        Ok((cluster.jobs("shop", "stopping")?.is_empty() && cluster.shims().len() == 10).then_some(()))
    })?;
    look(&cluster, "the same after 5 releases and 10 000 requests", seconds)?;
    cluster.finish()?;
    three_hosts(seconds)
}

/// What heartbeats of the cluster's state and of hosts add.
fn three_hosts(seconds: u64) -> Result<()> {
    let hosts = Hosts::start(3)?;
    hosts.wait_for_list(0, "three peers", |list| {
        list.len() == 3 && list.iter().all(|(_, status)| status.starts_with("peer"))
    })?;
    let leader = hosts.leader(0)?;
    let follower = (leader + 1) % 3;
    look(
        &hosts.hosts[leader],
        "the leader of three hosts without jobs",
        seconds,
    )?;
    look(&hosts.hosts[follower], "a follower of the three", seconds)?;
    hosts.finish()
}

fn look(cluster: &Cluster, what: &str, seconds: u64) -> Result<()> {
    // What was just asked for settles; nothing is measured of it.
    std::thread::sleep(Duration::from_secs(5));
    let parts = parts(cluster)?;
    let busy = |pids: &[i32]| -> Result<Duration> { pids.iter().map(|pid| processor_time(*pid)).sum() };
    let before: Vec<Duration> = parts.values().map(|pids| busy(pids)).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(seconds));
    println!("\n{what}, {seconds} s, load average {}", measure::load_average());
    println!("{:14} processes   PSS kB   % of a core", "");
    let (mut memory_total, mut share_total, mut processes) = (0, 0.0, 0);
    for ((name, pids), before) in parts.iter().zip(before) {
        let memory: u64 = pids.iter().map(|pid| memory_kb(*pid)).sum::<Result<_>>()?;
        let share = (busy(pids)?.saturating_sub(before)).as_secs_f64() / seconds as f64 * 100.0;
        println!("{name:14} {:9} {memory:8} {share:13.2}", pids.len());
        memory_total += memory;
        share_total += share;
        processes += pids.len();
    }
    println!(
        "{:14} {processes:9} {memory_total:8} {share_total:13.2}   = {:.1} MB",
        "all",
        memory_total as f64 / 1000.0
    );
    Ok(())
}

fn parts(cluster: &Cluster) -> Result<BTreeMap<&'static str, Vec<i32>>> {
    let is_ours = |pid: &i32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.ends_with("flynn-shim")
    };
    let mut parts: BTreeMap<&'static str, Vec<i32>> = BTreeMap::new();
    for name in ["supervisor", "daemon", "router"] {
        parts.insert(name, vec![cluster.pid(name).context(name)?]);
    }
    // The keeper of the router's sockets has been counted; the tunnel is there where hosts may come.
    for name in ["router-serving", "tunnel"] {
        parts.insert(name, cluster.pid(name).into_iter().collect());
    }
    parts.insert("shims", cluster.shims());
    parts.insert("inits", cluster.contained().into_iter().filter(is_ours).collect());
    Ok(parts)
}
