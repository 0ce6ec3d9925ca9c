//! The operator's commands: what runs here, what it says, and how to end it.

use std::{collections::BTreeMap, io::Write};

use anyhow::{Context, Result, bail};
use api::{
    host::{ActiveJob, HostJob, status},
    logs::{Message, Query},
};
use futures::StreamExt;
use types::Host;

use crate::{
    config::Config,
    format::{ago, table},
    host_client,
};

pub async fn list(config: &Config, json: bool) -> Result<()> {
    let controller = host_client::controller(config)?;
    let hosts: Vec<Host> = controller.client().get("/hosts").await?;
    if json {
        return print_json(&hosts);
    }
    let cluster = controller.client().get("/internal/cluster").await?;
    print!("{}", table(&crate::cluster::list(&cluster, daemon::now())));
    Ok(())
}

pub async fn ps(config: &Config, all: bool, quiet: bool, json: bool) -> Result<()> {
    let path = if all {
        "/host/jobs"
    } else {
        "/host/jobs?active=true"
    };
    let jobs: BTreeMap<String, ActiveJob> = host_client::host(config)?.get(path).await?;
    if json {
        return print_json(&jobs);
    }
    let mut jobs: Vec<_> = jobs.into_iter().collect();
    jobs.sort_by_key(|(_, job)| std::cmp::Reverse(job.created_at));
    if quiet {
        jobs.iter().for_each(|(id, _)| println!("{id}"));
        return Ok(());
    }
    let head = [
        "ID",
        "STATE",
        "CREATED",
        "CONTROLLER APP",
        "CONTROLLER TYPE",
        "ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (id, job) in jobs {
        let meta = |key: &str| {
            job.job
                .as_ref()
                .and_then(|job| job.metadata.get(key))
                .cloned()
                .unwrap_or_default()
        };
        rows.push(vec![
            id,
            state_name(job.status).to_owned(),
            job.created_at
                .map(|at| ago(at, daemon::now()))
                .unwrap_or_default(),
            meta(HostJob::APP_NAME),
            meta(HostJob::TYPE),
            job.error.clone().unwrap_or_default(),
        ]);
    }
    print!("{}", table(&rows));
    Ok(())
}

fn state_name(state: u8) -> &'static str {
    match state {
        status::STARTING => "starting",
        status::RUNNING => "running",
        status::DONE => "done",
        status::CRASHED => "crashed",
        _ => "failed",
    }
}

pub async fn log(
    config: &Config,
    id: &str,
    follow: bool,
    lines: Option<usize>,
    init: bool,
    split_stderr: bool,
) -> Result<()> {
    let job = find(config, id).await?;
    let app = job
        .job
        .as_ref()
        .and_then(|job| job.metadata.get(HostJob::APP))
        .cloned();
    let app = app.with_context(|| format!("job {id} belongs to no app"))?;
    let streams = if init {
        "stdout,stderr,init"
    } else {
        "stdout,stderr"
    };
    let query = Query {
        follow,
        job_id: Some(id.to_owned()),
        lines,
        process_type: None,
        mark: false,
        stream_types: Some(streams.to_owned()),
    };
    let mut chunks = host_client::controller(config)?.log(&app, &query).await?;
    while let Some(chunk) = chunks.next().await {
        let Some(data) = chunk?.data else { break };
        let message: Message = serde_json::from_value(data)?;
        if split_stderr && message.stream == "stderr" {
            eprintln!("{}", message.msg);
        } else {
            writeln!(std::io::stdout(), "{}", message.msg)?;
        }
    }
    Ok(())
}

pub async fn inspect(config: &Config, id: &str, omit_env: bool, redact_env: &[String]) -> Result<()> {
    let mut job = find(config, id).await?;
    if let Some(job) = &mut job.job {
        if omit_env {
            job.config.env.clear();
        }
        for name in redact_env {
            if let Some(value) = job.config.env.get_mut(name) {
                *value = "REDACTED".into();
            }
        }
    }
    print_json(&job)
}

pub async fn stop(config: &Config, ids: &[String]) -> Result<()> {
    let host = host_client::host(config)?;
    let mut failed = 0;
    for id in ids {
        match host
            .delete(&format!("/host/jobs/{}", api::client::escape(id)))
            .await
        {
            Ok(()) => println!("{id} stopped"),
            Err(error) => {
                failed += 1;
                eprintln!("error: could not stop {id}: {error}");
            }
        }
    }
    if failed > 0 {
        bail!("could not stop all jobs\nhint: `flynn-host ps` lists the ids of running ones");
    }
    Ok(())
}

pub async fn signal(config: &Config, id: &str, signal: &str) -> Result<()> {
    let number = signal_number(signal)
        .with_context(|| format!("{signal:?} is no signal; give a number or a name such as TERM"))?;
    let path = format!("/host/jobs/{}/signal/{number}", api::client::escape(id));
    host_client::host(config)?
        .send(api::client::Method::PUT, &path, None::<&()>)
        .await?;
    Ok(())
}

/// Signals that apps know, by name with or without `SIG`, or by number.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let known = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("WINCH", 28),
    ];
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    known
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// The command that adds this cluster to a user's `flynn`.
pub fn cli_add_command(config: &Config) -> Result<()> {
    let secrets = config.state().secrets();
    let read = |name: &str| -> Result<String> {
        files_read(&secrets.join(name))?.with_context(|| {
            format!(
                "there is no cluster on this machine yet: {name} is missing\nhint: `script/up` starts one"
            )
        })
    };
    let certificate = read("cluster.pem")?;
    let pin = api::tls::pin_of_pem(&certificate).context("the cluster's certificate is damaged")?;
    println!(
        "flynn cluster add -p {pin} default {} {}",
        config.domain_with_port(),
        read("controller.key")?.trim()
    );
    Ok(())
}

fn files_read(path: &std::path::Path) -> Result<Option<String>> {
    daemon::files::read_if_exists(path).with_context(|| format!("cannot read {}", path.display()))
}

async fn find(config: &Config, id: &str) -> Result<ActiveJob> {
    let path = format!("/host/jobs/{}", api::client::escape(id));
    match host_client::host(config)?.get(&path).await {
        Ok(job) => Ok(job),
        Err(error) if error.is_not_found() => {
            bail!("this host has no job {id}\nhint: `flynn-host ps -a` lists the jobs that it knows")
        }
        Err(error) => Err(error.into()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}
