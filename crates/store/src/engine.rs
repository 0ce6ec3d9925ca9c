//! Runs openraft on our log, snapshots and transport: everything about a store that does not
//! depend on the type of its state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{BasicNode, ChangeMembers, ReadPolicy, ServerState};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock;
use crate::compaction::Compaction;
use crate::consensus::{Answer, Proposal, Raft, Types};
use crate::durable;
use crate::errors::{OpenError, ReadError, WriteError};
use crate::log::{Damage, Log, WriterThread};
use crate::machine::{AnyMachine, Applier};
use crate::network::{self, Links, MessageKind, Peer, ReceiveError};
use crate::options::{Options, Start, Timing};
use crate::snapshots::Snapshots;

/// How long the only voter may take to lead. It is an fsync or three; a disk can be slow.
const ALONE_LEADS_MAX: Duration = Duration::from_secs(30);

/// How long a whole snapshot may take on its way to a follower.
const SNAPSHOT_SEND_MAX: Duration = Duration::from_secs(120);

/// How long a write may wait for most of the voters; it may still be carried out after that.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// How long a new leader without a quorum waits before it asks again whether it has one.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What a node knows about the group and itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    pub node_id: u64,
    pub leader: Option<Peer>,
    pub term: u64,
    /// Of entries: the last in the log, the last applied, the last in a snapshot, the last that
    /// only a snapshot has.
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    pub log_bytes: u64,
    pub voters: Vec<Peer>,
    /// Those that follow without a vote.
    pub learners: Vec<Peer>,
    /// On the leader: up to where each follower has the log.
    pub matched: BTreeMap<u64, u64>,
    /// Why the store does not work any more.
    pub stopped: Option<String>,
}

impl Status {
    pub fn is_leader(&self) -> bool {
        self.leader
            .as_ref()
            .is_some_and(|leader| leader.id == self.node_id)
    }
}

pub(crate) struct Engine {
    node_id: u64,
    timing: Timing,
    raft: Raft,
    log: Log,
    snapshots: Arc<Snapshots>,
    compaction: Arc<Compaction>,
    leadership: watch::Receiver<bool>,
    leader: watch::Receiver<Option<u64>>,
    tasks: Vec<AbortHandle>,
    incoming: AtomicU64,
    /// What only the last act of the store lets go of.
    held: Mutex<Option<(WriterThread, File)>>,
}

/// What has to be read from disk before anything runs.
pub(crate) struct Files {
    pub(crate) lock: File,
    pub(crate) log: Log,
    pub(crate) writer: WriterThread,
    pub(crate) snapshots: Snapshots,
}

impl Engine {
    pub(crate) async fn open(options: Options, machine: Box<dyn AnyMachine>) -> Result<Self, OpenError> {
        let Options {
            directory,
            node_id,
            start,
            transport,
            timing,
            snapshots: policy,
            segment_bytes,
        } = options;
        let path = directory.clone();
        let files = tokio::task::spawn_blocking(move || open_files(path, node_id, segment_bytes))
            .await
            .map_err(|panic| OpenError::Start(panic.to_string()))??;
        let Files {
            lock,
            log,
            writer,
            snapshots,
        } = files;
        let snapshots = Arc::new(snapshots);
        let (applier, applied, progress) = Applier::new(machine, snapshots.clone());
        let config = raft_config(&timing).map_err(|problem| OpenError::Start(problem.to_string()))?;
        let raft = Raft::new(node_id, Arc::new(config), Links(transport), log.clone(), applier)
            .await
            .map_err(|fatal| OpenError::Start(reason(&log, &fatal)))?;

        let compaction = Arc::new(Compaction {
            raft: raft.clone(),
            log: log.clone(),
            applied,
            snapshots: snapshots.clone(),
            policy,
        });
        let (leads, leadership) = watch::channel(false);
        let watching = tokio::spawn(watch_leadership(raft.clone(), leads, timing.election_max));
        let (leading, leader) = watch::channel(None);
        let ticking = tokio::spawn(clock::run(raft.clone(), timing.clone(), leading));
        let compacting = tokio::spawn({
            let compaction = compaction.clone();
            async move { compaction.run(progress).await }
        });
        let engine = Self {
            node_id,
            timing,
            raft,
            log,
            snapshots,
            compaction,
            leadership,
            leader,
            tasks: vec![
                watching.abort_handle(),
                ticking.abort_handle(),
                compacting.abort_handle(),
            ],
            incoming: AtomicU64::new(0),
            held: Mutex::new(Some((writer, lock))),
        };
        if let Err(problem) = engine.start(start).await {
            engine.halt().await;
            return Err(problem);
        }
        Ok(engine)
    }

