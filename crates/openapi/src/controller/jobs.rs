use api::{
    provision::JobUpdate,
    wire::{Job, NewExec, NewJob},
};
use serde_json::json;

use crate::{
    example,
    operation::{Operation, delete, get, post, put},
};

pub fn operations() -> Vec<Operation> {
    vec![
        get("/apps/{app}/jobs", "Lists an app's jobs")
            .about("Those that have ended are in it, too, for as long as they are kept.")
            .gives_list::<Job>(example::job()),
        post("/apps/{app}/jobs", "Runs a command once")
            .about(
                "In an image of a release (the app's current one where `release` is absent). With `Upgrade: \
                 flynn-attach/0` the connection carries the job's input and output; the job ends with it.",
            )
            .takes::<NewJob>(json!({
                "release": example::RELEASE, "release_env": true, "args": ["rake", "db:migrate"],
                "env": {"VERBOSE": "1"},
            }))
            .gives_or_attaches::<Job>(example::job()),
        get("/apps/{app}/jobs/{job}", "Shows a job").gives::<Job>(example::job()),
        put("/apps/{app}/jobs/{job}", "Says what became of a job")
            .about(
                "For tools of the original's: here hosts report. A job moves on and never back. One that is not \
                 known can only be recorded as ended.",
            )
            .takes::<JobUpdate>(json!({"uuid": example::JOB, "release": example::RELEASE, "state": "down"}))
            .gives::<Job>(example::job())
            .may_fail(409, "The platform did not start such a job."),
        delete("/apps/{app}/jobs/{job}", "Stops a job")
            .about("If its formation wants it, another is started at once."),
        post(
            "/apps/{app}/jobs/{job}/exec",
            "Runs a command in a job that is up",
        )
        .about("Needs `Upgrade: flynn-attach/0`.")
        .takes::<NewExec>(json!({"args": ["bash"], "tty": true}))
        .attaches()
        .may_fail(409, "The job is not up."),
        get("/active-jobs", "Lists the jobs of all apps that have not ended")
            .gives_list::<Job>(example::job()),
    ]
}
