//! Volumes over the host's API, as the controller asks for them.

use api::host::HostVolume;
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use types::{Timestamp, Uuid, VolumeId, VolumeReport, VolumeState};

use crate::{
    life::{KEY, Life, PATIENCE, until},
    machine::Fuse,
    sim::World,
};

/// A stream of events, and what was heard of it so far.
struct Listener {
    connection: TcpStream,
    heard: String,
}

impl Listener {
    async fn open(life: &Life, path: &str) -> Listener {
        let address = life.url.strip_prefix("http://").unwrap();
        let mut connection = TcpStream::connect(address).await.unwrap();
        let key = BASE64_STANDARD.encode(format!(":{KEY}"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: host\r\nAuthorization: Basic {key}\r\nAccept: text/event-stream\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut listener = Listener {
            connection,
            heard: String::new(),
        };
        listener.until("\r\n\r\n").await;
        listener
    }

    async fn until(&mut self, words: &str) {
        let wait = async {
            let mut bytes = vec![0; 4096];
            while !self.heard.contains(words) {
                let length = self.connection.read(&mut bytes).await.unwrap();
                assert!(length > 0, "the stream ended: {}", self.heard);
                self.heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        };
        let came = tokio::time::timeout(PATIENCE, wait).await;
        assert!(came.is_ok(), "no {words}: {}", self.heard);
    }
}

#[tokio::test]
async fn a_volume_is_made_and_removed_as_asked_and_listeners_hear_of_both() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let mut listener = Listener::open(&life, "/storage/volumes").await;
    assert!(
        listener.heard.contains("text/event-stream; charset=utf-8"),
        "{}",
        listener.heard
    );
    let id = VolumeId(Uuid::from_u128(7));
    let wanted = |state| HostVolume {
        id,
        state,
        meta: [(HostVolume::PATH.to_owned(), "/data".to_owned())].into(),
        created_at: Timestamp::EPOCH,
    };
    for (state, report, event) in [
        (VolumeState::Pending, VolumeReport::Created, "create"),
        (VolumeState::Destroyed, VolumeReport::Removed, "destroy"),
    ] {
        world.controller.ask_for(wanted(state));
        until("the controller knows", || {
            world.controller.state().volumes.contains(&(id, report))
        })
        .await;
        listener.until(&format!("\"{event}\"")).await;
    }
    let data: Vec<_> = listener
        .heard
        .lines()
        .filter(|line| line.starts_with("data: "))
        .collect();
    assert_eq!(data.len(), 2, "{data:?}");
    assert!(data.iter().all(|line| line.contains(&id.to_string())), "{data:?}");
}
