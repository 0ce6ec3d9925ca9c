//! A query from the outside in, the whole answer out, for those who delegate a name to the cluster. Pure.
//!
//! What a reader would get wrong: this is no resolver. It answers for the cluster's own zone, with authority, and
//! refuses everything else, so that nobody can use it against others.

use std::net::IpAddr;

use discovery::{ZoneAnswer, ZoneKind};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{NS, SOA},
    },
};

use crate::reply::{DATAGRAM_BYTES_MAX, Transport, address_data};

/// Seconds that an answer may be kept: hosts die.
const TTL_S: u32 = 5;
/// No other server copies the zone, so nobody looks at the number of its version.
const SERIAL: u32 = 1;

/// `None` for what is no query: an answer would only be noise, or start a loop of answers. `find` looks up a name as
/// questions have it: lower case, without the final dot.
pub fn public_reply(
    query: &[u8],
    transport: Transport,
    find: impl FnOnce(&str, ZoneKind) -> ZoneAnswer,
) -> Option<Vec<u8>> {
    let message = Message::from_vec(query).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let answer = decide(&message, find);
    write(&message, transport, answer)
}

/// The sections of an answer.
struct Sections {
    code: ResponseCode,
    is_ours: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Sections {
    fn only(code: ResponseCode) -> Sections {
        Sections {
            code,
            is_ours: false,
            answers: vec![],
            authorities: vec![],
            additionals: vec![],
        }
    }

    fn with(answers: Vec<Record>) -> Sections {
        Sections {
            is_ours: true,
            answers,
            ..Sections::only(ResponseCode::NoError)
        }
    }
}

fn decide(message: &Message, find: impl FnOnce(&str, ZoneKind) -> ZoneAnswer) -> Sections {
    if message.metadata.op_code != OpCode::Query {
        return Sections::only(ResponseCode::NotImp);
    }
    if message.version() > 0 {
        return Sections::only(ResponseCode::BADVERS);
    }
    let [asked] = message.queries.as_slice() else {
        return Sections::only(ResponseCode::FormErr);
    };
    if !matches!(asked.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Sections::only(ResponseCode::Refused);
    }
    let kind = match asked.query_type() {
        RecordType::A => ZoneKind::A,
        RecordType::AAAA => ZoneKind::Aaaa,
        RecordType::NS => ZoneKind::Ns,
        RecordType::SOA => ZoneKind::Soa,
        RecordType::ANY => ZoneKind::Any,
        // The whole zone at once is for other servers, of which there are none.
        RecordType::AXFR | RecordType::IXFR => return Sections::only(ResponseCode::Refused),
        _ => ZoneKind::Other,
    };
    let found = find(&discovery::reads_as(&asked.name().to_ascii()), kind);
    sections(asked, found).unwrap_or_else(|| Sections::only(ResponseCode::ServFail))
}

fn sections(asked: &Query, found: ZoneAnswer) -> Option<Sections> {
    let record = |name: &Name, data| Record::from_rdata(name.clone(), TTL_S, data);
    let addresses = |name: &Name, list: Vec<IpAddr>| -> Vec<Record> {
        list.into_iter()
            .map(|address| record(name, address_data(address)))
            .collect()
    };
    Some(match found {
        ZoneAnswer::Refused => Sections::only(ResponseCode::Refused),
        ZoneAnswer::Unknown => Sections::only(ResponseCode::ServFail),
        ZoneAnswer::Addresses(list) => Sections::with(addresses(asked.name(), list)),
        ZoneAnswer::Servers(list) => {
            let mut sections = Sections::with(vec![]);
            for (server, list) in list {
                let server = absolute(&server)?;
                sections.additionals.extend(addresses(&server, list));
                sections.answers.push(record(asked.name(), RData::NS(NS(server))));
            }
            sections
        }
        ZoneAnswer::Authority { domain, server } => Sections::with(vec![authority(&domain, &server)?]),
        ZoneAnswer::Nothing { domain, server } => Sections {
            authorities: vec![authority(&domain, &server)?],
            ..Sections::with(vec![])
        },
    })
}

/// The record that a zone begins with; how long it is kept that something is not there is said in it, too.
fn authority(domain: &str, server: &str) -> Option<Record> {
    let hostmaster = absolute(&format!("hostmaster.{domain}"))?;
    let soa = SOA::new(absolute(server)?, hostmaster, SERIAL, 3600, 600, 86_400, TTL_S);
    Some(Record::from_rdata(absolute(domain)?, TTL_S, RData::SOA(soa)))
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

fn write(query: &Message, transport: Transport, sections: Sections) -> Option<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.response_code = sections.code;
    message.metadata.authoritative = sections.is_ours;
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = false;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(sections.answers);
    message.add_authorities(sections.authorities);
    message.add_additionals(sections.additionals);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().ok()?;
    // No larger than what crosses any network in one piece, whatever is offered.
    let datagram_bytes_max = query.max_payload().min(DATAGRAM_BYTES_MAX);
    if transport == Transport::Udp && bytes.len() > usize::from(datagram_bytes_max) {
        return message.truncate().to_vec().ok();
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use discovery::{Zone, zone_answer};

    use super::*;

    fn zone(hosts: u8) -> Zone {
        Zone {
            domains: vec!["apps.example.com".into()],
            hosts: (1..=hosts)
                .map(|n| (format!("host{n}"), vec![IpAddr::from([192, 0, 2, n])]))
                .collect(),
        }
    }

    fn ask(query: &Message, hosts: u8) -> Message {
        let find = |name: &str, kind| zone_answer(&zone(hosts), name, kind, 0);
        let bytes = public_reply(&query.to_vec().unwrap(), Transport::Udp, find).unwrap();
        assert!(bytes.len() <= 512, "{} bytes", bytes.len());
        Message::from_vec(&bytes).unwrap()
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    /// One line a record, as `dig` prints them.
    fn check(name: &str, kind: RecordType, code: ResponseCode, expected: &str) {
        let answer = ask(&query(name, kind), 2);
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert!(!answer.metadata.recursion_available);
        let lines: Vec<_> = answer.all_sections().map(ToString::to_string).collect();
        assert_eq!(lines.join("\n"), expected, "{name} {kind}");
    }

    #[test]
    fn names_of_the_zone_are_answered_with_authority() {
        let ok = ResponseCode::NoError;
        check(
            "Shop.Apps.example.com.",
            RecordType::A,
            ok,
            "Shop.Apps.example.com. 5 IN A 192.0.2.1\nShop.Apps.example.com. 5 IN A 192.0.2.2",
        );
        check(
            "apps.example.com.",
            RecordType::NS,
            ok,
            "apps.example.com. 5 IN NS host1.ns.apps.example.com.\n\
             apps.example.com. 5 IN NS host2.ns.apps.example.com.\n\
             host1.ns.apps.example.com. 5 IN A 192.0.2.1\nhost2.ns.apps.example.com. 5 IN A 192.0.2.2",
        );
        let begins = "apps.example.com. 5 IN SOA host1.ns.apps.example.com. hostmaster.apps.example.com. 1 3600 600 86400 5";
        check("apps.example.com.", RecordType::SOA, ok, begins);
        // There is such a name, and nothing of this kind.
        check("shop.apps.example.com.", RecordType::TXT, ok, begins);
        assert!(
            ask(&query("apps.example.com.", RecordType::A), 2)
                .metadata
                .authoritative
        );
    }

    #[test]
    fn others_are_refused_as_are_copies_of_the_zone() {
        check("example.com.", RecordType::A, ResponseCode::Refused, "");
        check(".", RecordType::NS, ResponseCode::Refused, "");
        check("apps.example.com.", RecordType::AXFR, ResponseCode::Refused, "");
        assert_eq!(
            ask(&query("apps.example.com.", RecordType::A), 0)
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
    }

    #[test]
    fn an_answer_of_a_large_cluster_fits_a_datagram() {
        let name = format!("{0}.{0}.{0}.apps.example.com.", "a".repeat(60));
        assert_eq!(ask(&query(&name, RecordType::A), 200).answers.len(), 8);
        let servers = ask(&query("apps.example.com.", RecordType::NS), 200);
        assert_eq!((servers.answers.len(), servers.additionals.len()), (4, 4));
    }

    #[test]
    fn a_later_version_of_extensions_is_told_so() {
        let mut query = query("apps.example.com.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        query.set_edns(edns);
        // The number has two names, by where it stands.
        let code = ask(&query, 2).metadata.response_code;
        assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let answer = Message::response(7, OpCode::Query).to_vec().unwrap();
        for bytes in [&b""[..], b"\0", &[255; 12], &answer] {
            let find = |_: &str, _| ZoneAnswer::Unknown;
            assert_eq!(public_reply(bytes, Transport::Udp, find), None, "{bytes:?}");
        }
    }
}
