//! The threads of the tunnel: out, in, and what has to be done from time to time.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, RwLock, mpsc};
use std::time::Duration;

use boringtun::noise::{Packet, Tunn, TunnResult};
use tracing::{info, trace, warn};
use tun_rs::{GROTable, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::burst::{self, Burst};
use super::table::{self, Identity, Peer, Table};
use super::{Settings, device, local};
use crate::{Config, Map, Subnet};

/// WireGuard's own timers count in quarters of a second; a new map is looked for as often.
const TICK: Duration = Duration::from_millis(250);
const TICKS_PER_S: u32 = 4;

/// A packet of the interface, or a datagram, is never larger.
const BYTES_MAX: usize = 65_536;

/// What encryption adds, and the size below which it wants no room (a request for a session).
const OVERHEAD: usize = 32;
const ROOM_MIN: usize = 148;

struct Shared {
    config: Config,
    own: Identity,
    socket: UdpSocket,
    device: SyncDevice,
    table: RwLock<Arc<Table>>,
}

impl Shared {
    fn table(&self) -> Arc<Table> {
        self.table
            .read()
            .expect("nothing panics while it holds this")
            .clone()
    }
}

pub(super) fn run(settings: Settings) -> io::Result<()> {
    let Settings { network, key, map } = settings;
    let local = local(&network).ok_or_else(|| io::Error::other("there is no underlay"))?;
    let shared = Arc::new(Shared {
        socket: burst::socket(local)?,
        device: device(&network.peer_interface())?,
        own: Identity::new(key),
        config: network,
        table: RwLock::default(),
    });
    let mut map_version = None;
    read_map(&shared, &map, &mut map_version);
    info!(%local, peers = shared.table().iter().count(), "the tunnel is open");
    let (ended, end) = mpsc::channel();
    for (name, work) in [
        ("tunnel-out", outward as fn(&Shared) -> io::Result<()>),
        ("tunnel-in", inward),
    ] {
        let (shared, ended) = (shared.clone(), ended.clone());
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || ended.send(work(&shared)))?;
    }
    for tick in 0u32.. {
        match end.recv_timeout(TICK) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("a thread panicked")),
        }
        read_map(&shared, &map, &mut map_version);
        if tick % TICKS_PER_S == 0 {
            shared.own.limiter.reset_count();
        }
        keep_alive(&shared);
    }
    Ok(())
}

/// From jobs here to other hosts.
fn outward(shared: &Shared) -> io::Result<()> {
    let mut whole = vec![0; VIRTIO_NET_HDR_LEN + BYTES_MAX];
    // Each by itself: a copied one would fill all of its memory.
    let mut packets: Vec<Vec<u8>> = (0..IDEAL_BATCH_SIZE).map(|_| vec![0; BYTES_MAX]).collect();
    let mut sizes = vec![0; IDEAL_BATCH_SIZE];
    let mut burst = Burst::new();
    loop {
        let count = match shared
            .device
            .recv_multiple(&mut whole, &mut packets, &mut sizes, 0)
        {
            Ok(count) => count,
            // One packet that makes no sense is no reason to end all connections.
            Err(error) if error.raw_os_error().is_none() => {
                trace!(%error, "a packet of the interface is lost");
                continue;
            }
            Err(error) => return Err(error),
        };
        let table = shared.table();
        for (packet, size) in packets.iter().zip(&sizes).take(count) {
            let packet = &packet[..*size];
            let Some(peer) = table.destined(packet) else {
                continue;
            };
            let room = burst.room(&shared.socket, peer.endpoint, (size + OVERHEAD).max(ROOM_MIN));
            let mut tunnel = peer.tunnel.lock().expect("nothing panics while it holds this");
            match tunnel.encapsulate(packet, room) {
                TunnResult::WriteToNetwork(datagram) => {
                    let length = datagram.len();
                    burst.add(&shared.socket, length);
                }
                TunnResult::Err(error) => trace!(?error, to = %peer.endpoint, "a packet is lost"),
                _ => {}
            }
        }
        burst.flush(&shared.socket);
    }
}

/// From other hosts to jobs here.
fn inward(shared: &Shared) -> io::Result<()> {
    let mut datagrams = vec![0; BYTES_MAX];
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut joiner = GROTable::default();
    let mut answers = Burst::new();
    loop {
        let (length, segment, from) = burst::receive(&shared.socket, &mut datagrams)?;
        let table = shared.table();
        for datagram in datagrams[..length].chunks(segment) {
            let Some(peer) = sender(shared, &table, datagram, from, &mut answers) else {
                continue;
            };
            let mut packet = spare.pop().unwrap_or_default();
            packet.clear();
            packet.resize(VIRTIO_NET_HDR_LEN + datagram.len().max(ROOM_MIN), 0);
            let room = &mut packet[VIRTIO_NET_HDR_LEN..];
            match decrypt(shared, peer, (datagram, from), room, &mut answers) {
                Some(length) => {
                    packet.truncate(VIRTIO_NET_HDR_LEN + length);
                    packets.push(packet);
                }
                None => spare.push(packet),
            }
        }
        answers.flush(&shared.socket);
        if packets.is_empty() {
            continue;
        }
        match shared
            .device
            .send_multiple(&mut joiner, &mut packets, VIRTIO_NET_HDR_LEN)
        {
            Ok(_) => {}
            // EBADFD: the interface is gone. Anything else is about one packet that the kernel does not want.
            Err(error) if error.raw_os_error() == Some(nix::libc::EBADFD) => return Err(error),
            Err(error) => trace!(%error, "a packet for a job is lost"),
        }
        spare.append(&mut packets);
    }
}

