//! Resources: made by providers, used by apps, given back.

use std::sync::{Arc, Mutex};

use api::{Endpoint, Trust};
use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{World, new_id, text};

/// A provider of databases, which writes down what it was asked.
#[derive(Clone, Default)]
struct Provider {
    asked: Arc<Mutex<Vec<String>>>,
    /// The status of the answers to come; 200 at first.
    status: Arc<Mutex<Option<u16>>>,
    /// Waits with its answers for `go`.
    is_slow: bool,
    go: Arc<Notify>,
}

impl Provider {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(daemon::server::serve(
            listener,
            router,
            daemon::Shutdown::default(),
        ));
        format!("http://{address}")
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = Some(status);
    }
}

async fn answer(State(provider): State<Provider>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let has_key = request.headers().contains_key("authorization");
    let is_post = request.method() == http::Method::POST;
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    provider
        .asked
        .lock()
        .unwrap()
        .push(format!("{line} {}", String::from_utf8_lossy(&body)));
    assert!(!has_key, "the cluster's key went to a provider");
    if provider.is_slow {
        provider.go.notified().await;
    }
    let status = provider.status.lock().unwrap().unwrap_or(200);
    let status = StatusCode::from_u16(status).unwrap();
    if status != StatusCode::OK {
        let told = match status {
            StatusCode::BAD_REQUEST => ("validation_error", "no plan \"huge\""),
            _ => ("unknown_error", "the disk is full"),
        };
        let told = json!({ "code": told.0, "message": told.1, "retry": false });
        return (status, Json(told)).into_response();
    }
    match is_post {
        true => {
            Json(json!({ "id": "/databases/u:d", "env": { "DATABASE_URL": "pg://u@h/d" } })).into_response()
        }
        false => StatusCode::OK.into_response(),
    }
}

async fn with_provider(world: &World, provider: &Provider) -> Value {
    let url = format!("{}/databases", provider.start().await);
    world
        .made("/providers", json!({ "name": "pg", "url": url }))
        .await
}

async fn provision(world: &World, apps: Value) -> Value {
    world
        .made("/providers/pg/resources", json!({ "apps": apps, "config": null }))
        .await
}

fn without_times(mut value: Value) -> Value {
    value
        .as_object_mut()
        .unwrap()
        .retain(|name, _| !name.ends_with("_at"));
    value
}

