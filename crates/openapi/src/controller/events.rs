use serde_json::json;
use types::Event;

use crate::{
    example,
    operation::{Operation, get},
};

pub fn operations() -> Vec<Operation> {
    let text = || json!({"type": "string"});
    let number = || json!({"type": "integer", "minimum": 0});
    vec![
        get("/events", "Lists or follows what happens")
            .about(
                "A list, newest first, for `Accept: application/json` exactly; a stream for everything else. A \
                 stream begins after `Last-Event-Id` or `since_id`, with all that is kept for `past=true`, or with \
                 what happens next. A reader that has fallen behind what is kept is told so by an error event, and \
                 the stream ends.",
            )
            .query("app_id", "Only events of this app, by id or name.", text(), json!("shop"))
            .query(
                "object_types",
                "Only events about these kinds of objects, with commas between.",
                text(),
                json!("job,scale_request"),
            )
            .query("object_id", "Only events about this object.", text(), json!(example::JOB))
            .query("past", "Whether a stream begins with past events.", text(), json!("true"))
            .query("count", "At most so many past events.", number(), json!(10))
            .query("before_id", "In a list, only events before this one.", number(), json!(170))
            .query("since_id", "In a stream, only events after this one.", number(), json!(17))
            .header("Last-Event-Id", "The number of the last event that was seen.", number(), json!(17))
            .lists_or_streams::<Event>(example::event()),
        get("/events/{event}", "Shows an event").gives::<Event>(example::event()),
    ]
}
