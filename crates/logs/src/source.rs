//! The files of one app's log: which there are, and what each is about.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use api::logs::Message;
use serde::Deserialize;
use types::logline::Record;

use crate::Filter;

/// Longest message that pieces are joined to.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// One writer's log: a job's, or a part of the platform's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub path: PathBuf,
    pub job_id: String,
    pub process_type: String,
    pub name: &'static str,
}

/// What the agent writes beside a job's log.
#[derive(Deserialize)]
struct Sidecar {
    #[serde(default)]
    process_type: String,
}

impl Source {
    /// The file that was current before the last rotation.
    pub fn rotated(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }
}

/// All that the filter lets through, in a fixed order.
pub fn sources(directory: &Path, filter: &Filter) -> Vec<Source> {
    let mut found: Vec<_> = match fs::read_dir(directory) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| source(entry.path()))
            .collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(directory = %directory.display(), %error, "cannot list an app's logs");
            }
            vec![]
        }
    };
    found.retain(|source| {
        filter.job.as_ref().is_none_or(|job| source.job_id == *job)
            && filter
                .process_type
                .as_ref()
                .is_none_or(|wanted| source.process_type == *wanted)
    });
    found.sort();
    found
}

fn source(path: PathBuf) -> Option<Source> {
    if path.extension()? != "log" {
        return None;
    }
    let stem = path.file_stem()?.to_str()?.to_owned();
    if stem == "router" {
        return Some(Source {
            path,
            job_id: String::new(),
            process_type: "router".into(),
            name: "router",
        });
    }
    let sidecar = fs::read(path.with_extension("json")).ok();
    let sidecar = sidecar.and_then(|bytes| serde_json::from_slice::<Sidecar>(&bytes).ok());
    let process_type = sidecar.map(|sidecar| sidecar.process_type).unwrap_or_default();
    Some(Source {
        path,
        job_id: stem,
        process_type,
        name: "app",
    })
}

/// Joins the pieces of lines, which each stream of a source has of its own.
#[derive(Default)]
pub struct Assembler {
    pieces: [Vec<u8>; 3],
}

impl Assembler {
    /// The message that this record ends, if it ends one that the filter lets through.
    pub fn push(&mut self, line: &[u8], source: &Source, host: &str, filter: &Filter) -> Option<Message> {
        let record = Record::parse(line)?;
        let piece = &mut self.pieces[record.stream as usize];
        piece.extend_from_slice(record.text);
        if record.is_partial && piece.len() < MESSAGE_BYTES_MAX {
            return None;
        }
        let text = std::mem::take(piece);
        let stream = record.stream.as_str();
        if filter
            .streams
            .as_ref()
            .is_some_and(|streams| !streams.iter().any(|wanted| wanted == stream))
        {
            return None;
        }
        Some(Message {
            host_id: host.to_owned(),
            job_id: source.job_id.clone(),
            msg: String::from_utf8_lossy(&text).into_owned(),
            process_type: source.process_type.clone(),
            source: source.name.to_owned(),
            stream: stream.to_owned(),
            timestamp: record.time,
        })
    }
}
