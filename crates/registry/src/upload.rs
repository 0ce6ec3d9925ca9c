//! Blobs on their way in: written as they come, hashed while written, kept over a restart.
//!
//! ```text
//! <state>/registry/uploads/ID/data         what has come so far; its length is where to go on
//!                             repository   whose it is
//! ```
//!
//! The hash of what has come is in memory and made anew from the file after a restart. A connection that
//! breaks keeps what it brought. Writing is a thread's work, fed through a short queue, so an upload takes
//! the same little memory however long it is.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::body::Body;
use bytes::Bytes;
use daemon::files;
use futures::StreamExt;
use tokio::sync::{OwnedMutexGuard, mpsc};
use types::Uuid;

use crate::{
    error::{Code, Failure, Result},
    name::{Algorithm, BlobDigest, Hash},
    store::{Repository, Store},
};

/// Pieces of a body between the connection and the disk.
const QUEUE: usize = 16;
/// Between two looks at how much disk is left, and the unit in which writing to the disk is begun early.
const STRIDE: u64 = 16 << 20;
/// An upload that nobody has gone on with for this long is given up.
pub const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// A client that has sent nothing for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub blob_bytes_max: u64,
    /// What uploads leave free of the disk.
    pub disk_reserve_bytes: u64,
}

pub struct Uploads {
    store: Store,
    limits: Limits,
    sessions: Mutex<BTreeMap<Uuid, Arc<Session>>>,
}

struct Session {
    dir: PathBuf,
    state: Arc<tokio::sync::Mutex<Progress>>,
}

/// How far an upload is. The file may be longer where a write failed; then it is cut.
struct Progress {
    length: u64,
    /// Unknown after a restart.
    hash: Option<Hash>,
    is_over: bool,
}

impl Uploads {
    pub fn new(store: Store, limits: Limits) -> Uploads {
        Uploads {
            store,
            limits,
            sessions: Mutex::default(),
        }
    }

    pub fn begin(&self, repository: &Repository, algorithm: Algorithm) -> Result<Uuid> {
        self.check_disk()?;
        let id = Uuid::new_v4();
        let dir = self.store.uploads().join(id.to_string());
        files::create_private_dir(&dir)?;
        fs::write(dir.join("repository"), repository.key())?;
        File::create(dir.join("data"))?;
        let session = Session {
            dir,
            state: Arc::new(tokio::sync::Mutex::new(Progress {
                length: 0,
                hash: Some(Hash::new(algorithm)),
                is_over: false,
            })),
        };
        self.sessions().insert(id, Arc::new(session));
        Ok(id)
    }

    /// How many bytes have come.
    pub async fn length(&self, repository: &Repository, id: Uuid) -> Result<u64> {
        let session = self.find(repository, id)?;
        let state = session.state.lock().await;
        Ok(state.length)
    }

    /// The same without waiting, for an answer that is a refusal already.
    pub fn length_now(&self, id: Uuid) -> u64 {
        let file = self.store.uploads().join(id.to_string()).join("data");
        fs::metadata(file).map_or(0, |meta| meta.len())
    }

    /// Adds what `body` brings, which begins at `offset` where that is known. Gives the new length.
    pub async fn append(
        &self,
        repository: &Repository,
        id: Uuid,
        offset: Option<u64>,
        body: Body,
    ) -> Result<u64> {
        let session = self.find(repository, id)?;
        let state = self.turn(&session)?;
        if offset.is_some_and(|offset| offset != state.length) {
            return Err(out_of_order(state.length));
        }
        let state = self.receive(&session, state, body).await?;
        Ok(state.length)
    }

