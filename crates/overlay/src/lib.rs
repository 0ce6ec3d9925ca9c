//! Gives each job of this host an address and decides what it may reach.
//!
//! ```text
//!   job a1 (app a)        job a2 (app a)        job b1 (app b)
//!   eth0 100.100.0.2/32   eth0 100.100.0.3/32   eth0 100.100.0.4/32
//!        |                     |                     |
//!   fl0-2 (group a)       fl0-3 (group a)       fl0-4 (group b)       veth ends on the host
//!        `---------------------+---------------------'
//!                   routing + table inet flynn_fl0
//!                    /                         \
//!         fl0 100.100.0.1/32                  uplink, masqueraded
//!         (DNS, router, discovery)
//! ```
//!
//! Other hosts are behind one more interface, `fl0.peers`: an encrypted [`tunnel`], or a VXLAN whose every entry is
//! static ([`map`]).
//!
//! There is no bridge: every job hangs on a point-to-point link of its own, so every packet between
//! two jobs is routed and passes the `forward` hook of the one nftables table made here.
//!
//! Each job has an IPv6 address as well, made from its IPv4 one ([`Prefix6`]); the same rules hold for it. Nothing is
//! asked or answered on a link (neighbours are static at both ends), and link-local addresses are no way anywhere.
//!
//! What a reader would get wrong:
//! * **No rule and no set element belongs to a job.** A job's app is the *interface group* of its veth,
//!   given in the same netlink message that makes the veth, and its right to a source address is its
//!   route (`fib saddr . iif`). nftables is spoken to only when an app's first job comes or its last
//!   goes, never per job.
//! * Between hosts the one that receives decides ([`map`] says why): a packet for a job of another host goes out
//!   unasked.
//! * `accept` in our table is not the last word: another table's base chain may still drop. [`Network::diagnose`]
//!   says so; foreign tables are never touched.
//! * The values that forwarding had before are kept *in the kernel*, as the names of empty chains, because they
//!   must live exactly as long as the settings themselves: a file would survive a reboot, which resets the settings.
//!
//! [`plan`] is pure: configuration and leases in, interfaces, routes and ruleset out. [`Network`] carries it out.
//! Names are not resolved here and health is not checked here.

mod attach;
mod config;
mod diagnose;
pub mod elements;
mod error;
pub mod floating;
mod forwarding;
mod generation;
mod lease;
pub mod map;
mod netlink;
mod network;
mod nft;
mod peers;
pub mod plan;
mod ruleset;
mod subnet;
mod subnet6;
mod survey;
pub mod tunnel;

pub use attach::Attached;
pub use config::{Config, Encryption, HostPort, Protocol, Underlay};
pub use diagnose::Finding;
pub use error::Error;
pub use forwarding::Former;
pub use lease::{Lease, Leases};
pub use map::{Map, Peer};
pub use network::Network;
pub use subnet::Subnet;
pub use subnet6::{Destination, Prefix6, Subnet6};
