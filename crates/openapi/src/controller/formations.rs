use api::wire::{ExpandedFormation, FormationUpdate, NewScaleRequest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use types::{Formation, ScaleRequest};

use crate::{
    example,
    operation::{Operation, delete, get, put},
};

/// By ids, or with what they stand for.
#[derive(Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
enum FormationAnswer {
    Plain(Formation),
    Expanded(Box<ExpandedFormation>),
}

pub fn operations() -> Vec<Operation> {
    let boolean = || json!({"type": "string", "enum": ["true", "false"]});
    let time = || json!({"type": "string", "format": "date-time"});
    vec![
        get("/formations", "Lists or follows the formations of all apps")
            .about(
                "With `active=true` a list of those that want jobs; with `since` a stream of those changed after \
                 that time, then an object that is empty but for its time, then every change.",
            )
            .query("active", "Whether to list those that want jobs.", boolean(), json!("true"))
            .query("since", "Follow, and begin with what changed after this time.", time(), json!(example::TIME))
            .lists_or_streams::<ExpandedFormation>(example::expanded_formation()),
        get("/apps/{app}/formations", "Lists an app's formations").gives_list::<Formation>(example::formation()),
        get("/apps/{app}/formations/{release}", "Shows the formation of a release")
            .about("With `expand=true` the app, the release and its images are in it whole.")
            .query("expand", "Whether to show what it refers to.", boolean(), json!("false"))
            .gives::<FormationAnswer>(example::formation()),
        put("/apps/{app}/formations/{release}", "Sets how many jobs of a release run")
            .about("Types that `processes` does not name keep their count.")
            .takes::<FormationUpdate>(json!({"processes": {"web": 2}}))
            .gives::<Formation>(example::formation()),
        delete("/apps/{app}/formations/{release}", "Stops all jobs of a release"),
        put("/apps/{app}/scale/{release}", "Asks for a number of jobs, and can be waited for")
            .about(
                "Like setting the formation; an event `scale_request` with the state `complete` tells when the \
                 jobs have followed. A request that is still pending is cancelled by the next.",
            )
            .takes::<NewScaleRequest>(json!({"new_processes": {"web": 2}}))
            .gives::<ScaleRequest>(example::scale_request()),
    ]
}