    /// Adds what `body` brings and makes a blob of the whole, if it is that of the digest.
    pub async fn finish(
        &self,
        repository: &Repository,
        id: Uuid,
        offset: Option<u64>,
        digest: &BlobDigest,
        body: Body,
    ) -> Result<()> {
        let session = self.find(repository, id)?;
        let state = self.turn(&session)?;
        if offset.is_some_and(|offset| offset != state.length) {
            return Err(out_of_order(state.length));
        }
        let mut state = self.receive(&session, state, body).await?;
        let (store, repository, digest) = (self.store.clone(), repository.clone(), digest.clone());
        let data = session.dir.join("data");
        let dir = session.dir.clone();
        // Carried to its end whether or not the client still listens.
        let kept = tokio::task::spawn_blocking(move || -> Result<()> {
            let known = state.hash.take().map(Hash::finish);
            let actual = match known.filter(|known| known.algorithm() == digest.algorithm()) {
                Some(known) => known,
                None => hash_of(&data, digest.algorithm())?.finish(),
            };
            state.is_over = true;
            if actual != digest {
                files::remove_all(&dir)?;
                let text = format!("the bytes that were sent are those of {actual}, not of {digest}");
                return Err(Failure::new(Code::DigestInvalid, text));
            }
            if !store.touch(&digest)? {
                File::open(&data)?.sync_all()?;
                store.take(&data, &digest)?;
            }
            repository.link_blob(&digest)?;
            files::remove_all(&dir)?;
            Ok(())
        });
        let kept = kept
            .await
            .unwrap_or_else(|_| Err(Failure::unavailable("the registry is shutting down")));
        self.sessions().remove(&id);
        kept
    }

    pub async fn cancel(&self, repository: &Repository, id: Uuid) -> Result<()> {
        let session = self.find(repository, id)?;
        let mut state = self.turn(&session)?;
        state.is_over = true;
        self.sessions().remove(&id);
        Ok(files::remove_all(&session.dir)?)
    }

