//! The API of each host, on port 1113.

use std::collections::BTreeMap;

use api::{
    host::{ActiveJob, AttachReq, HostEvent, HostStatus, ResourceCheck},
    sinks::{HostSink, NewSink},
    wire::{NewExec, StatusAnswer},
};
use serde_json::{Value, json};

use crate::{
    document::Api,
    example,
    operation::{Operation, delete, get, post, put},
};

pub fn api() -> Api {
    Api {
        title: "Flynn host",
        about: "What runs on one host, and hands on it. Jobs are begun by the controller alone, so that one place \
            knows what should run; here they are seen, signalled, stopped and attached to. The keys are the \
            cluster's, also on loopback. Jobs are named by `HOST-UUID` or by the bare UUID.",
        server: "http://127.0.0.1:1113",
        not_found_is_empty: false,
        groups: vec![
            ("Jobs", "What runs here.", jobs()),
            ("Host", "The host about itself.", host()),
        ],
    }
}

fn active_job() -> Value {
    let id = format!("host0-{}", example::JOB);
    json!({
        "job": {
            "id": id,
            "metadata": {
                "flynn-controller.app": example::APP, "flynn-controller.app_name": "shop",
                "flynn-controller.release": example::RELEASE, "flynn-controller.type": "web",
            },
            "resources": {"memory": {"request": 1 << 30, "limit": 1 << 30}},
            "partition": "user",
            "config": {
                "args": ["/runner/init", "bin/web"],
                "env": {"PORT": "8080"},
                "ports": [{"port": 8080, "proto": "tcp"}],
                "stop_timeout": 30,
            },
        },
        "host_id": "host0", "internal_ip": "100.100.0.2", "pid": 4711, "status": 1,
        "created_at": example::TIME, "started_at": example::TIME,
    })
}

fn sink() -> Value {
    json!({
        "id": "14ca7c62-0fbb-4051-8f0f-e4a9bce79644", "kind": "syslog", "host_managed": true,
        "config": {"url": "syslog://logs.example.com:514"}, "created_at": example::TIME,
        "updated_at": example::TIME,
        "status": {"connected": true, "behind_bytes": 0, "lines_sent": 170, "lines_lost": 0},
    })
}

fn jobs() -> Vec<Operation> {
    let id = format!("host0-{}", example::JOB);
    let event = json!({"event": "start", "job_id": id, "job": active_job()});
    vec![
        get("/host/jobs", "Lists the host's jobs by id, or follows them")
            .about("As a stream: an event for each job that is made, starts, stops or is removed from here on.")
            .query("active", "Only jobs that have not ended.", json!({"type": "boolean"}), json!(true))
            .gives_or_streams::<BTreeMap<String, ActiveJob>, HostEvent>(
                json!({id.clone(): active_job()}),
                event.clone(),
            ),
        get("/host/jobs/{job}", "Shows a job, or follows it")
            .gives_or_streams::<ActiveJob, HostEvent>(active_job(), event),
        delete("/host/jobs/{job}", "Stops a job")
            .about("By SIGTERM, and SIGKILL when its grace is over. If its formation wants it, another is started."),
        put("/host/jobs/{job}/signal/{signal}", "Sends a job's process a signal")
            .may_fail(400, "There is no such signal.")
            .may_fail(409, "The job does not run."),
        put("/host/jobs/{job}/discoverd-deregister", "Takes a job out of rotation")
            .about("It runs on, and gets no new requests: its services have no instance of it from here on.")
            .may_fail(409, "The job does not run."),
        post("/host/jobs/{job}/exec", "Runs a command in a job that is up")
            .about("Needs `Upgrade: flynn-attach/0`.")
            .takes::<NewExec>(json!({"args": ["bash"], "tty": true}))
            .attaches()
            .may_fail(409, "The job does not run."),
        post("/attach", "Attaches to a job's input and output")
            .about(
                "Needs `Upgrade: flynn-attach/0`. The flags are added up: stdout 1, stderr 2, stdin 4, logs 8, \
                 stream 16.",
            )
            .takes::<AttachReq>(json!({"job_id": id, "flags": 23, "height": 24, "width": 80}))
            .attaches(),
    ]
}

fn host() -> Vec<Operation> {
    vec![
        get("/host/status", "What the host is").gives::<HostStatus>(json!({
            "id": "host0", "tags": {"disk": "ssd"}, "pid": 109, "url": "http://10.0.0.1:1113",
            "discoverd": {"url": "http://100.100.0.1:1111", "dns": "100.100.0.1:53"},
            "network": {"resolvers": ["100.100.0.1"], "gateway": "100.100.0.1"},
            "version": "v0.1.0", "flags": [],
        })),
        post(
            "/host/resource-check",
            "Whether ports of the host itself are free",
        )
        .takes::<ResourceCheck>(json!({"ports": [{"port": 8080, "proto": "tcp"}]}))
        .may_fail(409, "One of the ports is taken; `detail` names those that are."),
        post("/host/tags", "Sets the host's tags")
            .about("All of them, until the daemon starts again with those of its configuration.")
            .takes::<BTreeMap<String, String>>(json!({"disk": "ssd"})),
        post("/host/gc", "Removes layers that nothing uses")
            .query(
                "grace",
                "Seconds; what is younger stays.",
                json!({"type": "integer", "minimum": 0}),
                json!(600),
            )
            .gives::<Vec<String>>(json!([
                "1b4f0e9851971998e732078544c96b36c3d01cedf7caa332359d6f1d83567014"
            ])),
        get("/sinks", "Lists where the host ships logs, and how each gets on").gives_list::<HostSink>(sink()),
        put("/sinks/{sink}", "Ships the logs of this host alone to a sink")
            .takes::<NewSink>(json!({"kind": "syslog", "config": {"url": "syslog://logs.example.com:514"}}))
            .gives::<HostSink>(sink())
            .may_fail(
                409,
                "There is such a sink with another configuration, or it is the cluster's.",
            ),
        delete("/sinks/{sink}", "Removes a sink of this host alone")
            .may_fail(409, "The sink is the cluster's."),
        get("/.well-known/status", "Whether the host works")
            .gives::<StatusAnswer>(json!({"data": {"status": "healthy", "version": "v0.1.0"}})),
    ]
}
