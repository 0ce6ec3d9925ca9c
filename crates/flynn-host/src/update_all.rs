//! `flynn-host update` in a cluster of several hosts: one after the other, the one that leads last.
//!
//! ```text
//! send the programs to all ─▶ for each host: update ─▶ up, caught up, its jobs up ─▶ next
//!                                              │ does not come up
//!                                              └─▶ hosts that are done go back, too
//! ```
//!
//! A host that does not come up goes back by itself ([`crate::update`]): nobody has to reach it for that.
//! Nothing is changed anywhere before every host has the programs.

use std::{
    collections::BTreeSet,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use api::{
    Client,
    peers::{ClusterView, Part},
    update::{UpdateRequest, UpdateTo, Updates},
    wire::Job,
};
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;
use types::{Digest, Host, HostState, JobState, Uuid};

use crate::{
    config::Config,
    host_client,
    update::{self, GO_BACK_MIN, LOOK_AGAIN},
};

const CHUNK_BYTES: usize = 1 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The hosts of the cluster in the order in which they are updated.
async fn hosts(config: &Config) -> Result<Vec<Host>> {
    let controller = host_client::controller(config)?;
    let hosts = async {
        anyhow::Ok((
            controller.hosts().await?,
            view(controller.client(), "/internal/cluster").await?,
        ))
    };
    let (hosts, view) = tokio::time::timeout(ANSWER_MAX, hosts)
        .await
        .context("no answer")?
        .context("the daemon of this host does not answer, so there is nothing to compare with\nhint: start it first, or run script/up")?;
    Ok(ordered(hosts, view.leader))
}

fn ordered(mut hosts: Vec<Host>, leader: Option<u64>) -> Vec<Host> {
    hosts.sort_by_key(|host| (host.node == leader && leader.is_some(), host.id.clone()));
    hosts
}

async fn view(client: &Client, path: &str) -> Result<ClusterView> {
    Ok(client.get(path).await?)
}

/// All hosts of the cluster, or this one where it is alone or only it is meant.
pub async fn run_or_here(config: &Config, directory: &Path, is_here: bool, patience: Duration) -> Result<()> {
    // What is wrong with the programs is told before anything is asked.
    update::programs(config, directory)?;
    let hosts = match is_here {
        true => vec![],
        false => hosts(config).await?,
    };
    match hosts.len() {
        0 | 1 => update::run(config, directory, patience).await,
        _ => run(config, directory, hosts, patience).await,
    }
}

struct Update<'a> {
    config: &'a Config,
    directory: &'a Path,
    patience: Duration,
    set: Uuid,
}

async fn run(config: &Config, directory: &Path, hosts: Vec<Host>, patience: Duration) -> Result<()> {
    let began = Instant::now();
    if let Some(host) = hosts.iter().find(|host| host.state != HostState::Up) {
        bail!(
            "{} is not up: all hosts have to be, so that each can be waited for\nhint: start it, or `flynn-host remove {}`, or update single hosts with --here",
            host.id,
            host.id
        );
    }
    let own = config.host_id()?;
    let programs = update::programs(config, directory)?;
    let version = update::version_of(&programs[0].new).await?;
    let names: Vec<_> = hosts.iter().map(|host| host.id.as_str()).collect();
    println!(
        "-----> Updating {} to {version}, one after the other",
        names.join(", ")
    );
    let update = Update {
        config,
        directory,
        patience,
        set: Uuid::new_v4(),
    };
    for host in hosts.iter().filter(|host| host.id != own) {
        let client = host_client::host_of(config, host)?;
        for program in &programs {
            let sent = send(&client, update.set, program.name, &program.new).await;
            sent.with_context(|| {
                format!("{} does not take the programs; nothing has been changed", host.id)
            })?;
        }
        println!("       {} has the programs", host.id);
    }
    let mut done: Vec<&Host> = vec![];
    for host in &hosts {
        let jobs = jobs_up(config, host).await?;
        let mut failed = update.begin(host, UpdateTo::Set).await;
        if failed.is_ok() {
            done.push(host);
            failed = update.wait_until_settled(host, &jobs).await;
        }
        if let Err(error) = failed {
            println!(" !     {}: {error:#}", host.id);
            return Err(update.go_back(host, &done).await);
        }
    }
    println!(
        "=====> {} hosts run {version} ({:.1} s)",
        hosts.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn send(client: &Client, set: Uuid, name: &str, path: &Path) -> Result<()> {
    let path = path.to_owned();
    let hashed = path.clone();
    let digest: Digest = tokio::task::spawn_blocking(move || -> Result<Digest> {
        let mut hash = Sha256::new();
        let mut file = std::fs::File::open(&hashed)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                length => hash.update(&chunk[..length]),
            }
        }
        let digest = hex::encode(hash.finalize());
        Ok(digest.parse().expect("it is of hexadecimal digits"))
    })
    .await??;
    let bytes = ReaderStream::with_capacity(tokio::fs::File::open(&path).await?, CHUNK_BYTES);
    Updates(client).put(set, name, &digest, bytes).await?;
    Ok(())
}