    /// Removes uploads that were given up, and what a kill left of small writes.
    pub fn sweep(&self, patience: Duration) -> io::Result<()> {
        for entry in fs::read_dir(self.store.uploads())? {
            let path = entry?.path();
            let data = path.join("data");
            let newest = [&path, &data]
                .into_iter()
                .filter_map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
                .max();
            let is_old = newest.is_some_and(|at| {
                SystemTime::now()
                    .duration_since(at)
                    .is_ok_and(|age| age > patience)
            });
            if !is_old {
                continue;
            }
            let id = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse::<Uuid>().ok());
            let is_busy = id.is_some_and(|id| {
                let mut sessions = self.sessions();
                let is_busy = sessions
                    .get(&id)
                    .is_some_and(|session| session.state.try_lock().is_err());
                if !is_busy {
                    sessions.remove(&id);
                }
                is_busy
            });
            if !is_busy {
                files::remove_all(&path)?;
            }
        }
        Ok(())
    }

    pub fn check_disk(&self) -> Result<()> {
        match self.store.free_bytes()? < self.limits.disk_reserve_bytes {
            true => Err(Failure::disk_full()),
            false => Ok(()),
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, Arc<Session>>> {
        self.sessions.lock().expect("nothing panics while it holds this")
    }

    /// The session, also one of a server before this one.
    fn find(&self, repository: &Repository, id: Uuid) -> Result<Arc<Session>> {
        let unknown = || {
            let text =
                format!("there is no upload {id}; it may have ended, or been given up. hint: push again");
            Failure::new(Code::BlobUploadUnknown, text)
        };
        let dir = self.store.uploads().join(id.to_string());
        let owner = files::read_if_exists(&dir.join("repository"))?.ok_or_else(unknown)?;
        if owner != repository.key() {
            return Err(unknown());
        }
        let mut sessions = self.sessions();
        if let Some(session) = sessions.get(&id) {
            return Ok(session.clone());
        }
        let length = fs::metadata(dir.join("data")).map_err(|_| unknown())?.len();
        let session = Arc::new(Session {
            dir,
            state: Arc::new(tokio::sync::Mutex::new(Progress {
                length,
                hash: None,
                is_over: false,
            })),
        });
        sessions.insert(id, session.clone());
        Ok(session)
    }

    fn turn(&self, session: &Session) -> Result<OwnedMutexGuard<Progress>> {
        let busy = "another request writes to this upload; ask where it is and go on there";
        let refused = || {
            Failure::new(Code::BlobUploadInvalid, busy).with_status(http::StatusCode::RANGE_NOT_SATISFIABLE)
        };
        let state = session.state.clone().try_lock_owned().map_err(|_| refused())?;
        match state.is_over {
            true => Err(Failure::new(Code::BlobUploadUnknown, "this upload has ended")),
            false => Ok(state),
        }
    }

    async fn receive(
        &self,
        session: &Session,
        state: OwnedMutexGuard<Progress>,
        body: Body,
    ) -> Result<OwnedMutexGuard<Progress>> {
        let (queue, pieces) = mpsc::channel::<Bytes>(QUEUE);
        let writer = Writer {
            store: self.store.clone(),
            limits: self.limits,
            data: session.dir.join("data"),
            state,
        };
        let written = tokio::task::spawn_blocking(move || writer.run(pieces));
        let mut body = body.into_data_stream();
        let mut broken = None;
        loop {
            match tokio::time::timeout(SILENCE_MAX, body.next()).await {
                Ok(Some(Ok(piece))) => {
                    if queue.send(piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    broken = Some(error.to_string());
                    break;
                }
                Err(_) => {
                    broken = Some("nothing came for a long time".into());
                    break;
                }
            }
        }
        drop(queue);
        let state = written
            .await
            .unwrap_or_else(|_| Err(Failure::unavailable("the registry is shutting down")))?;
        match broken {
            Some(error) => Err(Failure::new(
                Code::BlobUploadInvalid,
                format!("the upload broke off: {error}"),
            )),
            None => Ok(state),
        }
    }
}

struct Writer {
    store: Store,
    limits: Limits,
    data: PathBuf,
    state: OwnedMutexGuard<Progress>,
}

impl Writer {
    fn run(mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<OwnedMutexGuard<Progress>> {
        let Some(first) = pieces.blocking_recv() else {
            return Ok(self.state);
        };
        if self.state.hash.is_none() {
            // After a restart: what is there has to be read once.
            let cut = File::options().write(true).open(&self.data)?;
            cut.set_len(self.state.length)?;
            self.state.hash = Some(hash_of(&self.data, Algorithm::Sha256)?);
        }
        let mut file = File::options().append(true).open(&self.data)?;
        file.set_len(self.state.length)?;
        let mut looked_at = self.state.length;
        let mut next = Some(first);
        while let Some(piece) = next {
            let length = self.state.length + piece.len() as u64;
            if length > self.limits.blob_bytes_max {
                let text = format!("the layer is longer than {} bytes", self.limits.blob_bytes_max);
                return Err(
                    Failure::new(Code::SizeInvalid, text).with_status(http::StatusCode::PAYLOAD_TOO_LARGE)
                );
            }
            if length - looked_at >= STRIDE {
                // Begun now, it does not have to be waited for at the end.
                let range = std::num::NonZeroU64::new(length - looked_at);
                let _ = rustix::fs::fadvise(&file, looked_at, range, rustix::fs::Advice::DontNeed);
                looked_at = length;
                if self.store.free_bytes()? < self.limits.disk_reserve_bytes {
                    return Err(Failure::disk_full());
                }
            }
            file.write_all(&piece)?;
            if let Some(hash) = &mut self.state.hash {
                hash.update(&piece);
            }
            self.state.length = length;
            next = pieces.blocking_recv();
        }
        Ok(self.state)
    }
}

fn out_of_order(length: u64) -> Failure {
    let text = format!("this upload goes on at byte {length}");
    Failure::new(Code::BlobUploadInvalid, text).with_status(http::StatusCode::RANGE_NOT_SATISFIABLE)
}

fn hash_of(path: &std::path::Path, algorithm: Algorithm) -> io::Result<Hash> {
    let (mut file, mut hash) = (File::open(path)?, Hash::new(algorithm));
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash),
            count => hash.update(&buffer[..count]),
        }
    }
}
