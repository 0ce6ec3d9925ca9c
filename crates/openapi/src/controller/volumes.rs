use api::wire::NewVolume;
use serde_json::{Value, json};
use types::Volume;

use crate::{
    example,
    operation::{Operation, delete, get, put},
};

fn volume() -> Value {
    json!({
        "path": "/data", "id": "73cb5039-b336-4d7e-a3a9-80d347494ca0", "host_id": "host0", "type": "data",
        "state": "created", "app": example::APP, "release": example::RELEASE, "job_type": "web",
        "created_at": example::TIME, "updated_at": example::TIME,
    })
}

pub fn operations() -> Vec<Operation> {
    vec![
        get("/volumes", "Lists or follows the volumes of all apps")
            .about("With `since`, or as a stream: those changed after that time, one that is empty, every change.")
            .query(
                "since",
                "Follow, and begin with what changed after this time.",
                json!({"type": "string", "format": "date-time"}),
                json!(example::TIME),
            )
            .lists_or_streams::<Volume>(volume()),
        put("/volumes/{volume}", "Makes a volume on a host, or changes its metadata")
            .takes::<NewVolume>(json!({"host_id": "host0", "type": "data", "app": example::APP, "path": "/data"}))
            .gives::<Volume>(volume())
            .may_fail(409, "It is another app's, or on another host."),
        delete("/volumes/{volume}", "Destroys a volume and what is in it").may_fail(409, "A job has it."),
        get("/apps/{app}/volumes", "Lists an app's volumes").gives_list::<Volume>(volume()),
        get("/apps/{app}/volumes/{volume}", "Shows a volume").gives::<Volume>(volume()),
        put("/apps/{app}/volumes/{volume}/decommission", "Keeps a volume and attaches it to nothing new")
            .gives::<Volume>(volume())
            .may_fail(409, "It is being destroyed."),
    ]
}
