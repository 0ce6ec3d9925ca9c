//! What one host of several was given is there on the others, also after its end.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Hosts, server, succeeded};

const GIT: &str = "https://git.flynn.localhost/shop.git";

/// Pushes the checkout as it is through a host; what git said of the ref.
fn push(host: &Cluster, checkout: &Path) -> Result<String> {
    let output = host.git(checkout, &["push", GIT, "HEAD:refs/heads/main"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    succeeded("git push", output)?;
    let line = said.lines().find(|line| line.ends_with("HEAD -> main"));
    Ok(line
        .with_context(|| format!("nothing of the ref in:\n{said}"))?
        .trim()
        .to_owned())
}

fn head(host: &Cluster, checkout: &Path) -> Result<String> {
    let text = succeeded("git rev-parse", host.git(checkout, &["rev-parse", "HEAD"])?)?;
    Ok(text.trim().to_owned())
}

fn remote_head(host: &Cluster) -> Result<String> {
    let output = host.git(host.dir.path(), &["ls-remote", GIT, "refs/heads/main"])?;
    let text = succeeded("git ls-remote", output)?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Another commit in the checkout; its id.
fn commit(host: &Cluster, checkout: &Path, text: &str) -> Result<String> {
    fs::write(checkout.join("server.py"), server(text))?;
    host.commit(checkout, text)?;
    head(host, checkout)
}

fn repositories(host: &Cluster) -> Vec<String> {
    let entries = fs::read_dir(host.dir.path().join("state/repos"));
    let names = entries.into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[test]
fn a_push_outlives_the_host_that_took_it() -> Result<()> {
    let mut hosts = Hosts::start(3)?;
    hosts.wait_for_list(0, "three peers", |list| {
        list.iter()
            .filter(|(_, status)| status.starts_with("peer"))
            .count()
            == 3
    })?;
    hosts.write(0, "shop")?;
    let files = [
        ("Procfile", "web: python3 -u server.py\n"),
        ("server.py", &*server("one")),
    ];
    let checkout = hosts.hosts[0].repository("shop", &files)?;
    let first = hosts.leader(0)?;
    let others: Vec<usize> = (0..3).filter(|host| *host != first).collect();
    let one = head(&hosts.hosts[others[0]], &checkout)?;
    let said = push(&hosts.hosts[others[0]], &checkout)?;
    ensure!(said.contains("[new branch]"), "{said}");

    // The host that had it ends, and the others go on from what was pushed to it.
    hosts.hosts[first].cut_power()?;
    let two = commit(&hosts.hosts[others[1]], &checkout, "two")?;
    ensure!(remote_head(&hosts.hosts[others[0]])? == one);
    let said = push(&hosts.hosts[others[1]], &checkout)?;
    ensure!(said.contains(&format!("{}..{}", &one[..7], &two[..7])), "{said}");
    let host = &hosts.hosts[others[0]];
    let clone = host.dir.path().join("clone");
    succeeded(
        "git clone",
        host.git(host.dir.path(), &["clone", "-q", GIT, &clone.to_string_lossy()])?,
    )?;
    ensure!(head(host, &clone)? == two);

    // The first comes back with what it had, and has to go on from what the others took.
    hosts.hosts[first].boot()?;
    hosts.wait_for_list(others[0], "all three back", |list| {
        list.len() == 3 && list.iter().all(|(_, status)| !status.contains("silent"))
    })?;
    let second = hosts.leader(others[0])?;
    hosts.hosts[second].cut_power()?;
    let left: Vec<usize> = (0..3).filter(|host| *host != second).collect();
    for host in &left {
        ensure!(remote_head(&hosts.hosts[*host])? == two);
    }
    let three = commit(&hosts.hosts[left[0]], &checkout, "three")?;
    let said = push(&hosts.hosts[left[0]], &checkout)?;
    ensure!(
        said.contains(&format!("{}..{}", &two[..7], &three[..7])),
        "{said}"
    );
    hosts.hosts[left[1]].wait("the app to answer with what was pushed last", || {
        Ok(hosts.hosts[left[1]]
            .page("shop")?
            .starts_with("three")
            .then_some(()))
    })?;

    // With the app all copies go.
    ensure!(
        left.iter()
            .all(|host| !repositories(&hosts.hosts[*host]).is_empty())
    );
    hosts.hosts[left[0]].api("DELETE", "/apps/shop", None)?;
    for host in left {
        hosts.hosts[host].wait("the repository to go", || {
            Ok(repositories(&hosts.hosts[host]).is_empty().then_some(()))
        })?;
    }
    hosts.finish()
}
