//! How fast the API is on one machine: 10 000 apps made and listed, single writes, 1 000 streams.
//!
//! The controller, its store with fsync, and the clients are in this one process and talk HTTP over
//! loopback, so the clients' share of the processor is in the figures. Ends with status 1 where a write or
//! a list takes longer than it may.

use std::time::{Duration, Instant};

use api::wire::{AppUpdate, NewApp};
use futures::StreamExt;

mod shared;

const APPS: usize = 10_000;
const WRITES: usize = 2_000;
const STREAMS: usize = 1_000;
/// What a user does not notice, for 99 of 100.
const WRITE_MS_MAX: f64 = 10.0;
const LIST_MS_MAX: f64 = 100.0;

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).expect("the directory to work in");
    let directory = tempfile::tempdir_in(directory).expect("the directory can be written to");
    let serving = shared::Serving::start(directory.path()).await;
    let client = shared::client(serving.address, false);

    let on_empty = print("writes on an empty cluster", &mut writes(&client, "empty").await);
    let start = Instant::now();
    let made: Vec<_> = (0..8)
        .map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in (writer..APPS).step_by(8) {
                    let new = NewApp {
                        name: format!("app-{n}"),
                        ..Default::default()
                    };
                    client.create_app(&new).await.expect("an app is made");
                }
            })
        })
        .collect();
    for task in made {
        task.await.expect("no panic");
    }
    println!(
        "{APPS} apps made by 8 clients in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let mut lists = vec![];
    for _ in 0..20 {
        let start = Instant::now();
        let apps = client.client().text("/apps").await.expect("apps are listed");
        lists.push(start.elapsed());
        assert!(apps.len() > APPS * 100);
    }
    let listed = print(&format!("lists of {APPS} apps"), &mut lists);
    let beside = print(
        &format!("writes beside {APPS} apps"),
        &mut writes(&client, "app-1").await,
    );

    let mut streams = vec![];
    for _ in 0..STREAMS {
        let client = shared::client(serving.address, false);
        streams.push(
            client
                .events(None, &["app"], None)
                .await
                .expect("events are followed"),
        );
    }
    let start = Instant::now();
    let heard: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                let event = stream.next().await.expect("the stream goes on");
                event.expect("it is an event");
                (start.elapsed(), stream)
            })
        })
        .collect();
    let begun = Instant::now();
    write(&client, "app-1", 0).await;
    let mut delays = vec![];
    let mut open = vec![];
    for task in heard {
        let (after, stream) = task.await.expect("no panic");
        delays.push(after.saturating_sub(begun - start));
        open.push(stream);
    }
    print(&format!("one event heard by {STREAMS} streams"), &mut delays);
    let readers: Vec<_> = open
        .into_iter()
        .map(|mut stream| tokio::spawn(async move { while stream.next().await.is_some() {} }))
        .collect();
    print(
        &format!("writes with {STREAMS} streams that hear of each"),
        &mut writes(&client, "app-1").await,
    );
    readers.iter().for_each(|reader| reader.abort());
    serving.stop().await;
    let budgets = [
        ("a write on an empty cluster", on_empty, WRITE_MS_MAX),
        ("a write beside all apps", beside, WRITE_MS_MAX),
        ("a list of all apps", listed, LIST_MS_MAX),
    ];
    let over: Vec<_> = budgets.iter().filter(|(_, took, most)| took > most).collect();
    for (what, took, most) in &over {
        eprintln!("{what} takes {took:.1} ms and may take {most} ms (p99)");
    }
    std::process::exit(i32::from(!over.is_empty()));
}

async fn write(client: &api::Controller, app: &str, n: usize) {
    let meta = [("n".to_owned(), n.to_string())].into();
    let update = AppUpdate {
        meta: Some(meta),
        ..Default::default()
    };
    client.update_app(app, &update).await.expect("an app is changed");
}

/// One after the other, as a person or a script would.
async fn writes(client: &api::Controller, app: &str) -> Vec<Duration> {
    let new = NewApp {
        name: app.to_owned(),
        ..Default::default()
    };
    let _ = client.create_app(&new).await;
    let mut times = vec![];
    for n in 0..WRITES {
        let start = Instant::now();
        write(client, app, n).await;
        times.push(start.elapsed());
    }
    times
}

/// Gives the p99 in milliseconds.
fn print(what: &str, times: &mut [Duration]) -> f64 {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    at(0.99)
}
