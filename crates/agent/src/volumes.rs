//! The volumes of this host: made and removed as the controller says, given to jobs.
//!
//! ```text
//! <state>/volumes/ID/volume.json  last of all when it is made: with it the volume is there
//!                    data/        what the job sees
//! <state>/volumes/ID.gone/        a removed one, until all of its files are deleted
//! ```
//!
//! Both ends are a rename that is synced before the controller hears of it, so that a volume is there
//! or not, also after a power cut. Ids of files are those of the image: each job's mount shows them to
//! it through its own range, so they stay what they are from job to job.
//!
//! Nothing limits a volume but the file system that it is on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use api::host::{HostJob, HostVolume, VolumeBinding, VolumeEvent, VolumeInfo};
use container::{Bind, BindKind};
use tokio::sync::{Notify, broadcast};
use tracing::{info, warn};
use types::{VolumeId, VolumeReport, VolumeState, VolumeType};

use crate::{
    agent::Agent,
    table::{Entry, Phase, Table},
};

const ABOUT: &str = "volume.json";
const DATA: &str = "data";
const GONE: &str = "gone";
const RETRY: Duration = Duration::from_secs(1);
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// A listener of events that is further behind loses the oldest.
const EVENTS_MAX: usize = 256;

pub struct Volumes {
    dir: PathBuf,
    /// What the controller has asked for and has not been told is done.
    to_do: Mutex<BTreeMap<VolumeId, HostVolume>>,
    asked: Notify,
    /// One maker or remover at a time.
    turn: Mutex<()>,
    events: broadcast::Sender<Arc<VolumeEvent>>,
}

impl Volumes {
    pub fn new(dir: PathBuf) -> Self {
        Volumes {
            dir,
            to_do: Mutex::default(),
            asked: Notify::new(),
            turn: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
        }
    }

    pub fn events(&self) -> broadcast::Receiver<Arc<VolumeEvent>> {
        self.events.subscribe()
    }

    pub fn hear(&self, volume: HostVolume) {
        let mut to_do = self.to_do.lock().expect("nothing panics while it holds this");
        to_do.insert(volume.id, volume);
        self.asked.notify_one();
    }

    fn waiting(&self) -> Vec<HostVolume> {
        let to_do = self.to_do.lock().expect("nothing panics while it holds this");
        to_do.values().cloned().collect()
    }

    fn done(&self, volume: &HostVolume) {
        let mut to_do = self.to_do.lock().expect("nothing panics while it holds this");
        if to_do.get(&volume.id) == Some(volume) {
            to_do.remove(&volume.id);
        }
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// What is on disk, in the order of ids. What cannot be read is said in the log and left out.
    pub fn list(&self) -> io::Result<Vec<VolumeInfo>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match self.get(id) {
                Ok(Some(info)) => found.push(info),
                Ok(None) => {}
                Err(error) => warn!(volume = %id, %error, "cannot read what is known of a volume"),
            }
        }
        found.sort_by_key(|info| info.id);
        Ok(found)
    }

    pub fn get(&self, id: VolumeId) -> io::Result<Option<VolumeInfo>> {
        let text = daemon::files::read_if_exists(&self.path(id).join(ABOUT))?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    /// Makes what is not there. Blocks.
    pub fn make(&self, info: &VolumeInfo) -> io::Result<()> {
        let _turn = self.turn.lock().expect("nothing panics while it holds this");
        let path = self.path(info.id);
        if path.join(ABOUT).try_exists()? {
            return Ok(());
        }
        daemon::files::create_private_dir(&path)?;
        match fs::DirBuilder::new().mode(0o755).create(path.join(DATA)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        daemon::files::write_atomic(&path.join(ABOUT), &serde_json::to_vec(info)?, 0o600)?;
        sync(&self.dir)?;
        sync(self.dir.parent().unwrap_or(Path::new("/")))?;
        info!(volume = %info.id, "volume made");
        self.announce("create", info.clone());
        Ok(())
    }

    /// Removes it, if it is there. Blocks for as long as deleting its files takes.
    pub fn remove(&self, id: VolumeId) -> io::Result<()> {
        let _turn = self.turn.lock().expect("nothing panics while it holds this");
        let (path, gone) = (self.path(id), self.path(id).with_extension(GONE));
        if path.try_exists()? {
            let info = self.get(id).ok().flatten();
            fs::rename(&path, &gone)?;
            sync(&self.dir)?;
            info!(volume = %id, "volume removed");
            if let Some(info) = info {
                self.announce("destroy", info);
            }
        }
        daemon::files::remove_all(&gone)
    }

    /// Deletes what an agent before this one had begun to.
    fn sweep(&self) -> io::Result<()> {
        if !self.dir.try_exists()? {
            return Ok(());
        }
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == GONE) {
                daemon::files::remove_all(&path)?;
            }
        }
        Ok(())
    }

    /// The mounts of a job's volumes, made where they are new. `uid` and `gid` are the job's: whoever
    /// comes to an empty volume first owns it. Blocks.
    pub fn binds(&self, job: &HostJob, uid: u32, gid: u32) -> Result<Vec<Bind>, String> {
        job.config
            .volumes
            .iter()
            .map(|binding| self.bind(job, binding, uid, gid))
            .collect()
    }

    fn bind(&self, job: &HostJob, binding: &VolumeBinding, uid: u32, gid: u32) -> Result<Bind, String> {
        let id = binding.volume;
        let words = |error: io::Error| format!("volume {id} at {}: {error}", binding.target);
        if binding.is_new {
            let told = [HostJob::APP, HostJob::APP_NAME, HostJob::TYPE];
            let mut meta: BTreeMap<String, String> = told
                .into_iter()
                .filter_map(|key| Some((key.to_owned(), job.metadata.get(key)?.clone())))
                .collect();
            meta.insert(HostVolume::PATH.into(), binding.target.clone());
            self.make(&VolumeInfo {
                id,
                kind: VolumeType::Data,
                meta,
                created_at: daemon::now(),
            })
            .map_err(words)?;
        } else if self.get(id).map_err(words)?.is_none() {
            return Err(format!(
                "its volume {id} is not on this host: there is no {}, perhaps as its disk is not mounted",
                self.path(id).join(ABOUT).display()
            ));
        }
        let data = self.path(id).join(DATA);
        own_if_empty(&data, uid, gid).map_err(words)?;
        Ok(Bind {
            source: data,
            target: binding.target.clone().into(),
            kind: BindKind::Directory,
            read_only: !binding.writeable,
            idmapped: true,
        })
    }

    fn announce(&self, kind: &str, volume: VolumeInfo) {
        // No listener is no error.
        let _ = self.events.send(Arc::new(VolumeEvent {
            kind: kind.to_owned(),
            volume,
        }));
    }
}

