//! The floating address: whatever becomes of the host that has it, another has it soon, and never two for long.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use e2e::Lab;

/// For how long the kernel leaves the address to a host that does not renew it.
const LEASE: Duration = Duration::from_secs(2);
/// About three times what it takes on an idle machine.
const MOVED_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Whether somebody serves at the floating address.
fn answers(lab: &Lab) -> Result<bool> {
    let address: SocketAddr = format!("{}:80", lab.floating_address()).parse()?;
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream
        .write_all(b"GET /ping HTTP/1.1\r\nHost: controller.flynn.localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

fn has_it(lab: &Lab, host: usize) -> bool {
    let address = format!(" {}/", lab.floating_address());
    lab.exec(host, &["ip", "-oneline", "address"])
        .is_ok_and(|addresses| addresses.contains(&address))
}

/// Waits for one of `hosts` that has the address.
fn holder(lab: &Lab, hosts: &[usize]) -> Result<usize> {
    lab.wait("a host to have the floating address", || {
        Ok(hosts.iter().copied().find(|host| has_it(lab, *host)))
    })
}

fn wait_for_all_three(lab: &Lab) -> Result<()> {
    lab.wait("three hosts", || {
        let list = lab.exec(1, &["flynn-host", "list"])?;
        let rows = || list.lines().skip(1);
        Ok(
            (rows().count() == 3 && rows().all(|row| row.contains(" peer") && !row.contains(',')))
                .then_some(()),
        )
    })
}

#[test]
fn one_living_host_has_the_floating_address() -> Result<()> {
    const ALL: [usize; 3] = [1, 2, 3];
    let lab = Lab::floating(3)?;
    let others = |host: usize| -> Vec<usize> { ALL.into_iter().filter(|other| *other != host).collect() };

    let first = holder(&lab, &ALL)?;
    lab.wait("an answer", || Ok(answers(&lab)?.then_some(())))?;
    lab.wait("the list to name the holder", || {
        let list = lab.exec(others(first)[0], &["flynn-host", "list"])?;
        let row = list
            .lines()
            .find(|row| row.ends_with(&format!("{}/24", lab.floating_address())));
        Ok(row
            .filter(|row| row.starts_with(&format!("host{first} ")))
            .map(|_| ()))
    })?;

    let began = Instant::now();
    lab.lab(&["kill", &format!("host{first}")])?;
    lab.wait("an answer of another host", || Ok(answers(&lab)?.then_some(())))?;
    let took = began.elapsed();
    println!("answers again {took:?} after the holder's death");
    ensure!(
        took <= MOVED_MAX,
        "answers only {took:?} after the holder's death"
    );
    lab.lab(&["start", &format!("host{first}"), "--wait"])?;
    wait_for_all_three(&lab)?;

    // Cut off, it goes on living; nobody can tell it to let go.
    let second = holder(&lab, &ALL)?;
    lab.lab(&["cut", &format!("host{second}")])?;
    let rest = others(second);
    let (mut another_since, mut two_until) = (None, None);
    lab.wait("the address to have moved", || {
        // In this order: what is seen of the second is seen later.
        let is_there = rest.iter().any(|host| has_it(&lab, *host));
        if is_there && another_since.is_none() {
            another_since = Some(Instant::now());
        }
        let is_here = has_it(&lab, second);
        if is_there && is_here {
            two_until = Some(Instant::now());
        }
        Ok((is_there && !is_here).then_some(()))
    })?;
    if let (Some(since), Some(until)) = (another_since, two_until) {
        let both = until - since;
        ensure!(both <= LEASE, "two hosts had the address for {both:?}");
    }
    lab.wait("an answer after the cut", || Ok(answers(&lab)?.then_some(())))?;
    lab.lab(&["heal"])?;
    wait_for_all_three(&lab)?;
    lab.wait("one host to have it", || {
        let count = ALL.into_iter().filter(|host| has_it(&lab, *host)).count();
        Ok((count == 1 && answers(&lab)?).then_some(()))
    })?;

    // A drained host gives it to one that serves.
    let third = holder(&lab, &ALL)?;
    let drained = format!("host{third}");
    lab.exec(third, &["flynn-host", "drain", &drained])?;
    lab.wait("the address to leave the drained host", || {
        let is_there = others(third).iter().any(|host| has_it(&lab, *host));
        Ok((is_there && !has_it(&lab, third) && answers(&lab)?).then_some(()))
    })?;
    lab.exec(third, &["flynn-host", "undrain", &drained])?;
    lab.finish()
}
