//! The feed from a controller, over HTTP.

mod common;

use common::*;
use router::ControllerFeed;
use routing::feed::{Acknowledgement, Route, Snapshot, Update};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

/// A controller's two paths: sends each connection a snapshot, then what the test says.
#[tokio::test]
async fn a_router_follows_its_controller_and_answers_it_across_a_lost_connection() {
    let (acknowledged, mut acknowledgements) = mpsc::channel::<(u64, Acknowledgement)>(64);
    let (cut, is_cut) = watch::channel(0);
    let addr = saying("hi").await;
    let next = Snapshot {
        routes: vec![Route::Http(route("shop.test", "/", "s"))],
        services: vec![service("s", &[addr])],
        ..Snapshot::default()
    };
    let streams = Arc::new(Mutex::new(0));
    let controller = backend(move |mut stream| {
        let (acknowledged, mut is_cut, next, streams) = (
            acknowledged.clone(),
            is_cut.clone(),
            next.clone(),
            streams.clone(),
        );
        async move {
            while let Some(request) = read_message(&mut stream, false).await {
                assert_eq!(request.header("authorization"), Some("Basic OnRoZS1rZXk="));
                if request.head.starts_with("POST /internal/routers/r1 ") {
                    let connection = *streams.lock().unwrap();
                    let answer = serde_json::from_slice(&request.body).unwrap();
                    acknowledged.send((connection, answer)).await.unwrap();
                    stream
                        .get_mut()
                        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                        .await
                        .unwrap();
                    continue;
                }
                assert!(
                    request.head.starts_with("GET /internal/routing "),
                    "{}",
                    request.head
                );
                let generation = {
                    let mut streams = streams.lock().unwrap();
                    *streams += 1;
                    // The third time there is nothing new.
                    (*streams).min(2) * 10
                };
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: welcome\n\n";
                stream.get_mut().write_all(head).await.unwrap();
                let update = Update::Snapshot(Snapshot {
                    generation,
                    ..next.clone()
                });
                let event = format!(
                    "id: {generation}\ndata: {}\n\n",
                    serde_json::to_string(&update).unwrap()
                );
                stream.get_mut().write_all(event.as_bytes()).await.unwrap();
                let set = Update::RemoveRoute {
                    generation: generation + 1,
                    id: "no such".into(),
                };
                let event = format!("data: {}\n\n", serde_json::to_string(&set).unwrap());
                stream.get_mut().write_all(event.as_bytes()).await.unwrap();
                // Hangs up when the test says so.
                let before = *is_cut.borrow_and_update();
                is_cut.wait_for(|now| *now > before).await.unwrap();
                return;
            }
        }
    })
    .await;
    let feed = ControllerFeed {
        controller,
        key: "the-key".into(),
        router_id: "r1".into(),
    };
    let running = router::start(config(), Box::new(feed)).unwrap();
    let mut wait_for = async |connection, generation| {
        let waiting = async {
            loop {
                let (on, answer) = acknowledgements.recv().await.unwrap();
                if on == connection && answer.generation == generation {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("acknowledged");
    };
    wait_for(1, 11).await;
    let mut client = Client::connect(running.http[0]).await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "hi");
    cut.send(1).unwrap();
    wait_for(2, 21).await;
    client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(client.answer().await.text(), "hi");
    // A controller that has nothing new may have lost what it was told.
    cut.send(2).unwrap();
    wait_for(3, 21).await;
    running.stop().await.unwrap();
}
