//! Linux capabilities by name, and the ones an app gets.

use serde::{Deserialize, Serialize};

/// In the kernel's order: the position is the number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// One capability, written as its name (`CAP_CHOWN`) in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(u8);

impl Capability {
    pub const CHOWN: Capability = Capability(0);
    pub const DAC_OVERRIDE: Capability = Capability(1);
    pub const FOWNER: Capability = Capability(3);
    pub const FSETID: Capability = Capability(4);
    pub const KILL: Capability = Capability(5);
    pub const SETGID: Capability = Capability(6);
    pub const SETUID: Capability = Capability(7);
    pub const SETPCAP: Capability = Capability(8);
    pub const NET_BIND_SERVICE: Capability = Capability(10);
    pub const NET_ADMIN: Capability = Capability(12);
    pub const SYS_CHROOT: Capability = Capability(18);
    pub const SYS_ADMIN: Capability = Capability(21);
    pub const SETFCAP: Capability = Capability(31);

    pub fn number(self) -> u8 {
        self.0
    }

    pub fn name(self) -> &'static str {
        NAMES[self.0 as usize]
    }

    pub fn all() -> impl Iterator<Item = Capability> {
        (0..NAMES.len() as u8).map(Capability)
    }
}

/// What every app gets, inside its user namespace.
///
/// Docker's default without NET_RAW (raw sockets are refused), MKNOD and AUDIT_WRITE (without
/// effect in a user namespace) and SETPCAP (without use under `no_new_privs`).
pub const DEFAULT: [Capability; 10] = [
    Capability::CHOWN,
    Capability::DAC_OVERRIDE,
    Capability::FOWNER,
    Capability::FSETID,
    Capability::KILL,
    Capability::SETGID,
    Capability::SETUID,
    Capability::NET_BIND_SERVICE,
    Capability::SYS_CHROOT,
    Capability::SETFCAP,
];

/// The bits of a set, as `capset(2)` and `/proc/<pid>/status` have them.
pub fn mask(capabilities: impl IntoIterator<Item = Capability>) -> u64 {
    capabilities
        .into_iter()
        .fold(0, |mask, capability| mask | 1 << capability.0)
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|number| Capability(number as u8))
            .ok_or_else(|| format!("no such capability: {name:?} (they are written like CAP_CHOWN)"))
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> String {
        capability.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_have_the_kernels_numbers() {
        for capability in DEFAULT {
            assert_eq!(Capability::try_from(capability.name().to_owned()), Ok(capability));
        }
        assert_eq!(Capability::SETFCAP.name(), "CAP_SETFCAP");
        assert_eq!(Capability::SYS_ADMIN.name(), "CAP_SYS_ADMIN");
        assert_eq!(mask(DEFAULT), 0x8004_04fb);
    }
}
