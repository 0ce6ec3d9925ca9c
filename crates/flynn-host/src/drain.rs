//! `flynn-host drain` and `undrain`: a host is emptied before it is switched off, and taken back.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::{client::Method, wire::Job};
use types::{Host, HostState, Volume};

use crate::{config::Config, host_client};

/// How often it is looked how far the host is.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks for it and waits until nothing is left that can go.
pub async fn drain(config: &Config, id: &str, timeout: Duration) -> Result<()> {
    let controller = host_client::controller(config)?;
    let client = controller.client();
    let hosts: Vec<Host> = client.get("/hosts").await?;
    if !hosts.iter().any(|host| host.id.as_str() == id) {
        let known: Vec<_> = hosts.iter().map(|host| host.id.to_string()).collect();
        bail!("there is no host {id:?}\nhint: there are {}", known.join(", "));
    }
    let is_open = |host: &&Host| host.id.as_str() != id && host.state == HostState::Up && !host.is_draining;
    if !hosts.iter().any(|host| is_open(&host)) {
        bail!("no other host is up that jobs of {id} could move to\nhint: `flynn-host list` shows the hosts");
    }
    client
        .send(Method::PUT, &format!("/hosts/{id}/drain"), None::<&()>)
        .await?;
    let began = Instant::now();
    let mut at_first = None;
    loop {
        let here = jobs_on(client, id).await?;
        let volumes: Vec<Volume> = client.get("/volumes").await?;
        let stays = |job: &&Job| has_data(job, &volumes);
        let (staying, moving): (Vec<&Job>, Vec<&Job>) = here.iter().partition(stays);
        let total = *at_first.get_or_insert(moving.len());
        if moving.is_empty() {
            println!("{total} jobs have left {id}.");
            for job in staying {
                println!("job {} stays: its volume is on {id}", job.id);
            }
            return Ok(());
        }
        if began.elapsed() > timeout {
            for job in &moving {
                println!("job {} is still here ({})", job.id, kind_of(job));
            }
            bail!(
                "{id} is not empty after {} s; it goes on being drained\nhint: `flynn-host undrain {id}` takes it back",
                timeout.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub async fn undrain(config: &Config, id: &str) -> Result<()> {
    let controller = host_client::controller(config)?;
    controller.client().delete(&format!("/hosts/{id}/drain")).await?;
    println!("{id} takes jobs again.");
    Ok(())
}

async fn jobs_on(client: &api::Client, host: &str) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = client.get("/active-jobs").await?;
    jobs.retain(|job| job.host_id.as_ref().is_some_and(|on| on.as_str() == host));
    Ok(jobs)
}

fn kind_of(job: &Job) -> &str {
    match &*job.process_type {
        "" => "run",
        process_type => process_type,
    }
}

/// Whether a job's data are where it is, so that it cannot move.
fn has_data(job: &Job, volumes: &[Volume]) -> bool {
    job.volumes.iter().any(|id| {
        let found = volumes.iter().find(|volume| volume.id == *id);
        found.is_some_and(|volume| !volume.delete_on_stop)
    })
}
