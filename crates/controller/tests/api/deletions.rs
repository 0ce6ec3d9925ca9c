//! Releases: deleted one by one, or collected, with the events that tell it.

use serde_json::{Value, json};

use crate::world::{World, text};

async fn releases(world: &World) -> Vec<Value> {
    let list = world.get("/apps/shop/releases").await.json();
    list.as_array()
        .unwrap()
        .iter()
        .map(|release| release["id"].clone())
        .collect()
}

#[tokio::test]
async fn a_release_is_deleted_with_the_files_that_only_it_had() {
    let world = World::start().await;
    world.app("shop").await;
    let (old, new) = (
        world.release("shop", "one").await,
        world.release("shop", "two").await,
    );
    world.deploy("shop", &old).await;
    world.deploy("shop", &new).await;
    let path = |release: &Value| format!("/apps/shop/releases/{}", text(&release["id"]));
    let refused = world.delete(&path(&new)).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["message"], "cannot delete current app release");
    let deleted = world.delete(&path(&old)).await;
    assert_eq!((deleted.status, deleted.body.len()), (200, 0));
    let event = world.event("release_deletion", |_| true).await;
    assert_eq!(event["object_id"], old["id"]);
    assert_eq!(
        event["data"],
        json!({
            "release_deletion": {
                "app": old["app_id"], "release": old["id"], "remaining_apps": [],
                "deleted_files": ["flynn://slug/one", "flynn://layer/one"],
            },
            "error": "",
        })
    );
    assert_eq!(world.get(&path(&old)).await.status, 404);
    assert_eq!(world.delete(&path(&old)).await.status, 404);
    let artifact = format!("/artifacts/{}", text(&old["artifacts"][0]));
    assert_eq!(world.get(&artifact).await.status, 404);
}

#[tokio::test]
async fn a_release_whose_jobs_still_end_is_gone_for_users() {
    let world = World::start().await;
    world.host(|_| false);
    let old = world.running_app("shop").await;
    let new = world.release("shop", "two").await;
    assert_eq!(
        world
            .put("/apps/shop/release", json!({ "id": new["id"] }))
            .await
            .status,
        200
    );
    let path = format!("/apps/shop/releases/{}", text(&old["id"]));
    assert_eq!(world.delete(&path).await.status, 200);
    let event = world.event("release_deletion", |_| true).await;
    assert_eq!(event["object_id"], old["id"]);
    assert_eq!(world.delete(&path).await.status, 404);
    assert_eq!(world.get(&path).await.status, 404);
    assert_eq!(releases(&world).await, [new["id"].clone()]);
    let scaled = world
        .put(
            &format!("/apps/shop/scale/{}", text(&old["id"])),
            json!({ "new_processes": { "web": 1 } }),
        )
        .await;
    assert_eq!(scaled.status, 400, "{}", scaled.text());
    // Its image stays for as long as its job does.
    let artifact = format!("/artifacts/{}", text(&old["artifacts"][0]));
    assert_eq!(world.get(&artifact).await.status, 200);
    world
        .wait_for("the image to go with the job", async || {
            world.get(&artifact).await.status == 404
        })
        .await;
    let jobs = world.get("/apps/shop/jobs").await.json();
    assert!(jobs.as_array().unwrap().iter().all(|job| job["state"] == "down"));
}

#[tokio::test]
async fn a_collection_keeps_as_many_images_as_the_app_says_and_tells_what_it_deleted() {
    let world = World::start().await;
    world.app("shop").await;
    let mut made = vec![];
    for image in ["one", "two", "three", "four"] {
        made.push(world.release("shop", image).await["id"].clone());
    }
    world.deploy("shop", &json!({ "id": made[3] })).await;
    let meta = json!({ "meta": { "gc.max_inactive_slug_releases": "2" } });
    world.made("/apps/shop", meta).await;
    let answer = world.call("POST", "/apps/shop/gc", &[], None).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let event = world.event("app_garbage_collection", |_| true).await;
    assert_eq!(
        event["data"]["app_garbage_collection"]["deleted_releases"],
        json!([made[0]])
    );
    assert_eq!(
        releases(&world).await,
        [made[3].clone(), made[2].clone(), made[1].clone()]
    );
    // A deployment is followed by a collection of its own.
    let meta = json!({ "meta": { "gc.max_inactive_slug_releases": "1" } });
    world.made("/apps/shop", meta).await;
    world.deploy("shop", &json!({ "id": made[2] })).await;
    assert_eq!(releases(&world).await, [made[3].clone(), made[2].clone()]);
    assert_eq!(world.post("/apps/nosuch/gc", json!({})).await.status, 404);
}

#[tokio::test]
async fn layers_of_what_is_kept_are_named_to_the_hosts() {
    let world = World::start().await;
    world.app("shop").await;
    let old = world.release("shop", "one").await;
    let new = world.release("shop", "two").await;
    world.deploy("shop", &new).await;
    let layers = async || world.internal().layers_in_use().await.unwrap();
    assert_eq!(layers().await, ["one", "two"]);
    let path = format!("/apps/shop/releases/{}", text(&old["id"]));
    world.delete(&path).await;
    assert_eq!(layers().await, ["two"]);
}
