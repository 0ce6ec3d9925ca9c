use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a process type may use of one resource; `request` is what placement counts with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceLimit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// Limits by name: `memory` and `temp_disk` in bytes, `cpu` in thousandths of a core, `max_fd` open
/// files, `max_processes` processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Resources(pub BTreeMap<String, ResourceLimit>);

impl Resources {
    /// Name, default limit. The first four are the original's; it had none for processes, without
    /// which a fork bomb in one app takes the host's process table.
    pub const DEFAULTS: [(&str, i64); 5] = [
        ("memory", 1 << 30),
        ("cpu", 1000),
        ("temp_disk", 100 << 20),
        ("max_fd", 10_000),
        ("max_processes", 1024),
    ];

    /// These limits with what they leave out filled in; a missing request is the limit.
    pub fn with_defaults(&self) -> Resources {
        let mut filled = self.clone();
        for (name, default) in Resources::DEFAULTS {
            let entry = filled.0.entry(name.to_owned()).or_default();
            let limit = entry.limit.or(entry.request).unwrap_or(default);
            *entry = ResourceLimit {
                request: Some(entry.request.unwrap_or(limit)),
                limit: Some(limit),
            };
        }
        filled
    }

    /// The limit in force for `name`, whether given or default.
    pub fn limit(&self, name: &str) -> i64 {
        let default = Resources::DEFAULTS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, d)| *d);
        self.0
            .get(name)
            .and_then(|entry| entry.limit.or(entry.request))
            .unwrap_or(default)
    }

    /// What placement counts for `name`: the request, or the limit where none is given.
    pub fn request(&self, name: &str) -> i64 {
        self.0
            .get(name)
            .and_then(|entry| entry.request)
            .unwrap_or_else(|| self.limit(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_filled_in() {
        let given: Resources = serde_json::from_str(r#"{"memory":{"limit":5}}"#).unwrap();
        let filled = given.with_defaults();
        assert_eq!(
            filled.0["memory"],
            ResourceLimit {
                request: Some(5),
                limit: Some(5)
            }
        );
        assert_eq!(filled.limit("cpu"), 1000);
        assert_eq!(given.limit("max_fd"), 10_000);
    }
}
