//! The registry over HTTP, beside a controller that keeps its rows in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Mutex,
};

use api::{
    Controller, Endpoint, Trust,
    host::{ServiceView, ServicesView},
    sse,
};
use daemon::{AppTokens, Keys, Principal, Shutdown};
use http_body_util::BodyExt;
use openapi::check::Schemas;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;
use types::{AppId, Timestamp, Uuid};

use super::*;
use crate::{access::Gate, follow};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const INTERNAL_KEY: &str = "fedcba9876543210fedcba9876543210";

fn shop() -> AppId {
    AppId(Uuid::from_u128(7))
}

struct Registered {
    router: Router,
    shutdown: Shutdown,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The state's own rules, without a log.
async fn controller(shutdown: Shutdown) -> Endpoint {
    type Kept = Arc<(Mutex<state::State>, watch::Sender<u64>)>;
    let mut kept = state::State::default();
    let app = types::App {
        id: shop(),
        name: "shop".into(),
        meta: BTreeMap::new(),
        strategy: Default::default(),
        release: None,
        deploy_timeout: 120,
        created_at: Timestamp::EPOCH,
        updated_at: Timestamp::EPOCH,
    };
    let create = state::Change::CreateApp { app, route: None };
    let at = Timestamp::EPOCH;
    kept.apply(1, state::Command { at, change: create })
        .expect("an app");
    let kept: Kept = Arc::new((Mutex::new(kept), watch::channel(1).0));
    let update =
        async |State(kept): State<Kept>, Path(service): Path<String>, Json(update): Json<ServiceUpdate>| {
            let change = state::Change::Service {
                service: service.clone(),
                app: update.app,
                change: update.change,
            };
            let mut state = kept.0.lock().expect("no panic while held");
            let index = state.revision + 1;
            let done = state.apply(
                index,
                state::Command {
                    at: Timestamp::EPOCH,
                    change,
                },
            );
            kept.1.send_replace(index);
            match done {
                Ok(_) => Json(state.services.get(&service).cloned()).into_response(),
                Err(state::Rejection::NotFound { .. }) => Failure(Error::not_found()).into_response(),
                Err(state::Rejection::Stale { message }) => {
                    Failure(Error::new(Code::PreconditionFailed, message)).into_response()
                }
                Err(state::Rejection::Exists { message }) => {
                    Failure(Error::new(Code::ObjectExists, message)).into_response()
                }
                Err(other) => Failure(Error::conflict(other.to_string())).into_response(),
            }
        };
    let list = async |State(kept): State<Kept>| {
        let mut changed = kept.1.subscribe();
        changed.mark_changed();
        let stream = futures::stream::unfold((kept, changed), |(kept, mut changed)| async move {
            changed.changed().await.ok()?;
            let services: Vec<_> = {
                let state = kept.0.lock().expect("no panic while held");
                let view = |row: &Arc<ServiceRow>| ServiceView {
                    name: row.name.clone(),
                    leader: None,
                    instances: vec![],
                    row: Some(row.clone()),
                };
                state.services.values().map(view).collect()
            };
            let domains = vec!["flynn.example.com".into(), "flynn.localhost".into()];
            let message = Ok::<_, std::convert::Infallible>(sse::message(&ServicesView {
                domains,
                services,
                ingress: vec![],
            }));
            Some((message, (kept, changed)))
        });
        let content_type = [(header::CONTENT_TYPE, sse::CONTENT_TYPE)];
        (content_type, axum::body::Body::from_stream(stream))
    };
    let router = Router::new()
        .route("/internal/services", get(list))
        .route("/internal/services/{service}", axum::routing::post(update))
        .with_state(kept);
    let listener = daemon::server::listen(([127, 0, 0, 1], 0).into())
        .await
        .expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(daemon::server::serve(listener, router, shutdown));
    Endpoint {
        url,
        key: INTERNAL_KEY.into(),
        trust: Trust::System,
    }
}

async fn start() -> Registered {
    let shutdown = Shutdown::new();
    let endpoint = controller(shutdown.clone()).await;
    let controller = Controller::new(&endpoint).expect("the address is one");
    let place: SocketAddr = "100.100.0.1:1111".parse().expect("an address");
    let shared = Arc::new(Shared::new(controller.clone(), place, "flynn.localhost".into()));
    tokio::spawn(follow::run(shared.clone(), controller, shutdown.clone()));
    let gate = Gate {
        keys: Keys::new([(KEY, Principal::User), (INTERNAL_KEY, Principal::Internal)]),
        tokens: AppTokens::new(INTERNAL_KEY),
    };
    Registered {
        router: router(shared, gate),
        shutdown,
    }
}

impl Registered {
    async fn open(&self, key: &str, method: &str, path: &str, accept: &str, body: &str) -> Response {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let credentials = BASE64_STANDARD.encode(format!(":{key}"));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Basic {credentials}"))
            .header("accept", accept)
            .body(axum::body::Body::from(body.to_owned()))
            .expect("a request");
        self.router
            .clone()
            .oneshot(request)
            .await
            .expect("it cannot fail")
    }

