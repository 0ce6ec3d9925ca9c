//! The description is complete and true: every path that is served is in it, and answers are as it says.

use std::collections::{BTreeMap, BTreeSet};

use openapi::{Api, check::Schemas};
use serde_json::Value;

use crate::server::Server;

/// The committed document, for looking things up.
pub struct Description {
    document: Value,
    schemas: Schemas,
}

impl Description {
    pub fn read() -> Description {
        let path = openapi::directory().join("controller.json");
        let text = std::fs::read_to_string(path).expect("it is committed");
        let document: Value = serde_json::from_str(&text).expect("it is JSON");
        let mut schemas = Schemas::default();
        schemas.add("", document.clone());
        Description { document, schemas }
    }

    pub fn paths(&self) -> &serde_json::Map<String, Value> {
        self.document["paths"].as_object().expect("it has paths")
    }

    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    pub fn find(&self, reference: &str) -> Option<&Value> {
        self.document.pointer(reference.strip_prefix('#')?)
    }

    /// `METHOD /path/{parameter}` of a request; a path that is not described stays as it is.
    pub fn operation(&self, method: &str, path: &str) -> String {
        let segments: Vec<_> = path.split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<_> = template.split('/').collect();
            let fitting = parts
                .iter()
                .zip(&segments)
                .all(|(part, segment)| part == segment || (part.starts_with('{') && !segment.is_empty()));
            parts.len() == segments.len() && fitting
        };
        let templates = self.paths().keys().filter(|template| fits(template));
        // What is literal wins over what is a parameter.
        let best = templates.min_by_key(|template| template.matches('{').count());
        format!("{method} {}", best.map_or(path, String::as_str))
    }

    /// What of an answer is not as described.
    pub fn problems(&self, operation: &str, status: u16, answer: &Value) -> Vec<String> {
        let Some((method, path)) = operation.split_once(' ') else {
            return vec![];
        };
        let described = &self.document["paths"][path][method.to_lowercase()];
        if described.is_null() {
            return vec!["the operation is not described".into()];
        }
        let mut response = &described["responses"][status.to_string()];
        if let Some(reference) = response["$ref"].as_str() {
            response = self.find(reference).expect("references lead somewhere");
        }
        if response.is_null() {
            return vec![format!("the status {status} is not described")];
        }
        match response["content"].get("application/json") {
            Some(content) => self.schemas.problems_of("", &content["schema"], answer),
            None => vec![format!("no JSON is described for status {status}")],
        }
    }
}

/// Methods by path, as the router has them: each path is asked with a method that none has, and the
/// refusal lists those that it has.
async fn served(server: &Server, paths: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut served = BTreeMap::new();
    for path in paths {
        let concrete: Vec<_> = path
            .split('/')
            .map(|segment| if segment.starts_with('{') { "x" } else { segment })
            .collect();
        let internal = path.starts_with("/internal/");
        let mut request = server.request("PROPFIND", &concrete.join("/"));
        if internal {
            let key = "Basic OmZlZGNiYTk4NzY1NDMyMTBmZWRjYmE5ODc2NTQzMjEw";
            let headers = request.headers_mut().expect("the path is one");
            headers.insert("authorization", key.parse().expect("a header"));
        }
        let answer = server
            .send(request.body(Default::default()).expect("a request"))
            .await;
        let allowed = answer.headers.get("allow").and_then(|value| value.to_str().ok());
        let methods = allowed
            .unwrap_or_default()
            .split(',')
            .map(|method| method.trim().to_lowercase())
            .filter(|method| !method.is_empty() && method != "head");
        served.insert(path.clone(), methods.collect());
    }
    served
}

/// Paths that the source names: what is served and not described can be found nowhere else.
fn routed() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut directories = vec![std::path::PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src"
    ))];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the crate has sources") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("it can be read");
            for piece in text.split(".route(").skip(1) {
                if let Some(path) = piece
                    .trim_start()
                    .strip_prefix('"')
                    .and_then(|rest| rest.split('"').next())
                {
                    paths.insert(path.to_owned());
                }
            }
        }
    }
    paths
}

fn described(api: &Api) -> BTreeMap<String, BTreeSet<String>> {
    let mut described = BTreeMap::<_, BTreeSet<_>>::new();
    for operation in api.operations() {
        let methods = described.entry(operation.path.to_owned()).or_default();
        methods.insert(operation.method.to_owned());
    }
    described
}

#[tokio::test]
async fn every_path_that_is_served_is_described() {
    let described = described(&openapi::controller());
    let mut paths = routed();
    paths.extend(described.keys().cloned());
    let server = Server::start().await;
    let mut served = served(&server, &paths).await;
    served.retain(|_, methods| !methods.is_empty());
    assert_eq!(
        served, described,
        "served (left) is not what is described (right)"
    );
}

#[test]
fn the_committed_description_is_current() {
    let path = openapi::directory().join("controller.json");
    let committed = std::fs::read_to_string(&path).expect("it is committed");
    assert!(
        committed == openapi::text(&openapi::controller()),
        "docs/api/controller.json is not what the types say; `cargo run -p openapi` writes it anew"
    );
}

#[test]
fn examples_are_as_the_schemas_say() {
    let description = Description::read();
    let mut problems = vec![];
    for (path, operations) in description.paths() {
        for (method, operation) in operations.as_object().expect("operations by method") {
            let place = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{place} has no summary");
            let request = &operation["requestBody"];
            let responses = operation["responses"].as_object().expect("responses by status");
            for body in responses.values().chain([request]) {
                let Some(content) = body["content"].get("application/json") else {
                    continue;
                };
                assert!(!content["example"].is_null(), "{place} has no example");
                let found = description
                    .schemas()
                    .problems_of("", &content["schema"], &content["example"]);
                problems.extend(found.into_iter().map(|problem| format!("{place}{problem}")));
            }
        }
    }
    assert_eq!(problems, Vec::<String>::new());
}