    /// Founds the group if asked to, and waits for the lead where nobody else could have it.
    async fn start(&self, start: Start) -> Result<(), OpenError> {
        let failed = |problem: &dyn std::fmt::Display| {
            OpenError::Start(
                self.log
                    .failure()
                    .map_or_else(|| problem.to_string(), str::to_owned),
            )
        };
        let is_founded = self.raft.is_initialized().await.map_err(|fatal| failed(&fatal))?;
        if let (false, Start::Found(voters)) = (is_founded, start) {
            let members: BTreeMap<u64, BasicNode> = voters
                .into_iter()
                .map(|peer| (peer.id, BasicNode::new(peer.address)))
                .collect();
            self.raft
                .initialize(members)
                .await
                .map_err(|problem| failed(&problem))?;
        }
        // Asked of openraft's own state: the metrics follow a moment later.
        let voters: Vec<u64> = self
            .raft
            .with_raft_state(|state| state.membership_state.effective().voter_ids().collect())
            .await
            .map_err(|fatal| failed(&fatal))?;
        if voters == [self.node_id] {
            self.raft
                .trigger()
                .elect(false)
                .await
                .map_err(|fatal| failed(&fatal))?;
            let mut leadership = self.leadership.clone();
            match tokio::time::timeout(ALONE_LEADS_MAX, leadership.wait_for(|leads| *leads)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(failed(&"the store stopped")),
                Err(_) => return Err(failed(&"the only voter could not become the leader in time")),
            }
        }
        Ok(())
    }