impl Update<'_> {
    /// Has a host update itself, or go back.
    async fn begin(&self, host: &Host, to: UpdateTo) -> Result<()> {
        if host.id == self.config.host_id()? {
            return match to {
                UpdateTo::Set => update::run(self.config, self.directory, self.patience).await,
                UpdateTo::Previous => update::run_back(self.config, self.patience).await,
            };
        }
        let client = host_client::host_of(self.config, host)?;
        let request = UpdateRequest {
            to,
            timeout_s: self.patience.as_secs().max(1),
        };
        Updates(&client).begin(self.set, &request).await?;
        let deadline = Instant::now() + self.patience * 3 + GO_BACK_MIN * 3;
        let state = loop {
            // In between its daemon is another.
            let asked = tokio::time::timeout(ANSWER_MAX, Updates(&client).state(self.set)).await;
            if let Ok(Ok(state)) = asked
                && state.ended.is_some()
            {
                break state;
            }
            ensure!(
                Instant::now() < deadline,
                "it does not say how its update has ended"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        for line in state.said.lines().filter(|line| !line.starts_with("error: ")) {
            println!("{line}");
        }
        match state.ended.as_deref() {
            Some("") | None => Ok(()),
            Some(error) => bail!("{error}"),
        }
    }

    /// Until the host is what it was: up, with all that the leader has, and with its jobs.
    async fn wait_until_settled(&self, host: &Host, jobs: &BTreeSet<String>) -> Result<()> {
        let began = Instant::now();
        let mut wanted = None;
        loop {
            let why = match self.unsettled(host, jobs, &mut wanted).await {
                Ok(None) => break,
                Ok(Some(why)) => why,
                Err(error) => format!("{error:#}"),
            };
            ensure!(
                began.elapsed() < self.patience,
                "it came up, but after {} s {why}",
                self.patience.as_secs()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        println!(
            "       {} has caught up ({:.1} s)",
            host.id,
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    async fn unsettled(
        &self,
        host: &Host,
        jobs: &BTreeSet<String>,
        wanted: &mut Option<u64>,
    ) -> Result<Option<String>> {
        let controller = host_client::controller(self.config)?;
        let rows = controller.hosts().await?;
        let row = rows.iter().find(|row| row.id == host.id);
        if !row.is_some_and(|row| row.state == HostState::Up && row.started_at > host.started_at) {
            return Ok(Some("the cluster has not heard of its new daemon".into()));
        }
        let leading = view(controller.client(), "/internal/cluster").await?;
        let wanted = *wanted.get_or_insert(leading.last_index.unwrap_or_default());
        let here = host_client::part_of(self.config, host, Part::Controller)?;
        let own = view(&here, "/internal/here/cluster").await?;
        if own.leader.is_none() || own.applied_index.unwrap_or_default() < wanted {
            return Ok(Some("it has not caught up with the cluster's state".into()));
        }
        let now = active(controller.client(), host).await?;
        let late = now
            .iter()
            .find(|(id, state)| jobs.contains(id) && *state != JobState::Up);
        Ok(late.map(|(id, _)| format!("its job {id} is not up again")))
    }

    /// Every host that is updated goes back; why it was done, as an error.
    async fn go_back(&self, culprit: &Host, done: &[&Host]) -> anyhow::Error {
        let mut left = vec![];
        for host in done.iter().rev() {
            println!("-----> {} goes back", host.id);
            if let Err(error) = self.begin(host, UpdateTo::Previous).await {
                println!(" !     {}: {error:#}", host.id);
                left.push(host.id.to_string());
            }
        }
        match left.is_empty() {
            true => anyhow::anyhow!(
                "{} did not take the update; every host runs the programs before",
                culprit.id
            ),
            false => anyhow::anyhow!(
                "{} did not take the update, and {} did not go back\nhint: flynn-host update --previous there",
                culprit.id,
                left.join(", ")
            ),
        }
    }
}

/// The host's jobs that have not ended.
async fn active(client: &Client, host: &Host) -> Result<Vec<(String, JobState)>> {
    let mut jobs: Vec<Job> = client.get("/active-jobs").await?;
    jobs.retain(|job| job.host_id.as_ref() == Some(&host.id));
    Ok(jobs
        .into_iter()
        .map(|job| (job.uuid.to_string(), job.state))
        .collect())
}

async fn jobs_up(config: &Config, host: &Host) -> Result<BTreeSet<String>> {
    let controller = host_client::controller(config)?;
    let jobs = active(controller.client(), host).await?.into_iter();
    Ok(jobs
        .filter(|(_, state)| *state == JobState::Up)
        .map(|(id, _)| id)
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_host_that_leads_is_the_last() {
        let host = |id: &str, node: u64| -> Host {
            let time = "2026-01-01T00:00:00Z";
            serde_json::from_value(json!({
                "id": id, "addr": "", "state": "up", "memory_bytes": 0, "cpu_milli": 0, "node": node,
                "version": "v1", "created_at": time, "started_at": time,
            }))
            .unwrap()
        };
        let hosts = vec![host("b", 1), host("c", 2), host("a", 3)];
        let told = |leader| -> Vec<String> {
            ordered(hosts.clone(), leader)
                .iter()
                .map(|host| host.id.to_string())
                .collect()
        };
        assert_eq!(told(Some(3)), ["b", "c", "a"]);
        assert_eq!(told(Some(1)), ["a", "c", "b"]);
        assert_eq!(told(None), ["a", "b", "c"]);
    }
}
