//! A dry run on a real cluster: what it says is what then happens, and until then nothing does.

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, server};
use serde_json::Value;

/// Jobs of shop by type and id, when nothing is starting or stopping any more.
fn jobs(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    cluster.wait("the jobs to settle", || {
        let list: Value = serde_json::from_str(&cluster.flynn(&["-a", "shop", "ps", "--json"])?)?;
        let list = list.as_array().cloned().unwrap_or_default();
        let job = |job: &Value| {
            let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
            (text("type"), text("uuid"))
        };
        let is_settled = list.iter().all(|job| job["state"] == "up");
        Ok(is_settled.then(|| list.iter().map(job).collect()))
    })
}

/// How many jobs a dry run would start and stop.
fn told(cluster: &Cluster, line: &[&str]) -> Result<(usize, usize)> {
    let preview: Value = serde_json::from_str(&cluster.flynn(line)?)?;
    ensure!(preview["fits"] == true, "{preview}");
    let count = |key: &str| preview[key].as_array().map_or(0, Vec::len);
    Ok((count("starts"), count("stops")))
}

/// How many jobs are new, and how many are gone.
fn happened(before: &[(String, String)], after: &[(String, String)]) -> (usize, usize) {
    let lacking = |one: &[(String, String)], other: &[(String, String)]| {
        one.iter().filter(|job| !other.contains(job)).count()
    };
    (lacking(after, before), lacking(before, after))
}

#[test]
fn what_a_dry_run_says_is_what_then_happens() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app(
        "shop",
        &[Process::web(&server("one")), Process::worker("exec sleep 1000")],
        1,
    )?;
    for line in [
        vec!["scale", "web=2", "worker=1"],
        vec!["scale", "web=1"],
        vec!["env", "set", "MARK=two"],
        vec!["limit", "set", "web", "memory=200MB"],
    ] {
        let before = jobs(&cluster)?;
        let line: Vec<&str> = ["-a", "shop"].into_iter().chain(line).collect();
        let dry: Vec<&str> = line.iter().copied().chain(["--dry-run", "--json"]).collect();
        let told = told(&cluster, &dry)?;
        ensure!(jobs(&cluster)? == before, "{dry:?} changed something");
        cluster.flynn(&line)?;
        let after = jobs(&cluster)?;
        ensure!(
            told == happened(&before, &after),
            "{line:?}: {told:?} was told, {before:?} became {after:?}"
        );
    }
    let output = cluster.try_flynn(&["-a", "shop", "scale", "--dry-run", "web=10000"])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && text.contains("it does not fit"),
        "{text}"
    );
    let output = cluster.try_flynn(&[
        "-a",
        "shop",
        "route",
        "add",
        "http",
        "--dry-run",
        "shop.flynn.localhost",
    ])?;
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("Duplicate route"),
        "{output:?}"
    );
    cluster.finish()
}

#[test]
fn an_app_comes_back_from_its_file_under_another_name() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("exported"))], 1)?;
    cluster.flynn(&["-a", "shop", "env", "set", "MARK=kept"])?;
    cluster.flynn(&["-a", "shop", "export", "-q", "-f", "shop.tar"])?;
    cluster.flynn(&["-a", "shop", "delete", "-y"])?;
    cluster.flynn(&["import", "-q", "-f", "shop.tar", "-n", "again"])?;
    cluster.wait("the imported app to answer", || {
        let page = cluster.page("again")?;
        ensure!(page.starts_with("exported kept"), "{page}");
        Ok(Some(()))
    })?;
    let why = cluster.flynn(&["why", "again"])?;
    ensure!(why == "again is up: web=1\n", "{why}");
    cluster.finish()
}
