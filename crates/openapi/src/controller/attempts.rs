use api::{
    dry_run::{Preview, Trial},
    images::LayerFile,
};
use serde_json::json;

use crate::{
    example,
    operation::{Operation, get, post, put},
};

const LAYER: &str = "a5e66470b2812e91798db36eb103c1f1e135bbe167e4b2ad5ba425b8db98ee8d";

pub fn operations() -> Vec<Operation> {
    vec![
        post("/apps/{app}/dry-run", "Says what a change would do")
            .about(
                "The change is made on a copy of the cluster's state, and planned to its end with jobs that do what \
                 they are told. What would be refused is refused in the same words. Nothing is changed.",
            )
            .takes::<Trial>(json!({
                "do": "scale", "release": example::RELEASE, "request": {"new_processes": {"web": 3}},
            }))
            .gives::<Preview>(json!({
                "starts": [{"type": "web", "host": "host0"}], "stops": [], "kept": 1, "fits": false,
                "waits": [{"type": "web", "waiting": "no host has 512 MB of memory free: host0 has 96 MB"}],
            }))
            .may_fail(409, "The change would be in conflict with what there is."),
        get("/layers/{digest}", "Gives a layer of an image")
            .about("With `stat=true` only whether it is there, and its length.")
            .query("stat", "`true` for the length alone", json!({"type": "boolean"}), json!(true))
            .gives_bytes("application/octet-stream", "…"),
        put("/layers/{digest}", "Takes a layer in")
            .about(
                "Its bytes are those of an erofs image; their SHA-256 is its name. A layer that no artifact names \
                 within an hour is removed again.",
            )
            .takes_bytes("application/octet-stream")
            .gives::<LayerFile>(json!({"id": LAYER, "length": 123_904_000})),
    ]
}
