//! Asks the recorded requests again.

use std::time::Duration;

use api::sse::{Message, Parser};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::{
    compare::{Closeness, Comparison, Difference, Names, kind_of},
    described::Description,
    schemas::Originals,
    server::{Answer, Server},
    tolerated::Tolerated,
};

/// Events that were recorded because jobs of the deployment before took so long to end; here they may have ended
/// before the stream is opened. (That the new web job "stops" was the original's way of dealing with tags that no
/// host has: here it runs until there is a place for its successor.)
const LATE_EVENTS: [(&str, &str); 3] = [
    ("83-scale_web_1_disk_ssd", "job down web"),
    ("83-scale_web_1_disk_ssd", "job down worker"),
    ("83-scale_web_1_disk_ssd", "job stopping web"),
];

/// Events that never come here, by `docs/api/differences.md`: nobody waits for them.
const NEVER_EVENTS: [(&str, &str); 1] = [("83-scale_web_1_disk_ssd", "scale_request complete")];

/// Jobs that served requests are drained for up to 10 s before they end.
const EVENTS_PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_originals() {
    let text = include_str!("recordings.json");
    let scenes: Value = serde_json::from_str(text).expect("it is JSON");
    let mut differences = vec![];
    for (name, exchanges) in scenes.as_object().expect("scenes by name") {
        let exchanges = exchanges.as_array().expect("a list");
        differences.extend(scene(name, exchanges).await);
    }
    let tolerated = Tolerated::read();
    let mut left: Vec<_> = differences
        .into_iter()
        .filter(|(_, difference)| !tolerated.allows(difference))
        .map(|(step, found)| {
            format!(
                "`{}` | `{} {}` ({step}): {}",
                found.operation, found.kind, found.place, found.detail
            )
        })
        .collect();
    left.sort();
    left.dedup_by_key(|line| line.split(" (").next().map(str::to_owned));
    left.extend(
        tolerated
            .unused()
            .into_iter()
            .map(|row| format!("names no difference any more: {row}")),
    );
    assert!(
        left.is_empty(),
        "{} differences:\n{}",
        left.len(),
        left.join("\n")
    );
}

