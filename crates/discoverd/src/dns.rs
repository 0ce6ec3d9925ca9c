//! DNS over UDP and TCP. Our own names are answered here; queries for others travel on as they came.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use daemon::Shutdown;
use discovery::{Answer, Question, QuestionKind};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};

use crate::{Shared, forward::Resolvers};

/// Seconds that an answer may be kept: jobs come and go.
const TTL_S: u32 = 1;
/// Questions in progress; more are dropped, and their askers ask again.
const IN_PROGRESS_MAX: usize = 1024;
/// A TCP connection without a question is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);

pub struct Names {
    shared: Arc<Shared>,
    domain: String,
    router: IpAddr,
    turn: AtomicUsize,
    resolvers: Resolvers,
    in_progress: Arc<Semaphore>,
}

impl Names {
    pub fn new(shared: Arc<Shared>, domain: String, router: IpAddr) -> Self {
        Names {
            shared,
            domain,
            router,
            turn: AtomicUsize::new(0),
            resolvers: Resolvers::default(),
            in_progress: Arc::new(Semaphore::new(IN_PROGRESS_MAX)),
        }
    }

    /// The whole answer to a whole query; `None` for what is no query.
    async fn respond(&self, query: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
        let message = Message::from_vec(query).ok()?;
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let refuse = |code| response(&message, code, vec![]);
        if message.metadata.op_code != OpCode::Query || message.queries.len() != 1 {
            return refuse(ResponseCode::NotImp);
        }
        let asked = &message.queries[0];
        let kind = match asked.query_type() {
            RecordType::A => QuestionKind::A,
            RecordType::AAAA => QuestionKind::Aaaa,
            RecordType::SRV => QuestionKind::Srv,
            _ => QuestionKind::Other,
        };
        let question = Question {
            name: discovery::reads_as(&asked.name().to_ascii()),
            kind,
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let found = self
            .shared
            .read(|registry| discovery::answer(registry, &question, &self.domain, self.router, turn));
        let records = match found {
            Answer::Forward => {
                return match self.resolvers.ask(query, is_tcp).await {
                    Some(answer) => Some(answer),
                    None => refuse(ResponseCode::ServFail),
                };
            }
            Answer::NoSuchName => return refuse(ResponseCode::NXDomain),
            Answer::Addresses(list) => {
                let record = |address| Record::from_rdata(asked.name().clone(), TTL_S, address_data(address));
                list.into_iter().map(record).collect()
            }
            Answer::Services(list) => list
                .into_iter()
                .filter_map(|(port, target, _)| {
                    let target = Name::from_ascii(format!("{target}.")).ok()?;
                    Some(Record::from_rdata(
                        asked.name().clone(),
                        TTL_S,
                        RData::SRV(SRV::new(1, 1, port, target)),
                    ))
                })
                .collect(),
        };
        response(&message, ResponseCode::NoError, records)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn response(query: &Message, code: ResponseCode, answers: Vec<Record>) -> Option<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(answers);
    message.to_vec().ok()
}

pub async fn serve_udp(socket: Arc<UdpSocket>, names: Arc<Names>, shutdown: Shutdown) {
    let mut buffer = vec![0; 4096];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = shutdown.cancelled() => return,
        };
        // An error is an ICMP message about an earlier answer; the socket goes on.
        let Ok((length, peer)) = received else { continue };
        let Ok(permit) = names.in_progress.clone().try_acquire_owned() else {
            continue;
        };
        let (query, names, socket) = (buffer[..length].to_vec(), names.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = names.respond(&query, false).await {
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(permit);
        });
    }
}

pub async fn serve_tcp(listener: TcpListener, names: Arc<Names>, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(permit) = names.in_progress.clone().try_acquire_owned() else {
                    continue;
                };
                let names = names.clone();
                tokio::spawn(async move {
                    let _ = converse(stream, &names).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, names: &Names) -> std::io::Result<()> {
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = names.respond(&query, true).await else {
            return Ok(());
        };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        stream.write_all(&framed).await?;
    }
}
