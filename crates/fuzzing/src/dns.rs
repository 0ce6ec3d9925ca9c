//! What jobs ask of the name server of their host.

use std::{collections::BTreeMap, net::IpAddr};

use discoverd::{Reply, Transport, reply};
use discovery::{Question, Registry, Service};
use types::Instance;

pub fn query(bytes: &[u8]) {
    let registry = registry();
    let router = IpAddr::from([100, 100, 0, 1]);
    for transport in [Transport::Udp, Transport::Tcp] {
        let find = |question: &Question| {
            assert!(
                !question.name.bytes().any(|byte| byte.is_ascii_uppercase()),
                "{:?}",
                question.name
            );
            discovery::answer(
                &registry,
                question,
                &["flynn.localhost".to_owned()],
                router,
                bytes.len(),
            )
        };
        let answer = match reply(bytes, transport, find) {
            Reply::Answer(answer) | Reply::Forward { otherwise: answer } => answer,
            Reply::Silence => continue,
        };
        assert_eq!(answer[..2], bytes[..2], "the answer is to another question");
        assert!(
            answer[2] & 0x80 != 0,
            "an answer that is a question would start a loop"
        );
        assert!(answer.len() <= usize::from(u16::MAX));
        let again = reply(&answer, transport, |_| {
            panic!("an answer was taken for a question")
        });
        assert_eq!(again, Reply::Silence);
    }
}

fn registry() -> Registry {
    let instance = |n: u8| Instance {
        id: format!("i{n}"),
        addr: if n == 6 {
            "[fd00::6]:8080".into()
        } else {
            format!("100.100.0.{n}:8080")
        },
        proto: "tcp".into(),
        meta: BTreeMap::new(),
        index: u64::from(n),
    };
    let instances = (2..7).map(instance).collect();
    let mut registry = Registry::default();
    let shop = Service {
        instances,
        leader: Some("i4".into()),
        row: None,
    };
    registry.set_cluster([
        ("shop-web".to_owned(), shop),
        ("empty".to_owned(), Service::default()),
    ]);
    registry
}