    pub(crate) async fn write(&self, proposal: Proposal) -> Result<Answer, WriteError> {
        let written = tokio::time::timeout(WRITE_MAX, self.raft.client_write(proposal)).await;
        match written.map_err(|_| WriteError::Unknown { leader: None })? {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(refused)) => Err(self.refused(refused)),
            Err(RaftError::Fatal(fatal)) => Err(WriteError::Stopped(reason(&self.log, &fatal))),
        }
    }

    fn refused(&self, refused: ClientWriteError<Types>) -> WriteError {
        match refused {
            ClientWriteError::ForwardToLeader(forward) => WriteError::NotLeader {
                leader: leader_of(forward),
            },
            ClientWriteError::LogEntryDiscarded(forward) => WriteError::Unknown {
                leader: leader_of(forward),
            },
            other => WriteError::Stopped(other.to_string()),
        }
    }

    /// Returns when this node has applied everything that was acknowledged before the call.
    pub(crate) async fn linearize(&self) -> Result<(), ReadError> {
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader {
                    leader: leader_of(forward),
                })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(ReadError::Stopped(reason(&self.log, &fatal))),
        }
    }

    pub(crate) fn leadership(&self) -> watch::Receiver<bool> {
        self.leadership.clone()
    }

    pub(crate) fn leader(&self) -> watch::Receiver<Option<u64>> {
        self.leader.clone()
    }

    pub(crate) fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let peer = |id: u64| Peer {
            id,
            address: membership
                .get_node(&id)
                .map(|node| node.addr.clone())
                .unwrap_or_default(),
        };
        Status {
            node_id: self.node_id,
            leader: metrics.current_leader.map(peer),
            term: metrics.current_term,
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index()),
            snapshot_index: metrics.snapshot.map(|id| id.index()),
            purged_index: metrics.purged.map(|id| id.index()),
            log_bytes: self.log.bytes_from(0),
            voters: membership.voter_ids().map(peer).collect(),
            learners: membership.learner_ids().map(peer).collect(),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index())))
                .collect(),
            stopped: metrics
                .running_state
                .as_ref()
                .err()
                .map(|fatal| reason(&self.log, fatal)),
        }
    }

    /// Waits until the store does not work any more, and says why.
    pub(crate) async fn stopped(&self) -> String {
        // Those of the server end with it, too, and unlike all together do not change with every message.
        let mut ends = self.raft.server_metrics();
        while ends.changed().await.is_ok() {}
        match &self.raft.metrics().borrow_watched().running_state {
            Err(fatal) => reason(&self.log, fatal),
            Ok(()) => reason(&self.log, &Fatal::Stopped),
        }
    }

    pub(crate) async fn snapshot(&self) -> Result<(), String> {
        self.compaction.compact().await
    }

    pub(crate) async fn add_learner(&self, peer: Peer) -> Result<(), WriteError> {
        self.changed(
            self.raft
                .add_learner(peer.id, BasicNode::new(peer.address), true)
                .await,
        )
    }

    /// Lets a node follow, or notes its new address; does not wait for it.
    pub(crate) async fn put_follower(&self, peer: Peer) -> Result<(), WriteError> {
        let status = self.status();
        let known = status
            .voters
            .iter()
            .chain(&status.learners)
            .find(|known| known.id == peer.id);
        let node = BasicNode::new(peer.address.clone());
        match known {
            Some(known) if known.address == peer.address => Ok(()),
            Some(_) => {
                let nodes = BTreeMap::from([(peer.id, node)]);
                let change = ChangeMembers::SetNodes(nodes);
                self.changed(self.raft.change_membership(change, true).await)
            }
            None => self.changed(self.raft.add_learner(peer.id, node, false).await),
        }
    }

    /// Lets go of nodes that have no vote.
    pub(crate) async fn remove_followers(&self, nodes: BTreeSet<u64>) -> Result<(), WriteError> {
        let change = ChangeMembers::RemoveNodes(nodes);
        self.changed(self.raft.change_membership(change, true).await)
    }

    pub(crate) async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), WriteError> {
        self.changed(
            self.raft
                .change_membership(ChangeMembers::ReplaceAllVoters(voters), true)
                .await,
        )
    }

    fn changed<R>(
        &self,
        result: Result<R, RaftError<Types, ClientWriteError<Types>>>,
    ) -> Result<(), WriteError> {
        match result {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(refused)) => Err(self.refused(refused)),
            Err(RaftError::Fatal(fatal)) => Err(WriteError::Stopped(reason(&self.log, &fatal))),
        }
    }

    pub(crate) async fn receive(&self, kind: MessageKind, message: &[u8]) -> Result<Vec<u8>, ReceiveError> {
        network::receive(&self.raft, kind, message).await
    }

    pub(crate) async fn receive_snapshot(
        &self,
        header: &[u8],
        mut content: impl AsyncRead + Unpin,
    ) -> Result<Vec<u8>, ReceiveError> {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        let file = self.snapshots.incoming(number).map_err(ReceiveError::Snapshot)?;
        let answer = match file.receive(&mut content).await {
            Ok(()) => network::install_snapshot(&self.raft, header, file.clone()).await,
            Err(problem) => Err(ReceiveError::Snapshot(problem)),
        };
        // Installed, it has another name by now.
        file.discard();
        answer
    }

    /// Gives the lead to the voter that has most of the log, of those that may have it, and waits until it has it.
    pub(crate) async fn hand_over(&self, may: impl Fn(u64) -> bool) {
        let to = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            let Some(replication) = metrics
                .replication
                .as_ref()
                .filter(|_| metrics.state == ServerState::Leader)
            else {
                return;
            };
            let others = replication
                .iter()
                .filter(|(id, _)| **id != self.node_id && voters.contains(id) && may(**id));
            let Some((to, _)) = others.max_by_key(|(_, matched)| **matched) else {
                return;
            };
            *to
        };
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return;
        }
        let is_over = self.raft.wait(Some(self.timing.election_max * 2));
        let node_id = self.node_id;
        let result = is_over
            .metrics(
                |metrics| metrics.current_leader.is_some_and(|leader| leader != node_id),
                "handed over",
            )
            .await;
        match result {
            Ok(_) => info!(to, "handed the lead over"),
            Err(problem) => warn!(to, %problem, "could not hand the lead over"),
        }
    }

    /// Stops, in order. The lock on the directory is free afterwards.
    pub(crate) async fn halt(&self) {
        // Openraft's error here would be that its task panicked, which it has logged.
        let _ = self.raft.shutdown().await;
        self.tasks.iter().for_each(AbortHandle::abort);
        let held = self.held.lock().expect("no panic under this lock").take();
        if let Some((writer, lock)) = held {
            let closing = tokio::task::spawn_blocking(move || {
                writer.close();
                drop(lock);
            });
            closing.await.expect("closing the log does not panic");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Says when this node leads, has applied all that earlier leaders acknowledged, *and* has heard of
/// most voters lately: openraft's leader goes on believing in itself when it is cut off.
async fn watch_leadership(raft: Raft, leads: watch::Sender<bool>, silence_max: Duration) {
    let mut metrics = raft.server_metrics();
    // The vote it was elected by, and when it was last known to have a quorum: a lead lost and won
    // again between two looks is another lead.
    let mut ready: Option<(_, Instant)> = None;
    let mut fresh_for = Duration::ZERO;
    loop {
        let (elected, is_only_voter) = {
            let metrics = metrics.borrow_and_update();
            let voters = metrics.membership_config.membership().voter_ids().count();
            let elected = (metrics.state == ServerState::Leader).then_some(metrics.vote.leader_id);
            (elected, voters == 1)
        };
        if elected != ready.map(|(vote, _)| vote) {
            leads.send_if_modified(std::mem::take);
            ready = None;
        }
        if let Some(vote) = elected {
            let acked = raft.data_metrics().borrow_watched().last_quorum_acked;
            let silence = ready.map(|(_, asked)| {
                let since_asked = asked.elapsed();
                acked.map_or(since_asked, |acked| since_asked.min(acked.elapsed()))
            });
            fresh_for = silence.map_or(Duration::ZERO, |silence| silence_max.saturating_sub(silence));
            let is_fresh = ready.is_some() && (is_only_voter || !fresh_for.is_zero());
            if !is_fresh {
                let asked = raft.ensure_linearizable(ReadPolicy::ReadIndex);
                if matches!(tokio::time::timeout(silence_max, asked).await, Ok(Ok(_))) {
                    ready = Some((vote, Instant::now()));
                    fresh_for = silence_max;
                    leads.send_if_modified(|leads| !std::mem::replace(leads, true));
                } else {
                    if leads.send_if_modified(std::mem::take) {
                        warn!("this node led, but most voters do not answer it");
                    }
                    ready = None;
                    // Nothing announces a quorum, so ask again soon.
                    match tokio::time::timeout(ASK_AGAIN, metrics.changed()).await {
                        Ok(Ok(())) | Err(_) => continue,
                        Ok(Err(_)) => break,
                    }
                }
            }
        }
        let changed = metrics.changed();
        if elected.is_none() || is_only_voter {
            if changed.await.is_err() {
                break;
            }
        } else if let Ok(Err(_)) = tokio::time::timeout(fresh_for, changed).await {
            // Until then nothing that was heard or not would change the answer.
            break;
        }
    }
    leads.send_replace(false);
}

fn raft_config(timing: &Timing) -> Result<openraft::Config, openraft::ConfigError> {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    openraft::Config {
        cluster_name: "flynn".to_owned(),
        heartbeat_interval: milliseconds(timing.heartbeat),
        election_timeout_min: milliseconds(timing.election_min),
        election_timeout_max: milliseconds(timing.election_max),
        install_snapshot_timeout: milliseconds(SNAPSHOT_SEND_MAX),
        max_payload_entries: 4096,
        // Both are the compaction's.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        backoff: "50ms 100ms ..500ms".to_owned(),
        enable_pre_vote: Some(true),
        // An election makes sure that a restarted leader has applied all it had acknowledged.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
    .validate()
}

fn leader_of(forward: ForwardToLeader<Types>) -> Option<Peer> {
    let address = forward.leader_node.map(|node| node.addr).unwrap_or_default();
    forward.leader_id.map(|id| Peer { id, address })
}

/// Why openraft stopped; the log knows better when it was the disk.
fn reason(log: &Log, fatal: &Fatal<Types>) -> String {
    log.failure().map_or_else(|| fatal.to_string(), str::to_owned)
}

#[derive(Serialize, Deserialize)]
struct Identity {
    node_id: u64,
}

pub(crate) fn open_files(directory: PathBuf, node_id: u64, segment_bytes: u32) -> Result<Files, OpenError> {
    let io_error = |source| OpenError::Io {
        directory: directory.clone(),
        source,
    };
    durable::create_directory(&directory).map_err(io_error)?;
    let lock = lock(&directory)?;
    let identity_path = directory.join("node.json");
    match std::fs::read(&identity_path) {
        Ok(bytes) => {
            let identity: Identity =
                serde_json::from_slice(&bytes).map_err(|problem| OpenError::Damaged {
                    directory: directory.clone(),
                    reason: format!("{}: {problem}", identity_path.display()),
                })?;
            if identity.node_id != node_id {
                return Err(OpenError::OtherNode {
                    directory,
                    found: identity.node_id,
                    wanted: node_id,
                });
            }
        }
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => {
            let identity = serde_json::to_vec(&Identity { node_id })
                .map_err(io::Error::other)
                .map_err(io_error)?;
            durable::replace(&identity_path, &identity).map_err(io_error)?;
        }
        Err(problem) => return Err(io_error(problem)),
    }
    let snapshots =
        Snapshots::open(&directory.join("snapshots")).map_err(|problem| damage(&directory, problem))?;
    let (log, writer) = Log::open(&directory, segment_bytes).map_err(|problem| match problem {
        Damage::Io { path, source } => damage(
            &directory,
            io::Error::new(source.kind(), format!("{}: {source}", path.display())),
        ),
        other => OpenError::Damaged {
            directory: directory.clone(),
            reason: other.to_string(),
        },
    })?;
    let covered = snapshots.current().and_then(|snapshot| snapshot.meta.last_log_id);
    if log.purged() > covered {
        let reason = format!(
            "the log begins after index {:?}, but the newest snapshot ends with {:?}",
            log.purged().map(|id| id.index()),
            covered.map(|id| id.index())
        );
        return Err(OpenError::Damaged { directory, reason });
    }
    Ok(Files {
        lock,
        log,
        writer,
        snapshots,
    })
}

fn damage(directory: &Path, problem: io::Error) -> OpenError {
    let directory = directory.to_owned();
    match problem.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => OpenError::Damaged {
            directory,
            reason: problem.to_string(),
        },
        _ => OpenError::Io {
            directory,
            source: problem,
        },
    }
}

/// Makes this process the only one in `directory`, for as long as the file is open.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let io_error = |source| OpenError::Io {
        directory: directory.to_owned(),
        source,
    };
    let path = directory.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let by = holder
            .trim()
            .parse()
            .map(|id: u32| format!(" by process {id}"))
            .unwrap_or_default();
        return Err(OpenError::InUse {
            directory: directory.to_owned(),
            by,
        });
    }
    // For the message above only: a full disk must not keep the store from opening.
    let _ = file.set_len(0);
    let _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}
