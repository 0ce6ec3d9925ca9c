//! A recorded value and an actual one, side by side.
//!
//! Recordings name what differs from run to run in braces. A name stands for the same value wherever
//! it stands: [`Names`] learns it at its first appearance and holds the rest of the scene to it.

use std::collections::BTreeMap;

use serde_json::Value;

/// What the names of a scene stand for.
#[derive(Debug, Clone, Default)]
pub struct Names(pub BTreeMap<String, String>);

/// One way in which an answer is not the recorded one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// `METHOD /path/{parameter}`.
    pub operation: String,
    /// `+` not recorded, `-` lacking, `≠` another value, `type`, `length`, `status`, `schema`, `header`.
    pub kind: &'static str,
    /// Where in the body, or which header, or which status.
    pub place: String,
    /// Both values, for whoever reads the failure.
    pub detail: String,
}

impl Names {
    /// The text with all names replaced; names of ids that nothing has shown yet get a new one.
    pub fn fill(&mut self, text: &str) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, name, after)) = next_name(rest) {
            filled.push_str(before);
            match name {
                "time" => filled.push_str("2026-11-23T05:27:19.038457Z"),
                name => {
                    let value = self.0.entry(name.to_owned()).or_insert_with(|| {
                        assert!(is_id(name), "nothing says yet what {{{name}}} is");
                        types::Uuid::new_v4().to_string()
                    });
                    filled.push_str(value);
                }
            }
            rest = after;
        }
        filled + rest
    }

    pub fn fill_value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.fill(text).into(),
            Value::Array(items) => items.iter().map(|item| self.fill_value(item)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (self.fill(key), self.fill_value(value)))
                .collect(),
            other => other.clone(),
        }
    }

    /// Whether `actual` is what the recorded text says, learning names that it shows.
    fn matches(&mut self, recorded: &str, actual: &str) -> bool {
        let mut learned = self.clone();
        if learned.walk(recorded, actual) {
            *self = learned;
            return true;
        }
        false
    }

    fn walk(&mut self, recorded: &str, actual: &str) -> bool {
        let Some((before, name, after)) = next_name(recorded) else {
            return recorded == actual;
        };
        let Some(rest) = actual.strip_prefix(before) else {
            return false;
        };
        if name == "cert" || name == "key" {
            // Any will do; what follows its end are newlines.
            let end = rest
                .find("-----END")
                .and_then(|end| Some(end + 8 + rest[end + 8..].find("-----")? + 5));
            return rest.starts_with("-----BEGIN")
                && end.is_some_and(|end| self.walk(after, rest[end..].trim_start_matches('\n')));
        }
        if let Some(known) = self.0.get(name) {
            let known = known.clone();
            return rest
                .strip_prefix(&*known)
                .is_some_and(|rest| self.walk(after, rest));
        }
        if is_id(name) {
            let Some((id, rest)) = rest.split_at_checked(36) else {
                return false;
            };
            let is_new = !self.0.values().any(|known| known == id);
            if id.parse::<types::AppId>().is_err() || !is_new {
                return false;
            }
            self.0.insert(name.to_owned(), id.to_owned());
            return self.walk(after, rest);
        }
        // Up to what follows in the recording.
        let end = match next_name(after).map_or(after, |(before, ..)| before) {
            "" => rest.len(),
            stop => match rest.find(stop) {
                Some(end) => end,
                None => return false,
            },
        };
        let (value, rest) = rest.split_at(end);
        let fits = match name {
            "time" => value.parse::<types::Timestamp>().is_ok(),
            "name" => !value.is_empty(),
            "version" => value.starts_with('v'),
            _ => false,
        };
        if name == "name" {
            self.0.insert(name.to_owned(), value.to_owned());
        }
        fits && self.walk(after, rest)
    }
}

fn is_id(name: &str) -> bool {
    name.strip_prefix('u')
        .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Text before the first name, the name, the text after it.
fn next_name(text: &str) -> Option<(&str, &str, &str)> {
    const KNOWN: [&str; 6] = ["time", "cert", "key", "name", "version", "provider"];
    let mut from = 0;
    loop {
        let open = from + text[from..].find('{')?;
        let close = open + text[open..].find('}')?;
        let name = &text[open + 1..close];
        if KNOWN.contains(&name) || (is_id(name) && name.len() > 1) {
            return Some((&text[..open], name, &text[close + 1..]));
        }
        from = open + 1;
    }
}

/// What is there or not by how fast jobs start; the API's own tests hold it to its rule.
const BY_PACE: [&str; 1] = ["pending_scale_request"];

/// How closely values are held to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closeness {
    /// Same values, same length and order of lists.
    Same,
    /// Same fields and types: for lists whose contents depend on what else was there or on timing.
    Form,
}

