//! A layer's tar archive into an image file that can be mounted.
//!
//! What the archive says is followed as far as it concerns the image, and refused where no image needs
//! it: names with `..`, names that go through a link, links to what is not in the layer, devices,
//! entries and bytes without end. Names never become paths of the host (see [`super::erofs`]).
//!
//! What hides names of lower layers (`.wh.NAME`, `.wh..wh..opq`) becomes what overlayfs has for it: a
//! character device 0/0, and the attribute `trusted.overlay.opaque`. It counts for lower layers only, so
//! a directory that is hidden and made again in one layer is opaque.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::erofs::{Dir, Entry, Meta, Node, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, Writer};
use super::sparse::Sparse;

/// Longest file of users or groups that is read.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;
/// Containers have this many ids; files of others belong to nobody.
const IDS: u64 = 65_536;
const NOBODY: u32 = 65_534;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How much of a layer is taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Of the archive, unpacked.
    pub bytes_max: u64,
    pub entries_max: u64,
    /// Unpacked bytes per packed one, beyond [`Limits::ratio_free_bytes`].
    pub ratio_max: u64,
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    /// The largest images in use (with a whole CUDA in them) have layers of about 5 GiB and 200 000
    /// files; text packs 20 : 1, and 1000 : 1 is what only zeroes reach.
    fn default() -> Self {
        Limits {
            bytes_max: 20 << 30,
            entries_max: 1_000_000,
            ratio_max: 200,
            ratio_free_bytes: 1 << 30,
        }
    }
}

/// What a layer says about one file of accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accounts {
    /// Nothing: that of the layers below counts.
    #[default]
    Unchanged,
    Removed,
    Text(String),
}

/// What was found on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// SHA-256 of the archive, unpacked: the name by which an image's configuration knows the layer.
    pub diff_id: String,
    pub bytes: u64,
    pub entries: u64,
    /// `/etc/passwd` and `/etc/group`.
    #[serde(default)]
    pub passwd: Accounts,
    #[serde(default)]
    pub group: Accounts,
}

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The archive is not one, or holds what is not taken: in words for whoever made it.
    #[error("{0}")]
    Archive(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub(super) fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Archive(text.into()))
}

/// Reads an archive of `packed_bytes` (as they came) and writes the image to `output`, which is empty.
pub fn convert(
    input: impl Read,
    packed_bytes: u64,
    output: File,
    limits: &Limits,
) -> Result<(Contents, File), Refusal> {
    let ratio_bytes = packed_bytes
        .saturating_mul(limits.ratio_max)
        .max(limits.ratio_free_bytes);
    let mut source = Source {
        input,
        hash: Sha256::new(),
        bytes: 0,
        bytes_max: limits.bytes_max.min(ratio_bytes),
        entries_max: limits.entries_max,
        is_over: false,
    };
    let mut tree = Tree::new(Writer::new(output), source.bytes_max);
    if let Err(refusal) = tree.fill(&mut source) {
        return Err(match (source.is_over, refusal) {
            (true, _) => Refusal::Archive(format!(
                "it is more than {} bytes when unpacked, from {packed_bytes}",
                source.bytes_max
            )),
            (false, Refusal::Io(error)) => of_reading(error),
            (false, refusal) => refusal,
        });
    }
    let (diff_id, bytes) = (hex::encode(source.hash.finalize()), source.bytes);
    let (file, mut contents) = tree.finish()?;
    contents.diff_id = diff_id;
    contents.bytes = bytes;
    Ok((contents, file))
}

/// A broken archive is its maker's; a full disk is ours.
fn of_reading(error: io::Error) -> Refusal {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | Other | UnexpectedEof if error.raw_os_error().is_none() => {
            Refusal::Archive(format!("its archive cannot be read: {error}"))
        }
        _ => Refusal::Io(error),
    }
}

/// Counts and hashes what is read, and ends it where it is too much.
struct Source<R> {
    input: R,
    hash: Sha256,
    bytes: u64,
    bytes_max: u64,
    entries_max: u64,
    is_over: bool,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        if self.bytes > self.bytes_max {
            self.is_over = true;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
        }
        Ok(count)
    }
}

struct Tree {
    writer: Writer,
    contents: Contents,
    /// Directories that hide what lower layers have in them.
    opaque: BTreeSet<usize>,
    opaque_dirs: Vec<Dir>,
    /// Names that hide one of lower layers.
    hidden: Vec<(Dir, Vec<u8>)>,
    file_bytes: u64,
    bytes_max: u64,
}

impl Tree {
    fn new(writer: Writer, bytes_max: u64) -> Tree {
        Tree {
            writer,
            contents: Contents::default(),
            opaque: BTreeSet::new(),
            opaque_dirs: vec![],
            hidden: vec![],
            file_bytes: 0,
            bytes_max,
        }
    }

