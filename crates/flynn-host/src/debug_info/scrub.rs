//! Takes out of texts what nobody else may see. Pure.
//!
//! What a reader would get wrong: nothing secret is read to begin with (`secrets/`, the state, the router's table,
//! environments); this is for what has found its way into logs and command lines.

use std::collections::BTreeSet;

const REMOVED: &str = "[removed]";
/// Shorter ones are words that stand in many places.
const SECRET_BYTES_MIN: usize = 8;
/// Of a variable's or a setting's name, in upper case.
const TELLING: [&str; 9] = [
    "KEY",
    "SECRET",
    "TOKEN",
    "PASS",
    "AUTH",
    "CREDENTIAL",
    "PRIVATE",
    "DSN",
    "_URL",
];

/// What is secret, to be found wherever it stands.
#[derive(Debug, Default)]
pub struct Secrets {
    /// The longest first, as one may be a part of another.
    values: BTreeSet<(std::cmp::Reverse<usize>, String)>,
}

impl Secrets {
    pub fn add(&mut self, value: &str) {
        let value = value.trim();
        if value.len() >= SECRET_BYTES_MIN {
            self.values
                .insert((std::cmp::Reverse(value.len()), value.to_owned()));
        }
    }

    /// A file that holds nothing else: keys, each on a line. Certificates are for everybody to see.
    pub fn add_file(&mut self, text: &str) {
        let mut is_public = false;
        for line in text.lines() {
            if line.starts_with("-----BEGIN ") {
                is_public = !line.contains("PRIVATE");
            } else if !line.starts_with("-----") && !is_public {
                self.add(line);
            }
        }
    }

    /// A variable of an environment, if its name says that it is one.
    pub fn add_variable(&mut self, name: &str, value: &str) {
        if is_telling(name) {
            self.add(value);
        }
    }

    pub fn scrub(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (_, value) in &self.values {
            if text.contains(value) {
                text = text.replace(value, REMOVED);
            }
        }
        without_private_keys(&without_passwords(&text))
    }
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    TELLING.iter().any(|part| name.contains(part))
}

/// A configuration without the values of settings whose names say that they are secret.
pub fn scrub_settings(text: &str) -> String {
    let scrubbed = text.lines().map(|line| match line.split_once('=') {
        Some((name, _)) if is_telling(name) => format!("{name}= \"{REMOVED}\""),
        _ => line.to_owned(),
    });
    scrubbed.map(|line| line + "\n").collect()
}

/// `scheme://user:password@host` without the password.
fn without_passwords(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::with_capacity(text.len());
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        kept.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#'))
            .unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority
            .rsplit_once('@')
            .map(|(user, host)| (user.split_once(':'), host))
        {
            Some((Some((user, _)), host)) => kept.push_str(&format!("{user}:{REMOVED}@{host}")),
            _ => kept.push_str(authority),
        }
        rest = behind;
    }
    kept + rest
}

fn without_private_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    let mut rest = text;
    let mut kept = String::with_capacity(text.len());
    while let Some(at) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(at);
        kept.push_str(before);
        let is_private = block.lines().next().is_some_and(|line| line.contains("PRIVATE"));
        if !is_private {
            kept.push_str(BEGIN);
            rest = &block[BEGIN.len()..];
            continue;
        }
        kept.push_str(REMOVED);
        // One that is cut off is one, too.
        let end = block.find("-----END ").map(|end| {
            let line = block[end..].find('\n').unwrap_or(block.len() - end);
            end + line
        });
        rest = &block[end.unwrap_or(block.len())..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_taken_out_wherever_it_stands() {
        let mut secrets = Secrets::default();
        secrets.add_file("0123456789abcdef\n");
        secrets.add_file("-----BEGIN CERTIFICATE-----\nfor-everybody\n-----END CERTIFICATE-----\n");
        secrets.add_file("-----BEGIN PRIVATE KEY-----\nfor-nobody\n-----END PRIVATE KEY-----\n");
        secrets.add_variable("SESSION_SECRET", "correct horse");
        secrets.add_variable("SESSION_SECRET_LONG", "correct horse battery");
        secrets.add_variable("NODE_ENV", "production");
        secrets.add_variable("API_KEY", "short");
        let check = |text: &str, expected: &str| assert_eq!(secrets.scrub(text), expected);
        check("key 0123456789abcdef refused", "key [removed] refused");
        check("for-everybody for-nobody", "for-everybody [removed]");
        check("a correct horse battery", "a [removed]");
        check("in production, short", "in production, short");
        check(
            "to postgres://shop:hunter2@db.example.com/shop?x and http://example.com/a:b@c",
            "to postgres://shop:[removed]@db.example.com/shop?x and http://example.com/a:b@c",
        );
        check(
            "got -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nthen -----BEGIN CERTIFICATE-----\nd",
            "got [removed]\nthen -----BEGIN CERTIFICATE-----\nd",
        );
        check("-----BEGIN EC PRIVATE KEY-----\nabc", "[removed]");
    }

    #[test]
    fn settings_are_shown_and_secret_ones_only_named() {
        assert_eq!(
            scrub_settings("domain = \"a.test\"\napi_key = \"abc\"\n[network]\n"),
            "domain = \"a.test\"\napi_key = \"[removed]\"\n[network]\n"
        );
    }
}
