//! Answers and errors that clients of the original know by heart.

use serde_json::{Value, json};

use crate::world::{Answer, World, new_id, text};

fn check(answer: &Answer, status: u16, code: &str, message: &str, field: Option<&str>) {
    let body = answer.json();
    let detail = field.map(|field| json!({ "field": field }));
    assert_eq!(
        (answer.status, &body["code"], &body["message"], body.get("detail")),
        (status, &json!(code), &json!(message), detail.as_ref())
    );
    assert!(body["retry"].is_boolean());
}

#[tokio::test]
async fn bodies_are_json_of_a_limited_size() {
    let world = World::start().await;
    let post = async |headers: &[(&str, &str)], body: &str| {
        world.call("POST", "/apps", headers, Some(body.into())).await
    };
    let json_type = [("Content-Type", "application/json; charset=utf-8")];
    let syntax = "The provided JSON input is invalid";
    check(&post(&json_type, "{bad").await, 400, "syntax_error", syntax, None);
    check(
        &post(&json_type, r#"{"name":5}"#).await,
        400,
        "syntax_error",
        syntax,
        None,
    );
    let typed = "Content-Type must be application/json";
    let plain = [("Content-Type", "text/plain")];
    check(
        &post(&plain, r#"{"name":"x"}"#).await,
        400,
        "validation_error",
        typed,
        None,
    );
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    check(&post(&json_type, &deep).await, 400, "syntax_error", syntax, None);
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(5 << 20));
    let answer = post(&json_type, &long).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (400, &json!("request_body_too_big"))
    );
    let unknown_fields = post(&json_type, r#"{"name":"ok-name","bogus":1}"#).await;
    assert_eq!(unknown_fields.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_ids_are_answered_as_ever() {
    let world = World::start().await;
    for (method, path) in [("GET", "/nosuch"), ("DELETE", "/artifacts/x"), ("PUT", "/apps")] {
        let answer = world.call(method, path, &[], None).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
    }
    let zero = "00000000-0000-0000-0000-000000000000";
    for path in [
        format!("/apps/{zero}"),
        "/releases/nosuch".into(),
        "/deployments/nosuch".into(),
    ] {
        let answer = world.get(&path).await;
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_ask_with_a_key_of_their_own() {
    let world = World::start().await;
    let origin = ("Origin", "https://dashboard.example.com");
    let asked = world
        .call(
            "OPTIONS",
            "/apps/x/jobs/y",
            &[origin, ("Access-Control-Request-Method", "PUT")],
            None,
        )
        .await;
    assert_eq!((asked.status, asked.body.len()), (200, 0));
    let header = |name: &str| asked.headers.get(name).cloned().unwrap_or_default();
    assert_eq!(header("access-control-allow-origin"), "*");
    assert!(header("access-control-allow-methods").contains("DELETE"));
    for name in ["Auth-Key", "Authorization", "Content-Type", "X-GRPC-Web"] {
        assert!(header("access-control-allow-headers").contains(name), "{name}");
    }
    let answered = world.call("GET", "/apps", &[origin], None).await;
    assert_eq!(answered.headers["access-control-allow-origin"], "*");
    assert!(!answered.headers.contains_key("access-control-allow-credentials"));
    // What is refused is told to the page, too.
    let missing = world.call("GET", "/apps/nosuch", &[origin], None).await;
    assert_eq!(
        (
            missing.status,
            missing.headers["access-control-allow-origin"].as_str()
        ),
        (404, "*")
    );
    let without = world.call("OPTIONS", "/apps", &[], None).await;
    assert_eq!((without.status, without.body.len()), (200, 0));
}

#[tokio::test]
async fn releases_are_named_in_bodies_by_ids_that_exist() {
    let world = World::start().await;
    world.app("probe").await;
    let zero = "00000000-0000-0000-0000-000000000000";
    let unknown = format!("could not find release with ID {zero}");
    let deploy = async |body: Value| world.post("/apps/probe/deploy", body).await;
    check(
        &deploy(json!({ "id": zero })).await,
        400,
        "validation_error",
        &unknown,
        None,
    );
    check(
        &deploy(json!({})).await,
        400,
        "validation_error",
        "could not find release with ID ",
        None,
    );
    let put = world.put("/apps/probe/release", json!({ "id": zero })).await;
    check(&put, 400, "validation_error", &unknown, None);
}

#[tokio::test]
async fn scale_requests_are_checked_and_completed_by_their_ids() {
    let world = World::start().await;
    let app = world.app("probe").await;
    let bare = world
        .made("/releases", json!({ "app_id": app["id"], "env": { "A": "1" } }))
        .await;
    let formation = format!("/apps/probe/formations/{}", text(&bare["id"]));
    let refused = world.put(&formation, json!({ "processes": { "web": 1 } })).await;
    check(
        &refused,
        400,
        "validation_error",
        "release is not deployable",
        None,
    );
    let release = world.release("probe", "one").await;
    let path = format!("/apps/probe/scale/{}", text(&release["id"]));
    let empty = world.put(&path, json!({ "state": "pending" })).await;
    let message = "scale request must have either processes or tags set";
    check(&empty, 400, "validation_error", message, None);
    let unknown = world.put(&path, json!({ "new_processes": { "nope": 1 } })).await;
    let message = "requested scale includes process types that do not exist in the release: nope";
    check(&unknown, 400, "validation_error", message, None);
    let odd = world
        .put(&path, json!({ "state": "odd", "new_processes": {} }))
        .await;
    assert_eq!(odd.json()["detail"], json!({ "field": "state" }));
    let begun = world
        .put(
            &path,
            json!({ "state": "pending", "new_processes": { "web": 1 } }),
        )
        .await;
    let mut request = begun.json();
    assert_eq!(request["state"], "pending");
    // The same again is the same request; with another state it ends.
    let again = world.put(&path, request.clone()).await.json();
    assert_eq!(again["id"], request["id"]);
    request["state"] = json!("cancelled");
    let cancelled = world.put(&path, request.clone()).await.json();
    assert_eq!(
        (&cancelled["id"], &cancelled["state"]),
        (&request["id"], &json!("cancelled"))
    );
    let event = world.event("scale_request_cancelation", |_| true).await;
    assert_eq!(event["object_id"], request["id"]);
    request["state"] = json!("complete");
    assert_eq!(
        world.put(&path, request).await.json()["state"],
        "cancelled",
        "it has ended"
    );
}

#[tokio::test]
async fn limits_beyond_all_measure_are_refused() {
    let world = World::start().await;
    let app = world.app("probe").await;
    let release = async |process: Value| {
        let body = json!({ "app_id": app["id"], "processes": { "web": process } });
        let answer = world.post("/releases", body).await;
        (answer.status, answer.json())
    };
    let refused = async |resources: Value| {
        let (status, body) = release(json!({ "resources": resources })).await;
        assert_eq!(
            (status, &body["detail"]),
            (400, &json!({ "field": "resources" })),
            "{body}"
        );
        text(&body["message"]).to_owned()
    };
    for name in ["memory", "cpu", "temp_disk", "max_fd", "max_processes"] {
        let message = refused(json!({ name: { "limit": i64::MAX } })).await;
        assert!(
            message.starts_with(&format!("resources has a {name} of more than")),
            "{message}"
        );
        refused(json!({ name: { "request": i64::MAX } })).await;
        refused(json!({ name: { "limit": 0 } })).await;
    }
    refused(json!({ "memory": { "request": 2, "limit": 1 } })).await;
    assert_eq!(
        refused(json!({ "memroy": { "limit": 5 } })).await,
        r#"resources has no "memroy""#
    );
    let (status, body) = release(json!({ "stop_timeout": 1_000_000 })).await;
    assert_eq!((status, &body["detail"]), (400, &json!({ "field": "processes" })));
    let (status, _) = release(json!({ "resources": { "memory": { "limit": 1 << 30 } } })).await;
    assert_eq!(status, 200);
    let image = world.release("probe", "one").await;
    let scale = format!("/apps/probe/scale/{}", text(&image["id"]));
    let many = world
        .put(&scale, json!({ "new_processes": { "web": 1_000_000 } }))
        .await;
    assert_eq!(
        (many.status, &many.json()["detail"]),
        (400, &json!({ "field": "processes" }))
    );
    let job = json!({ "release": image["id"], "args": ["true"], "resources": { "memory": { "limit": -1 } } });
    let job = world.post("/apps/probe/jobs", job).await;
    assert_eq!(
        (job.status, &job.json()["detail"]),
        (400, &json!({ "field": "resources" }))
    );
}

#[tokio::test]
async fn deprecated_commands_become_arguments() {
    let world = World::start().await;
    let app = world.app("probe").await;
    let image = world.release("probe", "one").await["artifacts"][0].clone();
    let made = world
        .made(
            "/releases",
            json!({
                "app_id": app["id"], "artifact": image,
                "processes": {
                    "web": { "args": ["/bin/web"], "cmd": ["x"] },
                    "old": { "args": ["gone"], "entrypoint": ["/bin/old"], "cmd": ["y"] },
                },
            }),
        )
        .await;
    assert_eq!(made["artifacts"], json!([image]));
    assert_eq!(made["processes"]["web"]["args"], json!(["/bin/web", "x"]));
    assert_eq!(made["processes"]["old"]["args"], json!(["/bin/old", "y"]));
}

#[tokio::test]
async fn jobs_are_moved_on_by_reports_and_never_back() {
    let world = World::start().await;
    let app = world.app("probe").await;
    let release = world.release("probe", "one").await;
    let job = world
        .made(
            "/apps/probe/jobs",
            json!({ "release": release["id"], "args": ["sleep"] }),
        )
        .await;
    let path = format!("/apps/probe/jobs/{}", text(&job["uuid"]));
    let report = async |state: &str| {
        let body = json!({ "uuid": job["uuid"], "app": app["id"], "release": release["id"], "state": state });
        world.put(&path, body).await
    };
    assert_eq!(report("blocked").await.json()["state"], "pending");
    assert_eq!(report("down").await.json()["state"], "down");
    assert_eq!(report("up").await.json()["state"], "down");
    let odd = report("zzz").await;
    let message = "state Enum error. The data must be equal to one of these values [pending starting up stopping down crashed failed].";
    check(&odd, 400, "validation_error", message, Some("state"));
    let mismatch = world
        .put(&path, json!({ "uuid": new_id(), "state": "down" }))
        .await;
    assert_eq!(mismatch.json()["detail"], json!({ "field": "uuid" }));
    // A job that nobody here started may only have ended.
    let stranger = format!("/apps/probe/jobs/{}", new_id());
    let live = world
        .put(&stranger, json!({ "release": release["id"], "state": "up" }))
        .await;
    assert_eq!(live.status, 409);
    let ended = json!({ "release": release["id"], "type": "web", "host_id": "host0", "state": "down", "exit_status": 3 });
    let recorded = world.put(&stranger, ended).await.json();
    assert_eq!(
        (&recorded["state"], &recorded["exit_status"]),
        (&json!("down"), &json!(3))
    );
    assert_eq!(world.get(&stranger).await.json()["type"], "web");
}
