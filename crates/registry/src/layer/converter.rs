//! Makes sure that a layer is there, converted: each once, whoever asks for it and how often.
//!
//! ```text
//! <state>/registry/converted/BLOB.json   what the conversion of a blob gave
//! <state>/layers/DIGEST.erofs            the image file, shared by all blobs that give the same
//! ```
//!
//! The host's collection of unused layers may take an image file away; it is made again when asked for.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use daemon::files;
use tokio::sync::Semaphore;

use super::{
    archive::Limits,
    worker::{self, Answer, Converted},
};
use crate::name::BlobDigest;

/// The two cores of a small host: one for this, one for everything else.
const AT_ONCE: usize = 1;
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// How conversions run.
#[derive(Debug, Clone)]
pub enum Worker {
    /// A program that is called with these arguments, and after them limits and an empty directory.
    Process(PathBuf, Vec<String>),
    /// In this process, for tests.
    InProcess,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ConvertError {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

type Outcome = Result<Arc<Converted>, ConvertError>;

pub struct Converter {
    worker: Worker,
    layers: PathBuf,
    converted: PathBuf,
    jail: PathBuf,
    limits: Limits,
    turns: Semaphore,
    /// Conversions that are under way: whoever comes later waits for the one that runs.
    running: Mutex<BTreeMap<BlobDigest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Converter {
    pub fn new(worker: Worker, layers: PathBuf, directory: &Path, limits: Limits) -> io::Result<Converter> {
        let (converted, jail) = (directory.join("converted"), directory.join("empty"));
        for made in [&layers, &converted, &jail] {
            files::create_private_dir(made)?;
        }
        Ok(Converter {
            worker,
            layers,
            converted,
            jail,
            limits,
            turns: Semaphore::new(AT_ONCE),
            running: Mutex::default(),
        })
    }

    /// The layer of a blob, which is made if it is not there.
    pub async fn layer(&self, digest: &BlobDigest, blob: &Path) -> Outcome {
        let turn = {
            let mut running = self.running.lock().expect("nothing panics while it holds this");
            running.retain(|_, turn| Arc::strong_count(turn) > 1);
            running.entry(digest.clone()).or_default().clone()
        };
        let _alone = turn.lock().await;
        if let Some(known) = self.known(digest) {
            return Ok(Arc::new(known));
        }
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let converted = self.convert(blob).await?;
        let text = serde_json::to_vec(&converted).expect("it is JSON");
        files::write_atomic(&self.record(digest), &text, 0o600).map_err(failed)?;
        Ok(Arc::new(converted))
    }

    /// What an earlier conversion gave, if its file is still there; it counts as young from now on.
    fn known(&self, digest: &BlobDigest) -> Option<Converted> {
        let text = files::read_if_exists(&self.record(digest)).ok()??;
        let known: Converted = serde_json::from_str(&text).ok()?;
        let file = File::open(self.path(&known.digest)).ok()?;
        let is_whole = file.metadata().is_ok_and(|meta| meta.len() == known.length);
        (is_whole && file.set_modified(SystemTime::now()).is_ok()).then_some(known)
    }

    /// Blobs that were converted, to forget those that are gone.
    pub fn forget_all_but(&self, is_kept: impl Fn(&BlobDigest) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.converted)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if BlobDigest::from_file_name(name).is_some_and(|digest| !is_kept(&digest)) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn record(&self, digest: &BlobDigest) -> PathBuf {
        self.converted.join(format!("{}.json", digest.file_name()))
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.layers.join(format!("{digest}.erofs"))
    }

    async fn convert(&self, blob: &Path) -> Result<Converted, ConvertError> {
        let input = File::open(blob).map_err(failed)?;
        // The name is one that the host removes in time should this process be killed.
        let draft = Draft(self.layers.join(format!("{}.new-image", types::Uuid::new_v4())));
        let output = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&draft.0)
            .map_err(failed)?;
        let kept = output.try_clone().map_err(failed)?;
        let converted = match self.work(input, output).await.map_err(failed)? {
            Answer::Done(converted) => converted,
            Answer::Refused(text) => return Err(ConvertError::Refused(text)),
            Answer::Failed(text) => return Err(ConvertError::Failed(text)),
        };
        let path = self.path(&converted.digest);
        let layers = self.layers.clone();
        tokio::task::spawn_blocking(move || {
            kept.sync_all()?;
            fs::rename(&draft.0, &path)?;
            File::open(&layers)?.sync_all()
        })
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(failed)?;
        Ok(converted)
    }

    async fn work(&self, input: File, output: File) -> io::Result<Answer> {
        let limits = self.limits;
        let Worker::Process(program, arguments) = &self.worker else {
            return tokio::task::spawn_blocking(move || worker::run(input, output, &limits))
                .await
                .map_err(io::Error::other);
        };
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .arg(serde_json::to_string(&limits)?)
            .arg(&self.jail)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut said = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            use tokio::io::AsyncReadExt;
            stderr
                .take(ANSWER_BYTES_MAX as u64)
                .read_to_end(&mut said)
                .await?;
        }
        let status = child.wait().await?;
        let text = String::from_utf8_lossy(&said);
        let answer = text
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok());
        Ok(answer.unwrap_or_else(|| match status.code() {
            Some(code) => Answer::Failed(format!("the conversion ended with {code}: {}", text.trim())),
            // Its memory or its time was over, which an ordinary layer never needs.
            None => Answer::Refused("it needs more memory or time than a layer may take".into()),
        }))
    }
}

fn failed(error: io::Error) -> ConvertError {
    ConvertError::Failed(error.to_string())
}

/// Half a file, which goes unless it has become the layer.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
