//! Typed ids: a job's id cannot be given where an app's is wanted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{text:?} is not a UUID")]
    NotUuid { text: String },
    #[error("a host id has 1 to 63 letters, digits, `.` and `_`, not {text:?}")]
    BadHost { text: String },
}

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text).map($name).map_err(|_| IdError::NotUuid { text: text.chars().take(80).collect() })
            }
        }
    )*};
}

uuid_ids! {
    AppId,
    ReleaseId,
    ArtifactId,
    DeploymentId,
    ScaleRequestId,
    RouteId,
    CertificateId,
    SinkId,
    VolumeId,
    ProviderId,
    ResourceId,
    DomainMigrationId,
    BackupId,
    /// The controller's part of a job's id; see [`JobRef`] for the whole.
    JobId,
}

/// The name of a host: what stands before the first dash of a placed job's id, so it has none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(std::sync::Arc<str>);

impl HostId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A host id from a machine's name: dashes and other characters that ids lack are left out.
    pub fn from_hostname(hostname: &str) -> Self {
        let kept: String = hostname
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
            .take(63)
            .collect();
        HostId(if kept.is_empty() {
            "host".into()
        } else {
            kept.to_ascii_lowercase().into()
        })
    }
}

impl FromStr for HostId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let fits = !text.is_empty()
            && text.len() <= 63
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
        if fits {
            Ok(HostId(text.into()))
        } else {
            Err(IdError::BadHost {
                text: text.chars().take(80).collect(),
            })
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for HostId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[A-Za-z0-9._]{1,63}$"})
    }
}

/// A job as users name it: `HOST-UUID` once placed, the bare UUID before; either finds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobRef {
    pub host: Option<HostId>,
    pub job: JobId,
}

impl fmt::Display for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}-{}", self.job),
            None => write!(f, "{}", self.job),
        }
    }
}

impl fmt::Debug for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobRef {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        // A UUID's text is 36 characters long; what stands before it and its dash is the host.
        match text.len().checked_sub(37) {
            Some(at) if text.is_char_boundary(at) && text[at..].starts_with('-') => Ok(JobRef {
                host: Some(text[..at].parse()?),
                job: text[at + 1..].parse()?,
            }),
            _ => Ok(JobRef {
                host: None,
                job: text.parse()?,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_its_whole_id_and_by_its_uuid() {
        let uuid = "06b91f19-4b91-401d-abe6-98ab70b3827d";
        for text in [uuid.to_owned(), format!("host0-{uuid}")] {
            let parsed: JobRef = text.parse().unwrap();
            assert_eq!(parsed.job.to_string(), uuid);
            assert_eq!(parsed.to_string(), text);
        }
        assert!("host0-nope".parse::<JobRef>().is_err());
        assert!(
            "é-06b91f19-4b91-401d-abe6-98ab70b3827d"
                .parse::<JobRef>()
                .is_err()
        );
    }

    #[test]
    fn a_host_id_has_no_dash() {
        assert!("ip-10-0-0-1".parse::<HostId>().is_err());
        assert_eq!(HostId::from_hostname("ip-10-0-0-1").as_str(), "ip10001");
    }
}