#[tokio::test]
async fn a_resource_is_made_by_its_provider_and_given_back() {
    let world = World::start().await;
    let provider = Provider::default();
    let row = with_provider(&world, &provider).await;
    assert_eq!(world.get("/providers/pg").await.json(), row);
    let by_id = world.get(&format!("/providers/{}", text(&row["id"]))).await;
    assert_eq!(by_id.json(), row);
    assert_eq!(world.get("/providers").await.json(), json!([row]));
    let app = world.app("shop").await;
    let resource = provision(&world, json!(["shop"])).await;
    assert_eq!(
        without_times(resource.clone()),
        json!({
            "id": resource["id"], "provider": row["id"], "external_id": "/databases/u:d",
            "env": { "DATABASE_URL": "pg://u@h/d" }, "apps": [app["id"]],
        })
    );
    let path = format!("/providers/pg/resources/{}", text(&resource["id"]));
    for list in ["/resources", "/apps/shop/resources", "/providers/pg/resources"] {
        assert_eq!(world.get(list).await.json(), json!([resource]), "{list}");
    }
    assert_eq!(world.get(&path).await.json(), resource);
    assert_eq!(world.delete(&path).await.json(), resource);
    assert_eq!(world.delete(&path).await.status, 404);
    assert_eq!(world.get("/resources").await.json(), json!([]));
    let asked = ["POST /databases {}", "DELETE /databases?id=%2Fdatabases%2Fu%3Ad "];
    assert_eq!(provider.asked(), asked);
    let gone = world.event("resource_deletion", |_| true).await;
    assert_eq!((&gone["app"], &gone["data"]), (&app["id"], &resource));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_a_provider_is_asked() {
    let world = World::start().await;
    let provider = Provider::default();
    let row = with_provider(&world, &provider).await;
    let field = async |path: &str, body: Value| {
        let answer = world.post(path, body).await;
        let error = answer.json();
        assert_eq!(
            (answer.status, &error["code"]),
            (400, &json!("validation_error")),
            "{error}"
        );
        text(&error["detail"]["field"]).to_owned()
    };
    assert_eq!(field("/providers", json!({ "url": "http://x/" })).await, "name");
    assert_eq!(
        field("/providers", json!({ "name": "a/b", "url": "http://x/" })).await,
        "name"
    );
    assert_eq!(field("/providers", json!({ "name": "x" })).await, "url");
    assert_eq!(
        field("/providers", json!({ "name": "x", "url": "gopher://x" })).await,
        "url"
    );
    let unknown = json!({ "apps": ["nosuch"], "config": {} });
    assert_eq!(field("/providers/pg/resources", unknown).await, "apps");
    let again = world
        .post("/providers", json!({ "name": "pg", "url": row["url"] }))
        .await;
    assert_eq!(
        (again.status, &again.json()["code"]),
        (409, &json!("object_exists"))
    );
    for path in [
        "/providers/nosuch",
        "/providers/nosuch/resources",
        "/providers/pg/resources/nosuch",
    ] {
        let answer = world.get(path).await;
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
    }
    assert_eq!(provider.asked(), [""; 0]);
}

#[tokio::test]
async fn a_providers_refusal_is_told_and_nothing_is_kept() {
    let world = World::start().await;
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    provider.answer_with(400);
    let refused = world
        .post("/providers/pg/resources", json!({ "config": { "plan": "huge" } }))
        .await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["message"], "provider \"pg\": no plan \"huge\"");
    provider.answer_with(500);
    let broken = world
        .post("/providers/pg/resources", json!({ "config": {} }))
        .await;
    assert_eq!((broken.status, &broken.json()["retry"]), (503, &json!(true)));
    assert_eq!(world.get("/resources").await.json(), json!([]));
    // A resource that cannot be given back stays, and can be forgotten by force.
    provider.answer_with(200);
    let resource = provision(&world, json!([])).await;
    provider.answer_with(500);
    let path = format!("/providers/pg/resources/{}", text(&resource["id"]));
    assert_eq!(world.delete(&path).await.status, 503);
    assert_eq!(world.get(&path).await.status, 200);
    assert_eq!(world.delete(&format!("{path}?force=true")).await.status, 200);
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn what_was_made_for_an_app_that_is_gone_meanwhile_is_given_back() {
    let world = Arc::new(World::start().await);
    let provider = Provider {
        is_slow: true,
        ..Provider::default()
    };
    with_provider(&world, &provider).await;
    world.app("shop").await;
    let asking = tokio::spawn({
        let world = world.clone();
        async move {
            let body = json!({ "apps": ["shop"], "config": {} });
            world.post("/providers/pg/resources", body).await
        }
    });
    world
        .wait_for("the provider to be asked", async || provider.asked().len() == 1)
        .await;
    assert_eq!(world.delete("/apps/shop").await.status, 200);
    provider.go.notify_one();
    world
        .wait_for("the provider to be asked again", async || {
            provider.asked().len() == 2
        })
        .await;
    provider.go.notify_one();
    let answer = asking.await.unwrap();
    assert_eq!(
        (answer.status, &answer.json()["detail"]["field"]),
        (400, &json!("apps"))
    );
    assert!(provider.asked()[1].starts_with("DELETE /databases?id="));
    assert_eq!(world.get("/resources").await.json(), json!([]));
}

#[tokio::test]
async fn what_was_made_for_a_client_that_left_is_kept() {
    let world = World::start().await;
    let provider = Provider {
        is_slow: true,
        ..Provider::default()
    };
    with_provider(&world, &provider).await;
    let body = json!({ "config": {} }).to_string();
    let asking = world
        .send("POST", "/providers/pg/resources", &[], Some(body))
        .await;
    world
        .wait_for("the provider to be asked", async || provider.asked().len() == 1)
        .await;
    drop(asking);
    provider.go.notify_one();
    world
        .wait_for("the resource", async || {
            world.get("/resources").await.json().as_array().unwrap().len() == 1
        })
        .await;
}

#[tokio::test]
async fn two_deletions_of_one_resource_do_not_meet_at_the_provider() {
    let world = Arc::new(World::start().await);
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    let resource = provision(&world, json!([])).await;
    let path = format!("/providers/pg/resources/{}", text(&resource["id"]));
    let delete = || {
        let (world, path) = (world.clone(), path.clone());
        tokio::spawn(async move { world.delete(&path).await.status })
    };
    let deletions = [delete(), delete(), delete(), delete()];
    let mut statuses = vec![];
    for deletion in deletions {
        statuses.push(deletion.await.unwrap());
    }
    statuses.sort();
    assert_eq!(statuses[0], 200, "{statuses:?}");
    assert!(
        statuses[1..].iter().all(|status| [404, 409].contains(status)),
        "{statuses:?}"
    );
    let deletions = provider
        .asked()
        .iter()
        .filter(|line| line.starts_with("DELETE"))
        .count();
    assert_eq!(deletions, 1);
}

#[tokio::test]
async fn an_app_takes_its_own_resources_along_and_leaves_shared_ones() {
    let world = World::start().await;
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    let (shop, other) = (world.app("shop").await, world.app("other").await);
    let own = provision(&world, json!(["shop"])).await;
    let shared = provision(&world, json!(["shop", "other"])).await;
    provider.answer_with(500);
    assert_eq!(world.delete("/apps/shop").await.status, 200);
    let is_of_shop = |event: &Value| event["app"] == shop["id"];
    let failed = world
        .event("app_deletion", |event| {
            is_of_shop(event) && event["data"]["error"] != ""
        })
        .await;
    assert_eq!(
        failed["data"]["error"], "provider \"pg\": the disk is full",
        "{failed}"
    );
    provider.answer_with(200);
    let done = world
        .event("app_deletion", |event| {
            is_of_shop(event) && event["data"]["error"] == ""
        })
        .await;
    let lists = &done["data"]["app_deletion"];
    assert_eq!(lists["deleted_resources"], json!([own]));
    assert_eq!(lists["deleted_routes"][0]["domain"], "shop.flynn.test");
    let left = world.get("/resources").await.json();
    assert_eq!(left[0]["id"], shared["id"]);
    assert_eq!(left[0]["apps"], json!([other["id"]]));
}

#[tokio::test]
async fn one_app_is_taken_from_one_resource_only() {
    let world = World::start().await;
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    let (shop, other) = (world.app("shop").await, world.app("other").await);
    let first = provision(&world, json!(["shop"])).await;
    let second = provision(&world, json!(["shop"])).await;
    let path =
        |resource: &Value, app: &str| format!("/providers/pg/resources/{}/apps/{app}", text(&resource["id"]));
    let put = world.put(&path(&first, "other"), json!({})).await.json();
    assert_eq!(put["apps"], json!([shop["id"], other["id"]]));
    let without_body = world.call("PUT", &path(&first, "other"), &[], None).await;
    assert_eq!(without_body.json(), put);
    let taken = world.delete(&path(&first, "shop")).await.json();
    assert_eq!(taken["apps"], json!([other["id"]]));
    assert_eq!(world.get("/apps/shop/resources").await.json(), json!([second]));
    let event = world.event("resource_app_deletion", |_| true).await;
    assert_eq!((&event["app"], &event["object_id"]), (&shop["id"], &first["id"]));
    assert_eq!(world.put(&path(&first, "nosuch"), json!({})).await.status, 404);
}

#[tokio::test]
async fn a_resource_that_exists_already_can_be_put_as_often_as_one_likes() {
    let world = World::start().await;
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    let app = world.app("probe").await;
    let path = format!("/providers/pg/resources/{}", new_id());
    let body = json!({ "external_id": "/x/1", "env": { "URL": "z" }, "apps": ["probe"] });
    let first = world.put(&path, body.clone()).await.json();
    assert_eq!(first["apps"], json!([app["id"]]));
    assert_eq!(world.put(&path, body).await.json(), first);
    assert_eq!(provider.asked(), [""; 0]);
    let nameless = world.put("/providers/pg/resources/nosuch", json!({})).await;
    assert_eq!(
        (nameless.status, &nameless.json()["detail"]["field"]),
        (400, &json!("id"))
    );
}

#[tokio::test]
async fn a_service_of_the_cluster_is_found_by_discovery() {
    let provider = Provider::default();
    let address = provider.start().await.trim_start_matches("http://").to_owned();
    let instances = json!([
        { "id": "gone", "addr": "127.0.0.1:1", "proto": "tcp" },
        { "id": "here", "addr": address, "proto": "tcp" },
    ]);
    let discovery = Router::new().route(
        "/services/pg-api/instances",
        get(async move || Json(instances.clone())),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        url: format!("http://{}", listener.local_addr().unwrap()),
        key: String::new(),
        trust: Trust::System,
    };
    tokio::spawn(daemon::server::serve(
        listener,
        discovery,
        daemon::Shutdown::default(),
    ));
    let world = World::start_with_discovery(Some(endpoint)).await;
    for (name, url) in [
        ("a", "http://pg-api.discoverd/databases"),
        ("b", "discoverd+http://pg-api/databases"),
        ("c", "http://nosuch.discoverd/databases"),
    ] {
        world
            .made("/providers", json!({ "name": name, "url": url }))
            .await;
    }
    for name in ["a", "b"] {
        let path = format!("/providers/{name}/resources");
        let resource = world.made(&path, json!({ "config": {} })).await;
        assert_eq!(resource["external_id"], "/databases/u:d");
    }
    let nobody = world
        .post("/providers/c/resources", json!({ "config": {} }))
        .await;
    assert_eq!(nobody.status, 503);
    assert!(text(&nobody.json()["message"]).contains("has no instance"));
}

#[tokio::test]
async fn a_resource_lets_its_app_connect_to_the_service_that_it_names() {
    use api::host::{Assignment, NetworkChange};
    use futures::StreamExt;

    let world = World::start().await;
    world.host(|_| false);
    let provider = Provider::default();
    with_provider(&world, &provider).await;
    world.running_app("db").await;
    world.running_app("shop").await;
    let ids = ["shop", "db"].map(async |app| world.get(&format!("/apps/{app}")).await.json()["id"].clone());
    let [shop, db] = futures::future::join_all(ids).await.try_into().unwrap();
    let mut assignments = world
        .internal()
        .assignments(&"host0".parse().unwrap())
        .await
        .unwrap();
    let mut told = async || loop {
        let next = tokio::time::timeout(crate::world::PATIENCE, assignments.next()).await;
        match next.expect("waited in vain for a way").unwrap().unwrap() {
            Assignment::Network {
                change: NetworkChange::Link { from, to },
            } => {
                break json!(["open", from, to]);
            }
            Assignment::Network {
                change: NetworkChange::Unlink { from, to },
            } => {
                break json!(["closed", from, to]);
            }
            _ => {}
        }
    };
    let path = format!("/providers/pg/resources/{}", new_id());
    let resource = json!({
        "external_id": "/databases/1", "apps": [shop], "env": { "DATABASE_URL": "pg://u:p@leader.db-web.discoverd:8080/d" },
    });
    let made = world.put(&path, resource).await;
    assert_eq!(made.status, 200, "{}", made.text());
    assert_eq!(told().await, json!(["open", shop, db]));
    let deleted = world.delete(&path).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert_eq!(told().await, json!(["closed", shop, db]));
}
