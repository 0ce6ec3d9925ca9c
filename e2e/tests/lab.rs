//! `flynn-host lab` as users have it: hosts that are cut off, lose power and come back, and nothing left of it.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::Lab;
use serde_json::json;

fn is_reached(lab: &Lab, from: usize, to: usize) -> bool {
    let address = lab.address(to);
    let connect = format!("exec 3<>/dev/tcp/{address}/80");
    let words = ["timeout", "1", "bash", "-c", &connect];
    lab.try_exec(from, &words)
        .is_ok_and(|output| output.status.success())
}

#[test]
fn hosts_are_cut_off_lose_power_come_back_and_leave_nothing() -> Result<()> {
    let lab = Lab::apart(2)?;
    ensure!(lab.exec(2, &["hostname"])?.trim() == "host2");
    let processes = lab.exec(1, &["ps", "-A", "-o", "pid=,args="])?;
    ensure!(
        processes
            .lines()
            .next()
            .is_some_and(|line| line.contains("lab-init")),
        "{processes}"
    );
    ensure!(
        !processes.contains("host2"),
        "host1 sees processes of host2:\n{processes}"
    );

    ensure!(is_reached(&lab, 1, 2) && is_reached(&lab, 2, 1));
    lab.lab(&["cut", "host1", "host2"])?;
    ensure!(
        !is_reached(&lab, 1, 2) && !is_reached(&lab, 2, 1),
        "they are cut from each other"
    );
    let address: SocketAddr = format!("{}:80", lab.address(2)).parse()?;
    TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    lab.lab(&["heal"])?;
    ensure!(is_reached(&lab, 1, 2));
    lab.lab(&["slow", "host2", "--loss", "100%"])?;
    ensure!(!is_reached(&lab, 1, 2), "all packets are lost");
    lab.lab(&["heal"])?;

    lab.lab(&["kill", "host2"])?;
    ensure!(!is_reached(&lab, 1, 2));
    let status = lab.lab(&["status"])?;
    ensure!(
        status
            .lines()
            .any(|line| line.starts_with("host2") && line.contains("off")),
        "{status}"
    );
    let refused = lab.try_exec(2, &["true"])?;
    ensure!(!refused.status.success());
    lab.lab(&["start", "host2", "--wait"])?;
    lab.lab(&["reboot", "host2", "--wait"])?;
    ensure!(is_reached(&lab, 1, 2), "the same address after each start");
    lab.finish()
}

#[test]
fn down_removes_a_lab_that_nobody_described() -> Result<()> {
    let lab = Lab::apart(1)?;
    // As where the description was not written before something ended the command.
    std::fs::remove_file(lab.dir.path().join(&lab.name).join("lab.json"))?;
    lab.finish()
}

#[test]
fn disks_are_small_and_slow_and_clocks_wrong_on_purpose() -> Result<()> {
    let lab = Lab::with_a_disk()?;
    let size = lab.exec(1, &["stat", "-f", "-c", "%b %S", "/var/lib/flynn"])?;
    let size: Vec<u64> = size
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(size[0] * size[1] < 2 << 30, "a disk of 2 GiB has {size:?}");
    ensure!(
        lab.exec(1, &["fallocate", "-l", "3G", "/var/lib/flynn/filler"])
            .is_err()
    );
    lab.exec(1, &["rm", "-f", "/var/lib/flynn/filler"])?;

    lab.lab(&["slow", "host1", "--disk-writes", "10"])?;
    let began = Instant::now();
    let copy = "dd if=/dev/zero of=/var/lib/flynn/slow bs=4k count=20 oflag=dsync";
    lab.exec(1, &["sh", "-c", copy])?;
    ensure!(
        began.elapsed() >= Duration::from_secs(1),
        "20 writes took {:?}",
        began.elapsed()
    );
    ensure!(lab.lab(&["status"])?.contains("10 writes/s"));
    lab.lab(&["heal"])?;

    lab.lab(&["reboot", "host1", "--clock", "+5m", "--wait"])?;
    ensure!(lab.lab(&["status"])?.contains("clock +5m"));
    let app = lab.api_at(1, "POST", "/apps", Some(&json!({"name": "late"})))?;
    let at = app["created_at"].as_str().context("an app has a time")?;
    // The host's own commands have the kernel's clock.
    let ahead = "echo $(($(date -d \"$0\" +%s) - $(date +%s)))";
    let ahead_s: i64 = lab.exec(1, &["sh", "-c", ahead, at])?.trim().parse()?;
    ensure!((200..=300).contains(&ahead_s), "five minutes are {ahead_s} s");
    lab.finish()
}
