//! What can go wrong, and what the person at the machine can do about it.

use std::io;
use std::net::Ipv4Addr;

use crate::Subnet;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network configuration: {0}")]
    InvalidConfig(String),
    #[error("subnet {subnet} is already in use on this machine: {by}")]
    SubnetInUse { subnet: Subnet, by: String },
    #[error("interface {name} exists and is not ours (kind {kind})")]
    InterfaceInUse { name: String, kind: String },
    #[error("VXLAN number {vni} on port {port} is already in use on this machine")]
    NetworkNumberInUse { vni: u32, port: u16 },
    #[error("no free address left in {0}")]
    SubnetFull(Subnet),
    #[error("lease {slot} of app {app} contradicts another: {reason}")]
    LeaseConflict { slot: u32, app: String, reason: String },
    #[error("process {pid} or its network namespace is gone")]
    NamespaceGone { pid: u32 },
    #[error("process {pid} has no network namespace of its own")]
    NotIsolated { pid: u32 },
    #[error(
        "the network namespace of process {pid} already has an interface {name} that is not of {address}"
    )]
    NamespaceOccupied {
        pid: u32,
        name: String,
        address: Ipv4Addr,
    },
    #[error("{doing}: {source}")]
    Kernel { doing: String, source: io::Error },
    #[error("{doing}: nft: {message}")]
    Nft { doing: String, message: String },
}

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Kernel { doing, source }
    }

    /// What to do about it, where a person can do something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::SubnetInUse { .. } => Some("give this cluster another subnet".into()),
            Error::InterfaceInUse { name, .. } => Some(format!(
                "give this cluster another interface prefix, or remove {name}"
            )),
            Error::NetworkNumberInUse { .. } => {
                Some("give this cluster another number or port for its network between hosts".into())
            }
            Error::SubnetFull(subnet) => Some(format!(
                "{} jobs is the most {subnet} can hold; stop some, or use a larger subnet",
                subnet.jobs_max()
            )),
            Error::Kernel { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("this needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)".into())
            }
            Error::Nft { message, .. } if message.contains("No such file") => {
                Some("install the package nftables".into())
            }
            _ => None,
        }
    }
}
