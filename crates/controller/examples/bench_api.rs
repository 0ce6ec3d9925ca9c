//! How fast the API is on one machine: 10 000 apps made and listed, single writes, 1 000 streams.
//!
//! The controller, its store with fsync, and the clients are in this one process and talk HTTP over
//! loopback, so the clients' share of the processor is in the figures. Ends with status 1 where a write or
//! a list takes longer than it may.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    Endpoint, Trust,
    logs::{LogSource, Message, Query},
    wire::{AppUpdate, NewApp},
};
use daemon::{Keys, Principal, Shutdown};
use futures::{StreamExt, stream::BoxStream};
use types::AppId;

const KEY: &str = "0123456789abcdef";
const APPS: usize = 10_000;
const WRITES: usize = 2_000;
const STREAMS: usize = 1_000;
/// What a user does not notice, for 99 of 100.
const WRITE_MS_MAX: f64 = 10.0;
const LIST_MS_MAX: f64 = 100.0;

struct NoLogs;

#[async_trait::async_trait]
impl LogSource for NoLogs {
    async fn query(&self, _: AppId, _: Query) -> Result<BoxStream<'static, Message>, api::Error> {
        Ok(futures::stream::empty().boxed())
    }

    async fn forget(&self, _: AppId) -> Result<(), api::Error> {
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).expect("the directory to work in");
    let directory = tempfile::tempdir_in(directory).expect("the directory can be written to");
    let secrets = directory.path().join("secrets");
    let tls = daemon::Secrets::open(&secrets, "flynn.localhost")
        .expect("secrets can be made")
        .tls;
    let store = controller::Store::open(store::Options::single(directory.path().join("raft")))
        .await
        .expect("the store opens");
    let config = controller::Config {
        domain: "flynn.localhost".into(),
        http_port: 80,
        https_port: 443,
        keys: Keys::new([(KEY, Principal::User)]),
        internal_key: "internal".into(),
        ca_cert: tls.ca_cert,
        cert: tls.cert,
        cert_key: tls.key,
        system_routes: vec![],
        logs: Arc::new(NoLogs),
        forget: vec![],
        discoverd: None,
        authority: daemon::secrets::Authority::new(&secrets),
        archive: None,
        layers: directory.path().join("layers"),
        stack: None,
        forward: None,
        peers: None,
        membership: None,
    };
    let listener = daemon::server::listen(([127, 0, 0, 1], 0).into())
        .await
        .expect("a port is free");
    let endpoint = Endpoint {
        url: format!("http://{}", listener.local_addr().expect("it is bound")),
        key: KEY.into(),
        trust: Trust::System,
    };
    let shutdown = Shutdown::default();
    tokio::spawn(controller::Controller::new(store.clone(), config).run(listener, shutdown.clone()));
    let client = api::Controller::new(&endpoint).expect("the endpoint is one");

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
        let client = api::Controller::new(&endpoint).expect("the endpoint is one");
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
    shutdown.cancel();
    store.shutdown().await;
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
