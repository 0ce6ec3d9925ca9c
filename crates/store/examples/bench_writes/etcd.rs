//! etcd as its own processes on loopback, and just enough of its gRPC to write to it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

use crate::Client;

/// So many clients share a connection.
const CLIENTS_PER_CONNECTION: usize = 16;

/// Running members; they end with this value.
pub struct Cluster {
    members: Vec<Child>,
    leader: SocketAddr,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

impl Cluster {
    pub async fn start(directory: &Path, nodes: usize) -> io::Result<Self> {
        let mut addresses = Vec::new();
        for _ in 0..nodes {
            addresses.push((free_address()?, free_address()?));
        }
        let peers: Vec<String> = addresses
            .iter()
            .enumerate()
            .map(|(number, (_, peer))| format!("m{number}=http://{peer}"))
            .collect();
        let mut cluster = Self {
            members: Vec::new(),
            leader: addresses[0].0,
        };
        for (number, (client, peer)) in addresses.iter().enumerate() {
            let name = format!("m{number}");
            let member = Command::new("etcd")
                .args([
                    "--name",
                    &name,
                    "--log-level",
                    "error",
                    "--initial-cluster",
                    &peers.join(","),
                ])
                .arg("--data-dir")
                .arg(directory.join(&name))
                .args(["--listen-client-urls", &format!("http://{client}")])
                .args(["--advertise-client-urls", &format!("http://{client}")])
                .args(["--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            cluster.members.push(member);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            for (client, _) in &addresses {
                if is_leader(*client).await.unwrap_or(false) {
                    cluster.leader = *client;
                    return Ok(cluster);
                }
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("it has no leader after 30 s"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn clients(&self, count: usize) -> io::Result<Vec<Etcd>> {
        let mut clients = Vec::new();
        while clients.len() < count {
            let connection = connect(self.leader).await?;
            let share = CLIENTS_PER_CONNECTION.min(count - clients.len());
            clients.extend((0..share).map(|_| Etcd(connection.clone())));
        }
        Ok(clients)
    }
}

pub struct Etcd(SendRequest<Bytes>);

impl Client for Etcd {
    async fn write(&mut self, key: String, value: String) {
        let mut message = Vec::new();
        put_field(&mut message, 1, key.as_bytes());
        put_field(&mut message, 2, value.as_bytes());
        call(&mut self.0, "/etcdserverpb.KV/Put", &message)
            .await
            .expect("etcd acknowledges the write");
    }
}

async fn connect(address: SocketAddr) -> io::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(client)
}

/// One unary gRPC call: a flag byte, the length and the message, both ways.
async fn call(connection: &mut SendRequest<Bytes>, path: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut client = connection.clone().ready().await.map_err(io::Error::other)?;
    let request = Request::post(format!("http://etcd{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("the request is well formed");
    let (response, mut body) = client.send_request(request, false).map_err(io::Error::other)?;
    let framed = [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat();
    body.send_data(framed.into(), true).map_err(io::Error::other)?;
    let mut answer = response.await.map_err(io::Error::other)?.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.map_err(io::Error::other)?;
        answer
            .flow_control()
            .release_capacity(chunk.len())
            .map_err(io::Error::other)?;
        bytes.extend_from_slice(&chunk);
    }
    let trailers = answer
        .trailers()
        .await
        .map_err(io::Error::other)?
        .unwrap_or_default();
    match trailers.get("grpc-status").map(|status| status.as_bytes()) {
        Some(b"0") if bytes.len() >= 5 => Ok(bytes.split_off(5)),
        _ => Err(io::Error::other(format!("etcd refuses: {trailers:?}"))),
    }
}

/// Asks a member for its status: whether the leader it names is itself.
async fn is_leader(address: SocketAddr) -> io::Result<bool> {
    let mut connection = connect(address).await?;
    let status = call(&mut connection, "/etcdserverpb.Maintenance/Status", b"").await?;
    let header = fields(&status)
        .into_iter()
        .find_map(|(number, value)| match value {
            Value::Bytes(bytes) if number == 1 => Some(bytes),
            _ => None,
        });
    let number = |message: &[u8], wanted: u64| {
        fields(message)
            .into_iter()
            .find_map(|(number, value)| match value {
                Value::Number(value) if number == wanted => Some(value),
                _ => None,
            })
    };
    let member = number(&header.unwrap_or_default(), 2);
    Ok(member.is_some() && member == number(&status, 4))
}

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a protobuf message that has only numbers and bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, Value)> {
    let mut fields = Vec::new();
    while message.has_remaining() {
        let tag = varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)),
            _ => {
                let length = (varint(&mut message) as usize).min(message.len());
                Value::Bytes(message.copy_to_bytes(length).to_vec())
            }
        };
        fields.push((tag >> 3, value));
    }
    fields
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !message.has_remaining() {
            break;
        }
        let byte = message.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn put_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend(bytes);
}