    /// `STATUS BODY`, where the body is an error its code and message.
    async fn ask(&self, key: &str, request: &str) -> String {
        let mut words = request.splitn(3, ' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = words.next().unwrap_or_default();
        let response = self.open(key, method, path, "application/json", body).await;
        assert!(response.headers().contains_key("discoverd-index"), "{request}");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            return format!("{status} {}", String::from_utf8_lossy(&bytes))
                .trim_end()
                .to_owned();
        };
        described(method, path, status, &value);
        match value["code"].as_str() {
            Some(code) => format!(
                "{status} {code}: {}",
                value["message"].as_str().unwrap_or_default()
            ),
            None => format!("{status} {value}"),
        }
    }

    async fn check(&self, key: &str, lines: &[(&str, &str)]) {
        for (request, expected) in lines {
            assert_eq!(self.ask(key, request).await, *expected, "{request}");
        }
    }
}

/// Answers are as the committed description says.
fn described(method: &str, path: &str, status: u16, answer: &Value) {
    let text = std::fs::read_to_string(openapi::directory().join("discoverd.json")).expect("it is committed");
    let document: Value = serde_json::from_str(&text).expect("it is JSON");
    let parts: Vec<_> = path.split('/').collect();
    let template = document["paths"]
        .as_object()
        .expect("paths")
        .keys()
        .find(|template| {
            let known: Vec<_> = template.split('/').collect();
            known.len() == parts.len()
                && known
                    .iter()
                    .zip(&parts)
                    .all(|(known, part)| known == part || known.starts_with('{'))
        });
    let Some(template) = template else { return };
    let mut response =
        document["paths"][template][method.to_lowercase()]["responses"][status.to_string()].clone();
    if let Some(reference) = response["$ref"].as_str() {
        response = document
            .pointer(&reference[1..])
            .expect("it leads somewhere")
            .clone();
    }
    let schema = response["content"]["application/json"]["schema"].clone();
    assert!(
        !schema.is_null(),
        "{method} {template}: {status} with JSON is not described"
    );
    let mut schemas = Schemas::default();
    schemas.add("", document);
    assert_eq!(
        schemas.problems_of("", &schema, answer),
        Vec::<String>::new(),
        "{method} {path}"
    );
}

const INSTANCE: &str = r#"{"id":"a","addr":"100.100.0.2:5432","proto":"tcp"}"#;

#[tokio::test]
async fn services_are_made_told_and_forgotten() {
    let registered = start().await;
    registered
        .check(
            KEY,
            &[
                (
                    "GET /services/db/instances",
                    "404 object_not_found: service not found: \"db\"",
                ),
                ("PUT /services/db", "200"),
                ("GET /services/db/instances", "200 []"),
                ("GET /services/db/leader", "404 object_not_found: no leader found"),
                (
                    "GET /services/db/meta",
                    "404 object_not_found: service meta not found",
                ),
                (
                    r#"PUT /services/db/meta {"data":{"a":1},"index":9}"#,
                    "412 precondition_failed: service metadata for \"db\" does not exist, use index=0 to set",
                ),
                (
                    r#"PUT /services/db/meta {"data":{"a":1},"index":0}"#,
                    r#"200 {"data":{"a":1},"index":4}"#,
                ),
                (
                    r#"PUT /services/db/meta {"data":{"a":2},"index":0}"#,
                    "409 object_exists: service metadata for \"db\" already exists, use index=n to set",
                ),
                (
                    r#"PUT /services/db/meta {"data":{"a":2},"index":4}"#,
                    r#"200 {"data":{"a":2},"index":6}"#,
                ),
                ("GET /services/db/meta", r#"200 {"data":{"a":2},"index":6}"#),
                (
                    "PUT /services/db {",
                    "400 syntax_error: The provided JSON input is invalid",
                ),
                ("DELETE /services/db", "200"),
                (
                    "DELETE /services/db",
                    "404 object_not_found: service not found: \"db\"",
                ),
                ("GET /nothing", "404 not_found: there is no such path"),
            ],
        )
        .await;
    let refused = registered.open("wrong", "GET", "/services/db", "", "").await;
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn instances_lead_by_age_or_by_name() {
    let registered = start().await;
    let put = |id: &str| format!("PUT /services/db/instances/{id} {INSTANCE}");
    for id in ["a", "b", "a"] {
        assert_eq!(registered.ask(KEY, &put(id)).await, "200");
    }
    let leader = async || {
        let answer = registered.ask(KEY, "GET /services/db/leader").await;
        let value: Value =
            serde_json::from_str(answer.strip_prefix("200 ").unwrap_or("null")).unwrap_or_default();
        value["id"].as_str().unwrap_or("nobody").to_owned()
    };
    assert_eq!(leader().await, "a");
    let name = r#"PUT /services/db/leader {"id":"b","addr":"","proto":""}"#;
    let expected = "400 validation_error: service leader election type is not manual";
    assert_eq!(registered.ask(KEY, name).await, expected);
    assert_eq!(
        registered
            .ask(KEY, r#"PUT /services/db {"leader_type":"manual"}"#)
            .await,
        "200"
    );
    assert_eq!(leader().await, "nobody");
    assert_eq!(registered.ask(KEY, name).await, "200");
    assert_eq!(leader().await, "b");
    assert_eq!(
        registered.ask(KEY, "DELETE /services/db/instances/b").await,
        "200"
    );
    assert_eq!(leader().await, "nobody");
}

#[tokio::test]
async fn followers_hear_what_they_asked_for() {
    let registered = start().await;
    registered
        .ask(KEY, &format!("PUT /services/db/instances/a {INSTANCE}"))
        .await;
    let expected = [
        ("/services/db", "up leader current"),
        ("/services/db/instances", "up current"),
        ("/services/db/leader", "leader current"),
    ];
    for (path, kinds) in expected {
        let response = registered.open(KEY, "GET", path, "text/event-stream", "").await;
        let (mut body, mut parser, mut heard) = (response.into_body(), sse::Parser::default(), vec![]);
        while heard.last().is_none_or(|kind| kind != "current") {
            let frame = body
                .frame()
                .await
                .expect("it goes on")
                .expect("it does not break");
            parser.push(frame.data_ref().expect("data"));
            while let Ok(Some(sse::Message::Data(data))) = parser.next_message() {
                let event: api::discoverd::Event = serde_json::from_slice(&data).expect("an event");
                heard.push(json!(event.kind).as_str().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(heard.join(" "), kinds, "{path}");
    }
}

#[tokio::test]
async fn a_jobs_key_is_for_the_services_of_its_app() {
    let registered = start().await;
    let token = AppTokens::new(INTERNAL_KEY).issue(shop(), "shop");
    let denied = |name: &str| format!("403 forbidden: service {name:?} is not one of app \"shop\"");
    registered
        .check(
            &token,
            &[
                ("PUT /services/shop-db", "200"),
                (&format!("PUT /services/shop-db/instances/a {INSTANCE}"), "200"),
                (
                    r#"PUT /services/shop-db/meta {"data":1,"index":0}"#,
                    r#"200 {"data":1,"index":3}"#,
                ),
                ("GET /services/other-web/instances", &denied("other-web")),
                ("PUT /services/other-web", &denied("other-web")),
                (
                    &format!("PUT /services/flynn-host/instances/a {INSTANCE}"),
                    &denied("flynn-host"),
                ),
            ],
        )
        .await;
    let of_another = AppTokens::new(INTERNAL_KEY).issue(AppId(Uuid::from_u128(8)), "shop-db");
    assert_eq!(
        registered
            .ask(&of_another, "GET /services/shop-db/instances")
            .await,
        "403 forbidden: service \"shop-db\" is not one of app \"shop-db\"",
        "the service was shop's first",
    );
    let list = registered.ask(KEY, "GET /services/shop-db/instances").await;
    assert!(
        list.contains(&format!("\"FLYNN_APP_ID\":\"{}\"", shop())),
        "{list}"
    );
}

#[test]
fn the_committed_description_is_current() {
    let committed =
        std::fs::read_to_string(openapi::directory().join("discoverd.json")).expect("it is committed");
    assert!(
        committed == openapi::text(&openapi::discoverd()),
        "docs/api/discoverd.json is not what the types say; `cargo run -p openapi` writes it anew"
    );
}

#[tokio::test]
async fn every_path_that_is_served_is_described() {
    let registered = start().await;
    let source = include_str!("../http.rs");
    let routed = source.split(".route(").skip(1).filter_map(|piece| {
        let path = piece.trim_start().strip_prefix('"')?.split('"').next()?;
        path.starts_with('/').then(|| path.to_owned())
    });
    let mut described = BTreeMap::<_, BTreeSet<_>>::new();
    let api = openapi::discoverd();
    for operation in api.operations() {
        let methods = described.entry(operation.path.to_owned()).or_default();
        methods.insert(operation.method.to_owned());
    }
    let mut served = BTreeMap::new();
    for path in routed.chain(described.keys().cloned()) {
        let response = registered
            .open(KEY, "PROPFIND", &path.replace(['{', '}'], ""), "", "")
            .await;
        let allowed = response
            .headers()
            .get("allow")
            .and_then(|value| value.to_str().ok());
        let methods = allowed.unwrap_or_default().split(',').map(str::to_lowercase);
        served.insert(
            path,
            methods
                .filter(|method| !method.is_empty() && method != "head")
                .collect(),
        );
    }
    assert_eq!(served, described);
}

/// What was recorded of the original for the same requests: status, headers, and the bodies to the byte
/// but for numbers that count up.
#[tokio::test]
async fn answers_are_as_the_originals_were() {
    let registered = start().await;
    let instance = r#"{"id":"ee64","addr":"100.100.0.2:80","proto":"http","meta":{"FLYNN_APP_NAME":"shop"}}"#;
    let put = format!("PUT /services/shop-web/instances/ee64 {instance}");
    assert_eq!(registered.ask(KEY, &put).await, "200");
    let index = |text: &str| {
        let (before, number) = text.rsplit_once("\"index\":").unwrap_or((text, ""));
        let digits = number.trim_start_matches(|c: char| c.is_ascii_digit());
        match number.len() == digits.len() {
            true => before.to_owned(),
            false => format!("{before}\"index\":N{digits}"),
        }
    };
    let known =
        r#"{"id":"ee64","addr":"100.100.0.2:80","proto":"http","meta":{"FLYNN_APP_NAME":"shop"},"index":N}"#;
    for (path, status, body) in [
        ("/services/shop-web/instances", 200, format!("[{known}]")),
        ("/services/shop-web/leader", 200, known.to_owned()),
        (
            "/services/nosuch/instances",
            404,
            r#"{"code":"object_not_found","message":"service not found: \"nosuch\"","retry":false}"#
                .to_owned(),
        ),
    ] {
        let response = registered.open(KEY, "GET", path, "application/json", "").await;
        assert_eq!(response.status(), status, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap_or_default().to_owned();
        assert_eq!(header("content-type"), "application/json", "{path}");
        assert_eq!(header("discoverd-peers"), "100.100.0.1:1111", "{path}");
        assert!(header("discoverd-index").parse::<u64>().is_ok(), "{path}");
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(index(&String::from_utf8_lossy(&bytes)), body, "{path}");
    }
    let response = registered
        .open(KEY, "GET", "/services/shop-web", "text/event-stream", "")
        .await;
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let (mut body, mut heard) = (response.into_body(), String::new());
    while !heard.contains("current") {
        let frame = body
            .frame()
            .await
            .expect("it goes on")
            .expect("it does not break");
        heard.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
    let event = |kind: &str| format!(r#"data: {{"service":"shop-web","kind":"{kind}","instance":{known}}}"#);
    let expected = [
        event("up"),
        event("leader"),
        r#"data: {"service":"shop-web","kind":"current"}"#.to_owned(),
    ];
    let lines: Vec<_> = heard
        .lines()
        .filter(|line| line.starts_with("data"))
        .map(index)
        .collect();
    assert_eq!(lines, expected);
}
