//! A transport over TCP, as simple as can be: a connection carries one message at a time.
//!
//! `kind u8, length u32, message` there, `length u32, answer` back; kind 255 is a snapshot, whose
//! header comes first and whose content is a second message.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use store::{MessageKind, OutgoingSnapshot, Peer, Store, Transport, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Table;

const SNAPSHOT: u8 = 255;

pub struct End {
    listener: TcpListener,
    pub address: SocketAddr,
}

pub async fn listen() -> io::Result<End> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok(End { listener, address })
}

impl End {
    pub async fn serve(self, store: Store<Table>) {
        while let Ok((connection, _)) = self.listener.accept().await {
            tokio::spawn(answer(connection, store.clone()));
        }
    }
}

async fn answer(mut connection: TcpStream, store: Store<Table>) -> io::Result<()> {
    connection.set_nodelay(true)?;
    loop {
        let kind = connection.read_u8().await?;
        let message = read_block(&mut connection).await?;
        let answer = match MessageKind::ALL.get(usize::from(kind)) {
            Some(kind) => store.receive(*kind, &message).await,
            None => {
                let content = read_block(&mut connection).await?;
                store.receive_snapshot(&message, content.as_slice()).await
            }
        };
        // A node that cannot answer hangs up.
        write_block(&mut connection, &answer.map_err(io::Error::other)?).await?;
    }
}

async fn read_block(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut block = vec![0; connection.read_u32().await? as usize];
    connection.read_exact(&mut block).await?;
    Ok(block)
}

async fn write_block(connection: &mut TcpStream, block: &[u8]) -> io::Result<()> {
    let framed = [&(block.len() as u32).to_be_bytes(), block].concat();
    connection.write_all(&framed).await
}

/// Idle connections by address.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<BTreeMap<String, Vec<TcpStream>>>>);

impl Connections {
    fn ask(
        &self,
        to: &Peer,
        kind: u8,
        blocks: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let (idle, address) = (self.0.clone(), to.address.clone());
        async move {
            let waiting = idle
                .lock()
                .expect("no panic under this lock")
                .get_mut(&address)
                .and_then(Vec::pop);
            let mut connection = match waiting {
                Some(connection) => connection,
                None => TcpStream::connect(&address).await?,
            };
            connection.set_nodelay(true)?;
            connection.write_u8(kind).await?;
            for block in &blocks {
                write_block(&mut connection, block).await?;
            }
            let answer = read_block(&mut connection).await?;
            idle.lock()
                .expect("no panic under this lock")
                .entry(address)
                .or_default()
                .push(connection);
            Ok(answer)
        }
        .map(|result: io::Result<_>| result.map_err(|problem| TransportError(problem.to_string())))
        .boxed()
    }
}

impl Transport for Connections {
    fn send(
        &self,
        to: &Peer,
        kind: MessageKind,
        message: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let kind = MessageKind::ALL
            .iter()
            .position(|known| *known == kind)
            .expect("all are in ALL");
        self.ask(to, kind as u8, vec![message])
    }

    fn send_snapshot(
        &self,
        to: &Peer,
        snapshot: OutgoingSnapshot,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let mut content = Vec::new();
        match snapshot.file.reader().read_to_end(&mut content) {
            Ok(_) => self.ask(to, SNAPSHOT, vec![snapshot.header, content]),
            Err(problem) => futures::future::ready(Err(TransportError(problem.to_string()))).boxed(),
        }
    }
}
