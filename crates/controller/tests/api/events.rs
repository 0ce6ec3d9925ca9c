//! Event streams: nothing lost and nothing twice, however often a reader comes back.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::world::{World, text};

fn id(event: &Value) -> u64 {
    event["id"].as_u64().unwrap_or_else(|| panic!("no id: {event}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_comes_back_gets_each_event_once() {
    let world = Arc::new(World::start().await);
    let first = world.app("first").await;
    let seen = id(&world
        .event("app", |event| event["object_id"] == first["id"])
        .await);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let world = world.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    world.app(&format!("app-{writer}-{n}")).await;
                }
            })
        })
        .collect();
    // Leaves after every few events, sometimes before the first.
    let mut heard = vec![];
    let mut last = seen;
    for visit in 0.. {
        if heard.len() == 200 {
            break;
        }
        let mut events = world.events("object_types=app", last).await;
        for _ in 0..visit % 7 {
            if heard.len() == 200 {
                break;
            }
            let event = events.next().await.expect("the stream goes on");
            last = id(&event);
            heard.push(text(&event["data"]["name"]).to_owned());
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut expected: Vec<_> = (0..4)
        .flat_map(|w| (0..50).map(move |n| format!("app-{w}-{n}")))
        .collect();
    heard.sort();
    expected.sort();
    assert_eq!(heard, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_hear_the_same() {
    let world = World::start().await;
    let mut readers = vec![];
    for _ in 0..1000 {
        readers.push(world.events("object_types=app", 0).await);
    }
    let (one, two) = (world.app("one").await, world.app("two").await);
    for reader in &mut readers {
        let heard = [reader.next().await.unwrap(), reader.next().await.unwrap()];
        assert_eq!(
            heard.map(|event| event["object_id"].clone()),
            [one["id"].clone(), two["id"].clone()]
        );
    }
    drop(readers);
    assert_eq!(world.get("/apps").await.json().as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_falls_behind_what_is_kept_is_told_so_and_cut_off() {
    let world = World::start().await;
    let app = world.app("shop").await;
    // Large events fill the buffers of the connection, so that the reader's place is the server's.
    let artifact = world.release("shop", "one").await["artifacts"].clone();
    let mut slow = world.events("object_types=release", 0).await;
    for _ in 0..40 {
        let env = json!({ "BIG": "x".repeat(500_000) });
        world
            .made(
                "/releases",
                json!({ "app_id": app["id"], "artifacts": artifact, "env": env }),
            )
            .await;
    }
    let client = world.client();
    let write = async |n: usize| {
        let meta = [("n".to_owned(), n.to_string())].into();
        let update = api::wire::AppUpdate {
            meta: Some(meta),
            ..Default::default()
        };
        client.update_app("shop", &update).await.unwrap();
    };
    for n in 0..=state::EVENTS_MAX {
        write(n).await;
    }
    let mut heard = 0;
    let error = loop {
        let event = slow.next().await.expect("the stream says why it ends");
        match event.get("error") {
            Some(error) => break text(error).to_owned(),
            None => heard += 1,
        }
    };
    assert!(error.starts_with("events were missed"), "{error}");
    assert!(heard < 40, "{heard} events of 500 kB were kept for one reader");
    assert!(slow.next().await.is_none());
    // Who comes back with that place is told the same at once.
    let mut again = world.events("object_types=release", 1).await;
    assert!(again.next().await.unwrap().get("error").is_some());
}

#[tokio::test]
async fn who_missed_the_end_of_an_app_hears_of_it_when_coming_back() {
    let world = World::start().await;
    let app = world.app("shop").await;
    let app_id = text(&app["id"]);
    let seen = id(&world.event("app", |_| true).await);
    world.delete("/apps/shop").await;
    world.event("app_deletion", |_| true).await;
    let mut back = world
        .events(&format!("app_id={app_id}&object_types=app_deletion"), seen)
        .await;
    assert_eq!(back.next().await.unwrap()["object_id"], app["id"]);
    let unknown = crate::world::new_id();
    assert_eq!(world.get(&format!("/events?app_id={unknown}")).await.status, 404);
}

#[tokio::test]
async fn lists_are_the_newest_first_within_what_was_asked_for() {
    let world = World::start().await;
    for name in ["a", "b", "c"] {
        world.app(name).await;
    }
    let list = async |query: &str| {
        let headers = [("Accept", "application/json")];
        let answer = world
            .call("GET", &format!("/events?{query}"), &headers, None)
            .await;
        let list = answer.json();
        list.as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    // Each app is an event of its own and one of its route.
    assert_eq!(list("").await, [6, 5, 4, 3, 2, 1]);
    assert_eq!(list("count=2&object_types=app").await, [5, 3]);
    assert_eq!(list("before_id=3").await, [2, 1]);
    assert_eq!(list("since_id=4").await, [6, 5]);
    for (query, field) in [
        ("before_id=abc", "before_id"),
        ("count=-1", "count"),
        ("object_types=x", "object_types"),
    ] {
        let answer = world.get(&format!("/events?{query}")).await;
        assert_eq!(
            (answer.status, &answer.json()["detail"]["field"]),
            (400, &json!(field))
        );
    }
    let mut past = world.events("past=true&count=2&object_types=app", 0).await;
    assert_eq!(
        [id(&past.next().await.unwrap()), id(&past.next().await.unwrap())],
        [3, 5]
    );
    assert_eq!(world.get("/events/5").await.json()["data"]["name"], "c");
    for path in ["/events/0", "/events/99", "/events/abc"] {
        assert_eq!(world.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn formations_are_followed_from_a_mark_on() {
    let world = World::start().await;
    world.app("shop").await;
    let release = world.release("shop", "one").await;
    world.deploy("shop", &release).await;
    let path = format!("/apps/shop/formations/{}", text(&release["id"]));
    world.put(&path, json!({ "processes": { "web": 0 } })).await;
    let mut stream = world.stream("/formations?since=2020-01-01T00:00:00Z").await;
    let first = stream.next().await.unwrap();
    assert_eq!(
        (&first["release"]["id"], &first["app"]["name"]),
        (&release["id"], &json!("shop"))
    );
    let mark = stream.next().await.unwrap();
    assert_eq!(mark, json!({ "updated_at": "0001-01-01T00:00:00Z" }));
    world.put(&path, json!({ "processes": { "web": 2 } })).await;
    assert_eq!(stream.next().await.unwrap()["processes"], json!({ "web": 2 }));
    world.delete(&path).await;
    let gone = stream.next().await.unwrap();
    assert_eq!((&gone["deleted"], gone.get("processes")), (&json!(true), None));
    let neither = world.get("/formations").await;
    assert_eq!(
        neither.json()["message"],
        "must either request a stream or only active formations"
    );
}