pub struct Comparison<'a> {
    pub operation: &'a str,
    pub names: &'a mut Names,
    pub differences: Vec<Difference>,
}

impl Comparison<'_> {
    pub fn differ(&mut self, kind: &'static str, place: impl Into<String>, detail: impl Into<String>) {
        self.differences.push(Difference {
            operation: self.operation.to_owned(),
            kind,
            place: place.into(),
            detail: detail.into(),
        });
    }

    pub fn compare(&mut self, recorded: &Value, actual: &Value, at: &str, closeness: Closeness) {
        if closeness == Closeness::Form && at.ends_with("/manifest") {
            // An image's own affair.
            return;
        }
        match (recorded, actual) {
            (Value::String(text), Value::Number(_)) if text == "{int}" => {}
            (Value::String(recorded), Value::String(actual)) => {
                let fits = self.names.matches(recorded, actual);
                if !fits && closeness == Closeness::Same {
                    self.differ("≠", at, format!("recorded {recorded:?}, now {actual:?}"));
                }
            }
            (Value::Object(recorded), Value::Object(actual)) => {
                let is_by_pace = |key: &str| BY_PACE.contains(&key);
                for (key, recorded) in recorded.iter().filter(|(key, _)| !is_by_pace(key)) {
                    let key = self.names.clone().fill(key);
                    let place = format!("{at}/{key}");
                    match actual.get(&key) {
                        Some(actual) => self.compare(recorded, actual, &place, closeness),
                        None => self.differ("-", place, recorded.to_string()),
                    }
                }
                let known: Vec<_> = recorded.keys().map(|key| self.names.clone().fill(key)).collect();
                for (key, actual) in actual.iter().filter(|(key, _)| !is_by_pace(key)) {
                    if !known.contains(key) {
                        self.differ("+", format!("{at}/{key}"), actual.to_string());
                    }
                }
            }
            (Value::Array(recorded), Value::Array(actual)) if closeness == Closeness::Form => {
                self.compare_forms(recorded, actual, at);
            }
            (Value::Array(recorded), Value::Array(actual)) => {
                if recorded.len() != actual.len() {
                    let detail = format!("recorded {}, now {}", recorded.len(), actual.len());
                    self.differ("length", at, detail);
                }
                for (recorded, actual) in recorded.iter().zip(actual) {
                    self.compare(recorded, actual, &format!("{at}/*"), closeness);
                }
            }
            (recorded, actual) if kind(recorded) != kind(actual) => {
                self.differ("type", at, format!("recorded {recorded}, now {actual}"));
            }
            (recorded, actual) if recorded != actual && closeness == Closeness::Same => {
                self.differ("≠", at, format!("recorded {recorded}, now {actual}"));
            }
            _ => {}
        }
    }

    /// Each actual item beside the recorded one that it resembles most.
    fn compare_forms(&mut self, recorded: &[Value], actual: &[Value], at: &str) {
        if recorded.is_empty() != actual.is_empty() {
            self.differ(
                "length",
                at,
                format!("recorded {}, now {}", recorded.len(), actual.len()),
            );
        }
        let mut unused: Vec<_> = recorded.iter().collect();
        for item in actual {
            let is_like = |candidate: &&Value| kind_of(candidate) == kind_of(item);
            let rated = |candidate: &&Value| {
                let mut names = self.names.clone();
                let mut comparison = Comparison {
                    operation: "",
                    names: &mut names,
                    differences: vec![],
                };
                comparison.compare(candidate, item, "", Closeness::Same);
                comparison.differences.len()
            };
            let fitting = (0..unused.len()).filter(|index| is_like(&unused[*index]));
            let best = fitting.min_by_key(|index| rated(&unused[*index]));
            let twin = match best {
                Some(index) => unused.remove(index),
                None => match recorded.iter().filter(is_like).min_by_key(rated) {
                    Some(twin) => twin,
                    // Nothing was recorded of its kind.
                    None => continue,
                },
            };
            self.compare(twin, item, &format!("{at}/*"), Closeness::Form);
        }
    }
}

/// What an event or a job tells: kind of object, and how far that is.
pub fn kind_of(value: &Value) -> String {
    let data = value.get("data").unwrap_or(value);
    let words = [
        &value["object_type"],
        &data["state"],
        &data["status"],
        &data["type"],
        &data["job_type"],
        &data["job_state"],
    ];
    let words: Vec<_> = words.iter().filter_map(|word| word.as_str()).collect();
    words.join(" ")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
