//! A host that comes back, or is new, gets its part of the jobs, and no request fails for it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use e2e::{
    Lab, Process, server,
    users::{Finding, Load, Users},
};

/// A minute of calm before a host that has come back gets jobs, and what they take to start.
const SPREAD_AGAIN_MAX: Duration = Duration::from_secs(150);

#[test]
fn a_host_that_is_back_gets_jobs_again_and_no_request_fails() -> Result<()> {
    let lab = Lab::up(3)?;
    lab.app("shop", &Process::web(&server("open")), 3)?;
    let victim = (1..=3).find(|host| lab.leader(1).is_ok_and(|leader| leader != *host));
    let victim = victim.expect("one of three does not lead");
    let asked = (1..=3).find(|host| *host != victim).expect("another");
    lab.lab(&["kill", &format!("host{victim}")])?;
    lab.wait("all jobs to be on two hosts", || {
        let up = lab.jobs("shop", "up")?;
        let hosts: BTreeSet<&String> = up.iter().collect();
        Ok((up.len() == 3 && hosts.len() == 2).then_some(()))
    })?;

    let users = Users::start(Load {
        hosts: vec![(asked, format!("{}:80", lab.address(asked)).parse()?)],
        domain: "shop.flynn.localhost".into(),
        finding: Finding::Only(asked),
        users: 2,
        requests: 20,
        pause: Duration::from_millis(50),
    });
    lab.lab(&["start", &format!("host{victim}"), "--wait"])?;
    let began = Instant::now();
    lab.wait_within(SPREAD_AGAIN_MAX, "a job on each host, and no more", || {
        let all = [lab.jobs("shop", "up")?, lab.jobs("shop", "stopping")?].concat();
        let hosts: BTreeSet<&String> = all.iter().collect();
        Ok((all.len() == 3 && hosts.len() == 3).then_some(()))
    })?;
    println!("spread again after {:?}", began.elapsed());
    let seen = users.stop();
    let errors: Vec<_> = seen.errors().collect();
    ensure!(errors.is_empty(), "{errors:?}");
    ensure!(seen.users() > 3, "a load of {} users", seen.users());
    lab.finish()
}
