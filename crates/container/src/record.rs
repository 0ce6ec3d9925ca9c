//! How a container ended: `<job dir>/exit.json`, written once, whole, and on the disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::job_dir;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub outcome: Outcome,
    /// Some process in the container was killed because the memory limit was reached.
    pub oom_killed: bool,
    /// None: it never started.
    #[serde(with = "optional_time")]
    pub started_at: Option<jiff::Timestamp>,
    #[serde(with = "time")]
    pub ended_at: jiff::Timestamp,
}

/// Times as RFC 3339 text.
mod time {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &jiff::Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<jiff::Timestamp, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

mod optional_time {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(
        time: &Option<jiff::Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<jiff::Timestamp>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// `code` is what a shell would say: 127 not found, 126 not executable, 125 anything else.
    NotStarted {
        code: i32,
        error: String,
    },
}

impl Outcome {
    /// As a shell has it: 128 + n for a signal.
    pub fn exit_code(&self) -> i32 {
        match self {
            Outcome::Exited { code } | Outcome::NotStarted { code, .. } => *code,
            Outcome::Signaled { signal } => 128 + signal,
        }
    }

    pub(crate) fn not_started(error: impl Into<String>) -> Outcome {
        Outcome::NotStarted {
            code: 125,
            error: error.into(),
        }
    }
}

impl ExitRecord {
    /// The container did not start, for a reason that is ours.
    pub fn not_started(error: impl Into<String>) -> ExitRecord {
        ExitRecord {
            outcome: Outcome::not_started(error),
            oom_killed: false,
            started_at: None,
            ended_at: jiff::Timestamp::now(),
        }
    }

    /// Ok(None): there is none, the container still runs or was lost.
    pub fn read(job_dir: &Path) -> io::Result<Option<ExitRecord>> {
        match fs::read(job_dir.join(job_dir::EXIT)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A reader sees nothing or all of it, also after a power cut.
    pub fn write(&self, job_dir: &Path) -> io::Result<()> {
        let temporary = job_dir.join(".exit.json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_data()?;
        fs::rename(&temporary, job_dir.join(job_dir::EXIT))?;
        File::open(job_dir)?.sync_all()
    }
}
