//! Limits, many at once, and what is removed when.

use std::time::Duration;

use http::Method;
use serde_json::json;

use super::world::World;
use crate::{gc, name::BlobDigest};

#[tokio::test]
async fn a_layer_that_is_too_long_is_refused_on_the_way() {
    let world = World::with(1000, 0).await;
    let begun = world.send(Method::POST, "/v2/shop/blobs/uploads/", &[], "").await;
    let answer = world
        .send(Method::PATCH, begun.header("location"), &[], vec![1; 2000])
        .await;
    assert!(answer.refused(413, "SIZE_INVALID").contains("1000 bytes"));
}

#[tokio::test]
async fn a_full_disk_refuses_pushes_and_nothing_else() {
    let mut world = World::new().await;
    let digest = world.push_blob("shop", b"x").await;
    let manifest = world.artifact("shop/x", "y").await;
    let url = world.registry.controller.client().url().to_owned();
    world.reopen(url, u64::MAX);
    let answer = world.send(Method::POST, "/v2/shop/blobs/uploads/", &[], "").await;
    assert!(
        answer
            .refused(507, "DENIED")
            .contains("nothing that runs is affected")
    );
    world
        .push_manifest("shop/x", "v1", &manifest)
        .await
        .0
        .refused(507, "DENIED");
    assert_eq!(world.get(&format!("/v2/shop/blobs/{digest}")).await.text(), "x");
}

#[tokio::test]
async fn one_upload_takes_one_writer_at_a_time() {
    let world = World::new().await;
    let begun = world.send(Method::POST, "/v2/shop/blobs/uploads/", &[], "").await;
    let place = begun.header("location").to_owned();
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let slow = axum::body::Body::from_stream(futures::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    }));
    let first = world.send(Method::PATCH, &place, &[], slow);
    let second = async {
        sender.send(Ok("first".into())).await.unwrap();
        // Taken from the queue, so the first request has begun.
        sender.send(Ok(" piece".into())).await.unwrap();
        world
            .send(Method::PATCH, &place, &[], "second")
            .await
            .refused(416, "BLOB_UPLOAD_INVALID");
        // And a connection that breaks keeps what it brought.
        sender.send(Err(std::io::Error::other("gone"))).await.unwrap();
        drop(sender);
    };
    let (first, ()) = tokio::join!(first, second);
    first.refused(400, "BLOB_UPLOAD_INVALID");
    assert_eq!(world.get(&place).await.header("range"), "0-10");
    let digest = BlobDigest::of(b"first piece");
    let answer = world
        .send(Method::PUT, &format!("{place}?digest={digest}"), &[], "")
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[tokio::test]
async fn eight_at_once_push_the_same_and_their_own() {
    let world = World::new().await;
    let pushes = (0..8).map(|index| {
        let world = &world;
        async move {
            let name = if index % 2 == 0 { "shop/x" } else { "blog/x" };
            let shared = vec![7; 300_000];
            world.push_blob(name, &shared).await;
            let manifest = world.artifact(name, &format!("own {index}")).await;
            let (answer, digest) = world.push_manifest(name, &format!("t{index}"), &manifest).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
            (name, index, digest)
        }
    });
    for (name, index, digest) in futures::future::join_all(pushes).await {
        let answer = world.get(&format!("/v2/{name}/manifests/t{index}")).await;
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    }
    assert!(world.files("registry/uploads").is_empty());
}

#[tokio::test]
async fn only_what_nobody_needs_is_removed() {
    let world = World::new().await;
    let mut digests = vec![];
    for (index, tag) in ["kept", "replaced", "released"].into_iter().enumerate() {
        let manifest = world.artifact("shop/x", &format!("content {index}")).await;
        digests.push(world.push_manifest("shop/x", tag, &manifest).await.1);
    }
    let mut referrer = world.artifact("shop/x", "about the kept one").await;
    referrer["subject"] = json!({"digest": digests[0], "size": 1, "mediaType": "x"});
    let (_, referrer) = world.push_manifest("shop/x", "of-kept", &referrer).await;
    let lone = world.push_blob("shop/x", b"of no manifest").await;
    for tag in ["replaced", "released", "of-kept"] {
        world.delete(&format!("/v2/shop/x/manifests/{tag}")).await;
    }
    let release = json!({
        "id": types::Uuid::new_v4(), "app_id": super::world::app_id("shop"), "created_at": "2026-01-01T00:00:00Z",
        "meta": {"docker.digest": digests[2]},
    });
    world.told.releases.lock().unwrap().push(release);
    let is_there =
        async |digest: &BlobDigest| world.head(&format!("/v2/shop/x/manifests/{digest}")).await.status == 200;
    // All of it is young.
    gc::collect(&world.registry, Duration::from_secs(60))
        .await
        .unwrap();
    assert!(is_there(&digests[1]).await && world.registry.store.size(&lone).is_some());
    let freed = gc::collect(&world.registry, Duration::ZERO).await.unwrap();
    assert!(freed > 0);
    assert!(is_there(&digests[0]).await && is_there(&digests[2]).await && is_there(&referrer).await);
    assert!(!is_there(&digests[1]).await);
    assert_eq!(world.registry.store.size(&lone), None);
    assert_eq!(world.registry.store.size(&digests[1]), None);
    assert_eq!(world.registry.store.size(&BlobDigest::of(b"content 1")), None);
    assert!(world.registry.store.size(&BlobDigest::of(b"content 2")).is_some());
    // Again there is nothing to do.
    assert_eq!(gc::collect(&world.registry, Duration::ZERO).await.unwrap(), 0);
}

#[tokio::test]
async fn images_go_with_their_app() {
    let world = World::new().await;
    world.push_blob("shop", b"of the shop").await;
    world.push_blob("blog", b"of the blog").await;
    world.told.apps.lock().unwrap().remove("shop");
    gc::collect(&world.registry, Duration::ZERO).await.unwrap();
    assert_eq!(world.registry.store.size(&BlobDigest::of(b"of the shop")), None);
    // Named by no manifest, so it is not kept either; with a grace it would be.
    assert_eq!(world.files("registry/repositories").len(), 1);
}

#[tokio::test]
async fn uploads_that_were_given_up_go() {
    let world = World::new().await;
    let begun = world.send(Method::POST, "/v2/shop/blobs/uploads/", &[], "").await;
    world.registry.uploads.sweep(Duration::from_secs(60)).unwrap();
    assert_eq!(world.get(begun.header("location")).await.status, 204);
    world.registry.uploads.sweep(Duration::ZERO).unwrap();
    world
        .get(begun.header("location"))
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
}
