use api::{
    discoverd::ServiceUpdate,
    host::{Assignment, HostReport, JobReport, RouterReport, ServiceView},
};
use serde_json::{Value, json};
use types::{AppId, ServiceRow, VolumeReport};

use crate::{
    example,
    operation::{Operation, get, post, put},
};

pub fn operations() -> Vec<Operation> {
    let operations = vec![
        put("/internal/hosts/{host}", "A host says that it is there").takes::<HostReport>(json!({
            "addr": "10.0.0.1:1113", "tags": {}, "memory_bytes": 8_i64 << 30, "cpu_milli": 4000,
            "gateway": "100.100.0.1", "version": "v0.1.0", "started_at": example::TIME,
        })),
        get("/internal/hosts/{host}/assignments", "What a host is to run")
            .streams::<Assignment>(json!({"kind": "stop", "job": example::JOB})),
        post("/internal/hosts/{host}/jobs/{job}", "What became of a job")
            .takes::<JobReport>(json!({"state": "up", "address": "100.100.0.2", "at": example::TIME})),
        get("/internal/routing", "The routers' table")
            .header(
                "flynn-router",
                "The router's id.",
                json!({"type": "string"}),
                json!("host0"),
            )
            .streams::<Value>(json!({})),
        post("/internal/routers/{router}", "Which table a router serves by")
            .takes::<RouterReport>(json!({"generation": 17, "in_flight": {}})),
        get("/internal/layers", "Layers in use").gives_list::<String>(json!("1b4f0e98")),
        get("/internal/apps", "Apps whose files are kept").gives_list::<AppId>(json!(example::APP)),
        get("/internal/services", "All services with their instances")
            .streams::<Vec<ServiceView>>(json!([{"name": "shop-web", "instances": [example::instance()]}])),
        post(
            "/internal/hosts/{host}/volumes/{volume}",
            "What became of a volume",
        )
        .takes::<VolumeReport>(json!("created")),
        post(
            "/internal/services/{service}",
            "A registry passes on what was said of a service",
        )
        .takes::<ServiceUpdate>(json!({"change": {"do": "create", "leader_type": "oldest"}}))
        .gives::<Option<ServiceRow>>(json!({"name": "shop-web", "leader_type": "oldest"}))
        .may_fail(409, "It is another app's, or has a value already.")
        .may_fail(412, "The value that was to be replaced is not the current one."),
    ];
    operations.into_iter().map(Operation::internal).collect()
}
