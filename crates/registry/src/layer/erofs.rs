//! Writes an erofs image file, uncompressed, in one pass over its contents.
//!
//! ```text
//!  block 0: superblock, root inode | data of files as they come, inodes between | directories
//! ```
//!
//! File contents are written as they are read; only names and directories are held in memory until
//! [`Writer::finish`]. So nothing of a layer is ever unpacked into directories of the host: an archive
//! has no path to escape from, and there is nothing to clean up but one file.
//!
//! Inodes are addressed by their place in the file (`meta_blkaddr` is 0), which is what lets them stand
//! between the data. Only the root's number is short (16 bits), so it is in the first block. Runs of
//! zeroes become holes. The same input always gives the same bytes.
//!
//! The format: Linux, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

pub const BLOCK: usize = 4096;
/// Unit of holes. Smaller ones find more of them, and cost a look-up per unit at every read.
const CHUNK: usize = 64 << 10;
/// The chunk size as the format has it: its logarithm, above the block's.
const CHUNK_FORMAT: u32 = 4;
const HOLE: u32 = u32::MAX;
const SLOT: u64 = 32;
const INODE: usize = 64;
/// Behind the superblock, in its block.
const ROOT_OFFSET: usize = 1024 + 128;
/// What is gathered before it is written.
const GATHER: usize = 1 << 20;

const MAGIC: u32 = 0xE0F5_E1E2;
const INCOMPATIBLE_CHUNKED_FILE: u32 = 0x4;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;

pub const S_IFMT: u32 = 0o170000;
pub const S_IFDIR: u32 = 0o040000;
pub const S_IFREG: u32 = 0o100000;
pub const S_IFLNK: u32 = 0o120000;
pub const S_IFCHR: u32 = 0o020000;
pub const S_IFIFO: u32 = 0o010000;

/// An inode's attributes; `mode` with its type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    /// Full names, such as `user.note`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    pub fn directory() -> Meta {
        Meta {
            mode: S_IFDIR | 0o755,
            ..Meta::default()
        }
    }
}

/// An inode that is written: everything but a directory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    number: u64,
    kind: u8,
}

/// A directory: its place in a tree that is written at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dir(usize);

