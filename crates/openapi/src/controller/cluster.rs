use api::wire::StatusAnswer;
use serde_json::json;
use types::Host;

use crate::{
    example,
    operation::{Operation, get},
};

pub fn operations() -> Vec<Operation> {
    vec![
        get("/ping", "Answers").open(),
        get("/.well-known/status", "Whether the controller works").gives::<StatusAnswer>(json!(
            {"data": {"status": "healthy", "version": "v0.1.0", "detail": {"revision": 170}}}
        )),
        get("/ca-cert", "The certificate of the cluster's own authority")
            .open()
            .gives_bytes(
                "application/x-x509-ca-cert",
                "-----BEGIN CERTIFICATE-----\nMIIB…\n-----END CERTIFICATE-----\n",
            ),
        get("/hosts", "Lists the cluster's hosts").gives_list::<Host>(json!({
            "id": "host0", "addr": "10.0.0.1:1113", "state": "up", "memory_bytes": 8_i64 << 30,
            "cpu_milli": 4000, "gateway": "100.100.0.1", "version": "v0.1.0", "created_at": example::TIME,
            "started_at": example::TIME,
        })),
        get("/openapi.json", "This description")
            .about(
                "Open, as it holds nothing of the cluster: who has no key yet may read what to do with one.",
            )
            .open()
            .gives_bytes("application/json", "{\"openapi\": \"3.1.0\"}"),
        get(
            "/openapi/{api}",
            "The description of the API of hosts (`host.json`) or of discoverd (`discoverd.json`)",
        )
        .open()
        .gives_bytes("application/json", "{\"openapi\": \"3.1.0\"}"),
        get("/docs", "This description as a page")
            .open()
            .gives_bytes("text/html; charset=utf-8", "<!doctype html>"),
        get(
            "/docs/{api}",
            "The description of the API of hosts or of discoverd as a page",
        )
        .open()
        .gives_bytes("text/html; charset=utf-8", "<!doctype html>"),
    ]
}