/// Whose a datagram is, or `None` if it is to be forgotten.
fn sender<'a>(
    shared: &Shared,
    table: &'a Table,
    datagram: &[u8],
    from: Option<SocketAddr>,
    answers: &mut Burst,
) -> Option<&'a Arc<Peer>> {
    // A request for a session costs us work, so it is looked at first whether there are too many of them.
    if let Ok(Packet::HandshakeInit(_)) = Tunn::parse_incoming_packet(datagram) {
        let mut cookie = [0; ROOM_MIN];
        match shared
            .own
            .limiter
            .verify_packet(from.map(|from| from.ip()), datagram, &mut cookie)
        {
            Ok(_) => {}
            Err(TunnResult::WriteToNetwork(cookie)) => {
                if let Some(from) = from {
                    answers.room(&shared.socket, from, cookie.len())[..cookie.len()].copy_from_slice(cookie);
                    answers.add(&shared.socket, cookie.len());
                }
                return None;
            }
            Err(_) => return None,
        }
    }
    table.sender(datagram, &shared.own)
}

/// The length of the packet that is in `room` then, if there is one for a job of ours.
fn decrypt(
    shared: &Shared,
    peer: &Peer,
    (datagram, from): (&[u8], Option<SocketAddr>),
    room: &mut [u8],
    answers: &mut Burst,
) -> Option<usize> {
    let mut tunnel = peer.tunnel.lock().expect("nothing panics while it holds this");
    let mut result = tunnel.decapsulate(from.map(|from| from.ip()), datagram, room);
    match result {
        TunnResult::WriteToTunnelV4(ref packet, _) | TunnResult::WriteToTunnelV6(ref packet, _) => {
            return is_from_to(packet, peer.subnet, &shared.config).then_some(packet.len());
        }
        TunnResult::WriteToNetwork(_) => {}
        TunnResult::Err(ref error) => {
            trace!(?error, from = %peer.endpoint, "a datagram is forgotten");
            return None;
        }
        _ => return None,
    }
    // An answer of ours; with a new session, also what has waited for it.
    let mut waiting = vec![0; BYTES_MAX];
    while let TunnResult::WriteToNetwork(bytes) = result {
        let length = bytes.len();
        answers.room(&shared.socket, peer.endpoint, length)[..length].copy_from_slice(bytes);
        answers.add(&shared.socket, length);
        result = tunnel.decapsulate(None, &[], &mut waiting);
    }
    None
}

/// The peer's jobs to ours, and nobody else to anybody else.
fn is_from_to(packet: &[u8], from: Subnet, to: &Config) -> bool {
    table::source(packet, to.ipv6).is_some_and(|source| from.contains(source))
        && table::destination(packet, to.ipv6).is_some_and(|destination| to.subnet.contains(destination))
}

fn keep_alive(shared: &Shared) {
    let mut room = vec![0; BYTES_MAX];
    for peer in shared.table().iter() {
        let mut tunnel = peer.tunnel.lock().expect("nothing panics while it holds this");
        if let TunnResult::WriteToNetwork(datagram) = tunnel.update_timers(&mut room)
            && let Err(error) = shared.socket.send_to(datagram, peer.endpoint)
        {
            trace!(%error, to = %peer.endpoint, "a word to a peer is lost");
        }
    }
}

/// Asks for a session before anything is to be sent: a peer that still has one with the tunnel that was here before
/// would go on with that for a quarter of a minute, and all of it would be lost.
fn greet(shared: &Shared, peer: &Peer) {
    let mut room = [0; ROOM_MIN];
    let mut tunnel = peer.tunnel.lock().expect("nothing panics while it holds this");
    if let TunnResult::WriteToNetwork(datagram) = tunnel.format_handshake_initiation(&mut room, false)
        && let Err(error) = shared.socket.send_to(datagram, peer.endpoint)
    {
        trace!(%error, to = %peer.endpoint, "a greeting is lost");
    }
}

/// The file is replaced as a whole, so what tells one from the next is which file it is.
fn read_map(shared: &Shared, path: &Path, version: &mut Option<(u64, i64, i64)>) {
    let found = std::fs::metadata(path)
        .map(|data| (data.ino(), data.mtime(), data.mtime_nsec()))
        .ok();
    if found == *version {
        return;
    }
    let map: Map = match std::fs::read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
        Ok(map) => map,
        Err(error) => return warn!(%error, path = %path.display(), "the network map cannot be read"),
    };
    *version = found;
    let before = shared.table();
    let table = before.updated(&shared.config, &map, &shared.own);
    info!(peers = table.iter().count(), "the tunnel's peers are known");
    let new: Vec<Arc<Peer>> = table.iter().filter(|peer| !before.knows(peer)).cloned().collect();
    *shared.table.write().expect("nothing panics while it holds this") = Arc::new(table);
    for peer in new {
        greet(shared, &peer);
    }
}