impl Dir {
    pub fn index(self) -> usize {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Entry {
    Dir(Dir),
    Node(Node),
}

struct Directory {
    parent: usize,
    meta: Meta,
    entries: BTreeMap<Box<[u8]>, Entry>,
}

pub struct Writer {
    file: File,
    directories: Vec<Directory>,
    /// What is gathered, and the block at which it begins. Ends at the next free block.
    gathered: Vec<u8>,
    gathered_at: u64,
    /// The block that small things are put into, and where in it is the next free byte.
    small: Box<[u8; BLOCK]>,
    small_at: u64,
    small_used: usize,
    first: Box<[u8; BLOCK]>,
    inodes: u64,
    /// Of inodes that have more than one name.
    links: BTreeMap<u64, u32>,
    chunk: Vec<u8>,
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Writer {
    /// Writes into `file`, which is empty.
    pub fn new(file: File) -> Writer {
        Writer {
            file,
            directories: vec![Directory {
                parent: 0,
                meta: Meta::directory(),
                entries: BTreeMap::new(),
            }],
            gathered: Vec::with_capacity(GATHER + CHUNK),
            gathered_at: 1,
            small: Box::new([0; BLOCK]),
            small_at: 0,
            small_used: BLOCK,
            first: Box::new([0; BLOCK]),
            inodes: 1,
            links: BTreeMap::new(),
            chunk: vec![0; CHUNK],
        }
    }

    pub fn root(&self) -> Dir {
        Dir(0)
    }

    pub fn get(&self, dir: Dir, name: &[u8]) -> Option<Entry> {
        self.directories[dir.0].entries.get(name).copied()
    }

    pub fn meta_mut(&mut self, dir: Dir) -> &mut Meta {
        &mut self.directories[dir.0].meta
    }

    /// A directory that is there keeps what is in it and gets new attributes.
    pub fn add_dir(&mut self, parent: Dir, name: &[u8], meta: Meta) -> Dir {
        if let Some(Entry::Dir(dir)) = self.get(parent, name) {
            self.directories[dir.0].meta = meta;
            return dir;
        }
        let dir = Dir(self.directories.len());
        self.directories.push(Directory {
            parent: parent.0,
            meta,
            entries: BTreeMap::new(),
        });
        self.put(parent, name, Entry::Dir(dir));
        dir
    }

    /// Gives an inode a name; it replaces what had this name.
    pub fn add(&mut self, parent: Dir, name: &[u8], node: Node) {
        self.put(parent, name, Entry::Node(node));
        *self.links.entry(node.number).or_default() += 1;
    }

    fn put(&mut self, parent: Dir, name: &[u8], entry: Entry) {
        let before = self.directories[parent.0].entries.insert(name.into(), entry);
        if let Some(Entry::Node(node)) = before
            && let Some(count) = self.links.get_mut(&node.number)
        {
            *count -= 1;
        }
    }

    /// A file of exactly `size` bytes of `content`.
    pub fn file(&mut self, meta: &Meta, size: u64, content: &mut impl Read) -> io::Result<Node> {
        let begin = self.next_block();
        let mut chunks: Vec<u32> = Vec::new();
        let mut has_holes = false;
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut left = size;
        let mut tail = 0;
        while left > 0 {
            let length = left.min(CHUNK as u64) as usize;
            content.read_exact(&mut chunk[..length])?;
            left -= length as u64;
            let at = self.next_block();
            // The last piece may become part of the inode's block, so it is never a hole.
            if left > 0 && is_zero(&chunk[..length]) {
                if !has_holes {
                    has_holes = true;
                    let before = chunks.len();
                    chunks.clear();
                    chunks.extend(
                        (0..before).map(|index| block_number(begin) + (index * CHUNK / BLOCK) as u32),
                    );
                }
                chunks.push(HOLE);
                continue;
            }
            check_block(at)?;
            chunks.push(at as u32);
            let whole = length / BLOCK * BLOCK;
            self.append(&chunk[..whole])?;
            if whole < length {
                tail = length - whole;
                chunk.copy_within(whole..length, 0);
            }
        }
        let data = &chunk[..tail];
        let node = match has_holes {
            true => {
                if !data.is_empty() {
                    self.append_padded(data)?;
                }
                self.inode_with_chunks(meta, size, &chunks)
            }
            false => self.inode_with_data(meta, size, begin, data),
        };
        self.chunk = chunk;
        node
    }

    pub fn symlink(&mut self, meta: &Meta, target: &[u8]) -> io::Result<Node> {
        let begin = self.next_block();
        self.inode_with_data(meta, target.len() as u64, begin, target)
    }

    /// An inode without contents: a pipe, or with `S_IFCHR` what hides a name of lower layers.
    pub fn special(&mut self, meta: &Meta) -> io::Result<Node> {
        self.inode_with_data(meta, 0, 0, &[])
    }

    /// Writes directories and superblock; the file is complete then, and not synced.
    pub fn finish(mut self) -> io::Result<File> {
        let reachable = self.reachable();
        // Places first, since a directory names the places of those in it.
        let mut places: Vec<Option<Place>> = (0..self.directories.len()).map(|_| None).collect();
        for &index in &reachable {
            let (meta, layout) = (
                self.directories[index].meta.clone(),
                Layout::of(self.directories[index].entries.keys()),
            );
            let xattrs = xattrs(&meta)?;
            let whole = layout.size / BLOCK * BLOCK;
            let tail = layout.size - whole;
            let is_root = index == 0;
            let is_inline = tail > 0 && !is_root && INODE + xattrs.len() + tail <= BLOCK;
            let blocks = if is_inline { whole } else { layout.size }.div_ceil(BLOCK);
            let data = self.next_block();
            check_block(data + blocks as u64)?;
            self.skip(blocks)?;
            let offset = match is_root {
                true => ROOT_OFFSET as u64,
                false => self.reserve(INODE + xattrs.len() + if is_inline { tail } else { 0 })?,
            };
            if is_root && ROOT_OFFSET + INODE + xattrs.len() > BLOCK {
                return Err(invalid("the root has more extended attributes than are taken"));
            }
            places[index] = Some(Place {
                offset,
                data,
                is_inline,
                layout,
                xattrs,
            });
        }
        self.flush()?;
        self.flush_small()?;
        for &index in &reachable {
            self.write_directory(index, &places)?;
        }
        let blocks = self.next_block();
        for (number, count) in std::mem::take(&mut self.links) {
            if count != 1 {
                self.file
                    .write_all_at(&count.max(1).to_le_bytes(), number * SLOT + 44)?;
            }
        }
        check_block(blocks)?;
        let mut first = std::mem::replace(&mut self.first, Box::new([0; BLOCK]));
        let superblock = &mut first[1024..1024 + 128];
        superblock[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        superblock[12] = BLOCK.trailing_zeros() as u8;
        superblock[14..16].copy_from_slice(&((ROOT_OFFSET as u64 / SLOT) as u16).to_le_bytes());
        superblock[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        superblock[36..40].copy_from_slice(&(blocks as u32).to_le_bytes());
        superblock[80..84].copy_from_slice(&INCOMPATIBLE_CHUNKED_FILE.to_le_bytes());
        self.file.write_all_at(&first[..], 0)?;
        self.file.set_len(blocks * BLOCK as u64)?;
        Ok(self.file)
    }

    /// Directories that still have a name, parents before what is in them.
    fn reachable(&self) -> Vec<usize> {
        let mut found = vec![0];
        let mut next = 0;
        while let Some(&index) = found.get(next) {
            next += 1;
            found.extend(
                self.directories[index]
                    .entries
                    .values()
                    .filter_map(|entry| match entry {
                        Entry::Dir(dir) => Some(dir.0),
                        Entry::Node(_) => None,
                    }),
            );
        }
        found
    }

    fn write_directory(&mut self, index: usize, places: &[Option<Place>]) -> io::Result<()> {
        let place = places[index]
            .as_ref()
            .expect("every reachable directory has its place");
        let directory = &self.directories[index];
        let number_of = |index: usize| places[index].as_ref().expect("a parent is reachable").offset / SLOT;
        let mut names: Vec<(&[u8], u64, u8)> = directory
            .entries
            .iter()
            .map(|(name, entry)| match entry {
                Entry::Dir(dir) => (&name[..], number_of(dir.0), 2),
                Entry::Node(node) => (&name[..], node.number, node.kind),
            })
            .collect();
        names.push((b".", number_of(index), 2));
        names.push((b"..", number_of(directory.parent), 2));
        names.sort_unstable();
        let mut data = Vec::with_capacity(place.layout.size);
        let mut rest = &names[..];
        for &count in &place.layout.blocks {
            let (here, after) = rest.split_at(count);
            rest = after;
            data.resize(data.len().div_ceil(BLOCK) * BLOCK, 0);
            let mut name_offset = count * 12;
            for (name, number, kind) in here {
                data.extend_from_slice(&number.to_le_bytes());
                data.extend_from_slice(&(name_offset as u16).to_le_bytes());
                data.extend_from_slice(&[*kind, 0]);
                name_offset += name.len();
            }
            here.iter().for_each(|(name, _, _)| data.extend_from_slice(name));
        }
        debug_assert_eq!(data.len(), place.layout.size);
        let subdirectories = directory
            .entries
            .values()
            .filter(|entry| matches!(entry, Entry::Dir(_)))
            .count();
        let inode = inode(&Inode {
            meta: &directory.meta,
            layout: if place.is_inline {
                LAYOUT_INLINE
            } else {
                LAYOUT_PLAIN
            },
            size: data.len() as u64,
            place: place.data as u32,
            number: (place.offset / SLOT) as u32,
            links: 2 + subdirectories as u32,
            xattr_bytes: place.xattrs.len(),
        });
        let whole = match place.is_inline {
            true => data.len() / BLOCK * BLOCK,
            false => data.len(),
        };
        self.file
            .write_all_at(&data[..whole], place.data * BLOCK as u64)?;
        let mut bytes = inode.to_vec();
        bytes.extend_from_slice(&place.xattrs);
        bytes.extend_from_slice(&data[whole..]);
        if index == 0 {
            self.first[ROOT_OFFSET..ROOT_OFFSET + bytes.len()].copy_from_slice(&bytes);
            return Ok(());
        }
        self.file.write_all_at(&bytes, place.offset)
    }

    fn inode_with_data(&mut self, meta: &Meta, size: u64, begin: u64, tail: &[u8]) -> io::Result<Node> {
        let xattrs = xattrs(meta)?;
        let is_inline = !tail.is_empty() && INODE + xattrs.len() + tail.len() <= BLOCK;
        if !tail.is_empty() && !is_inline {
            check_block(self.next_block())?;
            self.append_padded(tail)?;
        }
        let inline = if is_inline { tail } else { &[] };
        let layout = if is_inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        self.put_inode(meta, layout, size, begin as u32, &xattrs, inline)
    }

    fn inode_with_chunks(&mut self, meta: &Meta, size: u64, chunks: &[u32]) -> io::Result<Node> {
        let xattrs = xattrs(meta)?;
        let map: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.to_le_bytes()).collect();
        if INODE + xattrs.len() + map.len() <= BLOCK {
            return self.put_inode(meta, LAYOUT_CHUNKS, size, CHUNK_FORMAT, &xattrs, &map);
        }
        // A long map runs over into the blocks behind the inode's.
        let at = self.next_block();
        let number = at * BLOCK as u64 / SLOT;
        let mut bytes = inode(&Inode {
            meta,
            layout: LAYOUT_CHUNKS,
            size,
            place: CHUNK_FORMAT,
            number: number as u32,
            links: 1,
            xattr_bytes: xattrs.len(),
        })
        .to_vec();
        bytes.extend_from_slice(&xattrs);
        bytes.extend_from_slice(&map);
        check_block(at + bytes.len().div_ceil(BLOCK) as u64)?;
        self.append_padded(&bytes)?;
        self.inodes += 1;
        Ok(Node {
            number,
            kind: kind_of(meta.mode),
        })
    }

    fn put_inode(
        &mut self,
        meta: &Meta,
        layout: u16,
        size: u64,
        place: u32,
        xattrs: &[u8],
        inline: &[u8],
    ) -> io::Result<Node> {
        let offset = self.reserve(INODE + xattrs.len() + inline.len())?;
        let inode = inode(&Inode {
            meta,
            layout,
            size,
            place,
            number: (offset / SLOT) as u32,
            links: 1,
            xattr_bytes: xattrs.len(),
        });
        let mut at = (offset % BLOCK as u64) as usize;
        for part in [&inode[..], xattrs, inline] {
            self.small[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(Node {
            number: offset / SLOT,
            kind: kind_of(meta.mode),
        })
    }

    /// Room of `length` bytes for an inode and what follows it, within one block.
    fn reserve(&mut self, length: usize) -> io::Result<u64> {
        if self.small_used + length > BLOCK {
            self.flush_small()?;
            self.small_at = self.next_block();
            check_block(self.small_at)?;
            self.small_used = 0;
            self.skip(1)?;
        }
        let offset = self.small_at * BLOCK as u64 + self.small_used as u64;
        self.small_used = (self.small_used + length).next_multiple_of(SLOT as usize);
        self.inodes += 1;
        Ok(offset)
    }

    fn flush_small(&mut self) -> io::Result<()> {
        if self.small_at == 0 {
            return Ok(());
        }
        let within = self
            .small_at
            .checked_sub(self.gathered_at)
            .map(|blocks| blocks as usize * BLOCK);
        match within.filter(|at| *at < self.gathered.len()) {
            Some(at) => self.gathered[at..at + BLOCK].copy_from_slice(&self.small[..]),
            None => self
                .file
                .write_all_at(&self.small[..], self.small_at * BLOCK as u64)?,
        }
        self.small.fill(0);
        Ok(())
    }

    fn next_block(&self) -> u64 {
        self.gathered_at + (self.gathered.len() / BLOCK) as u64
    }

    fn append(&mut self, blocks: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(blocks);
        if self.gathered.len() >= GATHER {
            self.flush()?;
        }
        Ok(())
    }

    fn append_padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(bytes)?;
        let missing = self.gathered.len().next_multiple_of(BLOCK) - self.gathered.len();
        self.append(&[0; BLOCK][..missing])
    }

    fn skip(&mut self, blocks: usize) -> io::Result<()> {
        for _ in 0..blocks {
            self.append(&[0; BLOCK])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_all_at(&self.gathered, self.gathered_at * BLOCK as u64)?;
        self.gathered_at = self.next_block();
        self.gathered.clear();
        Ok(())
    }
}

struct Place {
    offset: u64,
    data: u64,
    is_inline: bool,
    layout: Layout,
    xattrs: Vec<u8>,
}

/// How the names of a directory are spread over its blocks.
struct Layout {
    /// Names per block.
    blocks: Vec<usize>,
    size: usize,
}

impl Layout {
    fn of<'a>(names: impl Iterator<Item = &'a Box<[u8]>>) -> Layout {
        let mut names: Vec<&[u8]> = names.map(|name| &name[..]).collect();
        names.push(b".");
        names.push(b"..");
        names.sort_unstable();
        let (mut blocks, mut used) = (vec![0], 0);
        for name in names {
            let length = 12 + name.len();
            if used + length > BLOCK {
                blocks.push(0);
                used = 0;
            }
            used += length;
            *blocks.last_mut().expect("there is one from the beginning") += 1;
        }
        Layout {
            size: (blocks.len() - 1) * BLOCK + used,
            blocks,
        }
    }
}

struct Inode<'a> {
    meta: &'a Meta,
    layout: u16,
    size: u64,
    place: u32,
    number: u32,
    links: u32,
    xattr_bytes: usize,
}

fn inode(inode: &Inode) -> [u8; INODE] {
    let mut bytes = [0; INODE];
    let format = 1 | (inode.layout << 1);
    let xattr_count = match inode.xattr_bytes {
        0 => 0,
        bytes => (bytes - 12) / 4 + 1,
    };
    bytes[0..2].copy_from_slice(&format.to_le_bytes());
    bytes[2..4].copy_from_slice(&(xattr_count as u16).to_le_bytes());
    bytes[4..6].copy_from_slice(&(inode.meta.mode as u16).to_le_bytes());
    bytes[8..16].copy_from_slice(&inode.size.to_le_bytes());
    bytes[16..20].copy_from_slice(&inode.place.to_le_bytes());
    bytes[20..24].copy_from_slice(&inode.number.to_le_bytes());
    bytes[24..28].copy_from_slice(&inode.meta.uid.to_le_bytes());
    bytes[28..32].copy_from_slice(&inode.meta.gid.to_le_bytes());
    bytes[32..40].copy_from_slice(&inode.meta.mtime.to_le_bytes());
    bytes[44..48].copy_from_slice(&inode.links.to_le_bytes());
    bytes
}

/// Extended attributes as they follow an inode.
fn xattrs(meta: &Meta) -> io::Result<Vec<u8>> {
    if meta.xattrs.is_empty() {
        return Ok(vec![]);
    }
    let mut bytes = vec![0; 12];
    for (name, value) in &meta.xattrs {
        let (index, suffix) =
            prefix(name).ok_or_else(|| invalid("an extended attribute of an unknown kind"))?;
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(suffix.len()), u16::try_from(value.len()))
        else {
            return Err(invalid("an extended attribute is too long"));
        };
        bytes.extend_from_slice(&[name_length, index]);
        bytes.extend_from_slice(&value_length.to_le_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    // So that an inode with what follows it never crosses a block.
    if bytes.len() > BLOCK / 2 {
        return Err(invalid("a file has more than 2048 bytes of extended attributes"));
    }
    Ok(bytes)
}

fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    let known: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    match name {
        b"system.posix_acl_access" => Some((2, &[])),
        b"system.posix_acl_default" => Some((3, &[])),
        _ => known
            .into_iter()
            .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?))),
    }
}

fn kind_of(mode: u32) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFIFO => 5,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// Of whole words; nearly always the first one tells.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks_exact(8)
        .all(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")) == 0)
}

fn block_number(block: u64) -> u32 {
    block as u32
}

/// Blocks have 32-bit numbers, of which the last one means a hole.
fn check_block(block: u64) -> io::Result<()> {
    match block < u64::from(HOLE) {
        true => Ok(()),
        false => Err(invalid("the layer is larger than an image can be")),
    }
}
