use api::{provision::NewDomainMigration, wire::StatusAnswer};
use serde_json::json;
use types::{DomainMigration, Host};

use crate::{
    example,
    operation::{Operation, delete, get, put},
};

pub fn operations() -> Vec<Operation> {
    vec![
        get("/ping", "Answers").open(),
        get("/.well-known/status", "Whether the controller works").gives::<StatusAnswer>(json!(
            {"data": {"status": "healthy", "version": "v0.1.0", "detail": {"revision": 170}}}
        )),
        get("/ca-cert", "The newest certificate of the cluster's own authority")
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
        put("/hosts/{host}/drain", "Moves a host's jobs elsewhere")
            .about(
                "Returns at once. No job is started on the host from then on, and each of its jobs ends when \
                 another serves in its place. Jobs whose volumes are on the host stay, and one-off jobs run to \
                 their end.",
            ),
        delete("/hosts/{host}/drain", "Lets jobs be started on a host again"),
        get("/backup", "Makes a backup of the whole cluster")
            .about(
                "A tar of the state, keys, layers, repositories and volumes, which `flynn-host restore` takes. The \
                 connection breaks where it cannot be made whole. Events `cluster_backup` tell the beginning and the \
                 end, with the file's size and SHA-512. A client that accepts `application/json` gets the last \
                 backup's `ClusterBackup` instead, or 404.",
            )
            .gives_bytes("application/tar", "flynn-backup-2026-11-23T101500/backup.json …"),
        put("/domain", "Changes the cluster's domain")
            .about(
                "Every name below the old domain gets a sibling below the new one; the old names stay, with their \
                 certificate. Two events `domain_migration` tell the beginning and the end, the second with \
                 `finished_at` or `error`. Without `tls_cert` the cluster's authority makes one. Answers have no \
                 private keys.",
            )
            .takes::<NewDomainMigration>(json!({"old_domain": "flynn.localhost", "domain": "apps.example.com"}))
            .gives::<DomainMigration>(json!({
                "id": "3d861c8b-3d58-4e8b-b911-aa86a52d5c6a", "old_domain": "flynn.localhost",
                "domain": "apps.example.com", "created_at": example::TIME,
            }))
            .may_fail(409, "A migration is under way."),
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
