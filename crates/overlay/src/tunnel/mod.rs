//! Traffic between hosts encrypted in user space, where the kernel has no WireGuard: the same protocol, so both kinds
//! of host understand each other.
//!
//! ```text
//!  jobs ─▶ routing ─▶ fl0.peers (TUN) ─▶ out: cut, encrypt ─▶ UDP ─▶ the other host
//!  jobs ◀─ routing ◀─ fl0.peers (TUN) ◀─ in:  decrypt, join ◀─ UDP ◀─
//! ```
//!
//! What a reader would get wrong:
//! * What costs is not the cipher but a system call per packet. So the interface gives and takes whole TCP segments of
//!   64 KiB, the socket bursts of datagrams; between them a packet is only memory.
//! * The interface is the daemon's and stays when this ends, routes and all: what jobs send meanwhile is lost, it does
//!   not leave in the clear.
//! * It runs in a process of its own, so that a restart of the daemon does not interrupt jobs. What peers there are it
//!   reads from the file that the daemon keeps of its map.
//!
//! Nothing here is asynchronous: one thread each way and one for what has to be done from time to time.

mod burst;
mod key;
mod table;
mod threads;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use key::Key;
use netlink_packet_route::link::InfoKind;
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::Config;
use crate::netlink::{self, Netlink};

pub struct Settings {
    /// With an underlay that is encrypted.
    pub network: Config,
    pub key: Key,
    /// Where the daemon keeps its [`crate::Map`], as JSON.
    pub map: PathBuf,
}

/// Runs until it cannot go on: the interface was taken away, say. Blocking.
///
/// The interface must be there ([`is_ready`]).
pub fn run(settings: Settings) -> io::Result<()> {
    threads::run(settings)
}

/// Whether the daemon has made the interface, and whether it is one for us.
pub fn is_ready(config: &Config) -> bool {
    let link = Netlink::open().and_then(|mut host| host.link(&config.peer_interface()));
    link.is_ok_and(|link| link.is_some_and(|link| netlink::kind(&link) == Some(InfoKind::Tun)))
}

/// Makes the interface, which stays until it is deleted.
pub(crate) fn make_device(name: &str) -> io::Result<()> {
    device(name)?.persist()
}

fn device(name: &str) -> io::Result<SyncDevice> {
    // It is brought up, given its size and led to by netlink, as all other interfaces are.
    DeviceBuilder::new()
        .name(name)
        .offload(true)
        .inherit_enable_state()
        .build_sync()
}

fn local(config: &Config) -> Option<SocketAddr> {
    let underlay = config.underlay.as_ref()?;
    Some(SocketAddr::new(underlay.address, underlay.tunnel_port))
}
