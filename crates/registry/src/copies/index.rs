//! What a repository's tags and manifests are, as a value: which two hosts can compare and take over.

use std::{collections::BTreeMap, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::Digest;

use crate::{
    manifest::Manifest,
    name::BlobDigest,
    store::{Repository, Store},
};

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub tags: BTreeMap<String, BlobDigest>,
    /// With their media types.
    #[serde(with = "pairs")]
    pub manifests: BTreeMap<BlobDigest, String>,
}

/// A digest is no name of a field.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::name::BlobDigest;

    pub fn serialize<S: Serializer>(map: &BTreeMap<BlobDigest, String>, out: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<BlobDigest, String>, D::Error> {
        Ok(Vec::<(BlobDigest, String)>::deserialize(from)?
            .into_iter()
            .collect())
    }
}

impl Index {
    pub fn of(repository: &Repository) -> io::Result<Index> {
        let mut index = Index::default();
        for tag in repository.tags()? {
            if let Some(digest) = repository.tag(&tag)? {
                index.tags.insert(tag, digest);
            }
        }
        for digest in repository.manifests()? {
            if let Some(media_type) = repository.manifest(&digest)? {
                index.manifests.insert(digest, media_type);
            }
        }
        Ok(index)
    }

    pub fn digest(&self) -> Digest {
        let text = serde_json::to_vec(self).expect("an index is JSON");
        let digest = hex::encode(Sha256::digest(text));
        digest.parse().expect("it is of hexadecimal digits")
    }

    /// Makes the repository this. The manifests have to be in the store; blobs are only linked.
    pub fn put_into(&self, store: &Store, repository: &Repository) -> io::Result<()> {
        let before = Index::of(repository)?;
        for (digest, media_type) in &self.manifests {
            let bytes = store.read(digest)?.ok_or(io::ErrorKind::NotFound)?;
            if let Ok(manifest) = Manifest::parse(&bytes, Some(media_type)) {
                for blob in manifest.blobs() {
                    repository.link_blob(&blob.digest)?;
                }
                if let Some(subject) = &manifest.subject {
                    let descriptor = manifest.as_referrer(digest, bytes.len() as u64);
                    let descriptor = serde_json::to_vec(&descriptor).expect("a descriptor is JSON");
                    repository.add_referrer(&subject.digest, digest, &descriptor)?;
                }
            }
            if before.manifests.get(digest) != Some(media_type) {
                repository.put_manifest(digest, media_type)?;
            }
        }
        for (tag, digest) in &self.tags {
            if before.tags.get(tag) != Some(digest) {
                repository.set_tag(tag, digest)?;
            }
        }
        for tag in before.tags.keys().filter(|tag| !self.tags.contains_key(*tag)) {
            repository.remove_tag(tag)?;
        }
        for digest in before.manifests.keys() {
            if self.manifests.contains_key(digest) {
                continue;
            }
            let bytes = store.read(digest)?;
            let subject = bytes.and_then(|bytes| Manifest::parse(&bytes, None).ok()?.subject);
            if let Some(subject) = subject {
                repository.remove_referrer(&subject.digest, digest)?;
            }
            repository.remove_manifest(digest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use types::{AppId, Uuid};

    use super::*;

    #[test]
    fn a_repository_becomes_what_another_is() {
        let dir = tempfile::tempdir().unwrap();
        let stores = ["a", "b"].map(|name| Store::open(dir.path().join(name)).unwrap());
        let app = AppId(Uuid::from_u128(1));
        let [one, two] = stores
            .each_ref()
            .map(|store| store.repository_of_key(&app.to_string()));
        let manifest = |n: u8, store: &Store| {
            let blob = json!({"mediaType": "x", "digest": BlobDigest::of(&[n]), "size": 1});
            let manifest = json!({
                "schemaVersion": 2, "mediaType": crate::manifest::OCI_MANIFEST, "artifactType": "x/y",
                "config": blob, "layers": [],
            });
            let bytes = manifest.to_string().into_bytes();
            let digest = BlobDigest::of(&bytes);
            store.put_small(&bytes, &digest).unwrap();
            digest
        };
        let add = |repository: &Repository, tag: &str, digest: &BlobDigest| {
            repository
                .put_manifest(digest, crate::manifest::OCI_MANIFEST)
                .unwrap();
            repository.set_tag(tag, digest).unwrap();
        };
        let (first, second) = (manifest(1, &stores[0]), manifest(2, &stores[0]));
        add(&one, "latest", &second);
        add(&one, "v1", &first);
        let (first, third) = (manifest(1, &stores[1]), manifest(3, &stores[1]));
        manifest(2, &stores[1]);
        add(&two, "latest", &first);
        add(&two, "old", &third);

        let index = Index::of(&one).unwrap();
        assert_ne!(index.digest(), Index::of(&two).unwrap().digest());
        index.put_into(&stores[1], &two).unwrap();
        let now = Index::of(&two).unwrap();
        assert_eq!((now.digest(), &now), (index.digest(), &index));
        assert!(two.has_blob(&BlobDigest::of(&[2])), "its blobs are known of");
        let text = serde_json::to_string(&index).unwrap();
        assert_eq!(serde_json::from_str::<Index>(&text).unwrap(), index);
    }
}
