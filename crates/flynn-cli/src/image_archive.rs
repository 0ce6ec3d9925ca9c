//! An image as a file or directory: what `docker save` and `podman save` write, OCI archives, OCI layouts.
//!
//! An archive is read where it lies: what is found in it are places in the file, so an image of many
//! gigabytes is never unpacked nor held in memory. Where both forms are in one archive, as newer engines
//! write it, OCI's is taken: it has the digests that the image was built with.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use futures::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::failure::{Failure, Result};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const JSON_BYTES_MAX: u64 = 16 << 20;
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are part of a file.
#[derive(Debug, Clone)]
struct Piece {
    path: PathBuf,
    offset: u64,
    length: u64,
}

/// A blob to be pushed.
#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: String,
    pub length: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    File(Piece),
    Memory(Bytes),
}

/// What is pushed: blobs first, then manifests, the one with the tag last.
pub struct Image {
    pub blobs: Vec<Blob>,
    /// Manifests that an index names: digest, media type, bytes.
    pub children: Vec<(String, String, Vec<u8>)>,
    pub media_type: String,
    pub manifest: Vec<u8>,
}

impl Blob {
    /// The bytes, as they are read.
    pub fn stream(&self) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static> {
        let (file, left) = match &self.content {
            Content::Memory(bytes) => (Err(bytes.clone()), bytes.len() as u64),
            Content::File(piece) => {
                let mut file = open(&piece.path)?;
                file.seek(SeekFrom::Start(piece.offset))
                    .map_err(|error| unreadable(&piece.path, &error))?;
                (Ok(file), piece.length)
            }
        };
        Ok(futures::stream::try_unfold(
            (file, left),
            |(mut file, left)| async move {
                if left == 0 {
                    return Ok(None);
                }
                let bytes = match &mut file {
                    Err(bytes) => bytes.clone(),
                    Ok(file) => {
                        let mut buffer = vec![0; left.min(CHUNK_BYTES as u64) as usize];
                        file.read_exact(&mut buffer)?;
                        Bytes::from(buffer)
                    }
                };
                let left = left - bytes.len() as u64;
                Ok(Some((bytes, (file, left))))
            },
        ))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{} cannot be read: {error}", path.display()))
}

/// Reads what is at `path`; `tag` chooses where there are several images.
pub fn read(path: &Path, tag: Option<&str>) -> Result<Image> {
    let source = match path.is_dir() {
        true => Source::Directory(path.to_owned()),
        false => Source::index(path)?,
    };
    if source.has("index.json") {
        return oci(&source, tag);
    }
    if source.has("manifest.json") {
        return saved(&source, tag);
    }
    Err(Failure::new(format!("{} is no image", path.display()))
        .with_hint("it is what `docker save` or `podman save` writes, an OCI archive or an OCI directory"))
}

/// Where names of an image's files lead.
enum Source {
    Directory(PathBuf),
    Archive(BTreeMap<String, Piece>),
}

impl Source {
    fn index(path: &Path) -> Result<Source> {
        let broken = |error: std::io::Error| {
            Failure::new(format!(
                "{} is no tar archive, or not all of one: {error}",
                path.display()
            ))
            .with_hint("a compressed archive has to be unpacked first: gunzip FILE")
        };
        let mut archive = tar::Archive::new(open(path)?);
        let (mut pieces, mut links) = (BTreeMap::new(), vec![]);
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let Some(name) = plain(&entry.path().map_err(broken)?) else {
                continue;
            };
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let piece = Piece {
                    path: path.to_owned(),
                    offset: entry.raw_file_position(),
                    length: entry.size(),
                };
                pieces.insert(name, piece);
            } else if kind.is_symlink() || kind.is_hard_link() {
                // Old engines write a layer once and link to it.
                let target = entry.link_name().map_err(broken)?.unwrap_or_default();
                let parent = Path::new(&name).parent().unwrap_or(Path::new(""));
                let target = if kind.is_symlink() {
                    parent.join(target)
                } else {
                    target.into_owned()
                };
                links.extend(plain(&target).map(|target| (name, target)));
            }
        }
        for (name, target) in links {
            if let Some(piece) = pieces.get(&target).cloned() {
                pieces.insert(name, piece);
            }
        }
        Ok(Source::Archive(pieces))
    }

    fn piece(&self, name: &str) -> Option<Piece> {
        match self {
            Source::Archive(pieces) => pieces.get(name).cloned(),
            Source::Directory(directory) => {
                let path = directory.join(plain(Path::new(name))?);
                let meta = path.metadata().ok().filter(|meta| meta.is_file())?;
                Some(Piece {
                    path,
                    offset: 0,
                    length: meta.len(),
                })
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.piece(name).is_some()
    }

    fn find(&self, name: &str) -> Result<Piece> {
        self.piece(name)
            .ok_or_else(|| Failure::new(format!("the image is not whole: {name} is missing")))
    }

    fn small(&self, name: &str) -> Result<Vec<u8>> {
        let piece = self.find(name)?;
        if piece.length > JSON_BYTES_MAX {
            return Err(Failure::new(format!(
                "{name} is longer than {JSON_BYTES_MAX} bytes"
            )));
        }
        let mut file = open(&piece.path)?;
        let mut bytes = vec![0; piece.length as usize];
        file.seek(SeekFrom::Start(piece.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| unreadable(&piece.path, &error))?;
        Ok(bytes)
    }
}

/// A path without `.` and `..`, from the image's top.
fn plain(path: &Path) -> Option<String> {
    let mut names: Vec<&str> = vec![];
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::ParentDir => {
                names.pop()?;
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    (!names.is_empty()).then(|| names.join("/"))
}

fn parse<T: for<'a> Deserialize<'a>>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::new(format!("{name} of the image is not valid: {error}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn oci(source: &Source, tag: Option<&str>) -> Result<Image> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    let index: Index = parse("index.json", &source.small("index.json")?)?;
    let name = |one: &Descriptor| one.annotations.get("org.opencontainers.image.ref.name").cloned();
    let wanted = |one: &&Descriptor| match (tag, name(one)) {
        (Some(tag), Some(name)) => name == tag || name.ends_with(&format!(":{tag}")),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let found: Vec<&Descriptor> = index.manifests.iter().filter(wanted).collect();
    let chosen = match &found[..] {
        [one] => one,
        [] => {
            let names: Vec<_> = index.manifests.iter().filter_map(name).collect();
            return Err(
                Failure::new(format!("the image has no tag {}", tag.unwrap_or("")))
                    .with_hint(format!("it has {}", names.join(", "))),
            );
        }
        several => {
            let names: Vec<_> = several.iter().filter_map(|one| name(one)).collect();
            return Err(Failure::new("there are several images")
                .with_hint(format!("name one with --tag: {}", names.join(", "))));
        }
    };
    let manifest = source.small(&blob_name(&chosen.digest))?;
    let value: Value = parse("the manifest", &manifest)?;
    let mut image = Image {
        blobs: vec![],
        children: vec![],
        media_type: kind(&value, &chosen.media_type),
        manifest,
    };
    match value["manifests"].as_array() {
        None => add_blobs(source, &value, &mut image)?,
        Some(children) => {
            for child in children {
                let digest = child["digest"].as_str().unwrap_or_default().to_owned();
                let bytes = source.small(&blob_name(&digest))?;
                let value: Value = parse("a manifest", &bytes)?;
                add_blobs(source, &value, &mut image)?;
                let kind = kind(&value, child["mediaType"].as_str().unwrap_or_default());
                image.children.push((digest, kind, bytes));
            }
        }
    }
    Ok(image)
}

fn kind(manifest: &Value, said: &str) -> String {
    match manifest["mediaType"].as_str().unwrap_or(said) {
        "" => OCI_MANIFEST.to_owned(),
        kind => kind.to_owned(),
    }
}

fn add_blobs(source: &Source, manifest: &Value, image: &mut Image) -> Result<()> {
    let layers = manifest["layers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for descriptor in layers.iter().chain([&manifest["config"]]) {
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        if image.blobs.iter().any(|blob| blob.digest == digest) {
            continue;
        }
        let piece = source.find(&blob_name(&digest))?;
        image.blobs.push(Blob {
            digest,
            length: piece.length,
            content: Content::File(piece),
        });
    }
    Ok(())
}

/// What `docker save` writes: layers as plain archives, without a manifest of a registry.
fn saved(source: &Source, tag: Option<&str>) -> Result<Image> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        layers: Vec<String>,
    }
    let all: Vec<Saved> = parse("manifest.json", &source.small("manifest.json")?)?;
    let is_wanted = |one: &&Saved| match tag {
        Some(tag) => one
            .repo_tags
            .iter()
            .flatten()
            .any(|name| name == tag || name.ends_with(&format!(":{tag}"))),
        None => true,
    };
    let found: Vec<&Saved> = all.iter().filter(is_wanted).collect();
    let [one] = &found[..] else {
        let names: Vec<&str> = all
            .iter()
            .flat_map(|one| one.repo_tags.iter().flatten())
            .map(String::as_str)
            .collect();
        return Err(Failure::new(format!("{} images fit", found.len()))
            .with_hint(format!("name one with --tag: {}", names.join(", "))));
    };
    let config = source.small(&one.config)?;
    let mut blobs: Vec<Blob> = vec![];
    let mut layers = vec![];
    for name in &one.layers {
        let piece = source.find(name)?;
        let (digest, length) = (digest_of(&piece)?, piece.length);
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": length,
        }));
        if blobs.iter().all(|blob| blob.digest != digest) {
            blobs.push(Blob {
                digest,
                length,
                content: Content::File(piece),
            });
        }
    }
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&config)));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()},
    });
    blobs.push(Blob {
        digest,
        length: config.len() as u64,
        content: Content::Memory(config.into()),
    });
    Ok(Image {
        blobs,
        children: vec![],
        media_type: OCI_MANIFEST.into(),
        manifest: manifest.to_string().into_bytes(),
    })
}

