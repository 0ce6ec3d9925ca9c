//! Which log files there are, and which of them nobody waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::position::Cursors;

/// `APPID/JOBID`, or `APPID/router`.
pub type Key = Arc<str>;

/// All logs of a host at one moment.
pub type Listing = BTreeMap<Key, Log>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub app: String,
    pub name: String,
    /// The current file, whether it is there or not.
    pub path: PathBuf,
    /// Newest first.
    pub files: Vec<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// 0 is the current file; every rotation adds one.
    pub number: u32,
    pub inode: u64,
    pub bytes: u64,
    pub modified: SystemTime,
}

/// Readers of the past want the current file and the one before it.
const FILES_KEPT: usize = 2;
/// Rotation may go on between looking and removing. A file is removed when so many others that nobody
/// waits for are newer, so that the one which has its name by then is not waited for either.
const MARGIN: usize = 1;
/// Of what is kept for sinks alone, over all logs of the host.
pub const BACKLOG_BYTES_MAX: u64 = 4 << 30;

/// Of one log: `path`, or its `number`th before.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    PathBuf::from(format!("{}.{number}", path.display()))
}

/// Everything under the directory of logs.
pub fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let apps = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
        other => other?,
    };
    for app in apps.flatten() {
        let Some(app_name) = app.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let entries = match fs::read_dir(app.path()) {
            // Deleted meanwhile, or no directory.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            other => other?,
        };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let Some((name, number)) = file_name.to_str().and_then(parse) else {
                continue;
            };
            let Ok(meta) = entry.metadata() else { continue };
            let key: Key = format!("{app_name}/{name}").into();
            let log = listing.entry(key).or_insert_with(|| Log {
                app: app_name.clone(),
                name: name.to_owned(),
                path: app.path().join(format!("{name}.log")),
                files: vec![],
            });
            log.files.push(Seen {
                number,
                inode: meta.ino(),
                bytes: meta.len(),
                modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            });
        }
    }
    for log in listing.values_mut() {
        log.files.sort_by_key(|file| file.number);
    }
    Ok(listing)
}

/// `NAME.log` or `NAME.log.NUMBER`.
fn parse(file_name: &str) -> Option<(&str, u32)> {
    let (name, rest) = file_name.split_once('.')?;
    let number = match rest.strip_prefix("log")? {
        "" => 0,
        number => number.strip_prefix('.')?.parse().ok()?,
    };
    (!name.is_empty()).then_some((name, number))
}

impl Log {
    /// How much of it is after a position; all of it where there is none.
    pub fn bytes_after(&self, cursors: &Cursors, key: &Key) -> u64 {
        let all = || self.files.iter().map(|file| file.bytes).sum();
        let Some(position) = cursors.get(key) else {
            return all();
        };
        match self.index_of(position.inode) {
            Some(index) => {
                let newer: u64 = self.files[..index].iter().map(|file| file.bytes).sum();
                newer + self.files[index].bytes.saturating_sub(position.offset)
            }
            None => all(),
        }
    }

    fn index_of(&self, inode: u64) -> Option<usize> {
        self.files.iter().position(|file| file.inode == inode)
    }

    /// The oldest file that some sink still has to read, as an index into `files`.
    fn oldest_wanted(&self, key: &Key, sinks: &[Arc<Cursors>]) -> Option<usize> {
        let last = self.files.len().checked_sub(1)?;
        let wanted = |cursors: &Arc<Cursors>| match cursors.get(key) {
            Some(position) => self.index_of(position.inode).unwrap_or(last),
            None => last,
        };
        sinks.iter().map(wanted).max()
    }
}

/// The files that some sink has not read to their ends.
pub fn unsent(listing: &Listing, sinks: &[Arc<Cursors>]) -> BTreeSet<PathBuf> {
    let mut unsent = BTreeSet::new();
    for (key, log) in listing {
        for cursors in sinks {
            let position = cursors.get(key);
            let found = position.and_then(|position| Some((log.index_of(position.inode)?, position.offset)));
            let is_sent = |index: usize, file: &Seen| {
                found.is_some_and(|(at, offset)| index > at || (index == at && offset >= file.bytes))
            };
            let files = log
                .files
                .iter()
                .enumerate()
                .filter(|(index, file)| !is_sent(*index, file));
            unsent.extend(files.map(|(_, file)| numbered(&log.path, file.number)));
        }
    }
    unsent
}