    fn fill<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), Refusal> {
        let entries_max = source.entries_max;
        let mut archive = Archive::new(&mut *source);
        for entry in archive.entries()? {
            let entry = entry?;
            self.contents.entries += 1;
            if self.contents.entries > entries_max {
                return refuse(format!("it has more than {entries_max} entries"));
            }
            self.count(entry.size())?;
            self.entry(entry)?;
        }
        // What stands behind the archive's end belongs to its digest.
        io::copy(source, &mut io::sink())?;
        Ok(())
    }

    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), Refusal> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let (mut meta, sparse) = attributes(&mut entry)?;
        let path = match &sparse.name {
            Some(name) => name.clone(),
            None => entry.path_bytes().into_owned(),
        };
        let names = names(&path)?;
        let is_dir = kind.is_dir() || (kind.is_file() && path.ends_with(b"/"));
        let Some((name, above)) = names.split_last() else {
            if is_dir {
                meta.mode |= S_IFDIR;
                *self.writer.meta_mut(self.writer.root()) = meta;
            }
            return Ok(());
        };
        let parent = self.directory(above, &path)?;
        if *name == OPAQUE {
            if self.opaque.insert(parent.index()) {
                self.opaque_dirs.push(parent);
            }
            if above == [b"etc"] {
                hide(&mut self.contents.passwd);
                hide(&mut self.contents.group);
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            // `.wh..wh.` is what one kind of file system keeps for itself.
            if !hidden.is_empty() && !hidden.starts_with(b".wh.") {
                check_name(hidden, &path)?;
                self.hidden.push((parent, hidden.to_vec()));
                if let Some(accounts) = self.accounts(above, hidden) {
                    hide(accounts);
                }
            }
            return Ok(());
        }
        if is_dir {
            meta.mode |= S_IFDIR;
            self.writer.add_dir(parent, name, meta);
            return Ok(());
        }
        let node = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                meta.mode |= S_IFREG;
                let size = entry.size();
                match sparse.bytes() {
                    Some(bytes) => {
                        self.count(bytes)?;
                        let mut filled = sparse.filled(entry, size)?;
                        self.file(&mut filled, bytes, &meta, above, name)?
                    }
                    None => self.file(&mut entry, size, &meta, above, name)?,
                }
            }
            EntryType::Symlink => {
                let target = link(&entry, &path)?;
                meta.mode = S_IFLNK | 0o777;
                self.writer.symlink(&meta, &target)?
            }
            EntryType::Link => self.linked(&link(&entry, &path)?, &path)?,
            EntryType::Fifo => {
                meta.mode |= S_IFIFO;
                self.writer.special(&meta)?
            }
            // Every container has a /dev of its own, so those that old tools pack are left out.
            EntryType::Char | EntryType::Block if above.first() == Some(&&b"dev"[..]) => return Ok(()),
            EntryType::Char | EntryType::Block => {
                return refuse(format!(
                    "{} is a device, which images cannot bring along",
                    shown(&path)
                ));
            }
            other => {
                return refuse(format!(
                    "{} is of a kind that is not known ({:?})",
                    shown(&path),
                    other.as_byte() as char
                ));
            }
        };
        self.writer.add(parent, name, node);
        Ok(())
    }

    /// Holes of sparse files count: they are not in the archive, but they are in what it makes.
    fn count(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.file_bytes = self.file_bytes.saturating_add(bytes);
        match self.file_bytes > self.bytes_max {
            true => refuse(format!(
                "its files are more than {} bytes when unpacked",
                self.bytes_max
            )),
            false => Ok(()),
        }
    }

    fn file(
        &mut self,
        content: &mut impl Read,
        size: u64,
        meta: &Meta,
        above: &[&[u8]],
        name: &[u8],
    ) -> Result<Node, Refusal> {
        let Some(accounts) = self.accounts(above, name) else {
            return Ok(self.writer.file(meta, size, content)?);
        };
        if size > ACCOUNTS_BYTES_MAX {
            *accounts = Accounts::Text(String::new());
            return Ok(self.writer.file(meta, size, content)?);
        }
        let mut text = Vec::new();
        content.read_to_end(&mut text)?;
        *accounts = Accounts::Text(String::from_utf8_lossy(&text).into_owned());
        if text.len() as u64 != size {
            return Err(Refusal::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(self.writer.file(meta, size, &mut &text[..])?)
    }

    fn accounts(&mut self, above: &[&[u8]], name: &[u8]) -> Option<&mut Accounts> {
        match (above, name) {
            ([b"etc"], b"passwd") => Some(&mut self.contents.passwd),
            ([b"etc"], b"group") => Some(&mut self.contents.group),
            _ => None,
        }
    }

    fn linked(&self, target: &[u8], path: &[u8]) -> Result<Node, Refusal> {
        let names = names(target)?;
        let mut found = Entry::Dir(self.writer.root());
        for name in &names {
            let next = match found {
                Entry::Dir(dir) => self.writer.get(dir, name),
                Entry::Node(_) => None,
            };
            found = match next {
                Some(next) => next,
                None => {
                    return refuse(format!(
                        "{} is a hard link to {}, which is not in the layer before it",
                        shown(path),
                        shown(target)
                    ));
                }
            };
        }
        match found {
            Entry::Node(node) => Ok(node),
            Entry::Dir(_) => refuse(format!("{} is a hard link to a directory", shown(path))),
        }
    }

    /// The directory of these names; those that the archive leaves out are made.
    fn directory(&mut self, names: &[&[u8]], path: &[u8]) -> Result<Dir, Refusal> {
        let mut dir = self.writer.root();
        for (depth, name) in names.iter().enumerate() {
            dir = match self.writer.get(dir, name) {
                Some(Entry::Dir(next)) => next,
                Some(Entry::Node(_)) => {
                    return refuse(format!("{} goes through what is no directory", shown(path)));
                }
                None => {
                    let mut meta = Meta::directory();
                    // Where everybody may write, whatever the layer below was told about it.
                    if matches!(&names[..=depth], [b"tmp"] | [b"var", b"tmp"]) {
                        meta.mode |= 0o1777;
                    }
                    self.writer.add_dir(dir, name, meta)
                }
            };
        }
        Ok(dir)
    }

    fn finish(mut self) -> Result<(File, Contents), Refusal> {
        let mut whiteout = None;
        for (parent, name) in std::mem::take(&mut self.hidden) {
            match self.writer.get(parent, &name) {
                Some(Entry::Dir(dir)) => self.opaque_dirs.push(dir),
                Some(Entry::Node(_)) => {}
                None => {
                    let node = match whiteout {
                        Some(node) => node,
                        None => self.writer.special(&Meta {
                            mode: S_IFCHR,
                            ..Meta::default()
                        })?,
                    };
                    whiteout = Some(node);
                    self.writer.add(parent, &name, node);
                }
            }
        }
        for dir in &self.opaque_dirs {
            let xattrs = &mut self.writer.meta_mut(*dir).xattrs;
            xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
        }
        Ok((self.writer.finish()?, self.contents))
    }
}

/// One that the same layer brings stays, whichever came first.
fn hide(accounts: &mut Accounts) {
    if *accounts == Accounts::Unchanged {
        *accounts = Accounts::Removed;
    }
}

/// The names that a path is made of.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.len() > PATH_BYTES_MAX {
        return refuse(format!("it has a name of more than {PATH_BYTES_MAX} bytes"));
    }
    let names: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .collect();
    for name in &names {
        check_name(name, path)?;
    }
    Ok(names)
}

