//! A DNS query in, what to do about it out. Pure: sockets and resolvers are `dns`'s.

use std::net::IpAddr;

use discovery::{Answer, Question, QuestionKind};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};

/// Seconds that an answer may be kept: jobs come and go.
const TTL_S: u32 = 1;
/// Largest datagram that is offered to those who ask: it crosses any network in one piece.
pub(crate) const DATAGRAM_BYTES_MAX: u16 = 1232;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Answer(Vec<u8>),
    /// Not our name: for the machine's own resolvers, with what to say if none of them answers.
    Forward {
        otherwise: Vec<u8>,
    },
    /// To what is no query, an answer would only be noise, or start a loop of answers.
    Silence,
}

/// What to do about a whole query. `find` looks a name up; nothing else here can be slow or fail, so
/// that a lock around the registry need not be held for longer.
pub fn reply(query: &[u8], transport: Transport, find: impl FnOnce(&Question) -> Answer) -> Reply {
    decide(query, transport, find).unwrap_or(Reply::Silence)
}

fn decide(query: &[u8], transport: Transport, find: impl FnOnce(&Question) -> Answer) -> Option<Reply> {
    let message = Message::from_vec(query).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let respond = |code, records| Some(Reply::Answer(response(&message, transport, code, records)?));
    if message.metadata.op_code != OpCode::Query || message.queries.len() != 1 {
        return respond(ResponseCode::NotImp, vec![]);
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
    let record = |data| Record::from_rdata(asked.name().clone(), TTL_S, data);
    match find(&question) {
        Answer::Forward => {
            let otherwise = response(&message, transport, ResponseCode::ServFail, vec![])?;
            Some(Reply::Forward { otherwise })
        }
        Answer::NoSuchName => respond(ResponseCode::NXDomain, vec![]),
        Answer::Addresses(list) => {
            let records = list
                .into_iter()
                .map(|address| record(address_data(address)))
                .collect();
            respond(ResponseCode::NoError, records)
        }
        Answer::Services(list) => {
            let targets = list.into_iter().filter_map(|(port, target, _)| {
                let target = Name::from_ascii(format!("{target}.")).ok()?;
                Some(record(RData::SRV(SRV::new(1, 1, port, target))))
            });
            respond(ResponseCode::NoError, targets.collect())
        }
    }
}

pub(crate) fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn response(
    query: &Message,
    transport: Transport,
    code: ResponseCode,
    answers: Vec<Record>,
) -> Option<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(answers);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().ok()?;
    if transport == Transport::Udp && bytes.len() > usize::from(query.max_payload()) {
        // Without the answers: whoever asked comes back over TCP.
        return message.truncate().to_vec().ok();
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use discovery::{Registry, Service};
    use hickory_proto::op::Query;
    use types::Instance;

    use super::*;

    fn ask(name: &str, kind: RecordType, transport: Transport, offered_bytes: Option<u16>) -> Message {
        let instance = |n: u8| Instance {
            id: format!("{}-{n}", "i".repeat(60)),
            addr: format!("100.100.0.{n}:8080"),
            proto: "tcp".into(),
            meta: BTreeMap::new(),
            index: u64::from(n),
        };
        let mut registry = Registry::default();
        let instances = (2..7).map(instance).collect();
        let name_of_service = format!("{}.{}", "s".repeat(60), "t".repeat(60));
        registry.set_cluster([
            (
                "shop-web".to_owned(),
                Service {
                    instances: vec![instance(2)],
                    ..Service::default()
                },
            ),
            (
                name_of_service,
                Service {
                    instances,
                    ..Service::default()
                },
            ),
        ]);
        let router = "100.100.0.1".parse().unwrap();
        let find = |question: &Question| {
            discovery::answer(&registry, question, &["flynn.localhost".to_owned()], router, 0)
        };
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(bytes) = offered_bytes {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes);
            query.set_edns(edns);
        }
        match reply(&query.to_vec().unwrap(), transport, find) {
            Reply::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_too_long_for_a_datagram_says_so_and_comes_over_tcp() {
        let name = format!("{}.{}.discoverd.", "s".repeat(60), "t".repeat(60));
        let over_udp = ask(&name, RecordType::SRV, Transport::Udp, None);
        assert!(over_udp.metadata.truncation && over_udp.answers.is_empty());
        let over_tcp = ask(&name, RecordType::SRV, Transport::Tcp, None);
        assert!(!over_tcp.metadata.truncation && over_tcp.answers.len() == 3);
        let with_room = ask(&name, RecordType::SRV, Transport::Udp, Some(4096));
        assert!(!with_room.metadata.truncation && with_room.answers.len() == 3);
    }

    #[test]
    fn who_asks_with_extensions_is_answered_with_them() {
        assert!(
            ask("shop-web.discoverd.", RecordType::A, Transport::Udp, None)
                .edns
                .is_none()
        );
        let edns = ask("shop-web.discoverd.", RecordType::A, Transport::Udp, Some(4096)).edns;
        assert_eq!(edns.map(|edns| edns.max_payload()), Some(DATAGRAM_BYTES_MAX));
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let answer = Message::response(7, OpCode::Query).to_vec().unwrap();
        for bytes in [&b""[..], b"\0", &[255; 12], &answer] {
            let reply = reply(bytes, Transport::Udp, |_| Answer::NoSuchName);
            assert_eq!(reply, Reply::Silence, "{bytes:?}");
        }
    }
}
