//! How far a sink is: a place in one file of each log, kept on disk.

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};

use super::listing::Key;

/// The place after the last line that was taken. A file is known by its inode and by how it begins:
/// inodes are used again, and rotation changes names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub inode: u64,
    /// Of the file's first bytes; see [`head_of`].
    pub head: u64,
    pub offset: u64,
    /// The number of the next line, counted from 1 over all files of the log.
    pub line: u64,
}

pub type Cursors = BTreeMap<Key, Position>;

/// Enough for the time of the first line, which is to the nanosecond.
const HEAD_BYTES: usize = 40;

/// Stands for the first line of a file, of which at least the beginning is given. FNV-1a, since it has
/// to be the same in every version of this program.
pub fn head_of(start: &[u8]) -> u64 {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in &line[..line.len().min(HEAD_BYTES)] {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

pub fn read(path: &Path) -> io::Result<Cursors> {
    let Some(text) = daemon::files::read_if_exists(path)? else {
        return Ok(Cursors::new());
    };
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// On disk when this returns.
pub fn write(path: &Path, cursors: &Cursors) -> io::Result<()> {
    let bytes = serde_json::to_vec(cursors).map_err(io::Error::other)?;
    daemon::files::write_atomic(path, &bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursors.json");
        assert_eq!(read(&path).unwrap(), Cursors::new());
        let position = Position {
            inode: 7,
            head: u64::MAX,
            offset: 12,
            line: 3,
        };
        let cursors = Cursors::from([("app/job".into(), position)]);
        write(&path, &cursors).unwrap();
        assert_eq!(read(&path).unwrap(), cursors);
    }

    #[test]
    fn a_file_is_known_by_its_first_line_however_much_of_it_was_read() {
        let line = b"2026-11-23T08:19:38.123456789Z stdout F hello";
        assert_eq!(head_of(line), head_of(&[line, &b"\nmore"[..]].concat()));
        assert_ne!(
            head_of(line),
            head_of(b"2026-11-23T08:19:38.123456788Z stdout F hello")
        );
    }
}
