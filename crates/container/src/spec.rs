//! What to run: the input of the shim, `<job dir>/spec.json`.
//!
//! Everything in it is decided by the caller; the shim only carries it out. The file holds the
//! app's environment, secrets included, so it is written for root only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;

/// How many user and group ids a container has.
pub const IDS_PER_CONTAINER: u32 = 65_536;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique on the host; letters, digits, `_`, `-`, `.`.
    pub id: String,
    pub hostname: String,
    pub process: Process,
    /// First host id of the container's user namespace: uid 0 inside is this one outside.
    /// The 65 536 ids from here on should belong to nobody else.
    pub host_id_base: u32,
    /// Root file system, bottom layer first: erofs image files, or directories.
    pub layers: Vec<PathBuf>,
    /// How much may be written outside of binds.
    ///
    /// Up to [`TEMP_DISK_IN_MEMORY_BYTES_MAX`] it is memory, and counts towards the memory limit as it fills;
    /// beyond, it is a sparse file in the job's directory.
    pub temp_disk_bytes: u64,
    #[serde(default)]
    pub binds: Vec<Bind>,
    #[serde(default)]
    pub files: Vec<InlineFile>,
    /// False: standard input is `/dev/null`. With a terminal it is always open.
    #[serde(default)]
    pub stdin: bool,
    pub limits: Limits,
    /// Path from the root of every cgroup hierarchy, such as `/flynn/job-1`. The container gets it
    /// for itself: whatever is in there is killed at the end.
    pub cgroup: String,
    #[serde(default)]
    pub extra_capabilities: Vec<Capability>,
    #[serde(default)]
    pub seccomp: SeccompProfile,
    #[serde(default)]
    pub readonly_root: bool,
    /// None: output waits for somebody to attach and is kept nowhere.
    pub log: Option<LogFile>,
    /// Start the process only once somebody has attached, and give up after this time.
    pub wait_for_attach_ms: Option<u64>,
    /// The polite signal of `stop`; 15 (SIGTERM) unless the app asks for another.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
}

/// See [`Spec::temp_disk_bytes`].
pub const TEMP_DISK_IN_MEMORY_BYTES_MAX: u64 = 128 << 20;

fn sigterm() -> i32 {
    libc::SIGTERM
}

/// One process: the container's main one, or one added by `exec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments. A name without `/` is looked up in `PATH` of `env`.
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Some: it gets a terminal of this size, and standard output and error are one stream.
    pub terminal: Option<WindowSize>,
}

/// What to run in a container that is already there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub process: Process,
    #[serde(default)]
    pub stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute path inside; made if it is not there.
    pub target: PathBuf,
    pub kind: BindKind,
    pub read_only: bool,
    /// True: ids inside are the ids on the host's file system (uid 1000 stays 1000).
    /// False: only files of the container's own id range have an owner inside.
    pub idmapped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindKind {
    File,
    Directory,
}

/// A file put into the root file system before the start, such as `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InlineFile {
    pub path: PathBuf,
    pub content: String,
    pub mode: u32,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory; swap on top of it is not allowed.
    pub memory_bytes: Option<u64>,
    /// Share of the CPU when it is short: 1000 is one core's weight.
    pub cpu_milli: Option<u32>,
    /// Also refuse more than `cpu_milli` when the CPU is idle.
    #[serde(default)]
    pub cpu_is_capped: bool,
    pub processes_max: Option<u32>,
    /// Taken down to what the host permits when that is less.
    pub open_files_max: Option<u64>,
}

/// Which system calls are let through. None of them lets keyrings, BPF or kernel modules through, and only
/// that for images mounts and namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompProfile {
    #[default]
    Default,
    /// In addition what package builds do: any `personality`, NUMA calls in test suites.
    Builder,
    /// In addition what building images takes: mounts and namespaces within the container's own.
    Images,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogFile {
    /// Older ones are `<path>.1`, `<path>.2` and so on.
    pub path: PathBuf,
    pub bytes_max: u64,
    /// Including the one being written.
    pub files_max: u32,
}

impl Spec {
    /// What would make the shim refuse it, in words.
    pub fn problem(&self) -> Option<String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if self.id.is_empty() || self.id.starts_with('.') || !self.id.chars().all(allowed) {
            return Some(format!(
                "the id {:?} has characters other than letters, digits, _, - and .",
                self.id
            ));
        }
        if self.process.args.is_empty() {
            return Some("there is no command to run".into());
        }
        if !self.cgroup.starts_with('/')
            || self.cgroup.len() < 2
            || self.cgroup.split('/').any(|part| part == "..")
        {
            return Some(format!("the cgroup {:?} is not an absolute path", self.cgroup));
        }
        if self.host_id_base < IDS_PER_CONTAINER || self.host_id_base.checked_add(IDS_PER_CONTAINER).is_none()
        {
            return Some(format!(
                "the id range from {} overlaps the host's own ids",
                self.host_id_base
            ));
        }
        let reserved = ["/proc", "/sys", "/dev"];
        for target in self
            .binds
            .iter()
            .map(|bind| &bind.target)
            .chain(self.files.iter().map(|file| &file.path))
        {
            let is_plain = target.is_absolute()
                && target.file_name().is_some()
                && !target
                    .components()
                    .any(|part| matches!(part, std::path::Component::ParentDir));
            if !is_plain || reserved.iter().any(|reserved| target.starts_with(reserved)) {
                return Some(format!(
                    "nothing can be placed at {} in a container",
                    target.display()
                ));
            }
        }
        None
    }
}
