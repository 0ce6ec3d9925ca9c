//! A host's key for its tunnel, in the form that WireGuard's own tools use: 32 bytes in base64.

use std::fmt;
use std::str::FromStr;

use base64::{Engine, engine::general_purpose::STANDARD};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::Error;

#[derive(Clone)]
pub struct Key(StaticSecret);

impl Key {
    pub fn generate() -> Key {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel has random numbers");
        Key(StaticSecret::from(bytes))
    }

    /// What other hosts know this one by.
    pub fn public(&self) -> String {
        STANDARD.encode(PublicKey::from(&self.0))
    }

    /// To be kept where only root reads it.
    pub fn secret(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }

    pub(super) fn bytes(&self) -> &StaticSecret {
        &self.0
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Key, Error> {
        let bytes = decode(text).ok_or_else(|| Error::InvalidConfig("the tunnel's key is not one".into()))?;
        Ok(Key(StaticSecret::from(bytes)))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Key of {}", self.public())
    }
}

pub(super) fn decode(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text.trim()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written_and_shows_only_its_public_half() {
        let key = Key::generate();
        let again: Key = format!("{}\n", key.secret()).parse().unwrap();
        assert_eq!(again.public(), key.public());
        assert!(!format!("{key:?}").contains(&key.secret()));
        for wrong in ["", "abc", "AAAA", &"A".repeat(44)] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_public_key_is_that_of_wireguard() {
        // RFC 7748, section 6.1: Alice's.
        let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let key: Key = secret.parse().unwrap();
        assert_eq!(key.public(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
