use api::wire::{AppUpdate, NewApp};
use serde_json::json;
use types::App;

use crate::{
    example,
    operation::{Operation, delete, get, post},
};

pub fn operations() -> Vec<Operation> {
    let boolean = || json!({"type": "boolean"});
    vec![
        get("/apps", "Lists all apps").gives_list::<App>(example::app()),
        post("/apps", "Creates an app")
            .about(
                "Without a name, or with an empty one, the app gets a random one. It has a route \
                 `NAME.DOMAIN` to its service `NAME-web` from the beginning.",
            )
            .takes::<NewApp>(json!({"name": "shop", "meta": null}))
            .gives::<App>(example::app())
            .may_fail(409, "There is an app of this name (`object_exists`)."),
        get("/apps/{app}", "Shows an app").gives::<App>(example::app()),
        post("/apps/{app}", "Changes an app's strategy, metadata or deploy timeout")
            .about("What is absent stays, and so does the metadata where `meta` is null or empty.")
            .takes::<AppUpdate>(json!({"strategy": "one-by-one"}))
            .gives::<App>(example::app()),
        post("/apps/{app}/meta", "Replaces an app's metadata")
            .about("The only way to clear it: with `{\"meta\": {}}`.")
            .takes::<AppUpdate>(json!({"meta": {"team": "a"}}))
            .gives::<App>(example::app()),
        post("/apps/{app}/gc", "Deletes old releases")
            .about(
                "Of the inactive releases made by git those with the newest images stay, as many as the metadata \
                 `gc.max_inactive_slug_releases` say (a number, or `false` for all). An event \
                 `app_garbage_collection` tells what went. Each deployment ends with the same.",
            ),
        delete("/apps/{app}", "Deletes an app")
            .about(
                "The name is free again at once, and the app's jobs are told to stop. When the last has \
                 ended, an event `app_deletion` tells what went with the app.",
            ),
        get("/apps/{app}/log", "Shows or follows an app's log")
            .about(
                "Lines of JSON, or for `Accept: text/event-stream` events `{\"event\": \"message\", \"data\": \
                 MESSAGE}` and an `{\"event\": \"eof\"}` at the end.",
            )
            .query("follow", "Whether to go on with new lines.", boolean(), json!(false))
            .query("job_id", "Only this job's lines.", json!({"type": "string"}), json!(example::JOB))
            .query(
                "lines",
                "How many of the newest lines to begin with; all that are kept where not given.",
                json!({"type": "integer", "minimum": 0, "maximum": 10_000}),
                json!(100),
            )
            .query("process_type", "Only lines of this process type.", json!({"type": "string"}), json!("web"))
            .query(
                "stream_types",
                "Only lines of these streams, with commas between: `stdout`, `stderr`, `init`.",
                json!({"type": "string"}),
                json!("stdout,stderr"),
            )
            .gives_bytes(
                "text/plain",
                "{\"host_id\":\"host0\",\"msg\":\"listening on 8080\",\"source\":\"app\",\"stream\":\"stdout\",\
                 \"timestamp\":\"2026-11-23T05:27:19.038457Z\"}\n",
            ),
    ]
}
