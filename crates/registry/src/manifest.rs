//! Manifests and indexes as clients send them. Kept as the bytes they are; read here for what is in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Code, Failure, Result},
    name::BlobDigest,
};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Larger ones are refused by every registry.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// A list this long is no image of anybody's.
const ENTRIES_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: BlobDigest,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Image {
        config: Box<Descriptor>,
        layers: Vec<Descriptor>,
    },
    Index {
        manifests: Vec<Descriptor>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub media_type: String,
    pub subject: Option<Descriptor>,
    pub artifact_type: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub body: Body,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Failure::new(Code::ManifestInvalid, text))
}

impl Manifest {
    /// `content_type` is what the request says it is.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest> {
        let raw: Raw = match serde_json::from_slice(bytes) {
            Ok(raw) => raw,
            Err(error) => return invalid(format!("the manifest is not valid: {error}")),
        };
        if raw.schema_version != Some(2) {
            return invalid(
                "only manifests with schemaVersion 2 are taken. hint: the client is of before 2016; use a newer one",
            );
        }
        let content_type = content_type
            .map(|kind| kind.split(';').next().unwrap_or_default().trim())
            // What clients say who only know that it is JSON.
            .filter(|kind| !kind.is_empty() && *kind != "application/json");
        let media_type = match (
            raw.media_type.as_deref().filter(|kind| !kind.is_empty()),
            content_type,
        ) {
            (Some(own), Some(sent)) if own != sent => {
                return invalid(format!(
                    "the manifest says that it is {own}, the request that it is {sent}"
                ));
            }
            (Some(kind), _) | (None, Some(kind)) => kind.to_owned(),
            (None, None) => match raw.manifests {
                Some(_) => OCI_INDEX.to_owned(),
                None => OCI_MANIFEST.to_owned(),
            },
        };
        let body = match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => match raw.manifests {
                Some(manifests) if raw.layers.is_none() && raw.config.is_none() => Body::Index { manifests },
                _ => return invalid("an index has `manifests`, and neither `config` nor `layers`"),
            },
            OCI_MANIFEST | DOCKER_MANIFEST => match (raw.config, raw.layers) {
                (Some(config), Some(layers)) if raw.manifests.is_none() => Body::Image {
                    config: Box::new(config),
                    layers,
                },
                _ => return invalid("a manifest has `config` and `layers`, and no `manifests`"),
            },
            other => {
                return invalid(format!(
                    "{other:?} is no kind of manifest that is known; OCI's and Docker's schema 2 are"
                ));
            }
        };
        let manifest = Manifest {
            media_type,
            subject: raw.subject,
            artifact_type: raw.artifact_type.filter(|kind| !kind.is_empty()),
            annotations: raw.annotations,
            body,
        };
        if manifest.blobs().count() + manifest.children().count() > ENTRIES_MAX {
            return invalid(format!("the manifest refers to more than {ENTRIES_MAX} things"));
        }
        Ok(manifest)
    }

    /// What it needs of the repository's blobs. Layers that are somewhere else are not among them.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, layers) = match &self.body {
            Body::Image { config, layers } => (Some(&**config), &layers[..]),
            Body::Index { .. } => (None, &[][..]),
        };
        config
            .into_iter()
            .chain(layers.iter().filter(|layer| !layer.is_foreign()))
    }

    /// Manifests that an index is made of.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        match &self.body {
            Body::Index { manifests } => manifests.iter(),
            Body::Image { .. } => [].iter(),
        }
    }

    /// How others that this one refers to are told of it.
    pub fn as_referrer(&self, digest: &BlobDigest, size: u64) -> Descriptor {
        let config_type = match &self.body {
            Body::Image { config, .. } => Some(config.media_type.clone()),
            Body::Index { .. } => None,
        };
        Descriptor {
            media_type: self.media_type.clone(),
            digest: digest.clone(),
            size,
            artifact_type: self.artifact_type.clone().or(config_type),
            annotations: self.annotations.clone(),
            platform: None,
            urls: None,
        }
    }

    /// Whether it is something that can be run, by its kinds: signatures and charts are not.
    pub fn is_image(&self) -> bool {
        match &self.body {
            Body::Image { config, layers } => {
                self.artifact_type.is_none()
                    && matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
                    && !layers.is_empty()
                    && layers.iter().all(|layer| layer.is_archive())
            }
            Body::Index { manifests } => {
                self.artifact_type.is_none() && manifests.iter().any(|manifest| manifest.platform.is_some())
            }
        }
    }
}

impl Descriptor {
    fn is_archive(&self) -> bool {
        let kind = self.media_type.as_str();
        kind.starts_with("application/vnd.oci.image.layer.")
            || kind.starts_with("application/vnd.docker.image.rootfs.")
    }

    /// Kept by somebody else, as the layers of another system's base images are.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains(".foreign.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, content_type: Option<&str>, expected: &str) {
        let text = text.replace("DIGEST", &BlobDigest::of(b"x").to_string());
        let answer = match Manifest::parse(text.as_bytes(), content_type) {
            Ok(manifest) => format!("{} {}", manifest.media_type, manifest.is_image()),
            Err(error) => error.message,
        };
        assert!(answer.contains(expected), "{answer}");
    }

    const IMAGE: &str = r#"{"schemaVersion":2,
        "config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"DIGEST","size":1},
        "layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","digest":"DIGEST","size":1}]}"#;

    #[test]
    fn kinds_are_told_by_the_manifest_and_by_the_request() {
        check(IMAGE, None, "image.manifest.v1+json true");
        check(IMAGE, Some(DOCKER_MANIFEST), "distribution.manifest.v2+json true");
        check(IMAGE, Some(OCI_INDEX), "an index has");
        check(IMAGE, Some("text/plain"), "no kind of manifest");
        let named = IMAGE.replacen('{', &format!(r#"{{"mediaType":"{OCI_MANIFEST}","#), 1);
        check(&named, Some(DOCKER_MANIFEST), "the request that it is");
        check(
            r#"{"schemaVersion":2,"manifests":[]}"#,
            None,
            "index.v1+json false",
        );
    }

    #[test]
    fn what_is_no_manifest_is_refused_in_words() {
        check("", None, "not valid");
        check("{}", None, "schemaVersion 2");
        check(r#"{"schemaVersion":1,"fsLayers":[]}"#, None, "schemaVersion 2");
        check(r#"{"schemaVersion":2}"#, None, "a manifest has");
        check(&IMAGE.replace("DIGEST", "sha256:0"), None, "no digest");
    }

    #[test]
    fn signatures_are_no_images() {
        check(&IMAGE.replace("layer.v1.tar+zstd", "layer.v1.tar"), None, "true");
        check(&IMAGE.replace("oci.image.layer", "cosign"), None, "false");
        check(
            &IMAGE.replace("oci.image.config.v1", "oci.empty.v1"),
            None,
            "false",
        );
        check(
            &IMAGE.replacen('{', r#"{"artifactType":"a/b","#, 1),
            None,
            "false",
        );
    }
}
