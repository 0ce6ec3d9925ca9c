use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ArtifactId, Timestamp};

/// A SHA-256 digest in lower-case hex: the name of a layer, and proof that it is the one meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 64
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(Digest(text.to_owned()))
        } else {
            Err("a digest is 64 lower-case hexadecimal digits")
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactType {
    #[default]
    Flynn,
    Docker,
    File,
}

/// An image that releases run: immutable, one per (type, uri).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Artifact {
    pub id: ArtifactId,
    #[serde(rename = "type")]
    pub kind: ArtifactType,
    pub uri: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ImageManifest>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
    /// Bytes of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub layer_url_template: String,
    pub created_at: Timestamp,
}

/// What an image is made of and how it starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ImageManifest {
    #[serde(rename = "_type", default)]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entrypoints: BTreeMap<String, Entrypoint>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rootfs: Vec<Rootfs>,
}

impl ImageManifest {
    pub const MEDIA_TYPE: &str = "application/vnd.flynn.image.manifest.v1+json";

    /// The entrypoint named `_default`, which processes without one of their own start by.
    pub fn default_entrypoint(&self) -> Option<&Entrypoint> {
        self.entrypoints.get("_default")
    }

    /// All layers, bottom first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.rootfs.iter().flat_map(|rootfs| rootfs.layers.iter())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Entrypoint {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux_capabilities: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Addition: further groups of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    /// Addition: the polite signal, such as `SIGQUIT`; SIGTERM where it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Addition: a command whose success says that a job is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<ImageHealthcheck>,
}

/// The health check that an image brings along. Durations are in nanoseconds; 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ImageHealthcheck {
    pub args: Vec<String>,
    /// 30 s by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// 30 s by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Failures in this time after the start do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Failures in a row after which the job is down; 3 by default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Rootfs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

/// One read-only file system of an image, kept as one file named by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Layer {
    /// For this platform's own layers the SHA-256 of the file; images of the original used other ids.
    pub id: String,
    #[serde(rename = "type", default)]
    pub media_type: String,
    /// Bytes of the file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub length: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hashes: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

impl Layer {
    pub const EROFS: &str = "application/vnd.flynn.image.erofs.v1";

    /// A layer of our own format.
    pub fn erofs(digest: &Digest, length_bytes: u64) -> Self {
        Layer {
            id: digest.to_string(),
            media_type: Layer::EROFS.into(),
            length: length_bytes as i64,
            hashes: [("sha256".to_owned(), digest.to_string())].into(),
            meta: BTreeMap::new(),
        }
    }
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}
