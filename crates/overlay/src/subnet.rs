//! An IPv4 network, and how its addresses are numbered.
//!
//! Slot *n* is the *n*th address from the network address: slot 0 names the network, slot 1 is the
//! gateway, the last is the broadcast address; jobs have what lies between.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

pub(crate) const GATEWAY_SLOT: u32 = 1;
pub(crate) const FIRST_JOB_SLOT: u32 = 2;

impl Subnet {
    /// Host bits must be zero: `10.0.0.1/24` is refused rather than silently rounded down.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Subnet, Error> {
        if prefix > 32 {
            return Err(Error::InvalidConfig(format!(
                "/{prefix} is longer than an address"
            )));
        }
        let subnet = Subnet { base, prefix };
        if u32::from(base) & !subnet.mask() != 0 {
            return Err(Error::InvalidConfig(format!(
                "{base}/{prefix} is an address, not a network"
            )));
        }
        Ok(subnet)
    }

    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.address(GATEWAY_SLOT)
    }

    /// The address of a slot; `slot` must be within the network.
    pub fn address(&self, slot: u32) -> Ipv4Addr {
        debug_assert!(u64::from(slot) < self.size());
        Ipv4Addr::from(u32::from(self.base).wrapping_add(slot))
    }

    /// Slots that jobs may have.
    pub fn job_slots(&self) -> std::ops::Range<u32> {
        FIRST_JOB_SLOT..FIRST_JOB_SLOT + self.jobs_max()
    }

    /// Network, gateway and broadcast address are not for jobs.
    pub fn jobs_max(&self) -> u32 {
        self.size().saturating_sub(3) as u32
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.base)
    }

    /// Its broadcast address.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !self.mask())
    }

    /// Whether all of the other's addresses are ours.
    pub fn includes(&self, other: &Subnet) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.includes(other) || other.includes(self)
    }

    fn size(&self) -> u64 {
        1 << (32 - self.prefix)
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Subnet, Error> {
        let invalid = || Error::InvalidConfig(format!("{text:?} is not a network such as 100.100.0.0/22"));
        let (base, prefix) = text.split_once('/').ok_or_else(invalid)?;
        Subnet::new(
            base.parse().map_err(|_| invalid())?,
            prefix.parse().map_err(|_| invalid())?,
        )
    }
}

impl TryFrom<String> for Subnet {
    type Error = Error;

    fn try_from(text: String) -> Result<Subnet, Error> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_between_the_gateway_and_the_broadcast_address() {
        let subnet: Subnet = "100.100.0.0/22".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(100, 100, 0, 1));
        assert_eq!(subnet.job_slots(), 2..1023);
        assert_eq!(subnet.address(1022), Ipv4Addr::new(100, 100, 3, 254));
        assert!(subnet.contains(Ipv4Addr::new(100, 100, 3, 255)));
        assert!(!subnet.contains(Ipv4Addr::new(100, 100, 4, 0)));
        assert_eq!(subnet.last(), Ipv4Addr::new(100, 100, 3, 255));
    }

    #[test]
    fn a_network_includes_those_within_it_and_overlaps_those_around_it() {
        let [wide, narrow, beside] = ["100.100.0.0/16", "100.100.4.0/22", "100.101.0.0/16"]
            .map(|text| text.parse::<Subnet>().unwrap());
        assert!(wide.includes(&narrow) && !narrow.includes(&wide) && wide.includes(&wide));
        assert!(narrow.overlaps(&wide) && !wide.overlaps(&beside));
    }

    #[test]
    fn what_is_not_a_network_is_refused() {
        for text in [
            "100.100.0.1/22",
            "100.100.0.0",
            "100.100.0.0/33",
            "a/8",
            "10.0.0.0/-1",
            "",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
