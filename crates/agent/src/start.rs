//! Brings one job from the wish for it to a running container.
//!
//! The order is what makes a kill at any point harmless: what is kept on disk comes before what it
//! describes, and a container that was not told to start gives up when whoever made it goes away.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use api::host::HostJob;
use container::{StartError, Started};
use overlay::Lease;
use tracing::debug;
use types::{AppId, Digest, Exit};

use crate::{
    agent::Agent,
    disk::JobRecord,
    spec::{self, Facts},
    table::Entry,
};

/// A start that failed: why, and what has to be given back.
#[derive(Debug)]
pub struct Failed {
    pub exit: Exit,
    pub lease: Option<Lease>,
    /// A shim was asked for it: its leavings have to be looked for.
    pub is_begun: bool,
}

pub struct Running {
    pub record: JobRecord,
    pub pid: u32,
    pub started: Started,
}

/// Some tens of milliseconds are usual.
const PATIENCE: Duration = Duration::from_secs(60);

pub const STOPPED_BEFORE: &str = "it was stopped before it started";

pub async fn start(agent: &Arc<Agent>, entry: &Arc<Entry>) -> Result<Running, Failed> {
    let began = Instant::now();
    let early = |why: String| Failed {
        exit: Exit::NotStarted(why),
        lease: None,
        is_begun: false,
    };
    let app = app_of(&entry.job).map_err(early)?;
    let layers = layers_of(agent, &entry.job).await.map_err(early)?;
    let lease = agent
        .net
        .allocate(&app.to_string())
        .map_err(|error| early(format!("{error:#}")))?;
    entry.change(|view| view.address = Some(IpAddr::V4(lease.address)));

    let failed = |is_begun: bool| {
        let lease = lease.clone();
        move |why: String| Failed {
            exit: Exit::NotStarted(why),
            lease: Some(lease),
            is_begun,
        }
    };
    let prepare = {
        let (agent, entry, lease) = (agent.clone(), entry.clone(), lease.clone());
        move || prepare(&agent, &entry, app, layers, &lease)
    };
    // Off the async threads: it waits for the disk.
    let prepared = tokio::task::spawn_blocking(prepare).await;
    let prepared = prepared.unwrap_or_else(|error| Err(format!("the host is shutting down: {error}")));
    let (record, spec) = prepared.map_err(failed(false))?;
    let kept = began.elapsed();

    let dir = agent.disk.job_dir(entry.id);
    let created = agent
        .runtime
        .create(&dir, &spec)
        .await
        .map_err(words)
        .map_err(failed(true))?;
    let pid = created.pid();
    entry.change(|view| view.pid = Some(pid));
    let made = began.elapsed();
    agent
        .net
        .attach(pid, &lease)
        .await
        .map_err(|error| failed(true)(format!("{error:#}")))?;
    let attached = began.elapsed();
    if entry.is_to_stop() {
        return Err(failed(true)(STOPPED_BEFORE.into()));
    }
    let started = in_time(created.start()).await.map_err(failed(true))?;
    debug!(
        job = %entry.id, prepare_ms = ms(kept), create_ms = ms(made - kept),
        network_ms = ms(attached - made), start_ms = ms(began.elapsed() - attached), "phases of a start"
    );
    Ok(Running { record, pid, started })
}

/// Everything that has to be on disk before the shim is.
fn prepare(
    agent: &Agent,
    entry: &Entry,
    app: AppId,
    layers: Vec<PathBuf>,
    lease: &Lease,
) -> Result<(JobRecord, container::Spec), String> {
    let settings = &agent.settings;
    let name = entry
        .job
        .metadata
        .get(HostJob::APP_NAME)
        .map_or("", String::as_str);
    let record = JobRecord {
        job: HostJob::clone(&entry.job),
        lease: lease.clone(),
        cgroup: format!("/{}/{}", settings.cgroup_parent.trim_matches('/'), entry.id),
        created_at: entry.view().created_at,
    };
    let on_disk = |what: &str, error: std::io::Error| format!("the host cannot {what}: {error}");
    let log = match entry.job.config.disable_log {
        true => None,
        false => Some(
            agent
                .disk
                .prepare_log(entry.id, app, &agent.host, &record)
                .map_err(|error| on_disk("write its log", error))?,
        ),
    };
    let host_id_base = lease
        .slot
        .checked_mul(container::IDS_PER_CONTAINER)
        .and_then(|offset| settings.uid_base.checked_add(offset))
        .ok_or_else(|| format!("the host has no user ids for its slot {}", lease.slot))?;
    let uid = entry.job.config.uid.unwrap_or(0);
    let spec = spec::build(
        &entry.job,
        &Facts {
            job: entry.id,
            address: lease.address,
            dns: settings.dns,
            discoverd_url: settings.discoverd_url(app, name),
            host_id_base,
            cgroup: record.cgroup.clone(),
            layers,
            ca_bundle: settings.ca_bundle.clone(),
            log,
            volumes: agent
                .volumes
                .binds(&entry.job, uid, entry.job.config.gid.unwrap_or(uid))?,
        },
    )?;
    agent
        .disk
        .begin(entry.id, &record)
        .map_err(|error| on_disk("write its directory", error))?;
    Ok((record, spec))
}

fn app_of(job: &Arc<HostJob>) -> Result<AppId, String> {
    let app = job.metadata.get(HostJob::APP).ok_or("the job names no app")?;
    app.parse().map_err(|error| format!("the job's app: {error}"))
}

async fn layers_of(agent: &Agent, job: &HostJob) -> Result<Vec<PathBuf>, String> {
    if job.mountspecs.is_empty() {
        return Err("its image has no layers".into());
    }
    let mut paths = Vec::with_capacity(job.mountspecs.len());
    for mountspec in &job.mountspecs {
        let id = &mountspec.id;
        let digest: Digest = id
            .parse()
            .map_err(|error| format!("layer {id:?} of its image: {error}"))?;
        let path = agent.disk.layer(digest.as_str());
        if !path.is_file() {
            // Asked for it, the controller of this host gets it from another, into the same directory.
            let found = agent.controller.find_layer(&digest).await;
            if let Err(error) = &found {
                return Err(format!("layer {digest} of its image cannot be fetched: {error}"));
            }
            if !path.is_file() {
                return Err(format!("layer {digest} of its image is on no host that is up"));
            }
        }
        paths.push(path);
    }
    Ok(paths)
}

/// Layers that a job's container is made of.
pub fn digests(job: &HostJob) -> impl Iterator<Item = &str> {
    job.mountspecs.iter().map(|mountspec| mountspec.id.as_str())
}

/// A shim that hangs must not keep others from starting.
async fn in_time<T>(call: impl Future<Output = Result<T, StartError>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result.map_err(words),
        Err(_) => Err(format!(
            "the host did not manage to make its container within {} s",
            PATIENCE.as_secs()
        )),
    }
}

fn words(error: StartError) -> String {
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn ms(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