fn check_name(name: &[u8], path: &[u8]) -> Result<(), Refusal> {
    if name == b".." || name == b"." {
        return refuse(format!("{} leads out of the image", shown(path)));
    }
    if name.len() > NAME_BYTES_MAX || name.contains(&0) || name.contains(&b'/') {
        return refuse(format!("{} is no name that a file can have", shown(path)));
    }
    Ok(())
}

fn link<R: Read>(entry: &tar::Entry<'_, R>, path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    match target.is_empty() || target.len() >= PATH_BYTES_MAX || target.contains(&0) {
        true => refuse(format!("{} is a link to nowhere", shown(path))),
        false => Ok(target),
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<(Meta, Sparse), Refusal> {
    // Some tools leave fields blank, which is read as 0 everywhere.
    let (mut uid, mut gid) = (
        entry.header().uid().unwrap_or(0),
        entry.header().gid().unwrap_or(0),
    );
    let (mut xattrs, mut sparse) = (BTreeMap::new(), Sparse::default());
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let number = || extension.value().ok().and_then(|text| text.parse().ok());
        match extension.key_bytes() {
            b"uid" => uid = number().unwrap_or(uid),
            b"gid" => gid = number().unwrap_or(gid),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && is_kept(name)
                {
                    xattrs.insert(name.to_vec(), extension.value_bytes().to_vec());
                }
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    sparse.note(key, extension.value_bytes())?;
                }
            }
        }
    }
    let id = |id: u64| if id < IDS { id as u32 } else { NOBODY };
    let meta = Meta {
        mode: entry.header().mode()? & 0o7777,
        uid: id(uid),
        gid: id(gid),
        mtime: entry.header().mtime().unwrap_or(0),
        xattrs,
    };
    Ok((meta, sparse))
}

/// Attributes with a meaning within a container. Those of overlayfs itself would let a layer point to
/// places that are not its own, and labels are the host's.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// A name as it may be printed.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(120).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
