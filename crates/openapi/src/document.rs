//! Operations as an OpenAPI 3.1 document.
//!
//! What a reader would get wrong: a type may have two schemas. Answers always carry fields that
//! requests may leave out, so what is read and what is written are described apart; where the two
//! differ, the one for requests is named `…Input`.

use std::collections::BTreeMap;

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::operation::{Access, Operation, Parameter, Shape, Success};

/// The contract's version. Grows when something that was promised changes, not with each release.
const VERSION: &str = "1.0.0";

const SCHEMAS: &str = "#/components/schemas/";

/// One API of the platform.
pub struct Api {
    pub title: &'static str,
    pub about: &'static str,
    pub server: &'static str,
    /// Name of a group, what it is about, its operations.
    pub groups: Vec<(&'static str, &'static str, Vec<Operation>)>,
    /// Whether "not found" has no body, as the original's controller answered.
    pub not_found_is_empty: bool,
}

impl Api {
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.groups.iter().flat_map(|(_, _, operations)| operations)
    }

    pub fn document(&self) -> Value {
        let mut writer = generator(|settings| settings.for_serialize());
        let mut reader = generator(|settings| settings.for_deserialize());
        let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        for (tag, _, operations) in &self.groups {
            for operation in operations {
                let described = self.operation(tag, operation, &mut writer, &mut reader);
                let path = paths.entry(operation.path).or_default();
                let before = path.insert(operation.method.to_owned(), described);
                assert!(
                    before.is_none(),
                    "{} {} is described twice",
                    operation.method,
                    operation.path
                );
            }
        }
        writer.subschema_for::<api::Error>();
        let (mut schemas, inputs) = (writer.take_definitions(true), reader.take_definitions(true));
        let renamed = differing(&schemas, &inputs);
        let mut paths = serde_json::to_value(paths).expect("it is JSON already");
        visit_requests(&mut paths, &mut |request| rename(request, &renamed));
        for (name, mut schema) in inputs {
            rename(&mut schema, &renamed);
            schemas.insert(renamed.get(&name).cloned().unwrap_or(name), schema);
        }
        let tags: Vec<_> = self
            .groups
            .iter()
            .map(|(name, about, _)| json!({"name": name, "description": about}))
            .collect();
        json!({
            "openapi": "3.1.0",
            "info": {"title": self.title, "description": self.about, "version": VERSION,
                "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"}},
            "servers": [{"url": self.server}],
            "tags": tags,
            "security": [{"key": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": self.responses(),
                "securitySchemes": {"key": {"type": "http", "scheme": "basic",
                    "description": "The password is the key; the user is ignored."}},
            },
        })
    }

    fn operation(
        &self,
        tag: &str,
        operation: &Operation,
        writer: &mut SchemaGenerator,
        reader: &mut SchemaGenerator,
    ) -> Value {
        let names = path_parameters(operation.path);
        let mut parameters: Vec<_> = names.iter().map(|name| path_parameter(name)).collect();
        parameters.extend(operation.parameters.iter().map(parameter));
        let mut responses = success(operation, writer);
        let mut refer = |status: u16, name: &str| {
            responses.insert(
                status.to_string(),
                json!({"$ref": format!("#/components/responses/{name}")}),
            );
        };
        if operation.request.is_some() || operation.parameters.iter().any(|known| known.place == "query") {
            refer(400, "Invalid");
        }
        if operation.access != Access::Open {
            refer(401, "Unauthorized");
        }
        if !names.is_empty() {
            refer(404, "NotFound");
        }
        if operation.method != "get" {
            refer(503, "Unavailable");
        }
        for (status, when) in &operation.failures {
            let error = error_response(*status, when);
            responses.insert(status.to_string(), error);
        }
        let mut described = json!({
            "tags": [tag],
            "operationId": operation_id(operation),
            "summary": operation.summary,
            "responses": responses,
        });
        if !operation.about.is_empty() {
            described["description"] = operation.about.into();
        }
        if !parameters.is_empty() {
            described["parameters"] = parameters.into();
        }
        if let Some(request) = &operation.request {
            described["requestBody"] = json!({"required": true, "content": {
                operation.request_type: content(request, reader)}});
        }
        match operation.access {
            Access::Key => {}
            Access::Open => described["security"] = json!([]),
            Access::InternalKey => described["x-internal"] = true.into(),
        }
        described
    }

    fn responses(&self) -> Value {
        let not_found = if self.not_found_is_empty {
            json!({"description": "What the path names does not exist. The body is empty."})
        } else {
            error_response(404, "What the path names does not exist.")
        };
        json!({
            "Invalid": error_response(400, "The request cannot be read (`syntax_error`) or breaks a rule \
                (`validation_error`); `detail.field` names what does."),
            "Unauthorized": {"description": "No key, or not one of the cluster's. The body is empty."},
            "NotFound": not_found,
            "Unavailable": error_response(503, "The cluster cannot keep the change now; the same request \
                may succeed later."),
        })
    }
}

fn generator(contract: fn(SchemaSettings) -> SchemaSettings) -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    contract(settings).into_generator()
}

fn content(shape: &Shape, generator: &mut SchemaGenerator) -> Value {
    json!({"schema": (shape.schema)(generator), "example": shape.example})
}

