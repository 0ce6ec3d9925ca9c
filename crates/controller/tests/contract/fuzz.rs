//! Asks for everything that the description names, rightly, nearly rightly and wrongly, and wants an
//! answer each time: none of 5xx but "not now", none that is not as described or as the original's schemas have it, none
//! that never comes.
//!
//! `FLYNN_FUZZ_SEED` and `FLYNN_FUZZ_REQUESTS` say which requests and how many; without them the same
//! few thousand are made each time.

use std::collections::{BTreeMap, BTreeSet};

use http_body_util::Full;
use serde_json::{Map, Value, json};

use crate::{
    compare::Difference, described::Description, schemas::Originals, server::Server, tolerated::Tolerated,
};

const REQUESTS: u64 = 3_000;

/// What has broken parsers before.
const HOSTILE: [&str; 22] = [
    "",
    " ",
    "\0",
    "a\nb",
    "é",
    "💥",
    "../../etc/passwd",
    "%00",
    "%2e%2e%2f",
    "'; DROP TABLE apps; --",
    "{{7*7}}",
    "-1",
    "0",
    "1e999",
    "99999999999999999999",
    "null",
    "true",
    "*",
    "http://",
    "\u{202e}txt",
    "A=B=C",
    "00000000-0000-0000-0000-000000000000",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_controller() {
    let number = |name: &str, default: u64| {
        let given = std::env::var(name).ok();
        given.map_or(default, |text| text.parse().expect("a number"))
    };
    let seed = number("FLYNN_FUZZ_SEED", 1);
    let requests = number("FLYNN_FUZZ_REQUESTS", REQUESTS);
    let mut fuzzer = Fuzzer {
        description: Description::read(),
        known: Known::default(),
        random: Random(seed),
    };
    let (originals, tolerated) = (Originals::read(), Tolerated::read());
    let server = Server::start().await;
    let operations = fuzzer.operations();
    let (mut problems, mut seen) = (vec![], BTreeSet::new());
    let mut statuses = BTreeMap::<u16, u64>::new();
    for _ in 0..requests {
        let (path, method) = fuzzer.random.pick(&operations).clone();
        let request = fuzzer.request(&server, &path, &method);
        let what = format!("{} {} {}", request.method(), request.uri(), request.body().1);
        let request = request.map(|(body, _)| Full::from(body));
        let operation = format!("{} {path}", method.to_uppercase());
        let (status, answer) = answer(&server, request).await;
        *statuses.entry(status).or_default() += 1;
        if status >= 500 && status != 503 {
            problems.push(format!("{status}: {what}\n  {answer:?}"));
        }
        if let Some(answer) = answer {
            fuzzer.known.learn(&answer);
            // "Not now" may be said by every operation.
            if status == 503 {
                continue;
            }
            let found = fuzzer.description.problems(&operation, status, &answer);
            problems.extend(
                found
                    .iter()
                    .map(|problem| format!("{operation} {status}: {problem}\n  {what}")),
            );
            // Each once: a row that is wrong is in every list from then on.
            let mut is_new = |found: &(&'static str, String, String)| {
                let difference = Difference {
                    operation: operation.clone(),
                    kind: found.0,
                    place: found.1.clone(),
                    detail: found.2.clone(),
                };
                !tolerated.allows(&difference) && seen.insert((operation.clone(), found.0, found.1.clone()))
            };
            let found = originals.problems(&operation, status, &answer);
            problems.extend(found.into_iter().filter(&mut is_new).map(|(kind, place, said)| {
                format!("{operation} {status}: the original's schema: {kind} {place} {said}\n  {what}")
            }));
        }
        assert!(problems.len() < 20, "seed {seed}:\n{}", problems.join("\n"));
    }
    assert!(problems.is_empty(), "seed {seed}:\n{}", problems.join("\n"));
    assert!(
        statuses[&200] > requests / 10,
        "hardly anything was right: {statuses:?}"
    );
    let alive = server.call("GET", "/apps", None).await;
    assert_eq!(alive.status, 200);
}

/// The status, and the body where it is JSON. Of a stream the head is enough.
async fn answer(server: &Server, request: http::Request<Full<bytes::Bytes>>) -> (u16, Option<Value>) {
    let response = server.open(request).await;
    let status = response.status().as_u16();
    let is = |text: &str| {
        let content_type = response.headers().get("content-type");
        content_type
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(text))
    };
    if is("text/event-stream") || status == 101 || !is("application/json") {
        return (status, None);
    }
    let body = http_body_util::BodyExt::collect(response.into_body());
    let body = tokio::time::timeout(std::time::Duration::from_secs(20), body)
        .await
        .expect("bodies end")
        .expect("bodies come whole");
    let value = serde_json::from_slice(&body.to_bytes()).expect("what says that it is JSON is JSON");
    (status, Some(value))
}