/// What can go: files that no sink still has to read, and beyond a bound the oldest of all.
pub fn to_remove(listing: &Listing, sinks: &[Arc<Cursors>], backlog_bytes_max: u64) -> Vec<(PathBuf, u64)> {
    let mut remove = vec![];
    let mut kept = vec![];
    for (key, log) in listing {
        let wanted = log
            .oldest_wanted(key, sinks)
            .map_or(FILES_KEPT, |oldest| oldest + 1);
        let first_free = wanted.max(FILES_KEPT) + MARGIN;
        for (index, file) in log.files.iter().enumerate().skip(FILES_KEPT) {
            let path = numbered(&log.path, file.number);
            if index >= first_free {
                remove.push((path, file.inode));
            } else {
                kept.push((file.modified, file.number, path, file));
            }
        }
    }
    // The newest first; of one log the lower number is the newer file.
    kept.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut bytes = 0;
    for (_, _, path, file) in kept {
        bytes += file.bytes;
        if bytes > backlog_bytes_max {
            remove.push((path, file.inode));
        }
    }
    remove
}

/// Removes what is still the file that was looked at.
pub fn remove(files: &[(PathBuf, u64)]) {
    for (path, inode) in files {
        let is_same = fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() == *inode);
        if is_same && let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::position::Position;

    fn listing(bytes: &[u64]) -> Listing {
        let seen = |(number, bytes): (usize, &u64)| Seen {
            number: number as u32,
            inode: 100 + number as u64,
            bytes: *bytes,
            modified: SystemTime::UNIX_EPOCH,
        };
        let log = Log {
            app: "app".into(),
            name: "job".into(),
            path: "app/job.log".into(),
            files: bytes.iter().enumerate().map(seen).collect(),
        };
        Listing::from([("app/job".into(), log)])
    }

    fn sink(inode: u64) -> Arc<Cursors> {
        let position = Position {
            inode,
            offset: 1,
            ..Position::default()
        };
        Arc::new(Cursors::from([("app/job".into(), position)]))
    }

    fn check(sinks: &[Arc<Cursors>], bytes_max: u64, expected: &[u32]) {
        let removed = to_remove(&listing(&[10; 6]), sinks, bytes_max);
        let mut numbers: Vec<_> = removed.iter().map(|(_, inode)| (*inode - 100) as u32).collect();
        numbers.sort();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn what_a_sink_still_has_to_read_stays_up_to_a_bound() {
        check(&[], 1000, &[3, 4, 5]);
        check(&[sink(100)], 1000, &[3, 4, 5]);
        check(&[sink(100), sink(103)], 1000, &[5]);
        // One that has read nothing yet, and one whose file is gone, may want everything.
        check(&[Arc::default()], 1000, &[]);
        check(&[sink(7)], 1000, &[]);
        check(&[Arc::default()], 20, &[4, 5]);
    }

    #[test]
    fn a_file_is_sent_when_every_sink_is_past_its_end() {
        let names = |sinks: &[Arc<Cursors>]| -> Vec<String> {
            let paths = unsent(&listing(&[1, 1, 1]), sinks);
            paths.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(names(&[]), [""; 0]);
        assert_eq!(names(&[sink(100)]), [""; 0]);
        assert_eq!(names(&[sink(100), sink(101)]), ["app/job.log"]);
        assert_eq!(
            names(&[sink(7)]),
            ["app/job.log", "app/job.log.1", "app/job.log.2"]
        );
    }

    #[test]
    fn names_of_log_files_are_told_from_others() {
        assert_eq!(parse("router.log"), Some(("router", 0)));
        assert_eq!(parse("06b9-1.log.12"), Some(("06b9-1", 12)));
        for other in ["06b9.json", "06b9.log.new", ".log", "log", "a.logs"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
