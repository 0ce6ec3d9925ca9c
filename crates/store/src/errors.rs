//! What can go wrong when opening, writing and reading, with what to do about it.

use std::io;
use std::path::PathBuf;

use crate::network::Peer;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the state in {directory} is in use{by}")]
    InUse {
        directory: PathBuf,
        /// ` by process 123`, or empty.
        by: String,
    },
    #[error("the state in {directory} belongs to node {found}, not to node {wanted}")]
    OtherNode {
        directory: PathBuf,
        found: u64,
        wanted: u64,
    },
    /// Going on would lose acknowledged writes without a word.
    #[error("the state in {directory} is damaged: {reason}")]
    Damaged { directory: PathBuf, reason: String },
    #[error("the state in {directory} cannot be opened: {source}")]
    Io { directory: PathBuf, source: io::Error },
    #[error("the store could not start: {0}")]
    Start(String),
}

impl OpenError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InUse { .. } => {
                "is the daemon running already? stop it, or give this one another state directory"
            }
            Self::OtherNode { .. } => "give the node its own id, or another state directory",
            Self::Damaged { .. } => {
                "check the disk; then restore the directory from a backup, or, when other voters are up, remove it \
                 and let this node join again"
            }
            Self::Io { .. } => {
                "check that the directory is on a disk with free space and belongs to this user"
            }
            Self::Start(_) => "check that the disk has free space, then start again",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing was written; the leader would take it.
    #[error("this node does not lead the cluster state{}", of(.leader))]
    NotLeader { leader: Option<Peer> },
    /// Another leader took over: the command may have been carried out or not.
    #[error("the leader of the cluster state changed meanwhile; the write may have been carried out or not")]
    Unknown { leader: Option<Peer> },
    #[error("a command of {bytes} bytes is too large, at most {bytes_max} are taken")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the command cannot be written as JSON: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("the cluster state cannot be written: {0}")]
    Stopped(String),
}

impl WriteError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotLeader { .. } => "send it to the leader",
            Self::Unknown { .. } => "look whether it was carried out before trying again",
            Self::TooLarge { .. } => "store large things in the registry and refer to them",
            Self::Encode(_) => "this is a mistake in the program",
            Self::Stopped(_) => "free space on the disk of the state directory, then restart the daemon",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("this node does not lead the cluster state{}", of(.leader))]
    NotLeader { leader: Option<Peer> },
    #[error("not enough voters answer to be sure that the state is the newest")]
    NoQuorum,
    #[error("the store is stopped: {0}")]
    Stopped(String),
}

fn of(leader: &Option<Peer>) -> String {
    leader
        .as_ref()
        .map(|leader| format!("; node {} at {:?} does", leader.id, leader.address))
        .unwrap_or_default()
}
