//! What goes wrong with hosts, one thing after the other, on a lab of three under a load of users, and how long it
//! shows. `script/chaos` runs all of it; `script/chaos power 200` only that, so many times.
//!
//! Users try the next address where one does not take their connection, as browsers and load balancers do: what
//! fails for them failed at a host that took the connection. Nothing is retried.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use e2e::{
    Lab, Process, server,
    users::{Finding, Load, Seen, Users},
};
use serde_json::json;

const APP: &str = "shop";
const HOSTS: usize = 3;
/// Users come and go for so long around what happens.
const AROUND: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next();
    let runs: usize = arguments.next().map_or(Ok(6), |text| text.parse())?;
    let lab = Lab::up(HOSTS)?;
    lab.app(APP, &Process::web(&server(APP)), 3)?;
    let chaos = Chaos { lab };
    type Deed = fn(&Chaos, usize) -> Result<String>;
    let all: [(&str, &str, Deed); 12] = [
        ("host", "a host dies", Chaos::a_host_dies),
        ("leader", "the leader dies", Chaos::the_leader_dies),
        ("quorum", "two of three die", Chaos::two_die),
        ("reboot", "all reboot in turn", Chaos::all_reboot_in_turn),
        ("cut", "a host is cut off", Chaos::a_host_is_cut_off),
        ("one-way", "the leader hears nobody", Chaos::the_leader_is_deaf),
        (
            "loss",
            "30 % of a host's packets are lost",
            Chaos::packets_are_lost,
        ),
        (
            "slow-leader",
            "the leader's disk takes 20 writes/s",
            Chaos::the_leaders_disk_is_slow,
        ),
        (
            "slow-disk",
            "another's disk takes 20 writes/s",
            Chaos::a_disk_is_slow,
        ),
        ("full-disk", "the leader's disk is full", Chaos::a_disk_is_full),
        ("clock", "clocks 5 min ahead and behind", Chaos::clocks_are_wrong),
        ("power", "all lose power", Chaos::all_lose_power),
    ];
    ensure!(
        only.as_ref()
            .is_none_or(|only| all.iter().any(|(name, ..)| name == only)),
        "what there is: {}",
        all.map(|(name, ..)| name).join(" ")
    );
    let mut failed = 0;
    for (name, what, deed) in all {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        match deed(&chaos, runs).and_then(|found| chaos.settle().map(|()| found)) {
            Ok(found) => println!("{what:36} {found}"),
            Err(error) => {
                failed += 1;
                println!("{what:36} FAILED: {error:#}");
                println!("{}", chaos.lab.logs());
                let _ = chaos.mend();
            }
        }
    }
    chaos.lab.finish()?;
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

struct Chaos {
    lab: Lab,
}

impl Chaos {
    fn users(&self, hosts: &[usize]) -> Users {
        let address = |host: &usize| -> SocketAddr {
            let text = format!("{}:80", self.lab.address(*host));
            text.parse().expect("a lab's address")
        };
        Users::start(Load {
            hosts: hosts.iter().map(|host| (*host, address(host))).collect(),
            domain: format!("{APP}.flynn.localhost"),
            finding: Finding::TryNext,
            users: 8,
            requests: 20,
            pause: Duration::from_millis(20),
        })
    }

    /// Everything is on, reaches everything and runs what is wanted.
    fn settle(&self) -> Result<()> {
        for host in 1..=HOSTS {
            if self.lab.exec(host, &["true"]).is_err() {
                self.lab.lab(&["start", &format!("host{host}"), "--wait"])?;
            }
        }
        self.lab.lab(&["heal"])?;
        self.lab
            .wait("three jobs to be up, on hosts that are all heard", || {
                let list = self.lab.exec(1, &["flynn-host", "list"])?;
                let is_quiet = list.lines().count() == HOSTS + 1
                    && !list.contains("silent")
                    && list.contains("(leader)");
                Ok((is_quiet && self.lab.jobs(APP, "up")?.len() == 3).then_some(()))
            })?;
        self.spread()
    }

    /// One job on each host, as each deed finds it: the scheduler moves jobs to a host that has returned only
    /// when it has been back for a minute.
    fn spread(&self) -> Result<()> {
        let hosts: BTreeSet<String> = self.lab.jobs(APP, "up")?.into_iter().collect();
        if hosts.len() < HOSTS {
            // A job may take its whole grace to end.
            self.lab.flynn(1, &["-a", APP, "scale", "--no-wait", "web=0"])?;
            self.lab.wait("no job to be left", || {
                let ending = self.lab.jobs(APP, "stopping")?.len() + self.lab.jobs(APP, "up")?.len();
                Ok((ending == 0).then_some(()))
            })?;
            self.lab
                .flynn(1, &["-a", APP, "scale", &format!("web={HOSTS}")])?;
        }
        Ok(())
    }

