//! What one host of several was given is there on the others, also after its end.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Hosts, server, succeeded};
use serde_json::json;

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

/// A request to the registry through a host: the answer's head and body.
fn registry(host: &Cluster, method: &str, path: &str, more: &[&str]) -> Result<(String, String)> {
    let key = fs::read_to_string(host.dir.path().join("state/secrets/controller.key"))?;
    let output = host
        .inside(Path::new("curl"))
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "60",
            "--request",
            method,
        ])
        .args(["--user", &format!("any:{}", key.trim())])
        .args(more)
        .arg(format!("http://images.flynn.localhost{path}"))
        .output()?;
    let text = succeeded("curl", output)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer has a head")?;
    Ok((head.to_owned(), body.to_owned()))
}

fn expect(answer: (String, String), status: &str) -> Result<(String, String)> {
    let first = answer.0.lines().next().unwrap_or_default().to_owned();
    ensure!(
        first.contains(status),
        "{first} instead of {status}: {}",
        answer.1
    );
    Ok(answer)
}

fn location(head: &str) -> Result<String> {
    let line = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("location: "));
    let value = line.context("a location")?["location: ".len()..].trim();
    Ok(value
        .strip_prefix("http://images.flynn.localhost")
        .unwrap_or(value)
        .to_owned())
}

fn sha256(host: &Cluster, text: &str) -> Result<String> {
    let file = host.dir.path().join("summed");
    fs::write(&file, text)?;
    let sum = succeeded("sha256sum", Command::new("sha256sum").arg(&file).output()?)?;
    Ok(format!(
        "sha256:{}",
        sum.split_whitespace().next().context("a digest")?
    ))
}

/// Whether a host has these bytes on its own disk.
fn has_blob(host: &Cluster, digest: &str) -> bool {
    let hex = digest.trim_start_matches("sha256:");
    let path = format!("state/registry/blobs/sha256/{}/{hex}", &hex[..2]);
    host.dir.path().join(path).exists()
}

#[test]
fn images_are_pushed_and_pulled_by_any_host_and_outlive_one() -> Result<()> {
    let mut hosts = Hosts::start(3)?;
    hosts.wait_for_list(0, "three peers", |list| {
        list.iter()
            .filter(|(_, status)| status.starts_with("peer"))
            .count()
            == 3
    })?;
    hosts.write(0, "shop")?;
    hosts.write(0, "blog")?;

    // A load balancer sends each request of a push to another host.
    let text = "one half and the other half";
    let (one, two) = text.split_at(9);
    let on = |host: usize| &hosts.hosts[host];
    let blob = sha256(on(0), text)?;
    let octets = "content-type: application/octet-stream";
    let (head, _) = expect(
        registry(on(0), "POST", "/v2/shop/blobs/uploads/", &["--data", ""])?,
        "202",
    )?;
    let data = ["--header", octets, "--data-raw", one];
    let (head, _) = expect(registry(on(1), "PATCH", &location(&head)?, &data)?, "202")?;
    let data = ["--header", octets, "--data-raw", two];
    let path = format!("{}?digest={blob}", location(&head)?);
    expect(registry(on(2), "PUT", &path, &data)?, "201")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let part = json!({"mediaType": "application/x.data", "digest": blob, "size": text.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "artifactType": "application/x.chart", "config": part,
        "layers": [part],
    })
    .to_string();
    let header = format!("content-type: {kind}");
    let put = |host: usize, path: &str| {
        registry(
            on(host),
            "PUT",
            path,
            &["--header", &header, "--data-raw", &manifest],
        )
    };
    expect(put(1, "/v2/shop/manifests/v1")?, "201")?;
    for host in 0..3 {
        let (_, found) = expect(registry(on(host), "GET", "/v2/shop/manifests/v1", &[])?, "200")?;
        ensure!(found == manifest, "{found}");
        let (_, found) = expect(
            registry(on(host), "GET", &format!("/v2/shop/blobs/{blob}"), &[])?,
            "200",
        )?;
        ensure!(found == text, "{found}");
    }

    // A second host has the bytes before the first one ends.
    hosts.hosts[0].wait("two hosts to have the blob", || {
        let count = hosts.hosts.iter().filter(|host| has_blob(host, &blob)).count();
        Ok((count >= 2).then_some(()))
    })?;
    let leader = hosts.leader(0)?;
    hosts.hosts[leader].cut_power()?;
    let left: Vec<usize> = (0..3).filter(|host| *host != leader).collect();
    // Before that a request that changes something may be told that the leader was lost with it.
    for host in &left {
        hosts.wait_for_list(*host, "another to lead", |list| {
            let leads = list.iter().position(|(_, status)| status == "peer (leader)");
            leads.is_some_and(|leads| leads != leader)
        })?;
    }
    let on = |host: usize| &hosts.hosts[left[host]];
    for host in 0..2 {
        let (_, found) = expect(registry(on(host), "GET", "/v2/shop/manifests/v1", &[])?, "200")?;
        ensure!(found == manifest, "{found}");
        let (_, found) = expect(
            registry(on(host), "GET", &format!("/v2/shop/blobs/{blob}"), &[])?,
            "200",
        )?;
        ensure!(found == text, "{found}");
        let (_, tags) = expect(registry(on(host), "GET", "/v2/shop/tags/list", &[])?, "200")?;
        ensure!(tags.contains("v1"), "{tags}");
    }
    let path = format!("/v2/blog/blobs/uploads/?mount={blob}&from=shop");
    expect(registry(on(0), "POST", &path, &["--data", ""])?, "201")?;
    let put = registry(
        on(1),
        "PUT",
        "/v2/blog/manifests/copy",
        &["--header", &header, "--data-raw", &manifest],
    )?;
    expect(put, "201")?;

    // The first comes back and follows.
    hosts.hosts[leader].boot()?;
    hosts.hosts[leader].wait("what was pushed without it", || {
        let found = registry(&hosts.hosts[leader], "GET", "/v2/blog/manifests/copy", &[])?;
        Ok((found.1 == manifest).then_some(()))
    })?;

    // Whatever two of them kept so far, all do when that is asked.
    hosts.hosts[leader].flynn_host(&["copies", "3"])?;
    hosts.hosts[0].wait("every host to have the blob", || {
        Ok(hosts.hosts.iter().all(|host| has_blob(host, &blob)).then_some(()))
    })?;
    hosts.finish()
}
