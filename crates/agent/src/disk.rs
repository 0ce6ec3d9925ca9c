//! What the agent keeps of each job, in the job's directory beside what the shim keeps there.
//!
//! ```text
//! job.json       before anything is done for the job: what to run, its lease
//! spec.json      by the container crate, before the shim is spawned
//! progress.json  once it was up, or was given up: what a later agent cannot find out by looking
//! exit.json      by the shim, at the end
//! down.json      the report that the controller has to hear
//! ```
//!
//! Each file is there whole or not at all, so a directory is always one of these stages, and an
//! agent that starts reads off it where the one before it was killed. The directory goes once the
//! controller has confirmed the report.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use api::host::{HostJob, JobReport};
use overlay::Lease;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use types::{AppId, HostId, JobId, Timestamp};

use daemon::{StateDir, files};

const JOB: &str = "job.json";
const PROGRESS: &str = "progress.json";
const DOWN: &str = "down.json";

/// `job.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub job: HostJob,
    pub lease: Lease,
    /// From the root of every hierarchy.
    pub cgroup: String,
    pub created_at: Timestamp,
}

/// `progress.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub started_at: Option<Timestamp>,
    pub up_at: Option<Timestamp>,
    /// Why the agent gave up waiting for it to become healthy.
    pub never_healthy: Option<String>,
}

/// The job directories of one host.
#[derive(Debug, Clone)]
pub struct Disk {
    state: StateDir,
}

/// A directory that an earlier agent left.
#[derive(Debug)]
pub struct Found {
    pub id: JobId,
    pub stage: Stage,
}

#[derive(Debug)]
pub enum Stage {
    /// Nothing was begun that could run: the job may be started as if it were new.
    Unbegun,
    /// A shim was spawned, perhaps: the container has to be looked at.
    Begun(Box<JobRecord>, Progress),
    Ended(Option<Box<JobRecord>>, JobReport),
}

impl Disk {
    pub fn new(state: StateDir) -> Self {
        Disk { state }
    }

    pub fn job_dir(&self, id: JobId) -> PathBuf {
        self.state.job(id)
    }

    pub fn layer(&self, digest: &str) -> PathBuf {
        self.state.layers().join(format!("{digest}.erofs"))
    }

    pub fn state(&self) -> &StateDir {
        &self.state
    }

    pub fn begin(&self, id: JobId, record: &JobRecord) -> io::Result<()> {
        let dir = self.job_dir(id);
        files::create_private_dir(&dir)?;
        files::write_atomic(&dir.join(JOB), &serde_json::to_vec(record)?, 0o600)
    }

    pub fn progress(&self, id: JobId, progress: &Progress) -> io::Result<()> {
        replace(&self.job_dir(id).join(PROGRESS), &serde_json::to_vec(progress)?)
    }

    /// Does nothing for a job without a directory: nothing of it can be found by a later agent.
    pub fn down(&self, id: JobId, report: &JobReport) -> io::Result<()> {
        let dir = self.job_dir(id);
        if !dir.exists() {
            return Ok(());
        }
        files::write_atomic(&dir.join(DOWN), &serde_json::to_vec(report)?, 0o600)
    }

    /// Blocks: the directory may hold a disk image of gigabytes.
    pub fn remove(&self, id: JobId) -> io::Result<()> {
        files::remove_all(&self.job_dir(id))
    }

    /// Every job of an earlier agent. A directory that cannot be read is left alone and said so,
    /// since it may be a running job's.
    pub fn scan(&self) -> io::Result<Vec<Found>> {
        files::create_private_dir(&self.state.jobs())?;
        let mut found = Vec::new();
        for entry in fs::read_dir(self.state.jobs())? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Ok(id) = name.parse::<JobId>() else { continue };
            match stage(&path) {
                Ok(stage) => found.push(Found { id, stage }),
                Err(error) => {
                    tracing::error!(job = %id, path = %path.display(), %error, "a job's directory cannot be read");
                }
            }
        }
        Ok(found)
    }

    /// `<state>/logs/<app>/<job>.log`, its directory and what a reader of logs wants to know of the
    /// job. The name of a process type is in no line of the log.
    pub fn prepare_log(
        &self,
        id: JobId,
        app: AppId,
        host: &HostId,
        record: &JobRecord,
    ) -> io::Result<PathBuf> {
        let dir = self.state.app_logs(app);
        files::create_private_dir(&dir)?;
        let about = serde_json::json!({
            "job_id": id,
            "process_type": record.job.metadata.get(HostJob::TYPE).map_or("", String::as_str),
            "host_id": host,
            "created_at": record.created_at,
            // What the templates of log sinks may name; the job's own directory goes before its log does.
            "partition": record.job.partition,
            "metadata": record.job.metadata,
            "env": record.job.config.env,
        });
        let sidecar = dir.join(format!("{id}.json"));
        replace(&sidecar, about.to_string().as_bytes())?;
        Ok(dir.join(format!("{id}.log")))
    }
}

fn stage(dir: &Path) -> io::Result<Stage> {
    let record: Option<Box<JobRecord>> = read(&dir.join(JOB))?;
    if let Some(report) = read(&dir.join(DOWN))? {
        return Ok(Stage::Ended(record, report));
    }
    let spec = dir.join(container::job_dir::SPEC);
    let is_begun = spec.try_exists()? || dir.join(container::job_dir::EXIT).try_exists()?;
    match record {
        Some(record) if is_begun => Ok(Stage::Begun(
            record,
            read(&dir.join(PROGRESS))?.unwrap_or_default(),
        )),
        _ => Ok(Stage::Unbegun),
    }
}

/// Whole or not at all after a kill of the agent. Not synced: after a power cut the container is
/// gone whatever these files say.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

/// `None` if there is no such file, or an empty or torn one, as a power cut leaves behind what was
/// not synced.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = files::read_if_exists(path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a file that is not whole is taken as not there");
            Ok(None)
        }
    }
}
