//! An app as one file: what `flynn export` writes and `flynn import` reads.
//!
//! ```text
//! app.json  routes.json  release.json  artifacts.json  DIGEST.layer …  formation.json      a tar archive
//! ```
//!
//! Names and order are the original's. Layers come after what names them, so that a reader can ask a
//! cluster which of them it lacks, and pass those on as they come. An app without a release has only
//! the first two.

use std::{
    io::{self, Read},
    path::Path,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    commands::cluster_backup::Destination,
    failure::{Failure, Result},
};

pub const APP: &str = "app.json";
pub const ROUTES: &str = "routes.json";
pub const RELEASE: &str = "release.json";
pub const ARTIFACTS: &str = "artifacts.json";
pub const FORMATION: &str = "formation.json";

/// Longest JSON in an archive: an environment of 1 MiB, and the manifests of a few images.
const JSON_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 256 << 10;
const BLOCK_BYTES: usize = 512;

/// Writes an archive piece by piece.
pub struct Writer {
    destination: Destination,
    modified_s: u64,
}

impl Writer {
    pub fn new(destination: Destination, modified_s: u64) -> Writer {
        Writer {
            destination,
            modified_s,
        }
    }

    pub fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).expect("API values always serialise");
        self.begin(name, bytes.len() as u64)?;
        self.write(&bytes)?;
        self.end(bytes.len() as u64)
    }

    /// Begins an entry whose bytes are then written, exactly so many.
    pub fn begin(&mut self, name: &str, length: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o644);
        header.set_mtime(self.modified_s);
        header
            .set_path(name)
            .map_err(|error| Failure::new(format!("{name:?} cannot be a name in an archive: {error}")))?;
        header.set_cksum();
        self.destination.write(header.as_bytes())
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.destination.write(bytes)
    }

    /// Ends an entry of this length: entries begin at whole blocks.
    pub fn end(&mut self, length: u64) -> Result<()> {
        let surplus = (length % BLOCK_BYTES as u64) as usize;
        match surplus {
            0 => Ok(()),
            _ => self.destination.write(&[0; BLOCK_BYTES][surplus..]),
        }
    }

    pub fn finish(mut self) -> Result<()> {
        // Two empty blocks end an archive.
        self.destination.write(&[0; 2 * BLOCK_BYTES])?;
        self.destination.finish()
    }
}

/// What an archive has, in its order.
pub enum Entry {
    Json {
        name: String,
        bytes: Vec<u8>,
    },
    /// The bytes come by the channel; whoever drops it passes over them.
    Layer {
        id: String,
        bytes: mpsc::Receiver<io::Result<Bytes>>,
    },
    /// Something that is not known here.
    Other {
        name: String,
    },
}

/// Reads an archive in a thread of its own.
pub fn read(source: Box<dyn Read + Send>) -> mpsc::Receiver<Result<Entry>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        if let Err(error) = read_all(source, &sender) {
            // What the tar reader says is about header fields.
            let reason = match error.kind() {
                io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    "it is no tar archive, or not all of one".to_owned()
                }
                _ => error.to_string(),
            };
            let failure = Failure::new(format!("the archive cannot be read: {reason}"))
                .with_hint("it is a file that `flynn export` wrote, all of it");
            let _ = sender.blocking_send(Err(failure));
        }
    });
    receiver
}

fn read_all(source: Box<dyn Read + Send>, entries: &mpsc::Sender<Result<Entry>>) -> io::Result<()> {
    let mut archive = tar::Archive::new(source);
    for entry in archive.entries()? {
        let mut entry = entry?;
        // The original put all below no directory; others who pack an archive again may not.
        let name = match entry.path()?.file_name().and_then(|name| name.to_str()) {
            Some(name) if entry.header().entry_type().is_file() => name.to_owned(),
            _ => continue,
        };
        let path = Path::new(&name);
        let extension = path.extension().and_then(|extension| extension.to_str());
        let send = |entry| entries.blocking_send(Ok(entry)).is_ok();
        let is_wanted = match extension {
            Some("json") => {
                if entry.size() > JSON_BYTES_MAX {
                    let message = format!("{name} is longer than {JSON_BYTES_MAX} bytes");
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
                }
                let mut bytes = vec![];
                entry.read_to_end(&mut bytes)?;
                send(Entry::Json { name, bytes })
            }
            Some("layer") => {
                let id = name.trim_end_matches(".layer").to_owned();
                let (sender, bytes) = mpsc::channel(4);
                let is_wanted = send(Entry::Layer { id, bytes });
                if let Err(error) = pass_on(&mut entry, &sender) {
                    let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
                    return Err(error);
                }
                is_wanted
            }
            _ => send(Entry::Other { name }),
        };
        if !is_wanted {
            return Ok(());
        }
    }
    Ok(())
}

fn pass_on(entry: &mut impl Read, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let length = entry.read(&mut buffer)?;
        // The archive passes over what is not read.
        if length == 0
            || sender
                .blocking_send(Ok(Bytes::copy_from_slice(&buffer[..length])))
                .is_err()
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_layers_may_be_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.tar");
        let mut writer = Writer::new(Destination::open(Some(&path), "export").unwrap(), 0);
        writer.json(APP, &"shop").unwrap();
        for (name, length) in [("a.layer", 700_000), ("b.layer", 3)] {
            writer.begin(name, length).unwrap();
            writer.write(&vec![b'x'; length as usize]).unwrap();
            writer.end(length).unwrap();
        }
        writer.json(FORMATION, &1).unwrap();
        writer.finish().unwrap();

        let mut entries = read(Box::new(std::fs::File::open(&path).unwrap()));
        let mut seen = vec![];
        while let Some(entry) = entries.blocking_recv() {
            seen.push(match entry.unwrap() {
                Entry::Json { name, bytes } => format!("{name} {}", String::from_utf8(bytes).unwrap()),
                Entry::Layer { id, .. } if id == "a" => "a passed over".into(),
                Entry::Layer { id, mut bytes } => {
                    let mut length = 0;
                    while let Some(bytes) = bytes.blocking_recv() {
                        length += bytes.unwrap().len();
                    }
                    format!("{id} {length}")
                }
                Entry::Other { name } => name,
            });
        }
        assert_eq!(
            seen,
            ["app.json \"shop\"", "a passed over", "b 3", "formation.json 1"]
        );
    }

    #[test]
    fn what_broke_off_is_no_archive() {
        let mut entries = read(Box::new(&b"half of something that is no archive"[..]));
        let failure = loop {
            match entries.blocking_recv() {
                Some(Err(failure)) => break failure,
                Some(Ok(_)) => {}
                None => panic!("it was read"),
            }
        };
        assert!(failure.message.contains("cannot be read"), "{failure:?}");
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.tar");
        let mut destination = Destination::open(Some(&path), "export").unwrap();
        destination.write(b"half").unwrap();
        drop(destination);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
