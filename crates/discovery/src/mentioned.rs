//! Services that a text speaks of: the value of a setting, such as a URL.

use crate::names::{reads_as, service_of};

const SUFFIX: &str = ".discoverd";

/// Every service that `text` names as its users would reach it: `NAME.discoverd`, `leader.NAME.discoverd`, alone or
/// within something longer. In the order of the text; one that is named twice comes twice.
pub fn services_in(text: &str) -> Vec<String> {
    let text = reads_as(text);
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let found = text.match_indices(SUFFIX).filter_map(|(at, _)| {
        let (before, after) = (&text.as_bytes()[..at], &text.as_bytes()[at + SUFFIX.len()..]);
        let mut after = after.iter().copied();
        // `x.discoverd.example.com` is somebody else's name, `x.discoverd.` one of ours with its final dot.
        let goes_on = match after.next() {
            Some(b'.') => after.next().is_some_and(is_of_name),
            Some(next) => is_of_name(next),
            None => false,
        };
        let start = before
            .iter()
            .rposition(|byte| !is_of_name(*byte))
            .map_or(0, |end| end + 1);
        let service = service_of(text.get(start..at)?);
        (!goes_on && !service.is_empty()).then(|| service.to_owned())
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(services_in(text).join(" "), expected, "{text}");
    }

    #[test]
    fn names_are_found_alone_and_in_urls() {
        check("postgres.discoverd", "postgres");
        check("leader.postgres.discoverd", "postgres");
        check("Leader.Postgres.Discoverd.", "postgres");
        check(
            "postgres://u:p@leader.pg-1.discoverd:5432/db?x=leader.other.discoverd",
            "pg-1 other",
        );
        check("mongodb://a.discoverd,b.discoverd:27017/x", "a b");
        check("3-5432.mysql._i.discoverd", "mysql");
        check("_redis._tcp.discoverd", "redis");
    }

    #[test]
    fn other_names_are_nobodys() {
        check("", "");
        check("postgres", "");
        check(".discoverd", "");
        check("http://discoverd/", "");
        check("http://x.discoverd.example.com/", "");
        check("x.discoverdx x.discoverd-2", "");
        check("é.discoverd", "");
    }
}