    fn mend(&self) -> Result<()> {
        self.lab.lab(&["heal"])?;
        self.settle()
    }

    /// Writes something at any of these hosts; the time until it is acknowledged.
    fn write_at(&self, hosts: &[usize], value: &str) -> Result<Duration> {
        let began = Instant::now();
        let body = json!({"meta": {"mark": value}});
        self.lab.wait("a write to be acknowledged", || {
            let done = hosts.iter().find_map(|host| {
                self.lab
                    .api_at(*host, "POST", &format!("/apps/{APP}"), Some(&body))
                    .ok()
            });
            Ok(done.map(|_| began.elapsed()))
        })
    }

    fn read_at(&self, host: usize) -> Result<String> {
        let app = self.lab.api_at(host, "GET", &format!("/apps/{APP}"), None)?;
        Ok(app["meta"]["mark"].as_str().unwrap_or_default().to_owned())
    }

    fn replaced(&self, dead: usize, since: Instant) -> Result<Duration> {
        let dead = format!("host{dead}");
        self.lab.wait("three jobs to be up on other hosts", || {
            let up = self.lab.jobs(APP, "up")?;
            Ok((up.len() == 3 && !up.contains(&dead)).then(|| since.elapsed()))
        })
    }

    fn a_host_dies(&self, _: usize) -> Result<String> {
        let leader = self.lab.leader(1)?;
        self.die(leader % HOSTS + 1)
    }

    fn the_leader_dies(&self, _: usize) -> Result<String> {
        self.die(self.lab.leader(1)?)
    }

    fn die(&self, victim: usize) -> Result<String> {
        let living: Vec<usize> = (1..=HOSTS).filter(|host| *host != victim).collect();
        let users = self.users(&[1, 2, 3]);
        std::thread::sleep(AROUND);
        let at = users.now();
        self.lab.lab(&["kill", &format!("host{victim}")])?;
        let killed = Instant::now();
        let written = self.write_at(&living, "after a death")?;
        let replaced = self.replaced(victim, killed)?;
        std::thread::sleep(AROUND);
        let seen = users.stop();
        self.lab.lab(&["start", &format!("host{victim}"), "--wait"])?;
        let back = killed.elapsed();
        Ok(format!(
            "writes again {}, three jobs up again {}; {}; host started after {} without a command",
            in_s(written),
            in_s(replaced),
            told(&seen, victim, at),
            in_s(back)
        ))
    }

    fn two_die(&self, _: usize) -> Result<String> {
        self.write_at(&[1], "before")?;
        let users = self.users(&[1]);
        std::thread::sleep(AROUND);
        let at = users.now();
        self.lab.lab(&["kill", "host2"])?;
        self.lab.lab(&["kill", "host3"])?;
        std::thread::sleep(AROUND * 3);
        let refused = self.lab.api_at(
            1,
            "POST",
            &format!("/apps/{APP}"),
            Some(&json!({"meta": {"mark": "lost"}})),
        );
        ensure!(refused.is_err(), "a minority took a write");
        let read = self.read_at(1)?;
        ensure!(read == "before", "the one that is left reads {read:?}");
        self.lab.lab(&["start", "host2"])?;
        self.lab.lab(&["start", "host3"])?;
        let written = self.write_at(&[1, 2, 3], "after")?;
        std::thread::sleep(AROUND);
        let seen = users.stop();
        Ok(format!(
            "reads go on, writes are refused ({}); {} after both have power writes again; {}",
            refused.err().map(|error| first_line(&error)).unwrap_or_default(),
            in_s(written),
            told(&seen, 0, at)
        ))
    }

    fn all_reboot_in_turn(&self, _: usize) -> Result<String> {
        let users = self.users(&[1, 2, 3]);
        std::thread::sleep(AROUND);
        let (at, began) = (users.now(), Instant::now());
        for host in 1..=HOSTS {
            let name = format!("host{host}");
            self.lab.exec(host, &["flynn-host", "drain", &name])?;
            self.lab.lab(&["reboot", &name, "--wait"])?;
            self.lab.exec(host, &["flynn-host", "undrain", &name])?;
            self.lab.wait("the hosts to be together again", || {
                let list = self.lab.exec(host, &["flynn-host", "list"])?;
                let is_well = !list.contains("silent") && list.contains("(leader)");
                Ok((is_well && self.lab.jobs(APP, "up")?.len() == 3).then_some(()))
            })?;
        }
        let took = began.elapsed();
        std::thread::sleep(AROUND);
        let seen = users.stop();
        Ok(format!(
            "drained, rebooted and undrained in {}; {}",
            in_s(took),
            told(&seen, 0, at)
        ))
    }

