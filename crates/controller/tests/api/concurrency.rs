//! What happens when requests repeat themselves or meet.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::world::{World, new_id, text};

async fn all_at_once(world: &Arc<World>, path: &str, bodies: Vec<Value>) -> Vec<(u16, Value)> {
    let requests: Vec<_> = bodies
        .into_iter()
        .map(|body| {
            let (world, path) = (world.clone(), path.to_owned());
            tokio::spawn(async move { world.post(&path, body).await })
        })
        .collect();
    let mut answers = vec![];
    for request in requests {
        let answer = request.await.unwrap();
        answers.push((answer.status, answer.json()));
    }
    answers
}

fn successes(answers: &[(u16, Value)]) -> usize {
    answers.iter().filter(|(status, _)| *status == 200).count()
}

async fn deployment(world: &World, id: &Value) -> Value {
    world.get(&format!("/deployments/{}", text(id))).await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creations_of_one_name_or_id_one_succeeds_and_the_others_say_it_exists() {
    let world = Arc::new(World::start().await);
    let by_name = all_at_once(&world, "/apps", vec![json!({ "name": "shop" }); 8]).await;
    assert_eq!(successes(&by_name), 1);
    let id = new_id();
    let same_id: Vec<_> = (0..8)
        .map(|n| json!({ "id": id, "name": format!("app-{n}") }))
        .collect();
    let by_id = all_at_once(&world, "/apps", same_id).await;
    assert_eq!(successes(&by_id), 1);
    let nameless = all_at_once(&world, "/apps", vec![json!({ "id": id }); 2]).await;
    assert_eq!(successes(&nameless), 0);
    for (status, body) in by_name
        .iter()
        .chain(&by_id)
        .chain(&nameless)
        .filter(|(status, _)| *status != 200)
    {
        assert_eq!((*status, &body["code"]), (409, &json!("object_exists")));
    }
    let provider = json!({ "name": "pg", "url": "http://127.0.0.1:1/" });
    assert_eq!(
        successes(&all_at_once(&world, "/providers", vec![provider; 8]).await),
        1
    );
    assert_eq!(world.get("/apps").await.json().as_array().unwrap().len(), 2);
    // An artifact is what is at its uri: asking again gives the same one.
    let artifact = json!({ "type": "flynn", "uri": "http://x/y", "manifest": {} });
    let answers = all_at_once(&world, "/artifacts", vec![artifact; 8]).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_deployments_at_once_one_is_refused_and_the_other_goes_on() {
    let world = Arc::new(World::start().await);
    world.host(|_| false);
    world.running_app("shop").await;
    let (one, two) = (
        world.release("shop", "two").await,
        world.release("shop", "three").await,
    );
    let bodies = vec![json!({ "id": one["id"] }), json!({ "id": two["id"] })];
    world.hold(true);
    let answers = all_at_once(&world, "/apps/shop/deploy", bodies).await;
    world.hold(false);
    assert_eq!(successes(&answers), 1, "{answers:?}");
    let (_, refused) = answers.iter().find(|(status, _)| *status != 200).unwrap();
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (
            &json!("validation_error"),
            &json!("Cannot create deploy, there is already one in progress for this app.")
        )
    );
    let (_, begun) = answers.iter().find(|(status, _)| *status == 200).unwrap();
    world
        .wait_for("the deployment to end", async || {
            deployment(&world, &begun["id"]).await["status"] == "complete"
        })
        .await;
    let current = world.get("/apps/shop/release").await.json();
    assert_eq!(current["id"], begun["new_release"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_during_a_deployment_ends_both() {
    let world = World::start().await;
    // What the new release starts ends at once, so the deployment is under way for long.
    world.host(|layer| layer == "broken");
    let old = world.running_app("shop").await;
    let new = world.release("shop", "broken").await;
    let begun = world.deploy("shop", &new).await;
    for release in [&old, &new] {
        let path = format!("/apps/shop/releases/{}", text(&release["id"]));
        let answer = world.delete(&path).await;
        let is_refused = [400, 409].contains(&answer.status);
        assert!(
            is_refused,
            "a release in a deployment: {} {}",
            answer.status,
            answer.text()
        );
    }
    assert_eq!(world.delete("/apps/shop").await.status, 200);
    assert_eq!(world.delete("/apps/shop").await.status, 404);
    let failed = world
        .event("deployment", |event| {
            event["object_id"] == begun["id"] && event["data"]["status"] == "failed"
        })
        .await;
    assert_eq!(failed["data"]["error"], "the app was deleted");
    let gone = world.event("app_deletion", |_| true).await;
    let releases = gone["data"]["app_deletion"]["deleted_releases"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!((&gone["data"]["error"], releases), (&json!(""), 2));
    // Its name is free, and nothing of it is left.
    let again = world.running_app("shop").await;
    assert_eq!(world.get("/releases").await.json().as_array().unwrap().len(), 1);
    assert_eq!(world.get("/apps/shop/release").await.json()["id"], again["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scale_during_a_deployment_is_what_both_end_with() {
    let world = World::start().await;
    world.host(|_| false);
    let old = world.running_app("shop").await;
    world
        .made("/apps/shop", json!({ "strategy": "one-by-one" }))
        .await;
    let new = world.release("shop", "two").await;
    world.hold(true);
    let begun = world.deploy("shop", &new).await;
    let path = format!("/apps/shop/scale/{}", text(&old["id"]));
    let scaled = world.put(&path, json!({ "new_processes": { "web": 3 } })).await;
    assert_eq!(scaled.status, 200, "{}", scaled.text());
    world.hold(false);
    let mut ended = Value::Null;
    world
        .wait_for("the deployment to end", async || {
            ended = deployment(&world, &begun["id"]).await;
            ended["status"] != "pending" && ended["status"] != "running"
        })
        .await;
    assert_eq!(ended["status"], "complete", "{ended}");
    let formation = format!("/apps/shop/formations/{}", text(&new["id"]));
    let formation = world.get(&formation).await.json();
    assert_eq!(formation["processes"], json!({ "web": 3 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_formation_tells_of_its_scale_request_for_as_long_as_that_is_pending() {
    let world = World::start().await;
    world.host(|_| false);
    let release = world.running_app("shop").await;
    let formation = format!("/apps/shop/formations/{}?expand=true", text(&release["id"]));
    world.hold(true);
    let scale = format!("/apps/shop/scale/{}", text(&release["id"]));
    let asked = world
        .put(&scale, json!({ "new_processes": { "web": 2 } }))
        .await
        .json();
    let pending = world.get(&formation).await.json()["pending_scale_request"].clone();
    assert_eq!(
        (&pending["id"], &pending["state"], &pending["new_processes"]),
        (&asked["id"], &json!("pending"), &json!({ "web": 2 }))
    );
    world.hold(false);
    world
        .wait_for("the request to be complete", async || {
            world
                .get(&formation)
                .await
                .json()
                .get("pending_scale_request")
                .is_none()
        })
        .await;
}