/// The same numbers for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Ids and names that answers have shown, so that requests can be about what there is.
#[derive(Default)]
struct Known {
    texts: BTreeMap<String, Vec<String>>,
}

impl Known {
    const PER_FIELD_MAX: usize = 40;

    fn learn(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if text.len() < 100 => {
                            let texts = self.texts.entry(key.clone()).or_default();
                            if !texts.contains(text) {
                                texts.push(text.clone());
                            }
                            if texts.len() > Self::PER_FIELD_MAX {
                                texts.remove(0);
                            }
                        }
                        value => self.learn(value),
                    }
                }
            }
            Value::Array(items) => items.iter().take(20).for_each(|item| self.learn(item)),
            _ => {}
        }
    }
}

struct Fuzzer {
    description: Description,
    known: Known,
    random: Random,
}

impl Fuzzer {
    /// Path and method of what users may call. What makes things comes more often, or there would be
    /// nothing to be about.
    fn operations(&self) -> Vec<(String, String)> {
        let mut operations = vec![];
        for (path, methods) in self.description.paths() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                if operation.get("x-internal").is_some() {
                    continue;
                }
                let weight = match method.as_str() {
                    "post" => 6,
                    "put" => 4,
                    "delete" => 1,
                    _ => 2,
                };
                operations.extend(std::iter::repeat_n((path.clone(), method.clone()), weight));
            }
        }
        operations
    }

    fn request(&mut self, server: &Server, path: &str, method: &str) -> http::Request<(Vec<u8>, String)> {
        let operation = self.description.paths()[path][method].clone();
        let path: Vec<_> = path
            .split('/')
            .map(
                |segment| match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                    Some(name) => api::client::escape(&self.path_value(name)),
                    None => segment.to_owned(),
                },
            )
            .collect();
        let mut uri = path.join("/");
        let mut headers = vec![];
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let mut query = vec![];
        for parameter in parameters.iter().filter(|parameter| parameter["in"] != "path") {
            if self.random.one_in(2) {
                continue;
            }
            let value = self.value(&parameter["schema"], "", 0);
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            if parameter["in"] == "query" {
                query.push(format!("{name}={}", api::client::escape(&value)));
            } else {
                headers.push((name, value));
            }
        }
        if !query.is_empty() {
            uri = format!("{uri}?{}", query.join("&"));
        }
        let body = self.body(&operation["requestBody"]);
        let accept = *self.random.pick(&[
            "application/json",
            "application/json",
            "text/event-stream",
            "*/*",
            "",
        ]);
        let content_type = if self.random.one_in(30) {
            "text/plain"
        } else {
            "application/json"
        };
        let mut request = server
            .request(&method.to_uppercase(), &uri)
            .header("accept", accept)
            .header("content-type", content_type);
        for (name, value) in headers {
            if let Ok(value) = http::HeaderValue::from_str(&value) {
                request = request.header(name, value);
            }
        }
        let shown = String::from_utf8_lossy(&body[..body.len().min(1_000)]).into_owned();
        request.body((body, shown)).expect("paths are escaped")
    }

    fn path_value(&mut self, name: &str) -> String {
        if self.random.one_in(12) {
            return (*self.random.pick(&HOSTILE[1..])).to_owned();
        }
        let field = match name {
            "app" => *self.random.pick(&["app", "name", "app_id"]),
            "job" => *self.random.pick(&["uuid", "id"]),
            "kind" => "type",
            "provider" => *self.random.pick(&["provider", "name", "id"]),
            "event" => return self.random.below(500).to_string(),
            "host" => "host_id",
            "release" => *self.random.pick(&["release", "new_release", "id"]),
            _ => "id",
        };
        match self.known.texts.get(field) {
            Some(texts) if !texts.is_empty() => self.random.pick(texts).clone(),
            _ => types::Uuid::from_u128(u128::from(self.random.next())).to_string(),
        }
    }

    fn body(&mut self, described: &Value) -> Vec<u8> {
        let Some(content) = described["content"].get("application/json") else {
            return if self.random.one_in(20) {
                b"{}".to_vec()
            } else {
                vec![]
            };
        };
        let content = content.clone();
        let mut value = if self.random.one_in(3) {
            content["example"].clone()
        } else {
            self.value(&content["schema"], "", 0)
        };
        // Most requests are about something that there is.
        if let Value::Object(map) = &mut value {
            for field in ["app_id", "release", "artifacts", "id"] {
                self.point_at_known(map, field);
            }
        }
        if self.random.one_in(4) {
            self.spoil(&mut value);
        }
        let mut bytes = value.to_string().into_bytes();
        match self.random.below(60) {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes = "[".repeat(50_000).into_bytes(),
            2 => bytes = vec![0xff, 0xfe, b'{'],
            3 => bytes.clear(),
            4 => bytes.extend_from_slice(b" trailing"),
            _ => {}
        }
        bytes
    }

    fn point_at_known(&mut self, map: &mut Map<String, Value>, field: &str) {
        if !map.contains_key(field) || self.random.one_in(6) {
            return;
        }
        let source = match field {
            "app_id" => "app_id",
            "release" | "id" => "release",
            _ => "artifact",
        };
        let known = self
            .known
            .texts
            .get(source)
            .or(self.known.texts.get("id"))
            .cloned()
            .unwrap_or_default();
        if known.is_empty() {
            return;
        }
        let id = json!(self.random.pick(&known));
        map.insert(
            field.to_owned(),
            if field == "artifacts" { json!([id]) } else { id },
        );
    }

    /// A value as the schema asks for, with an eye for the edges.
    fn value(&mut self, schema: &Value, name: &str, depth: usize) -> Value {
        if let Some(reference) = schema["$ref"].as_str() {
            let target = self
                .description
                .find(reference)
                .expect("references lead somewhere")
                .clone();
            return self.value(&target, name, depth);
        }
        for choice in ["anyOf", "oneOf"] {
            if let Some(choices) = schema[choice].as_array() {
                let picked = self.random.pick(choices).clone();
                return self.value(&picked, name, depth);
            }
        }
        if let Some(values) = schema["enum"].as_array() {
            return self.random.pick(values).clone();
        }
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => self.random.pick(kinds).clone(),
            kind => kind.clone(),
        };
        match kind.as_str() {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let length = self.random.below(3);
                (0..length)
                    .map(|_| self.value(&schema["items"], name, depth + 1))
                    .collect()
            }
            Some("string") => self.text(schema, name).into(),
            Some("integer") => {
                let edges = [
                    0,
                    1,
                    2,
                    -1,
                    80,
                    65_535,
                    65_536,
                    i64::from(i32::MAX),
                    i64::MAX,
                    i64::MIN,
                ];
                if self.random.one_in(2) {
                    json!(self.random.below(10))
                } else {
                    json!(self.random.pick(&edges))
                }
            }
            Some("boolean") => json!(self.random.one_in(2)),
            Some("null") => Value::Null,
            _ => json!({"any": [1, null, "x"]}),
        }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let mut map = Map::new();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, member) in schema["properties"].as_object().cloned().into_iter().flatten() {
            if required.contains(&json!(name)) || self.random.one_in(3) {
                map.insert(name.clone(), self.value(&member, &name, depth + 1));
            }
        }
        if let Some(member) = schema
            .get("additionalProperties")
            .filter(|member| member.is_object())
            .cloned()
        {
            for _ in 0..self.random.below(3) {
                let keys = ["web", "worker", "A", "memory"];
                let key = if self.random.one_in(10) {
                    *self.random.pick(&HOSTILE)
                } else {
                    *self.random.pick(&keys)
                };
                map.insert(key.to_owned(), self.value(&member, key, depth + 1));
            }
        }
        map.into()
    }

    fn text(&mut self, schema: &Value, name: &str) -> String {
        if self.random.one_in(10) {
            return (*self.random.pick(&HOSTILE)).to_owned();
        }
        match schema["format"].as_str() {
            Some("uuid") => return self.path_value("id"),
            Some("date-time") => return "2026-11-23T05:27:19.038457Z".into(),
            _ => {}
        }
        match name {
            "name" => format!("fuzz-{}", self.random.below(200)),
            "domain" => format!("{}.example.com", self.random.below(50)),
            "path" => (*self.random.pick(&["/", "/a/", "/a/b/"])).to_owned(),
            "service" => format!("fuzz-{}-web", self.random.below(20)),
            "uri" | "url" => format!("http://127.0.0.1:1/{}", self.random.below(20)),
            _ => format!("text{}", self.random.below(1_000)),
        }
    }

    /// Makes one thing of the value wrong.
    fn spoil(&mut self, value: &mut Value) {
        let wrong = [
            json!(null),
            json!(-1),
            json!(1.5),
            json!("text"),
            json!([]),
            json!({}),
            json!(true),
            json!([[[]]]),
            json!("x".repeat(70_000)),
            json!(u64::MAX),
        ];
        match value {
            Value::Object(map) if !map.is_empty() => {
                let keys: Vec<_> = map.keys().cloned().collect();
                let key = self.random.pick(&keys).clone();
                match self.random.below(4) {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.insert(key, self.random.pick(&wrong).clone())),
                    2 => drop(map.insert((*self.random.pick(&HOSTILE)).to_owned(), json!("x"))),
                    _ => {
                        if let Some(inner) = map.get_mut(&key) {
                            self.spoil(inner);
                        }
                    }
                }
            }
            other => *other = self.random.pick(&wrong).clone(),
        }
    }
}