fn success(operation: &Operation, generator: &mut SchemaGenerator) -> Map<String, Value> {
    // A stream has no schema of its own in this version of OpenAPI; the event's stands beside it.
    let events = |shape: &Shape, generator: &mut SchemaGenerator| {
        json!({
            "schema": {"type": "string"},
            "example": format!("data: {}\n\n", shape.example),
            "x-event-schema": (shape.schema)(generator),
        })
    };
    let switched = json!({"description": "The connection carries the attach protocol from here on."});
    let mut responses = Map::new();
    let mut done = |content: Value| {
        responses.insert("200".into(), json!({"description": "Done.", "content": content}));
    };
    match &operation.success {
        Success::Empty => {
            responses.insert("200".into(), json!({"description": "Done. The body is empty."}));
        }
        Success::Json(shape) => done(json!({"application/json": content(shape, generator)})),
        Success::Bytes {
            content_type,
            example,
        } => {
            // What is JSON and has no type here may be any.
            let schema = match *content_type {
                "application/json" => json!({}),
                _ => json!({"type": "string"}),
            };
            done(json!({(*content_type): {"schema": schema, "example": example}}))
        }
        Success::Events(shape) => done(json!({"text/event-stream": events(shape, generator)})),
        Success::JsonOrEvents(list, event) => done(json!({
            "application/json": content(list, generator),
            "text/event-stream": events(event, generator),
        })),
        Success::Attach => {
            responses.insert("101".into(), switched);
        }
        Success::JsonOrAttach(shape) => {
            done(json!({"application/json": content(shape, generator)}));
            responses.insert("101".into(), switched);
        }
    }
    responses
}

fn error_response(status: u16, when: &str) -> Value {
    use api::Code;
    let codes = [
        Code::ValidationError,
        Code::Unauthorized,
        Code::Forbidden,
        Code::NotFound,
        Code::Conflict,
        Code::PreconditionFailed,
        Code::Ratelimited,
        Code::ServiceUnavailable,
        Code::UnknownError,
    ];
    let code = codes
        .into_iter()
        .find(|code| code.status() == status)
        .unwrap_or(Code::UnknownError);
    json!({"description": when, "content": {"application/json": {
        "schema": {"$ref": format!("{SCHEMAS}Error")},
        "example": api::Error::new(code, when),
    }}})
}

fn operation_id(operation: &Operation) -> String {
    let words = operation.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).map(str::to_lowercase);
    std::iter::once(operation.method.to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

fn parameter(known: &Parameter) -> Value {
    json!({"name": known.name, "in": known.place, "description": known.about,
        "required": known.is_required, "schema": known.schema, "example": known.example})
}

/// The names between braces.
pub fn path_parameters(path: &str) -> Vec<&str> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .collect()
}

fn path_parameter(name: &str) -> Value {
    const UUID: &str = "b888ecaa-2476-409a-a817-712f1923fe7d";
    let id = || json!({"type": "string", "format": "uuid"});
    let text = || json!({"type": "string"});
    let (about, schema, example) = match name {
        "app" => ("An app's id or its name.", text(), json!("shop")),
        "job" => (
            "A job's UUID, or its whole id `HOST-UUID`.",
            text(),
            json!(format!("host0-{UUID}")),
        ),
        "provider" => ("A provider's id or its name.", text(), json!("postgres")),
        "kind" => (
            "The kind of the route.",
            json!({"type": "string", "enum": ["http", "tcp"]}),
            json!("http"),
        ),
        "event" => (
            "An event's number.",
            json!({"type": "integer", "minimum": 0}),
            json!(17),
        ),
        "host" => ("A host's id.", text(), json!("host0")),
        "router" => ("A router's id.", text(), json!("host0")),
        "signal" => (
            "A signal's number.",
            json!({"type": "integer", "minimum": 1, "maximum": 64}),
            json!(15),
        ),
        "service" => ("A service's name.", text(), json!("shop-web")),
        "instance" => (
            "An instance's id: the MD5 of `PROTO-ADDR` in hex.",
            text(),
            json!("ee646812fd8e4452f2e5e361b3d613d0"),
        ),
        "api" => ("`host` or `discoverd`.", text(), json!("host")),
        _ => ("The object's id.", id(), json!(UUID)),
    };
    json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema,
        "example": example})
}

/// Names of the schemas that are not the same read as written, with their names as input. A schema
/// that refers to one of those is another, too.
fn differing(schemas: &Map<String, Value>, inputs: &Map<String, Value>) -> BTreeMap<String, String> {
    let mut renamed = BTreeMap::new();
    loop {
        let before = renamed.len();
        for (name, input) in inputs {
            let differs = schemas.get(name).is_some_and(|schema| schema != input);
            let refers = refers_to(input, &renamed);
            if (differs || (refers && schemas.contains_key(name))) && !renamed.contains_key(name) {
                renamed.insert(name.clone(), format!("{name}Input"));
            }
        }
        if renamed.len() == before {
            return renamed;
        }
    }
}

fn refers_to(schema: &Value, names: &BTreeMap<String, String>) -> bool {
    match schema {
        Value::Object(map) => map.iter().any(|(key, value)| match value {
            Value::String(target) if key == "$ref" => target
                .strip_prefix(SCHEMAS)
                .is_some_and(|name| names.contains_key(name)),
            value => refers_to(value, names),
        }),
        Value::Array(items) => items.iter().any(|item| refers_to(item, names)),
        _ => false,
    }
}

fn rename(schema: &mut Value, names: &BTreeMap<String, String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(new) = target.strip_prefix(SCHEMAS).and_then(|name| names.get(name)) {
                            *target = format!("{SCHEMAS}{new}");
                        }
                    }
                    value => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        _ => {}
    }
}

fn visit_requests(paths: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    let methods = paths
        .as_object_mut()
        .into_iter()
        .flatten()
        .filter_map(|(_, path)| path.as_object_mut());
    for (_, operation) in methods.flatten() {
        if let Some(request) = operation.get_mut("requestBody") {
            visit(request);
        }
    }
}