fn own_if_empty(data: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let meta = fs::metadata(data)?;
    if (meta.uid(), meta.gid()) != (uid, gid) && fs::read_dir(data)?.next().is_none() {
        chown(data, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Does what the controller asks for, and says so until it is heard.
pub async fn run(agent: Arc<Agent>) {
    let volumes = agent.volumes.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || volumes.sweep()).await {
        warn!(%error, "cannot delete the files of removed volumes");
    }
    loop {
        let mut has_failed = false;
        for volume in agent.volumes.waiting() {
            match carry_out(&agent, &volume).await {
                Ok(()) => agent.volumes.done(&volume),
                Err(why) => {
                    has_failed = true;
                    warn!(volume = %volume.id, why, "a volume is not as it is to be; it is tried again");
                }
            }
        }
        tokio::select! {
            _ = agent.volumes.asked.notified() => {}
            _ = tokio::time::sleep(RETRY), if has_failed => {}
            _ = agent.shutdown.cancelled() => return,
        }
    }
}

async fn carry_out(agent: &Arc<Agent>, volume: &HostVolume) -> Result<(), String> {
    let report = match volume.state {
        VolumeState::Created => return Ok(()),
        VolumeState::Pending => {
            let (volumes, info) = (agent.volumes.clone(), about(volume));
            blocking(move || volumes.make(&info)).await?;
            VolumeReport::Created
        }
        VolumeState::Destroyed => {
            remove(agent, volume.id).await?;
            VolumeReport::Removed
        }
    };
    let call = agent.controller.report_volume(&agent.host, volume.id, report);
    match tokio::time::timeout(ANSWER_PATIENCE, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("the controller does not answer".into()),
    }
}

fn about(volume: &HostVolume) -> VolumeInfo {
    VolumeInfo {
        id: volume.id,
        kind: VolumeType::Data,
        meta: volume.meta.clone(),
        created_at: volume.created_at,
    }
}

/// Removes a volume that no job here has.
pub async fn remove(agent: &Arc<Agent>, id: VolumeId) -> Result<(), String> {
    if in_use(agent).contains(&id) {
        return Err("a job on this host still has it".into());
    }
    let volumes = agent.volumes.clone();
    blocking(move || volumes.remove(id)).await
}

/// Volumes of jobs whose containers are or may be there.
pub fn in_use(agent: &Agent) -> BTreeSet<VolumeId> {
    let entries = agent.table.entries();
    let running = entries.iter().filter(|entry| entry.view().phase != Phase::Down);
    running.flat_map(|entry| volumes_of(entry)).collect()
}

/// Waits until jobs that were here before are done with a job's volumes: one that the controller has
/// given up while this host was away may still run.
pub async fn are_free(table: &Table, entry: &Entry) {
    let wanted: BTreeSet<VolumeId> = volumes_of(entry).collect();
    if wanted.is_empty() {
        return;
    }
    let age = |entry: &Entry| (entry.view().created_at, entry.id);
    for other in table.entries() {
        if age(&other) < age(entry) && volumes_of(&other).any(|volume| wanted.contains(&volume)) {
            let mut view = other.watch();
            // An entry that was dropped has ended.
            let _ = view.wait_for(|view| view.phase == Phase::Down).await;
        }
    }
}

fn volumes_of(entry: &Entry) -> impl Iterator<Item = VolumeId> {
    entry.job.config.volumes.iter().map(|binding| binding.volume)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(format!("the host is shutting down: {error}")),
    }
}

#[cfg(test)]
mod tests;