fn digest_of(piece: &Piece) -> Result<String> {
    let mut file = open(&piece.path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let read = (|| {
        file.seek(SeekFrom::Start(piece.offset))?;
        let mut rest = file.take(piece.length);
        loop {
            match rest.read(&mut buffer)? {
                0 => return Ok(()),
                count => hash.update(&buffer[..count]),
            }
        }
    })();
    read.map_err(|error: std::io::Error| unreadable(&piece.path, &error))?;
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, Vec<u8>)], links: &[(&str, &str)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        for (name, target) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    fn content(blob: &Blob) -> Vec<u8> {
        use futures::StreamExt;
        let pieces: Vec<_> = futures::executor::block_on(blob.stream().unwrap().collect());
        pieces
            .into_iter()
            .flat_map(|piece| piece.unwrap().to_vec())
            .collect()
    }

    #[test]
    fn what_docker_saves_is_read_with_its_links() {
        let manifest =
            r#"[{"Config":"c.json","RepoTags":["app:v1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
        let layer = vec![7; 300_000];
        let file = archive(
            &[
                ("a/layer.tar", layer.clone()),
                ("c.json", b"{}".to_vec()),
                ("manifest.json", manifest.into()),
            ],
            &[("b/layer.tar", "../a/layer.tar")],
        );
        let image = read(file.path(), None).unwrap();
        assert_eq!(image.blobs.len(), 2);
        assert_eq!(
            (content(&image.blobs[0]), content(&image.blobs[1])),
            (layer, b"{}".to_vec())
        );
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        assert_eq!(manifest["layers"][0]["digest"], image.blobs[0].digest);
        assert!(read(file.path(), Some("v1")).is_ok());
        assert!(
            read(file.path(), Some("v2"))
                .err()
                .unwrap()
                .hint
                .contains("app:v1")
        );
    }

    #[test]
    fn oci_layouts_are_read_as_directories_and_as_archives() {
        let digest = |bytes: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let config = b"{}".to_vec();
        let manifest = json!({
            "schemaVersion": 2, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": 2},
        });
        let manifest = manifest.to_string().into_bytes();
        let index = json!({"manifests": [{
            "mediaType": OCI_MANIFEST, "digest": digest(&manifest),
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }]});
        let files = [
            ("index.json".to_owned(), index.to_string().into_bytes()),
            (blob_name(&digest(&manifest)), manifest.clone()),
            (blob_name(&digest(&config)), config),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let borrowed: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.clone()))
            .collect();
        let file = archive(&borrowed, &[]);
        for path in [dir.path(), file.path()] {
            let image = read(path, Some("v1")).unwrap();
            assert_eq!(
                (image.manifest, image.media_type.as_str()),
                (manifest.clone(), OCI_MANIFEST)
            );
            assert_eq!(image.blobs.len(), 1);
        }
        assert!(read(dir.path(), Some("v2")).err().unwrap().hint.contains("v1"));
    }

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let file = archive(&[("x", vec![])], &[]);
        assert!(
            read(file.path(), None)
                .err()
                .unwrap()
                .message
                .contains("is no image")
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 2000]).unwrap();
        assert!(
            read(file.path(), None)
                .err()
                .unwrap()
                .message
                .contains("no tar archive")
        );
    }
}
