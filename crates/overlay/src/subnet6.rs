//! IPv6 networks, and the one in which every job has an address that follows from its IPv4 one.
//!
//! ```text
//! fd5b:3e1c:90a7:0000:0000:0000 : 6464:0402
//! `--- the cluster's, /96 ----'   100.100.4.2
//! ```
//!
//! So nothing has to be leased, told or kept for IPv6: whoever knows a job's IPv4 address and the prefix knows both.
//! The prefix is of RFC 4193's kind: it is routed nowhere, and no other cluster is likely to have the same.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Subnet};

/// An IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    base: Ipv6Addr,
    prefix: u8,
}

/// What the IPv6 addresses of all jobs of a cluster begin with; an IPv4 address is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix6(Ipv6Addr);

/// A network of either kind, as where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub address: IpAddr,
    pub prefix: u8,
}

impl From<Subnet> for Destination {
    fn from(subnet: Subnet) -> Self {
        Destination {
            address: subnet.base().into(),
            prefix: subnet.prefix(),
        }
    }
}

impl From<Subnet6> for Destination {
    fn from(subnet: Subnet6) -> Self {
        Destination {
            address: subnet.base().into(),
            prefix: subnet.prefix(),
        }
    }
}

/// The network of one address.
impl From<IpAddr> for Destination {
    fn from(address: IpAddr) -> Self {
        Destination {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Bits before the IPv4 address.
const PREFIX_BITS: u8 = 96;

impl Subnet6 {
    /// Host bits must be zero.
    pub fn new(base: Ipv6Addr, prefix: u8) -> Result<Subnet6, Error> {
        if prefix > 128 {
            return Err(Error::InvalidConfig(format!(
                "/{prefix} is longer than an address"
            )));
        }
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        if base.to_bits() & !mask != 0 {
            return Err(Error::InvalidConfig(format!(
                "{base}/{prefix} is an address, not a network"
            )));
        }
        Ok(Subnet6 { base, prefix })
    }

    pub fn base(&self) -> Ipv6Addr {
        self.base
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The addresses behind which a translator reaches those of an IPv4 network (RFC 6052, section 2.1).
    pub fn translated(subnet: Subnet) -> Subnet6 {
        const WELL_KNOWN: Prefix6 = Prefix6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0));
        WELL_KNOWN.subnet(subnet)
    }
}

impl Prefix6 {
    /// Of 40 bits that no other cluster is likely to have (RFC 4193, section 3.2.1).
    pub fn unique_local(global_id: [u8; 5]) -> Prefix6 {
        let mut bytes = [0; 16];
        bytes[0] = 0xfd;
        bytes[1..6].copy_from_slice(&global_id);
        Prefix6(bytes.into())
    }

    /// Whose first address this is one of, if the rest is `low`.
    pub fn of(address: Ipv6Addr, low: Ipv4Addr) -> Option<Prefix6> {
        let prefix = Prefix6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u32::MAX)));
        (prefix.is_unique_local() && prefix.address(low) == address).then_some(prefix)
    }

    pub fn address(&self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.to_bits() | u128::from(address.to_bits()))
    }

    /// The IPv4 address that one of ours follows from.
    pub fn within(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let low = Ipv4Addr::from_bits(address.to_bits() as u32);
        (self.address(low) == address).then_some(low)
    }

    pub fn subnet(&self, subnet: Subnet) -> Subnet6 {
        Subnet6 {
            base: self.address(subnet.base()),
            prefix: PREFIX_BITS + subnet.prefix(),
        }
    }

    fn is_unique_local(&self) -> bool {
        self.0.octets()[0] == 0xfd
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{PREFIX_BITS}", self.0)
    }
}

impl FromStr for Subnet6 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Subnet6, Error> {
        let invalid = || Error::InvalidConfig(format!("{text:?} is not a network such as 2001:db8::/32"));
        let (base, prefix) = text.split_once('/').ok_or_else(invalid)?;
        Subnet6::new(
            base.parse().map_err(|_| invalid())?,
            prefix.parse().map_err(|_| invalid())?,
        )
    }
}

impl FromStr for Prefix6 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Prefix6, Error> {
        let subnet: Subnet6 = text.parse()?;
        let prefix = Prefix6(subnet.base);
        if subnet.prefix != PREFIX_BITS || !prefix.is_unique_local() {
            return Err(Error::InvalidConfig(format!(
                "{text} is not a unique local network of 96 bits such as fd12:3456:789a::/96"
            )));
        }
        Ok(prefix)
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<$name, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}

text!(Subnet6, Prefix6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_prefix_and_the_ipv4_address_and_leads_back_to_it() {
        let prefix = Prefix6::unique_local([0x5b, 0x3e, 0x1c, 0x90, 0xa7]);
        assert_eq!(prefix.to_string(), "fd5b:3e1c:90a7::/96");
        let four: Ipv4Addr = "100.100.4.2".parse().unwrap();
        let six = prefix.address(four);
        assert_eq!(six.to_string(), "fd5b:3e1c:90a7::6464:402");
        assert_eq!(prefix.within(six), Some(four));
        assert_eq!(prefix.within("fd5b:3e1c:90a8::6464:402".parse().unwrap()), None);
        assert_eq!(Prefix6::of(six, four), Some(prefix));
        assert_eq!(Prefix6::of(six, "100.100.4.3".parse().unwrap()), None);
        let subnet = prefix.subnet("100.100.4.0/22".parse().unwrap());
        assert_eq!(subnet.to_string(), "fd5b:3e1c:90a7::6464:400/118");
        let translated = Subnet6::translated("10.0.0.0/8".parse().unwrap());
        assert_eq!(translated.to_string(), "64:ff9b::a00:0/104");
    }

    #[test]
    fn what_is_not_a_network_is_refused() {
        for text in ["fd00::1/96", "fd00::", "fd00::/129", "10.0.0.0/8", "x/8", ""] {
            assert!(text.parse::<Subnet6>().is_err(), "{text}");
        }
        for text in ["fd00::/64", "2001:db8::/96", "fe80::/96"] {
            assert!(text.parse::<Prefix6>().is_err(), "{text}");
        }
        assert_eq!("fd00::/96".parse::<Prefix6>().unwrap().to_string(), "fd00::/96");
    }
}
