//! Asking what a change would do, without making it: `POST /apps/:app/dry-run` (an addition).
//!
//! The controller carries the change out on a copy of its state, plans, and lets an ideal cluster
//! follow the plan to its end: every job that finds a place comes up, every job that is told to stop
//! stops. What a job does by itself, crash for example, is not foreseen.

use serde::{Deserialize, Serialize};
use types::{HostId, ReleaseId};

use crate::{
    ClientError, Controller,
    client::escape,
    wire::{NewRelease, NewRoute, NewScaleRequest, RouteView},
};

/// The change that is asked about.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Trial {
    Scale {
        release: ReleaseId,
        request: NewScaleRequest,
    },
    /// Creates a release and deploys it.
    Deploy {
        release: NewRelease,
    },
    AddRoute {
        route: NewRoute,
    },
    /// `kind` is `http` or `tcp`.
    RemoveRoute {
        kind: String,
        id: String,
    },
}

/// What would come of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Preview {
    /// Jobs that run, or wait to, and would be stopped.
    #[serde(default)]
    pub stops: Vec<PreviewJob>,
    /// Jobs that would be started.
    #[serde(default)]
    pub starts: Vec<PreviewJob>,
    /// Jobs for which there would be no place, with the reason. Those that have an id wait already.
    #[serde(default)]
    pub waits: Vec<PreviewJob>,
    /// How many jobs of the app would just go on.
    #[serde(default)]
    pub kept: usize,
    /// Why the deployment would fail; empty if it would not, or if there would be none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Whether there is room for the change.
    pub fits: bool,
    /// Seconds after which the answer stops looking ahead, if the change was not done by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished_after_s: Option<u64>,
    /// The route as it would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteView>,
}

#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub struct PreviewJob {
    #[serde(rename = "type")]
    pub process_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Of a job that exists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waiting: String,
}

impl Controller {
    pub async fn dry_run(&self, app: &str, trial: &Trial) -> Result<Preview, ClientError> {
        self.client()
            .post(&format!("/apps/{}/dry-run", escape(app)), trial)
            .await
    }
}
