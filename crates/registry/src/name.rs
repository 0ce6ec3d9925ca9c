//! Digests, repositories and references, as they stand in URLs. Parsed once, at the edge.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:…` or `sha512:…`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn of_name(name: &str) -> Option<Algorithm> {
        [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl BlobDigest {
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Of bytes that are there as a whole.
    pub fn of(bytes: &[u8]) -> BlobDigest {
        let mut hash = Hash::new(Algorithm::Sha256);
        hash.update(bytes);
        hash.finish()
    }

    pub fn of_as(algorithm: Algorithm, bytes: &[u8]) -> BlobDigest {
        let mut hash = Hash::new(algorithm);
        hash.update(bytes);
        hash.finish()
    }

    /// `sha256-HEX`.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    pub fn from_file_name(name: &str) -> Option<BlobDigest> {
        name.replacen('-', ":", 1).parse().ok()
    }
}

impl FromStr for BlobDigest {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, hex) = text.split_once(':').ok_or(())?;
        let algorithm = Algorithm::of_name(name).ok_or(())?;
        let is_hex = hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match is_hex && hex.len() == algorithm.digits() {
            true => Ok(BlobDigest {
                algorithm,
                hex: hex.to_owned(),
            }),
            false => Err(()),
        }
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl serde::Serialize for BlobDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BlobDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse()
            .map_err(|()| serde::de::Error::custom("is no digest such as sha256:…"))
    }
}

/// A digest in the making.
#[derive(Clone)]
pub enum Hash {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hash {
    pub fn new(algorithm: Algorithm) -> Hash {
        match algorithm {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hash::Sha512(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    pub fn finish(self) -> BlobDigest {
        let (algorithm, hex) = match self {
            Hash::Sha256(hash) => (Algorithm::Sha256, hex::encode(hash.finalize())),
            Hash::Sha512(hash) => (Algorithm::Sha512, hex::encode(hash.finalize())),
        };
        BlobDigest { algorithm, hex }
    }
}

/// `APP` or `APP/MORE`, as images are named behind the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryName(String);

impl RepositoryName {
    pub fn app(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// What stands behind the app's name.
    pub fn rest(&self) -> Option<&str> {
        self.0.split_once('/').map(|(_, rest)| rest)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ();
    /// The specification's rule: components of lower-case letters and digits, separated within by `.`,
    /// `_`, `__` or dashes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let is_component = |component: &str| {
            let inner = component.trim_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
            let is_separator =
                |run: &str| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-');
            let begins = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            begins(component.chars().next())
                && begins(component.chars().next_back())
                && inner
                    .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                    .all(is_separator)
        };
        match text.len() <= 255 && text.split('/').all(is_component) {
            true => Ok(RepositoryName(text.to_owned())),
            false => Err(()),
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(BlobDigest),
}

impl FromStr for Reference {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.contains(':') {
            return text.parse().map(Reference::Digest);
        }
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let is_tag = text.len() <= 128
            && text.bytes().next().is_some_and(is_word)
            && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-');
        match is_tag {
            true => Ok(Reference::Tag(text.to_owned())),
            false => Err(()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr>(good: &[&str], bad: &[&str]) {
        good.iter()
            .for_each(|text| assert!(text.parse::<T>().is_ok(), "{text}"));
        bad.iter()
            .for_each(|text| assert!(text.parse::<T>().is_err(), "{text}"));
    }

    #[test]
    fn repositories_are_named_as_the_specification_has_it() {
        check::<RepositoryName>(
            &["shop", "shop/web", "a.b_c__d---e/f0", "0"],
            &[
                "",
                "/",
                "shop/",
                "Shop",
                "a..b",
                "a___b",
                "-a",
                "a-",
                "a/../b",
                "a b",
                &"a".repeat(256),
            ],
        );
        assert_eq!(
            "shop/web/x".parse::<RepositoryName>().unwrap().rest(),
            Some("web/x")
        );
    }

    #[test]
    fn references_are_tags_or_digests() {
        let digest = format!("sha256:{}", "a0".repeat(32));
        check::<Reference>(
            &[
                "latest",
                "_x",
                "V1.0-rc",
                &digest,
                &format!("sha512:{}", "ab".repeat(64)),
            ],
            &[
                "",
                ".x",
                "-x",
                "a/b",
                "sha256:a0",
                &digest.to_uppercase(),
                "md5:00",
                &"a".repeat(129),
            ],
        );
    }

    #[test]
    fn a_digest_has_a_name_as_a_file() {
        let digest = BlobDigest::of(b"x");
        assert_eq!(BlobDigest::from_file_name(&digest.file_name()), Some(digest));
    }
}
