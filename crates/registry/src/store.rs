//! What the registry keeps on disk.
//!
//! ```text
//! <state>/registry/blobs/sha256/ab/HEX      bytes, manifests too, each once
//!         repositories/KEY/blobs/DIGEST     an empty file: this repository has the blob
//!                          manifests/DIGEST its media type
//!                          tags/TAG         the digest of a manifest
//!                          referrers/DIGEST/DIGEST   what refers to a manifest: its descriptor
//!         uploads/ID/                       see `upload`
//! ```
//!
//! KEY is the app's id, with the rest of the name behind `+`: an app that takes a deleted one's name
//! does not find its images. Every change is one file that is synced and renamed into place, in the
//! order that makes a power cut at any moment harmless: bytes before what names them.
//!
//! The time of a blob's or its link's last change is when somebody last wanted it; collection goes by it.
//! All of this blocks.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use daemon::files;
use types::{AppId, Uuid};

use crate::name::{BlobDigest, RepositoryName};

#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    pub fn open(root: PathBuf) -> io::Result<Store> {
        for name in ["blobs", "repositories", "uploads"] {
            files::create_private_dir(&root.join(name))?;
        }
        Ok(Store { root })
    }

    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub fn blob(&self, digest: &BlobDigest) -> PathBuf {
        let name = digest.file_name();
        let (algorithm, hex) = name.split_once('-').expect("a file name has both");
        self.root.join("blobs").join(algorithm).join(&hex[..2]).join(hex)
    }

    /// Moves a whole, synced file to where blobs are.
    pub fn take(&self, file: &Path, digest: &BlobDigest) -> io::Result<()> {
        let path = self.blob(digest);
        let directory = path.parent().expect("a blob has a directory");
        if !directory.is_dir() {
            files::create_private_dir(directory)?;
            for above in directory.ancestors().skip(1).take(2) {
                File::open(above)?.sync_all()?;
            }
        }
        fs::rename(file, &path)?;
        File::open(directory)?.sync_all()
    }

    pub fn put_small(&self, bytes: &[u8], digest: &BlobDigest) -> io::Result<()> {
        let draft = self.uploads().join(format!("{}.small", Uuid::new_v4()));
        let written = fs::write(&draft, bytes)
            .and_then(|()| File::open(&draft)?.sync_all())
            .and_then(|()| self.take(&draft, digest));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }

    pub fn read(&self, digest: &BlobDigest) -> io::Result<Option<Vec<u8>>> {
        found(fs::read(self.blob(digest)))
    }

    pub fn size(&self, digest: &BlobDigest) -> Option<u64> {
        fs::metadata(self.blob(digest)).ok().map(|meta| meta.len())
    }

    /// Keeps a blob from being collected, if it is there.
    pub fn touch(&self, digest: &BlobDigest) -> io::Result<bool> {
        touch(&self.blob(digest))
    }

    pub fn repository(&self, app: AppId, name: &RepositoryName) -> Repository {
        let key = match name.rest() {
            Some(rest) => format!("{app}+{}", rest.replace('/', "+")),
            None => app.to_string(),
        };
        self.repository_of_key(&key)
    }

    pub fn repository_of_key(&self, key: &str) -> Repository {
        Repository {
            dir: self.root.join("repositories").join(key),
            key: key.to_owned(),
        }
    }

    pub fn repositories(&self) -> io::Result<Vec<Repository>> {
        let names = file_names(&self.root.join("repositories"))?;
        Ok(names.iter().map(|key| self.repository_of_key(key)).collect())
    }

    /// Removes all repositories of an app; their blobs go with the next collection.
    pub fn forget(&self, app: AppId) -> io::Result<()> {
        for repository in self.repositories()? {
            if repository.app() == Some(app) {
                files::remove_all(&repository.dir)?;
            }
        }
        Ok(())
    }

    pub fn blobs(&self) -> io::Result<Vec<BlobDigest>> {
        let mut found = vec![];
        for algorithm in file_names(&self.root.join("blobs"))? {
            let directory = self.root.join("blobs").join(&algorithm);
            for first in file_names(&directory)? {
                let names = file_names(&directory.join(first))?;
                found.extend(
                    names
                        .iter()
                        .filter_map(|hex| format!("{algorithm}:{hex}").parse().ok()),
                );
            }
        }
        Ok(found)
    }

    /// Bytes that may still be written before the host's own files are in danger.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug, Clone)]
pub struct Repository {
    dir: PathBuf,
    key: String,
}

impl Repository {
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn app(&self) -> Option<AppId> {
        self.key.split('+').next()?.parse().ok()
    }

    /// What stands behind the app's name.
    pub fn rest(&self) -> String {
        self.key
            .split_once('+')
            .map(|(_, rest)| rest.replace('+', "/"))
            .unwrap_or_default()
    }

    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    fn link(&self, kind: &str, digest: &BlobDigest) -> PathBuf {
        self.dir.join(kind).join(digest.file_name())
    }

    pub fn has_blob(&self, digest: &BlobDigest) -> bool {
        self.link("blobs", digest).exists()
    }

    pub fn link_blob(&self, digest: &BlobDigest) -> io::Result<()> {
        if touch(&self.link("blobs", digest))? {
            return Ok(());
        }
        self.write("blobs", &digest.file_name(), b"")
    }

