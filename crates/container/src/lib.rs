//! Runs one process in isolation on Linux.
//!
//! ```text
//!  daemon (tokio)                 flynn-shim run <job dir>            the container
//!  ──────────────                 ────────────────────────            ─────────────
//!  Shim::create ── spawns ──────▶ layers, overlay, libcontainer ────▶ pid 1: our init
//!    ◀──────────── created pid ──   (own namespaces, cgroup)            │ waits
//!  attach the network to pid                                            │
//!  Created::start ── start ─────▶ "go" ────────────────────────────────▶└▶ the app, its child
//!  Control (ctl.sock) ◀─────────▶ state, signal, stop, attach, wait
//!                                 log file, exit.json
//! ```
//!
//! What a reader would get wrong: the shim is *not* supervised by the daemon. It outlives it; a
//! daemon that starts again finds its jobs with [`adopt`]. The other way round the tie is strict:
//! a shim that dies takes its container with it, and a shim whose starter dies before `start`
//! gives up. The daemon's side of this crate (this library) never calls libcontainer, which forks
//! and changes directory and must not do so in a process with threads; only the shim does.
//!
//! It does not: give the container an address (see `overlay`), fetch layers, decide anything.

pub mod capability;
pub mod cgroup;
mod client;
pub mod delivery;
pub mod layers;
pub mod logline;
pub mod loop_device;
pub mod protocol;
mod record;
mod spec;

pub use client::{
    Adopted, Attached, AttachedReader, AttachedWriter, Control, ControlError, Created, Event, ExecSession,
    Shim, StartError, Started, adopt, cleanup, wait,
};
pub use record::{ExitRecord, Outcome};
pub use spec::{
    Bind, BindKind, ExecSpec, IDS_PER_CONTAINER, InlineFile, Limits, LogFile, Process, SeccompProfile, Spec,
    TEMP_DISK_IN_MEMORY_BYTES_MAX, WindowSize,
};

/// Names of the files in a job's directory.
pub mod job_dir {
    /// What to run ([`crate::Spec`]), written by the daemon.
    pub const SPEC: &str = "spec.json";
    /// How it ended ([`crate::ExitRecord`]), written once by the shim.
    pub const EXIT: &str = "exit.json";
    /// The control socket; somebody listens on it exactly as long as the shim lives.
    pub const CONTROL: &str = "ctl.sock";
    /// What the shim itself has to say; empty unless something is wrong with it.
    pub const SHIM_LOG: &str = "shim.log";
}
