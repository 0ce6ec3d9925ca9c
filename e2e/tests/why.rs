//! `flynn why` on a real cluster: what really went wrong is what it names.

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, server};

/// Asks until the answer has all of these.
fn answers(cluster: &Cluster, what: &str, parts: &[&str]) -> Result<()> {
    cluster.wait(&format!("flynn why {what} to answer {parts:?}"), || {
        let answer = cluster.flynn(&["why", what])?;
        let missing = parts.iter().find(|part| !answer.contains(**part));
        ensure!(missing.is_none(), "{missing:?} is missing in:\n{answer}");
        Ok(Some(()))
    })
}

#[test]
fn the_causes_that_are_named_are_the_real_ones() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("good"))], 1)?;
    answers(&cluster, "shop", &["shop is up: web=1"])?;

    cluster.flynn(&["-a", "shop", "scale", "web=0"])?;
    answers(
        &cluster,
        "shop",
        &[
            "shop is down: it is scaled to nothing",
            "shop.flynn.localhost answers 503",
            "hint: start it: `flynn -a shop scale web=1`",
        ],
    )?;

    cluster.flynn(&["create", "-r", "", "broken"])?;
    let crashing = Process::worker("echo no database >&2; exit 3");
    let release = cluster.release("broken", &[crashing], &[])?;
    cluster.deploy("broken", &release)?;
    cluster.flynn(&["-a", "broken", "scale", "-n", "worker=1"])?;
    answers(
        &cluster,
        "broken",
        &[
            "broken is down",
            "exited with status 3",
            "| no database",
            "after",
            "in a row",
        ],
    )?;

    cluster.flynn(&["-a", "broken", "scale", "-n", "worker=0"])?;
    cluster.flynn(&["create", "-r", "", "greedy"])?;
    let greedy = Process::worker("exec sleep 1000");
    let release = cluster.release("greedy", &[greedy], &[])?;
    cluster.deploy("greedy", &release)?;
    cluster.flynn(&["-a", "greedy", "limit", "set", "worker", "memory=900GB"])?;
    cluster.flynn(&["-a", "greedy", "scale", "-n", "worker=1"])?;
    answers(
        &cluster,
        "greedy",
        &["greedy is down", "has 900 GB of memory at all: host0"],
    )?;
    cluster.finish()
}
