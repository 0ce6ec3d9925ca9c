//! The experiment of an article of 2017 about the original: an app scaled to three on three hosts, users at three
//! addresses by health-checked names, and after three minutes one host is stopped brutally. Eight of its users saw
//! an error. `script/experiment` runs it; `--short` takes half a minute.
//!
//! The host that is stopped is the worst one here: it leads, and has the address that the hosts hand around. Other users
//! have only that address, and others again try all, as browsers do.
//!
//! How many users the article had, and how fast they came, it does not say; here a new one comes about every
//! quarter of a second. Its errors were all of one kind: connections to the dead host, until names had moved.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use e2e::{
    Lab, Process, server,
    users::{Finding, Load, Users},
};

const ARTICLES_ERRORS: usize = 8;
/// The number that the floating address has among hosts.
const FLOATING: usize = 0;

fn main() -> Result<()> {
    let is_short = std::env::args().any(|argument| argument == "--short");
    let (before, after) = match is_short {
        true => (Duration::from_secs(8), Duration::from_secs(20)),
        false => (Duration::from_secs(180), Duration::from_secs(120)),
    };
    let began = Instant::now();
    let lab = Lab::floating(3)?;
    println!("three hosts, one cluster: {:.1} s", began.elapsed().as_secs_f64());
    lab.app("todo", &Process::web(&server("todo")), 3)?;
    println!(
        "the app runs three times, on {}",
        lab.jobs("todo", "up")?.join(", ")
    );

    let victim = lab.wait("one to lead that has the address", || {
        let leader = lab.leader(1)?;
        let list = lab.exec(1, &["flynn-host", "list"])?;
        let row = list
            .lines()
            .find(|row| row.starts_with(&format!("host{leader} ")));
        let has_it = row.is_some_and(|row| row.contains(&lab.floating_address()));
        Ok(has_it.then_some(leader))
    })?;
    println!(
        "users come; in {} s host{victim} loses power, which leads and has {}",
        before.as_secs(),
        lab.floating_address()
    );
    let by_names = Users::start(load(&lab, Finding::ROUTE_53));
    let by_trying = Users::start(load(&lab, Finding::TryNext));
    let floating: SocketAddr = format!("{}:80", lab.floating_address()).parse()?;
    let by_floating = Users::start(Load {
        hosts: vec![(FLOATING, floating)],
        ..load(&lab, Finding::Only(FLOATING))
    });
    std::thread::sleep(before);
    let killed_at = by_names.now();
    lab.lab(&["kill", &format!("host{victim}")])?;
    let killed = Instant::now();
    let replaced = lab.wait("three jobs to be up on the hosts that live", || {
        let up = lab.jobs("todo", "up")?;
        let dead = format!("host{victim}");
        Ok((up.len() == 3 && !up.contains(&dead)).then(|| killed.elapsed()))
    })?;
    std::thread::sleep(after.saturating_sub(killed.elapsed()));
    let (by_names, by_trying, by_floating) = (by_names.stop(), by_trying.stop(), by_floating.stop());

    let living = by_names.errors_but_at(victim);
    let last = by_names
        .errors()
        .map(|request| request.at.saturating_sub(killed_at))
        .max();
    println!();
    println!("                                                       article       here");
    println!(
        "users by health-checked names                                ?   {:8}",
        by_names.users()
    );
    println!(
        "  of them saw an error                                {ARTICLES_ERRORS:8}   {:8}",
        by_names.users_with_errors()
    );
    println!(
        "  requests that failed at hosts that live                    ?   {:8}",
        living.len()
    );
    println!(
        "  last error after the host's death, s                       ?   {:8.1}",
        last.unwrap_or_default().as_secs_f64()
    );
    println!(
        "users who try the next address, as browsers do               -   {:8}",
        by_trying.users()
    );
    println!(
        "  of them saw an error                                       -   {:8}",
        by_trying.users_with_errors()
    );
    println!(
        "users who have the floating address only                     -   {:8}",
        by_floating.users()
    );
    println!(
        "  of them saw an error                                       -   {:8}",
        by_floating.users_with_errors()
    );
    println!(
        "  slowest answer, s                                          -   {:8.1}",
        by_floating.slowest().as_secs_f64()
    );
    println!(
        "three jobs are up again after, s                             ?   {:8.1}",
        replaced.as_secs_f64()
    );
    for request in living.iter().take(5) {
        println!(
            "host{} {:.2} s after the death, after {:.2} s: {}",
            request.host,
            request.at.as_secs_f64() - killed_at.as_secs_f64(),
            request.took.as_secs_f64(),
            request.error.as_deref().unwrap_or_default()
        );
    }
    lab.finish()
}

fn load(lab: &Lab, finding: Finding) -> Load {
    let address = |host: usize| -> Result<SocketAddr> {
        let text = format!("{}:80", lab.address(host));
        text.parse().context("a lab's address")
    };
    Load {
        hosts: (1..=lab.hosts)
            .map(|host| (host, address(host).expect("labs have plain addresses")))
            .collect(),
        domain: "todo.flynn.localhost".into(),
        finding,
        users: 10,
        requests: 5,
        pause: Duration::from_millis(500),
    }
}
