//! The host API is what its description says, and the description is what is committed.

use std::collections::{BTreeMap, BTreeSet};

use api::host::{HostReport, ReportedState};
use base64::{Engine, prelude::BASE64_STANDARD};
use openapi::check::Schemas;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    life::{KEY, Life, id_of, until},
    machine::Fuse,
    sim::World,
};

/// Status, headers in lower case, body.
type Answer = (u16, String, String);

async fn ask(life: &Life, method: &str, path: &str, body: &str) -> Answer {
    let address = life.url.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    let key = BASE64_STANDARD.encode(format!(":{KEY}"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: host\r\nAuthorization: Basic {key}\r\nConnection: close\r\n\
         Accept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[test]
fn the_committed_description_is_current() {
    let committed = std::fs::read_to_string(openapi::directory().join("host.json")).expect("it is committed");
    assert!(
        committed == openapi::text(&openapi::host()),
        "docs/api/host.json is not what the types say; `cargo run -p openapi` writes it anew"
    );
}

#[tokio::test]
async fn every_path_that_is_served_is_described() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let source = include_str!("../../src/http.rs");
    let routed = source.split(".route(").skip(1).filter_map(|piece| {
        let path = piece.trim_start().strip_prefix('"')?.split('"').next()?;
        path.starts_with('/').then(|| path.to_owned())
    });
    let mut described = BTreeMap::<_, BTreeSet<_>>::new();
    let api = openapi::host();
    for operation in api.operations() {
        let methods = described.entry(operation.path.to_owned()).or_default();
        methods.insert(operation.method.to_owned());
    }
    let mut served = BTreeMap::new();
    for path in routed.chain(described.keys().cloned()) {
        let (_, head, _) = ask(&life, "PROPFIND", &path.replace(['{', '}'], ""), "").await;
        let allowed = head
            .lines()
            .find_map(|line| line.strip_prefix("allow: "))
            .unwrap_or_default();
        let methods = allowed
            .split(',')
            .map(str::trim)
            .filter(|method| !matches!(*method, "" | "head"));
        served.insert(path, methods.map(str::to_owned).collect::<BTreeSet<_>>());
    }
    assert_eq!(served, described);
}

/// Of what was recorded of the original: the same request, the same status, and every field that it
/// had and that has a meaning here.
#[tokio::test]
async fn answers_have_the_originals_shapes() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let job = world.job();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    let text = std::fs::read_to_string(openapi::directory().join("host.json")).expect("it is committed");
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut schemas = Schemas::default();
    schemas.add("", document.clone());
    let check = async |path: &str, template: &str, recorded: &[&str]| {
        let (status, _, body) = ask(&life, "GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        let value: Value = serde_json::from_str(&body).unwrap();
        let schema =
            &document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(
            schemas.problems_of("", schema, &value),
            Vec::<String>::new(),
            "{path}"
        );
        for pointer in recorded {
            let pointer = pointer.replace("ID", &job.id);
            assert!(
                value.pointer(&pointer).is_some(),
                "{path} has no {pointer}: {body}"
            );
        }
    };
    let fields = [
        "/job/id",
        "/job/mountspecs/0/type",
        "/job/mountspecs/0/id",
        "/job/metadata/flynn-controller.app",
        "/job/config/args",
        "/host_id",
        "/status",
        "/created_at",
        "/started_at",
        "/internal_ip",
    ];
    check(&format!("/host/jobs/{}", job.id), "/host/jobs/{job}", &fields).await;
    let of_list: Vec<_> = fields.iter().map(|field| format!("/ID{field}")).collect();
    let of_list: Vec<_> = of_list.iter().map(String::as_str).collect();
    check("/host/jobs", "/host/jobs", &of_list).await;
    check("/host/jobs?active=true", "/host/jobs", &of_list).await;
    let fields = [
        "/id",
        "/pid",
        "/url",
        "/discoverd/url",
        "/discoverd/dns",
        "/version",
        "/flags",
    ];
    check("/host/status", "/host/status", &fields).await;
    check(
        "/.well-known/status",
        "/.well-known/status",
        &["/data/status", "/data/version"],
    )
    .await;
    check("/sinks", "/sinks", &[]).await;

    // What makes no sense is refused in the contract's words, too.
    let (status, _, body) = ask(&life, "GET", "/host/jobs?active=true&active=false", "").await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &error["code"]),
        (400, &"validation_error".into()),
        "{body}"
    );
}

#[tokio::test]
async fn a_job_out_of_rotation_runs_on_and_is_told_as_unhealthy() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let job = world.job();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    let path = format!("/host/jobs/{}/discoverd-deregister", job.id);
    assert_eq!(ask(&life, "PUT", &path, "").await.0, 200);
    until("the controller knows", || {
        world.controller.state().last(id_of(&job)) == Some(&ReportedState::Unhealthy)
    })
    .await;
    let (_, _, body) = ask(&life, "GET", &format!("/host/jobs/{}", job.id), "").await;
    let value: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value["status"], 1, "it runs on");
}

#[tokio::test]
async fn tags_are_told_to_the_controller_and_taken_ports_to_who_asks() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let tags = |report: &Option<HostReport>| {
        report
            .as_ref()
            .and_then(|report| report.tags.get("disk").cloned())
    };
    assert_eq!(ask(&life, "POST", "/host/tags", r#"{"disk":"ssd"}"#).await.0, 200);
    until("the controller knows", || {
        tags(&world.controller.state().host).as_deref() == Some("ssd")
    })
    .await;
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let check = json!({"ports": [{"port": port, "proto": "tcp"}]}).to_string();
    let (status, _, body) = ask(&life, "POST", "/host/resource-check", &check).await;
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["code"]), (409, &json!("conflict")));
    assert_eq!(
        error["detail"],
        json!({"ports": [{"port": port, "proto": "tcp"}]})
    );
    drop(taken);
    assert_eq!(ask(&life, "POST", "/host/resource-check", &check).await.0, 200);
    assert_eq!(ask(&life, "POST", "/host/tags", "[]").await.0, 400);
}