    /// Notes that somebody relies on it from now on.
    pub fn touch_blob(&self, digest: &BlobDigest) -> io::Result<bool> {
        touch(&self.link("blobs", digest))
    }

    pub fn unlink_blob(&self, digest: &BlobDigest) -> io::Result<bool> {
        remove(&self.link("blobs", digest))
    }

    pub fn blobs(&self) -> io::Result<Vec<BlobDigest>> {
        digests(&self.dir.join("blobs"))
    }

    pub fn blob_age(&self, digest: &BlobDigest) -> Option<SystemTime> {
        modified(&self.link("blobs", digest))
    }

    pub fn manifest_age(&self, digest: &BlobDigest) -> Option<SystemTime> {
        modified(&self.link("manifests", digest))
    }

    /// The media type of a manifest that the repository has.
    pub fn manifest(&self, digest: &BlobDigest) -> io::Result<Option<String>> {
        files::read_if_exists(&self.link("manifests", digest))
    }

    /// Notes that somebody wanted it, by which what is only a cache is kept.
    pub fn touch_manifest(&self, digest: &BlobDigest) -> io::Result<bool> {
        touch(&self.link("manifests", digest))
    }

    /// Whether it holds what builds made on their way: nothing of it is lost when it goes.
    pub fn is_cache(&self) -> bool {
        self.rest() == "cache"
    }

    pub fn manifests(&self) -> io::Result<Vec<BlobDigest>> {
        digests(&self.dir.join("manifests"))
    }

    pub fn put_manifest(&self, digest: &BlobDigest, media_type: &str) -> io::Result<()> {
        self.write("manifests", &digest.file_name(), media_type.as_bytes())
    }

    pub fn remove_manifest(&self, digest: &BlobDigest) -> io::Result<bool> {
        for tag in self.tags()? {
            if self.tag(&tag)?.as_ref() == Some(digest) {
                self.remove_tag(&tag)?;
            }
        }
        remove(&self.link("manifests", digest))
    }

    pub fn tag(&self, tag: &str) -> io::Result<Option<BlobDigest>> {
        let text = files::read_if_exists(&self.dir.join("tags").join(tag))?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    pub fn set_tag(&self, tag: &str, digest: &BlobDigest) -> io::Result<()> {
        self.write("tags", tag, digest.to_string().as_bytes())
    }

    pub fn remove_tag(&self, tag: &str) -> io::Result<bool> {
        remove(&self.dir.join("tags").join(tag))
    }

    /// In the order of their names, as the specification wants them listed.
    pub fn tags(&self) -> io::Result<Vec<String>> {
        let mut tags = file_names(&self.dir.join("tags"))?;
        // What was being written when the power went.
        tags.retain(|tag| !tag.starts_with('.'));
        tags.sort();
        Ok(tags)
    }

    pub fn add_referrer(
        &self,
        subject: &BlobDigest,
        digest: &BlobDigest,
        descriptor: &[u8],
    ) -> io::Result<()> {
        let kind = format!("referrers/{}", subject.file_name());
        self.write(&kind, &digest.file_name(), descriptor)
    }

    pub fn remove_referrer(&self, subject: &BlobDigest, digest: &BlobDigest) -> io::Result<()> {
        remove(&self.referrers_dir(subject).join(digest.file_name())).map(drop)
    }

    /// Descriptors, as they were written.
    pub fn referrers(&self, subject: &BlobDigest) -> io::Result<Vec<(BlobDigest, Vec<u8>)>> {
        let dir = self.referrers_dir(subject);
        let mut found = vec![];
        for digest in digests(&dir)? {
            if let Some(bytes) = self::found(fs::read(dir.join(digest.file_name())))? {
                found.push((digest, bytes));
            }
        }
        Ok(found)
    }

    fn referrers_dir(&self, subject: &BlobDigest) -> PathBuf {
        self.dir.join("referrers").join(subject.file_name())
    }

    fn write(&self, kind: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let directory = self.dir.join(kind);
        if !directory.is_dir() {
            files::create_private_dir(&directory)?;
            for above in directory.ancestors().skip(1).take(3) {
                File::open(above)?.sync_all()?;
            }
        }
        // Several pushes may write the same at once, so each has a draft of its own. No tag and no digest
        // begins with a dot.
        let draft = directory.join(format!(".{}.new-link", Uuid::new_v4()));
        let written = fs::write(&draft, bytes)
            .and_then(|()| File::open(&draft)?.sync_all())
            .and_then(|()| fs::rename(&draft, directory.join(name)))
            .and_then(|()| File::open(&directory)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }
}

fn digests(directory: &Path) -> io::Result<Vec<BlobDigest>> {
    let names = file_names(directory)?;
    let mut digests: Vec<_> = names
        .iter()
        .filter_map(|name| BlobDigest::from_file_name(name))
        .collect();
    digests.sort();
    Ok(digests)
}

fn file_names(directory: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = found(fs::read_dir(directory))? else {
        return Ok(vec![]);
    };
    let mut names = vec![];
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

fn touch(path: &Path) -> io::Result<bool> {
    let Some(file) = found(File::open(path))? else {
        return Ok(false);
    };
    file.set_modified(SystemTime::now())?;
    Ok(true)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn remove(path: &Path) -> io::Result<bool> {
    Ok(found(fs::remove_file(path))?.is_some())
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
