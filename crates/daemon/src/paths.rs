//! Where a host keeps what. Everything is below one directory that only root may enter.

use std::path::{Path, PathBuf};

use types::{AppId, JobId};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    pub const DEFAULT: &str = "/var/lib/flynn";

    pub fn new(root: impl Into<PathBuf>) -> Self {
        StateDir { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The Raft log and its snapshots.
    pub fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// Keys, the cluster's authority and its certificate.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// What this host is as a member of its cluster; missing where it founded the cluster by itself.
    pub fn cluster(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Layers of images, each `DIGEST.erofs`.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// `stack.json`: which layers make the images that buildpacks run on and build in.
    pub fn stack(&self) -> PathBuf {
        self.root.join("images/stack.json")
    }

    /// What each running container needs, one directory per job.
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub fn job(&self, job: JobId) -> PathBuf {
        self.jobs().join(job.to_string())
    }

    /// Output of jobs, one directory per app.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn app_logs(&self, app: AppId) -> PathBuf {
        self.logs().join(app.to_string())
    }

    /// What is sent to each log sink and how far, one directory per sink.
    pub fn sinks(&self) -> PathBuf {
        self.root.join("sinks")
    }

    /// Git repositories, each `APPID.git`.
    pub fn repos(&self) -> PathBuf {
        self.root.join("repos")
    }

    /// What apps keep, one directory per volume.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Build work and caches, one disk image per app.
    pub fn builds(&self) -> PathBuf {
        self.root.join("builds")
    }

    /// What the router serves by when nobody tells it anything newer.
    pub fn routing_table(&self) -> PathBuf {
        self.root.join("router/table.json")
    }

    /// What the network was last told of other hosts.
    pub fn network_map(&self) -> PathBuf {
        self.root.join("network.json")
    }

    /// Sockets, process ids and the addresses that the daemon listens on.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}
