//! What clients of the original do that is in no recording: seen when its own command line was used.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::world::{World, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_job_is_answered_with_the_id_by_which_it_is_followed() {
    let world = World::start().await;
    world.host(|_| false);
    let release = world.running_app("shop").await;
    let body = json!({ "release": release["id"], "args": ["date"] });
    let job = world.made("/apps/shop/jobs", body).await;
    assert_eq!(job["host_id"], "host0");
    assert_eq!(text(&job["id"]), format!("host0-{}", text(&job["uuid"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_job_without_a_place_is_answered_with_why() {
    let world = World::start().await;
    world.app("shop").await;
    let release = world.release("shop", "one").await;
    let body = json!({ "release": release["id"], "args": ["date"] });
    let job = world.made("/apps/shop/jobs", body).await;
    assert_eq!((job.get("host_id"), &job["state"]), (None, &json!("pending")));
    assert!(!text(&job["waiting"]).is_empty(), "{job}");
}

#[tokio::test]
async fn the_domain_is_where_clients_look_for_it_unless_an_app_is_there() {
    let world = World::start().await;
    let found = world.get("/apps/controller/release").await.json();
    assert_eq!(found["env"]["DEFAULT_ROUTE_DOMAIN"], "flynn.test");
    assert_eq!(world.get("/apps/controller").await.status, 404);
    world.app("controller").await;
    assert_eq!(world.get("/apps/controller/release").await.status, 404);
}

#[tokio::test]
async fn a_route_may_come_back_without_the_key_of_a_certificate_that_is_here() {
    let world = World::start().await;
    world.app("shop").await;
    let own = rcgen::generate_simple_self_signed(vec!["www.example.com".to_owned()]).unwrap();
    let route = |domain: &str, key: &str| {
        json!({
            "type": "http", "domain": domain, "service": "shop-web", "drain_backends": true,
            "certificate": { "cert": own.cert.pem(), "key": key },
        })
    };
    let path = "/apps/shop/routes";
    let unknown = world.post(path, route("www.example.com", "")).await;
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (400, &json!("validation_error"))
    );
    let key = own.signing_key.serialize_pem();
    let first = world.made(path, route("www.example.com", &key)).await;
    let second = world.made(path, route("example.com", "")).await;
    assert_eq!(first["certificate"]["id"], second["certificate"]["id"]);
    assert!(second["certificate"].get("key").is_none());
}

#[tokio::test]
async fn an_image_is_made_known_by_where_its_manifest_is() {
    let world = World::start().await;
    let manifest =
        r#"{"_type":"application/vnd.flynn.image.manifest.v1+json","rootfs":[{"layers":[{"id":"l1"}]}]}"#;
    let router = axum::Router::new().route("/image.json", axum::routing::get(async move || manifest));
    let listener = daemon::server::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let uri = format!("http://{}/image.json", listener.local_addr().unwrap());
    let shutdown = daemon::Shutdown::new();
    tokio::spawn(daemon::server::serve(listener, router, shutdown.clone()));
    let artifact = |size: usize, hash: &str| json!({ "type": "flynn", "uri": uri, "size": size, "hashes": { "sha256": hash } });
    let hash = hex::encode(Sha256::digest(manifest));
    for (size, hash) in [(0, &*hash), (manifest.len() - 1, &*hash), (manifest.len(), "00")] {
        let refused = world.post("/artifacts", artifact(size, hash)).await;
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (400, &json!("validation_error")),
            "{size} {hash}"
        );
    }
    let made = world.made("/artifacts", artifact(manifest.len(), &hash)).await;
    assert_eq!(made["manifest"]["rootfs"][0]["layers"][0]["id"], "l1");
    shutdown.cancel();
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_one_form() {
    let world = World::start().await;
    world
        .made(
            "/providers",
            json!({ "name": "pg", "url": "http://127.0.0.1:1/" }),
        )
        .await;
    let list = world.post("/providers/pg/resources", json!([null, null])).await;
    assert_eq!((list.status, &list.json()["code"]), (400, &json!("syntax_error")));
    for path in ["/sinks?since=a&since=b", "/volumes?since=a&since=b"] {
        let twice = world.get(path).await;
        assert_eq!(
            (twice.status, &twice.json()["code"]),
            (400, &json!("validation_error")),
            "{path}"
        );
    }
}
