use api::sinks::{NewSink, SinkView};
use serde_json::{Value, json};

use crate::{
    example,
    operation::{Operation, delete, get, post},
};

pub fn sink() -> Value {
    json!({
        "id": "14ca7c62-0fbb-4051-8f0f-e4a9bce79644", "kind": "syslog",
        "config": {"url": "syslog://logs.example.com:514"}, "created_at": example::TIME,
        "updated_at": example::TIME,
    })
}

pub fn operations() -> Vec<Operation> {
    vec![
        get("/sinks", "Lists or follows where logs are shipped")
            .about(
                "With `Accept: text/event-stream` a stream: those changed after `since`, one that is empty, then \
                 every change; one without a configuration was deleted.",
            )
            .query(
                "since",
                "Begin a stream with what changed after this time.",
                json!({"type": "string", "format": "date-time"}),
                json!(example::TIME),
            )
            .lists_or_streams::<SinkView>(sink()),
        post("/sinks", "Ships all logs to a sink")
            .about("Every host sends every line at least once, also over restarts.")
            .takes::<NewSink>(json!({"kind": "syslog", "config": {"url": "syslog://logs.example.com:514"}}))
            .gives::<SinkView>(sink())
            .may_fail(409, "There is a sink of this id."),
        get("/sinks/{sink}", "Shows a sink").gives::<SinkView>(sink()),
        delete("/sinks/{sink}", "Removes a sink").gives::<SinkView>(sink()),
    ]
}
