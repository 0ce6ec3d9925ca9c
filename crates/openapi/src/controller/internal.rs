use api::{
    contents::{Copies, NewContent},
    discoverd::ServiceUpdate,
    host::{Assignment, HostReport, JobReport, RouterReport, ServicesView},
    logs::SseLogChunk,
    objects::{BucketStatus, BucketView},
    peers::{Announcement, ClusterView, JoinRequest, Joined, NewToken, TokenView, VoteChange},
};
use serde_json::{Value, json};
use types::{AppId, Bucket, Content, Member, ServiceRow, VolumeReport};

use crate::{
    example,
    operation::{Operation, delete, get, post, put},
};

fn member() -> Value {
    json!({
        "node": 2, "host": "host1", "addr": "10.0.0.2:1115", "subnet": "100.100.4.0/22", "vote": "auto",
        "joined_at": example::TIME,
    })
}

fn bucket() -> Value {
    json!({
        "url": "s3://backups/flynn", "endpoint": "https://s3.eu-central-1.amazonaws.com", "region": "eu-central-1",
        "access_key_id": "AKIAIOSFODNN7EXAMPLE", "path_style": false,
    })
}

fn content() -> Value {
    json!({
        "name": "git/0c2a3b", "app": example::APP, "serial": 7, "digest": "1b".repeat(32),
        "updated_at": example::TIME,
    })
}

pub fn operations() -> Vec<Operation> {
    let operations = vec![
        put("/internal/hosts/{host}", "A host says that it is there").takes::<HostReport>(json!({
            "addr": "10.0.0.1:1113", "tags": {}, "memory_bytes": 8_i64 << 30, "cpu_milli": 4000,
            "gateway": "100.100.0.1", "public_addresses": ["192.0.2.1"], "version": "v0.1.0", "started_at": example::TIME,
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
        get(
            "/internal/cluster",
            "Members of the cluster, who leads and who votes",
        )
        .gives::<ClusterView>(json!({
            "node": 1, "leader": 1, "term": 3, "last_index": 41, "applied_index": 41,
            "members": [{"member": member(), "is_voter": true, "is_follower": false}],
            "floating": [{"address": "192.0.2.7/24", "holder": "host0"}],
            "authority": {"ends_at": example::TIME, "domains_end_at": example::TIME, "renewal_at": example::TIME},
        })),
        put("/internal/cluster/bucket", "Gives the cluster a bucket, if it works")
            .takes::<Bucket>(json!({
                "endpoint": "https://s3.eu-central-1.amazonaws.com", "name": "backups", "prefix": "flynn",
                "region": "eu-central-1", "access_key_id": "AKIAIOSFODNN7EXAMPLE",
                "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "path_style": false,
            }))
            .gives::<BucketView>(bucket()),
        delete("/internal/cluster/bucket", "Goes on without a bucket; what is in it stays"),
        get("/internal/here/bucket", "How this host gets on with the cluster's bucket")
            .gives::<Option<BucketStatus>>(json!({"bucket": bucket(), "waiting": {"layers": 2}})),
        get("/internal/cluster/copies", "How many hosts keep each layer, image and repository")
            .gives::<Copies>(json!({"copies": 2})),
        put("/internal/cluster/copies", "Sets how many hosts keep each")
            .takes::<Copies>(json!({"copies": 3}))
            .gives::<Copies>(json!({"copies": 3})),
        post(
            "/internal/cluster/tokens",
            "Makes a token with which one host can join",
        )
        .takes::<NewToken>(json!({"ttl_s": 3600}))
        .gives::<TokenView>(json!({"token": "0c2a3b", "expires_at": example::TIME})),
        post(
            "/internal/cluster/members",
            "A host with a token becomes a member",
        )
        .takes::<JoinRequest>(json!({
            "secret": "0c2a3b", "host": "host1", "joiner": "5f1d", "addr": "10.0.0.2:1115",
            "version": "v0.1.0", "at": example::TIME,
        }))
        .gives::<Joined>(json!({
            "member": member(), "members": [member()], "domain": "flynn.localhost", "at": example::TIME,
        }))
        .may_fail(409, "The cluster has a host of this id or address."),
        put(
            "/internal/cluster/members/{member}",
            "A member says where it is, by its number",
        )
        .takes::<Announcement>(json!({"node": 2, "addr": "10.0.0.2:1115"})),
        delete("/internal/cluster/members/{member}", "Removes a host, by its id")
            .query(
                "force",
                "Also while it is up.",
                json!({"type": "boolean"}),
                json!(true),
            )
            .gives::<Member>(member())
            .may_fail(409, "It is up, or too few would be left to vote."),
        put(
            "/internal/cluster/members/{member}/vote",
            "Whether a host, by its id, is to vote on the cluster's state",
        )
        .takes::<VoteChange>(json!({"vote": "promoted"}))
        .gives::<Member>(member())
        .may_fail(409, "Too few would be left to vote."),
        get(
            "/internal/here/apps/{app}/log",
            "What of an app's log is on this host",
        )
        .streams::<SseLogChunk>(json!({"event": "eof"})),
        get(
            "/internal/here/cluster",
            "The cluster's members and how far its state is, as this host sees it",
        )
        .gives::<ClusterView>(json!({
            "node": 2, "leader": 1, "term": 3, "last_index": 41, "applied_index": 40,
            "members": [{"member": member(), "is_voter": true, "is_follower": false}],
        })),
        get(
            "/internal/here/stack",
            "The list of base images, as it is on this host",
        )
        .gives_bytes("application/octet-stream", "{}"),
        get("/internal/layers", "Layers in use").gives_list::<String>(json!("1b4f0e98")),
        get("/internal/apps", "Apps whose files are kept").gives_list::<AppId>(json!(example::APP)),
        get(
            "/internal/contents",
            "Versions of what hosts keep beside the state",
        )
        .query(
            "name",
            "Only this one.",
            json!({"type": "string"}),
            json!("git/0c2a3b"),
        )
        .gives_list::<Content>(content()),
        put("/internal/contents", "Another version, by who had the one before")
            .takes::<NewContent>(json!({
                "name": "git/0c2a3b", "app": example::APP, "after": 6, "digest": "1b".repeat(32),
            }))
            .gives::<Content>(content())
            .may_fail(412, "There is another version already."),
        get("/internal/services", "All services with their instances").streams::<ServicesView>(json!({
            "domains": ["flynn.localhost"],
            "services": [{"name": "shop-web", "instances": [example::instance()]}],
            "ingress": [{"host": "host0", "addresses": ["192.0.2.1"]}],
        })),
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