async fn scene(name: &str, exchanges: &[Value]) -> Vec<(String, Difference)> {
    let server = Server::start().await;
    let mut replay = Replay {
        names: Names::default(),
        description: Description::read(),
        originals: Originals::read(),
        differences: vec![],
        // The examples were made beside all of the original's own apps.
        is_alone: name == "wire",
        server,
    };
    let known = [
        ("provider", format!("http://{}", replay.server.provider)),
        ("cert", replay.server.certificate.0.clone()),
        ("key", replay.server.certificate.1.clone()),
    ];
    for (name, value) in known {
        replay.names.0.insert(name.to_owned(), value);
    }
    let mut streams = vec![];
    for (index, exchange) in exchanges.iter().enumerate() {
        // One in which nothing came has no events.
        let is_stream = exchange["content_type"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        if is_stream {
            streams.push((exchange, replay.open(exchange).await));
        } else {
            replay.ask(exchange).await;
        }
        let is_end_of_step = exchanges
            .get(index + 1)
            .is_none_or(|next| next["step"] != exchange["step"]);
        if is_end_of_step {
            for (exchange, stream) in streams.drain(..) {
                replay.listen(exchange, stream).await;
            }
        }
    }
    replay.differences
}

struct Replay {
    server: Server,
    names: Names,
    description: Description,
    originals: Originals,
    differences: Vec<(String, Difference)>,
    is_alone: bool,
}

type Stream = http::Response<hyper::body::Incoming>;

impl Replay {
    fn request(&mut self, exchange: &Value) -> http::Request<Full<bytes::Bytes>> {
        let text = |key: &str| exchange[key].as_str().unwrap_or_default();
        let path = self.names.fill(text("path"));
        let mut request = self.server.request(text("method"), &path);
        let headers = request.headers_mut().expect("the path is one");
        match text("key") {
            "none" => drop(headers.remove("authorization")),
            "wrong" => drop(headers.insert("authorization", "Basic Ondyb25n".parse().expect("a header"))),
            _ => {}
        }
        headers.insert("content-type", "application/json".parse().expect("a header"));
        for (name, value) in exchange["headers"].as_object().into_iter().flatten() {
            let name: http::HeaderName = name.parse().expect("a header's name");
            match value.as_str().unwrap_or_default() {
                "" => drop(headers.remove(name)),
                value => drop(headers.insert(name, value.parse().expect("a header"))),
            }
        }
        let body = match (exchange.get("body"), exchange.get("raw_body")) {
            (Some(body), _) => self.names.fill_value(body).to_string(),
            (None, Some(raw)) => raw.as_str().unwrap_or_default().to_owned(),
            (None, None) => String::new(),
        };
        request.body(Full::from(body)).expect("a request")
    }

    async fn ask(&mut self, exchange: &Value) {
        let request = self.request(exchange);
        let operation = self
            .description
            .operation(request.method().as_str(), request.uri().path());
        let answer = self.server.send(request).await;
        self.compare(&operation, exchange, &answer);
    }

    fn compare(&mut self, operation: &str, exchange: &Value, answer: &Answer) {
        let step = exchange["step"].as_str().unwrap_or_default().to_owned();
        let mut comparison = Comparison {
            operation,
            names: &mut self.names,
            differences: vec![],
        };
        let status = answer.status.as_u16();
        if exchange["status"] != status {
            let place = format!("{} → {status}", exchange["status"]);
            comparison.differ(
                "status",
                place,
                String::from_utf8_lossy(&answer.body).into_owned(),
            );
            self.differences.extend(
                comparison
                    .differences
                    .into_iter()
                    .map(|found| (step.clone(), found)),
            );
            return;
        }
        for (name, value) in exchange["answer_headers"].as_object().into_iter().flatten() {
            let now = answer.headers.get(name).and_then(|value| value.to_str().ok());
            if now != value.as_str() {
                comparison.differ("header", name, format!("recorded {value}, now {now:?}"));
            }
        }
        if answer.content_type() != exchange["content_type"].as_str() {
            let detail = format!(
                "recorded {}, now {:?}",
                exchange["content_type"],
                answer.content_type()
            );
            comparison.differ("header", "content-type", detail);
        }
        if let Some(recorded) = exchange.get("answer") {
            let closeness = closeness(operation, self.is_alone);
            match answer.json() {
                Some(actual) => {
                    comparison.compare(recorded, &actual, "", closeness);
                    for (kind, place, detail) in self.originals.problems(operation, status, &actual) {
                        comparison.differ(kind, place, detail);
                    }
                    for problem in self.description.problems(operation, status, &actual) {
                        comparison.differ("description", "", problem);
                    }
                }
                None => comparison.differ("type", "", format!("no JSON: {:?}", answer.body)),
            }
        } else if self.is_alone || exchange.get("raw_answer").is_some() {
            let recorded = exchange.get("raw_answer").cloned().unwrap_or_default();
            let recorded = recorded.as_str().unwrap_or_default();
            let actual = String::from_utf8_lossy(&answer.body).into_owned();
            comparison.compare(&recorded.into(), &actual.into(), "", Closeness::Same);
        }
        self.differences.extend(
            comparison
                .differences
                .into_iter()
                .map(|found| (step.clone(), found)),
        );
    }

    async fn open(&mut self, exchange: &Value) -> Stream {
        let request = self.request(exchange);
        self.server.open(request).await
    }

    /// Reads a stream until every kind of event that was recorded has come.
    async fn listen(&mut self, exchange: &Value, stream: Stream) {
        let step = exchange["step"].as_str().unwrap_or_default().to_owned();
        let path = self.names.fill(exchange["path"].as_str().unwrap_or_default());
        let operation = self
            .description
            .operation("GET", path.split('?').next().unwrap_or_default());
        let status = stream.status().as_u16();
        let content_type = stream
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok());
        let mut comparison = Comparison {
            operation: &operation,
            names: &mut self.names,
            differences: vec![],
        };
        if exchange["status"] != status || content_type != exchange["content_type"].as_str() {
            comparison.differ(
                "status",
                format!("{} → {status}", exchange["status"]),
                format!("{content_type:?}"),
            );
        } else {
            let recorded = exchange["events"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let mut wanted: Vec<_> = recorded.iter().map(kind_of).collect();
            wanted.retain(|kind| !LATE_EVENTS.contains(&(step.as_str(), kind.as_str())));
            wanted.sort();
            wanted.dedup();
            if !self.is_alone {
                wanted.truncate(1);
            }
            let (mut body, mut parser, mut came) = (stream.into_body(), Parser::default(), vec![]);
            let is_never = |kind: &String| NEVER_EVENTS.contains(&(step.as_str(), kind.as_str()));
            let mut missing = wanted.clone();
            missing.retain(|kind| !is_never(kind));
            let deadline = tokio::time::Instant::now() + EVENTS_PATIENCE;
            while !missing.is_empty() {
                let Ok(Some(Ok(frame))) = tokio::time::timeout_at(deadline, body.frame()).await else {
                    break;
                };
                parser.push(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
                while let Ok(Some(Message::Data(data))) = parser.next_message() {
                    let event: Value = serde_json::from_slice(&data).expect("events are JSON");
                    missing.retain(|kind| *kind != kind_of(&event));
                    came.push(event);
                }
            }
            let has_come = |kind: &String| came.iter().any(|event| kind_of(event) == *kind);
            missing.extend(
                wanted
                    .into_iter()
                    .filter(|kind| is_never(kind) && !has_come(kind)),
            );
            for kind in &missing {
                comparison.differ(
                    "-",
                    format!("event {kind}"),
                    format!("{} others came", came.len()),
                );
            }
            for event in &came {
                let twin = recorded
                    .iter()
                    .find(|recorded| kind_of(recorded) == kind_of(event));
                if let Some(twin) = twin {
                    comparison.compare(twin, event, "", Closeness::Form);
                }
            }
        }
        self.differences.extend(
            comparison
                .differences
                .into_iter()
                .map(|found| (step.clone(), found)),
        );
    }
}

/// Jobs and events depend on the pace of things; the examples on what else ran in that cluster.
fn closeness(operation: &str, is_alone: bool) -> Closeness {
    let by_pace = [
        "GET /apps/{app}/jobs",
        "GET /active-jobs",
        "GET /events",
        "GET /events/{event}",
        "GET /routes",
    ];
    if !is_alone || by_pace.contains(&operation) {
        Closeness::Form
    } else {
        Closeness::Same
    }
}
