//! Values that several operations show, as their types write them.

use serde_json::{Value, json};

pub const APP: &str = "b888ecaa-2476-409a-a817-712f1923fe7d";
pub const RELEASE: &str = "81c3439d-ae8b-4fb6-8ad7-4525f94d13f7";
pub const OLD_RELEASE: &str = "555eed94-b024-4720-8857-2e7e91e3c397";
pub const ARTIFACT: &str = "9207da23-8ac2-4af3-aa65-e3a17b825324";
pub const JOB: &str = "06b91f19-4b91-401d-abe6-98ab70b3827d";
pub const TIME: &str = "2026-11-23T05:27:19.038457Z";
const LATER: &str = "2026-11-23T05:27:20.02106Z";

pub fn app() -> Value {
    json!({
        "id": APP,
        "name": "shop",
        "meta": {"gc.max_inactive_slug_releases": "10"},
        "strategy": "all-at-once",
        "release": RELEASE,
        "deploy_timeout": 120,
        "created_at": TIME,
        "updated_at": LATER,
    })
}

fn resources() -> Value {
    let limit = |limit: i64| json!({"request": limit, "limit": limit});
    json!({
        "cpu": limit(1000), "max_fd": limit(10_000), "max_processes": limit(1024),
        "memory": limit(1 << 30), "temp_disk": limit(100 << 20),
    })
}

pub fn release() -> Value {
    json!({
        "id": RELEASE,
        "app_id": APP,
        "artifacts": [ARTIFACT],
        "artifact": ARTIFACT,
        "env": {"DATABASE_URL": "postgres://db/shop"},
        "meta": {"git": "true", "git.commit": "8a1f0c2"},
        "processes": {"web": {
            "args": ["/runner/init", "bin/web"],
            "ports": [{"port": 8080, "proto": "tcp"}],
            "resources": resources(),
        }},
        "created_at": TIME,
    })
}

pub fn artifact() -> Value {
    let digest = "1b4f0e9851971998e732078544c96b36c3d01cedf7caa332359d6f1d83567014";
    json!({
        "id": ARTIFACT,
        "type": "flynn",
        "uri": "https://images.example.com/shop.json",
        "manifest": {
            "_type": "application/vnd.flynn.image.manifest.v1+json",
            "entrypoints": {"_default": {"args": ["/bin/sh"]}},
            "rootfs": [{
                "platform": {"architecture": "amd64", "os": "linux"},
                "layers": [{
                    "id": digest, "type": "application/vnd.flynn.image.erofs.v1", "length": 4096,
                    "hashes": {"sha256": digest},
                }],
            }],
        },
        "created_at": TIME,
    })
}

pub fn formation() -> Value {
    json!({"app": APP, "release": RELEASE, "processes": {"web": 2}, "created_at": TIME, "updated_at": LATER})
}

pub fn expanded_formation() -> Value {
    json!({
        "app": app(), "release": release(), "artifacts": [artifact()], "processes": {"web": 2},
        "updated_at": LATER,
    })
}

pub fn scale_request() -> Value {
    json!({
        "id": "95002385-cfc1-4374-9a16-7d46a2b1e5df", "app": APP, "release": RELEASE, "state": "pending",
        "old_processes": {"web": 1}, "new_processes": {"web": 2}, "created_at": TIME, "updated_at": TIME,
    })
}

pub fn deployment() -> Value {
    json!({
        "id": "359a6b8c-5683-4fdb-b86e-ffe81e1e4d51", "app": APP, "old_release": OLD_RELEASE,
        "new_release": RELEASE, "strategy": "all-at-once", "status": "complete", "processes": {"web": 2},
        "deploy_timeout": 120, "created_at": TIME, "finished_at": LATER,
    })
}

pub fn job() -> Value {
    json!({
        "id": format!("host0-{JOB}"), "uuid": JOB, "host_id": "host0", "app": APP, "release": RELEASE,
        "type": "web", "state": "up", "args": ["/runner/init", "bin/web"], "created_at": TIME,
        "updated_at": LATER,
    })
}

pub fn route() -> Value {
    json!({
        "type": "http", "id": "de3ba624-60dd-4522-98ed-225371c18f18",
        "parent_ref": format!("controller/apps/{APP}"), "service": "shop-web", "leader": false,
        "created_at": TIME, "updated_at": TIME, "domain": "www.example.com", "path": "/",
        "drain_backends": true,
    })
}

pub fn event() -> Value {
    json!({
        "id": 17, "app": APP, "object_type": "scale_request", "object_id": scale_request()["id"],
        "data": scale_request(), "created_at": TIME,
    })
}

pub fn instance() -> Value {
    json!({
        "id": "ee646812fd8e4452f2e5e361b3d613d0", "addr": "100.100.0.2:8080", "proto": "http",
        "meta": {"FLYNN_APP_NAME": "shop", "FLYNN_PROCESS_TYPE": "web"}, "index": 12,
    })
}