    fn a_host_is_cut_off(&self, _: usize) -> Result<String> {
        let victim = self.lab.leader(1)? % HOSTS + 1;
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != victim).collect();
        let users = self.users(&others);
        std::thread::sleep(AROUND);
        let at = users.now();
        self.lab.lab(&["cut", &format!("host{victim}")])?;
        let cut = Instant::now();
        let replaced = self.replaced(victim, cut)?;
        let inside = self.lab.exec(
            victim,
            &[
                "curl",
                "-s",
                "-m5",
                "-o/dev/null",
                "-w%{http_code}",
                "-HHost: shop.flynn.localhost",
                "http://127.0.0.1/",
            ],
        )?;
        self.lab.lab(&["heal"])?;
        let healed = Instant::now();
        self.lab.wait("what is too much to have ended", || {
            Ok((self.lab.jobs(APP, "up")?.len() == 3).then_some(()))
        })?;
        let seen = users.stop();
        Ok(format!(
            "replaced {}; the one cut off still answers {inside}; {} after the line was healed three jobs; {}",
            in_s(replaced),
            in_s(healed.elapsed()),
            told(&seen, victim, at)
        ))
    }

    fn the_leader_is_deaf(&self, _: usize) -> Result<String> {
        let leader = self.lab.leader(1)?;
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != leader).collect();
        let users = self.users(&others);
        std::thread::sleep(AROUND);
        let at = users.now();
        for other in &others {
            self.lab.lab(&[
                "cut",
                &format!("host{other}"),
                &format!("host{leader}"),
                "--one-way",
            ])?;
        }
        let written = self.write_at(&others, "deaf")?;
        std::thread::sleep(AROUND * 2);
        self.lab.lab(&["heal"])?;
        let seen = users.stop();
        Ok(format!(
            "writes again {}; {}",
            in_s(written),
            told(&seen, leader, at)
        ))
    }

    fn packets_are_lost(&self, _: usize) -> Result<String> {
        let victim = self.lab.leader(1)? % HOSTS + 1;
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != victim).collect();
        let users = self.users(&others);
        std::thread::sleep(AROUND);
        let at = users.now();
        self.lab
            .lab(&["slow", &format!("host{victim}"), "--loss", "30%"])?;
        let mut slowest = Duration::ZERO;
        let began = Instant::now();
        while began.elapsed() < AROUND * 5 {
            slowest = slowest.max(self.write_at(&others, "lossy")?);
        }
        self.lab.lab(&["heal"])?;
        let seen = users.stop();
        Ok(format!(
            "slowest write {}; {}",
            in_s(slowest),
            told(&seen, victim, at)
        ))
    }

    fn the_leaders_disk_is_slow(&self, _: usize) -> Result<String> {
        self.slow_disk(self.lab.leader(1)?)
    }

    fn a_disk_is_slow(&self, _: usize) -> Result<String> {
        self.slow_disk(self.lab.leader(1)? % HOSTS + 1)
    }

    fn slow_disk(&self, victim: usize) -> Result<String> {
        let users = self.users(&[1, 2, 3]);
        std::thread::sleep(AROUND);
        let at = users.now();
        self.lab
            .lab(&["slow", &format!("host{victim}"), "--disk-writes", "20"])?;
        let (began, mut times) = (Instant::now(), vec![]);
        while began.elapsed() < AROUND * 5 {
            times.push(self.write_at(&[1, 2, 3], "slow")?);
        }
        self.lab.lab(&["heal"])?;
        times.sort();
        let seen = users.stop();
        Ok(format!(
            "{} writes one after the other, median {} ms, slowest {} ms; {}",
            times.len(),
            times[times.len() / 2].as_millis(),
            times.last().map_or(0, Duration::as_millis),
            told(&seen, 0, at)
        ))
    }

    /// In a lab of its own, whose hosts have disks of their own.
    fn a_disk_is_full(&self, _: usize) -> Result<String> {
        let lab = Lab::with_disks(HOSTS)?;
        lab.app(APP, &Process::web(&server(APP)), 3)?;
        let chaos = Chaos { lab };
        let found = chaos.fill_a_disk();
        if found.is_err() {
            println!("{}", chaos.lab.logs());
        }
        chaos.lab.finish()?;
        found
    }

    fn fill_a_disk(&self) -> Result<String> {
        let victim = self.lab.leader(1)?;
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != victim).collect();
        let users = self.users(&[1, 2, 3]);
        std::thread::sleep(AROUND);
        let (at, filled) = (users.now(), Instant::now());
        // Until nothing fits any more, however little.
        let fill =
            "for size in 16M 64k 1; do dd if=/dev/zero bs=$size 2>/dev/null; done >> /var/lib/flynn/filler";
        let full = self.lab.try_exec(victim, &["sh", "-c", fill])?;
        ensure!(!full.status.success(), "the disk does not get full");
        let mut slowest = Duration::ZERO;
        while filled.elapsed() < AROUND * 5 {
            slowest = slowest.max(self.write_at(&others, "full")?);
        }
        let still_leads = self.lab.leader(others[0])? == victim;
        self.lab.exec(victim, &["rm", "/var/lib/flynn/filler"])?;
        let (emptied, value) = (Instant::now(), "room again");
        self.write_at(&[victim], value)?;
        self.lab.wait("all to be well again", || {
            let list = self.lab.exec(victim, &["flynn-host", "list"])?;
            let is_well = !list.contains("silent") && list.matches("peer").count() == HOSTS;
            Ok((is_well && self.read_at(victim)? == value).then_some(()))
        })?;
        let well = emptied.elapsed();
        let seen = users.stop();
        Ok(format!(
            "slowest write by the others {}, {} leads; well again {} after there was room; {}",
            in_s(slowest),
            if still_leads { "the same one" } else { "another" },
            in_s(well),
            told(&seen, 0, at)
        ))
    }

    fn clocks_are_wrong(&self, _: usize) -> Result<String> {
        for (host, offset) in [("host2", "+5m"), ("host3", "-5m")] {
            self.lab.lab(&["reboot", host, "--clock", offset, "--wait"])?;
            self.settle()?;
        }
        let users = self.users(&[1, 2, 3]);
        std::thread::sleep(AROUND);
        let at = users.now();
        let mut slowest = Duration::ZERO;
        let mut led = vec![];
        // Whoever leads tells the time.
        for _ in 0..HOSTS {
            let leader = self.lab.leader(1)?;
            led.push(format!("host{leader}"));
            self.lab.exec(
                leader % HOSTS + 1,
                &["flynn-host", "demote", &format!("host{leader}")],
            )?;
            for host in 1..=HOSTS {
                slowest = slowest.max(self.write_at(&[host], "another time")?);
            }
            self.lab.exec(
                leader % HOSTS + 1,
                &["flynn-host", "promote", &format!("host{leader}")],
            )?;
            self.settle()?;
        }
        let out = self.lab.flynn(1, &["-a", APP, "scale", "web=5"])?;
        ensure!(out.contains("scale completed"), "{out}");
        self.lab.flynn(2, &["-a", APP, "scale", "web=3"])?;
        std::thread::sleep(AROUND);
        let seen = users.stop();
        for host in ["host2", "host3"] {
            self.lab.lab(&["reboot", host, "--clock", "0", "--wait"])?;
            self.settle()?;
        }
        Ok(format!(
            "{} led in turn, slowest write {}; {}",
            led.join(", "),
            in_s(slowest),
            told(&seen, 0, at)
        ))
    }

    /// In every order, again and again: nothing acknowledged is lost, and nobody types anything.
    fn all_lose_power(&self, runs: usize) -> Result<String> {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        let mut took: BTreeMap<Duration, usize> = BTreeMap::new();
        for run in 0..runs {
            let order = orders[run % orders.len()];
            let mark = format!("run {run}");
            self.write_at(&[order[0]], &mark)?;
            for host in order {
                self.lab.lab(&["kill", &format!("host{host}")])?;
            }
            for host in order.iter().rev() {
                self.lab.lab(&["start", &format!("host{host}")])?;
            }
            let started = Instant::now();
            self.lab
                .wait("every host to serve the app and the API again", || {
                    for host in 1..=HOSTS {
                        if self.lab.page(host, APP)?.status != 200 || self.read_at(host)? != mark {
                            return Ok(None);
                        }
                    }
                    Ok(Some(()))
                })?;
            let serves = started.elapsed();
            if serves > Duration::from_secs(10) {
                bail!("run {run}, order {order:?}: {} until all served", in_s(serves));
            }
            took.insert(serves, run);
        }
        let (least, most) = (took.keys().next(), took.keys().last());
        let middle = took.keys().nth(took.len() / 2);
        let text = |time: Option<&Duration>| time.map_or_else(String::new, |time| in_s(*time));
        Ok(format!(
            "{runs} of {runs} times everything served again: least {}, median {}, most {}",
            text(least),
            text(middle),
            text(most)
        ))
    }
}

fn in_s(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(160)
        .collect()
}

fn told(seen: &Seen, dead: usize, at: Duration) -> String {
    let errors: Vec<_> = seen.errors().collect();
    let living = errors.iter().filter(|request| request.host != dead).count();
    let first = errors.first().map_or_else(String::new, |request| {
        format!(
            " (first: host{} {:+.2} s, {})",
            request.host,
            request.at.as_secs_f64() - at.as_secs_f64(),
            request.error.as_deref().unwrap_or_default()
        )
    });
    format!(
        "{} requests, {} failed, {living} of them at hosts that live{first}; slowest {}",
        seen.requests.len(),
        errors.len(),
        in_s(seen.slowest())
    )
}
