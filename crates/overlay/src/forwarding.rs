//! The kernel's switch that makes the machine pass packets on, for each kind of address.
//!
//! What a reader would get wrong: IPv6 has one switch for the whole machine, and the kernel looks at no other when it
//! passes a packet on; but writing it writes that of every interface as well, and an interface that passes packets on
//! no longer takes its own address and default route from its routers, whose routes are forgotten at that moment. So
//! everything that hangs on it is put back as it was, and routers' routes are held on to meanwhile.

use std::fs;
use std::io;

use crate::Error;

/// Of the calling thread's network namespace.
const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// `accept_ra`: take what routers say, also while passing packets on.
const ACCEPT_ALWAYS: &str = "2";

/// What the machine had before any cluster came; `ipv6` is there where jobs have IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    pub ipv4: bool,
    pub ipv6: Option<bool>,
}

/// Whether interfaces may have IPv6 addresses, those that come later among them.
pub(crate) fn is_ipv6_there() -> bool {
    ["all", "default"].iter().all(|which| {
        let text = fs::read_to_string(format!("{INTERFACES}/{which}/disable_ipv6"));
        text.is_ok_and(|text| text.trim() == "0")
    })
}

/// Whether it is on, or can be switched on: in a container `/proc/sys` may be for reading only.
pub(crate) fn is_ipv6_possible() -> bool {
    ipv6().is_ok_and(|is_on| is_on || fs::OpenOptions::new().write(true).open(IPV6).is_ok())
}

pub(crate) fn ipv4() -> Result<bool, Error> {
    read(IPV4)
}

pub(crate) fn ipv6() -> Result<bool, Error> {
    read(IPV6)
}

pub(crate) fn set_ipv4(is_on: bool) -> Result<(), Error> {
    // Writing the same value again would reset settings that hang on it, such as accept_redirects.
    if ipv4()? == is_on {
        return Ok(());
    }
    write(IPV4, is_on)
}

pub(crate) fn set_ipv6(is_on: bool) -> Result<(), Error> {
    if ipv6()? == is_on {
        return Ok(());
    }
    let kept = Interface::all().map_err(Error::kernel(format!("reading {INTERFACES}")))?;
    for interface in &kept {
        interface.put("accept_ra", ACCEPT_ALWAYS);
    }
    let written = write(IPV6, is_on);
    for interface in &kept {
        interface.put("forwarding", &interface.forwarding);
        interface.put("accept_ra", &interface.accept_ra);
    }
    written
}

/// What hangs on the switch.
struct Interface {
    name: String,
    forwarding: String,
    accept_ra: String,
}

impl Interface {
    /// `default`, which those that come later begin with, is one of them.
    fn all() -> io::Result<Vec<Interface>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(INTERFACES)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let read = |setting: &str| fs::read_to_string(format!("{INTERFACES}/{name}/{setting}"));
            // One that is gone meanwhile has nothing to be kept.
            if name != "all"
                && let (Ok(forwarding), Ok(accept_ra)) = (read("forwarding"), read("accept_ra"))
            {
                all.push(Interface {
                    name,
                    forwarding,
                    accept_ra,
                });
            }
        }
        Ok(all)
    }

    fn put(&self, setting: &str, value: &str) {
        let path = format!("{INTERFACES}/{}/{setting}", self.name);
        if let Err(error) = fs::write(&path, value)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path, %error, "a setting of an interface cannot be kept as it was");
        }
    }
}

fn read(path: &str) -> Result<bool, Error> {
    let text = fs::read_to_string(path).map_err(Error::kernel(format!("reading {path}")))?;
    Ok(text.trim() != "0")
}

fn write(path: &str, is_on: bool) -> Result<(), Error> {
    fs::write(path, if is_on { "1" } else { "0" }).map_err(Error::kernel(format!("writing {path}")))
}
