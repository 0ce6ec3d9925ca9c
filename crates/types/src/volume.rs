use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{AppId, HostId, JobId, ProcessType, ReleaseId, Timestamp, VolumeId, VolumeRequest};

/// What a volume is made of. This platform makes `data`; the others are the contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    #[default]
    Data,
    Squashfs,
    Ext2,
}

impl VolumeType {
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeType::Data => "data",
            VolumeType::Squashfs => "squashfs",
            VolumeType::Ext2 => "ext2",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Its host has not made it yet.
    #[default]
    Pending,
    Created,
    /// Nobody may use it any more. The row goes when its host has removed the files.
    Destroyed,
}

/// What a host says of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeReport {
    /// It is on disk and will be there after a power cut.
    Created,
    /// Nothing of it is on disk any more.
    Removed,
}

/// A directory of one host that outlives the jobs that it is attached to, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Volume {
    /// Where it is in a job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Destroyed when the job that it was made for ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_on_stop: bool,
    pub id: VolumeId,
    pub host_id: HostId,
    #[serde(rename = "type")]
    pub kind: VolumeType,
    pub state: VolumeState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    /// Of the job that used it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// The job that it is attached to and that has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The process type whose jobs it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_type: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Since when it is kept and attached to nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decommissioned_at: Option<Timestamp>,
}

impl Volume {
    /// Whether a job may get it, now or when the one that has it has ended.
    pub fn is_usable(&self) -> bool {
        self.kind == VolumeType::Data
            && self.state != VolumeState::Destroyed
            && self.decommissioned_at.is_none()
    }
}

/// The most that one process type may ask for. Each is a mount of its own.
pub const VOLUMES_PER_TYPE_MAX: usize = 16;

/// Where the original put what `data: true` asked for.
pub const DATA_PATH: &str = "/data";

impl ProcessType {
    /// Says by `volumes` what `data` says, and puts the paths in their one form. The error completes
    /// "a process type's volumes …".
    pub fn tidy_volumes(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.data) && !self.volumes.iter().any(|volume| volume.path == DATA_PATH) {
            self.volumes.push(VolumeRequest {
                path: DATA_PATH.into(),
                delete_on_stop: false,
            });
        }
        if self.volumes.len() > VOLUMES_PER_TYPE_MAX {
            return Err(format!("are more than {VOLUMES_PER_TYPE_MAX}"));
        }
        let mut paths = BTreeSet::new();
        for volume in &mut self.volumes {
            volume.path = tidy_path(&volume.path)?;
            if !paths.insert(&volume.path) {
                return Err(format!("name the path {:?} twice", volume.path));
            }
        }
        Ok(())
    }
}

/// Without doubled and trailing slashes; not where the container has its own file systems.
fn tidy_path(path: &str) -> Result<String, String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let has_forbidden = |part: &&str| *part == ".." || part.chars().any(char::is_control);
    if !path.starts_with('/') || parts.is_empty() || parts.iter().any(has_forbidden) {
        return Err(format!(
            "have the path {path:?}, which is no absolute path of a directory"
        ));
    }
    if ["proc", "sys", "dev"].contains(&parts[0]) {
        return Err(format!(
            "have the path {path:?}, and /{} is the kernel's",
            parts[0]
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tidied(data: bool, paths: &[&str]) -> Result<Vec<String>, String> {
        let request = |path: &&str| VolumeRequest {
            path: (*path).to_owned(),
            delete_on_stop: false,
        };
        let mut process = ProcessType {
            data,
            volumes: paths.iter().map(request).collect(),
            ..ProcessType::default()
        };
        process.tidy_volumes()?;
        assert!(!process.data);
        Ok(process.volumes.into_iter().map(|volume| volume.path).collect())
    }

    #[test]
    fn data_is_a_volume_at_its_usual_place() {
        assert_eq!(tidied(true, &[]).unwrap(), ["/data"]);
        assert_eq!(tidied(true, &["/data"]).unwrap(), ["/data"]);
        assert_eq!(tidied(true, &["/cache"]).unwrap(), ["/cache", "/data"]);
    }

    #[test]
    fn paths_have_one_form_and_only_one_volume_each() {
        assert_eq!(tidied(false, &["//var/./lib/"]).unwrap(), ["/var/lib"]);
        assert!(tidied(false, &["/data", "/data/"]).unwrap_err().contains("twice"));
        for refused in ["", "data", "/", "/a/../b", "/a\n", "/proc/x", "/sys", "/dev/shm"] {
            assert!(tidied(false, &[refused]).is_err(), "{refused:?}");
        }
        let many: Vec<String> = (0..17).map(|n| format!("/v{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(tidied(false, &many).unwrap_err().contains("more than 16"));
    }
}
