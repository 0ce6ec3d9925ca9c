//! One operation of an API: how it is called, what it answers, and an example of both.
//!
//! Examples are values of the types that the handlers use: [`Operation::takes`] and
//! [`Operation::gives`] refuse an example that the type does not read, or does not write the same
//! way. So an example cannot outlive the shape that it shows.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// A JSON value on the wire.
#[derive(Clone)]
pub struct Shape {
    pub schema: MakeSchema,
    pub example: Value,
}

/// What a successful call brings.
#[derive(Clone)]
pub enum Success {
    /// 200 with an empty body.
    Empty,
    Json(Shape),
    /// 200 with a body that is no JSON value.
    Bytes {
        content_type: &'static str,
        example: &'static str,
    },
    /// Server-sent events.
    Events(Shape),
    /// A value, or the same as events: `Accept: text/event-stream` decides.
    JsonOrEvents(Shape, Shape),
    /// 101: the connection carries the attach protocol from there on.
    Attach,
    /// A value, or 101 where the request asks for the attach protocol.
    JsonOrAttach(Shape),
}

#[derive(Clone)]
pub struct Parameter {
    pub name: &'static str,
    /// `query` or `header`.
    pub place: &'static str,
    pub about: &'static str,
    pub schema: Value,
    pub example: Value,
    pub is_required: bool,
}

/// Whose key an operation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    Key,
    /// The platform's own parts only.
    InternalKey,
}

#[derive(Clone)]
pub struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    pub about: &'static str,
    pub parameters: Vec<Parameter>,
    pub request: Option<Shape>,
    /// Of the request's body.
    pub request_type: &'static str,
    pub success: Success,
    /// Status and when it comes, beyond those that follow from the operation's form.
    pub failures: Vec<(u16, &'static str)>,
    pub access: Access,
}

pub fn get(path: &'static str, summary: &'static str) -> Operation {
    Operation::new("get", path, summary)
}

pub fn put(path: &'static str, summary: &'static str) -> Operation {
    Operation::new("put", path, summary)
}

pub fn post(path: &'static str, summary: &'static str) -> Operation {
    Operation::new("post", path, summary)
}

pub fn delete(path: &'static str, summary: &'static str) -> Operation {
    Operation::new("delete", path, summary)
}

impl Operation {
    fn new(method: &'static str, path: &'static str, summary: &'static str) -> Self {
        Operation {
            method,
            path,
            summary,
            about: "",
            parameters: vec![],
            request: None,
            request_type: "application/json",
            success: Success::Empty,
            failures: vec![],
            access: Access::Key,
        }
    }

    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    pub fn internal(mut self) -> Self {
        self.access = Access::InternalKey;
        self
    }

    pub fn query(self, name: &'static str, about: &'static str, schema: Value, example: Value) -> Self {
        self.parameter(name, "query", about, schema, example)
    }

    pub fn header(self, name: &'static str, about: &'static str, schema: Value, example: Value) -> Self {
        self.parameter(name, "header", about, schema, example)
    }

    fn parameter(
        mut self,
        name: &'static str,
        place: &'static str,
        about: &'static str,
        schema: Value,
        example: Value,
    ) -> Self {
        self.parameters.push(Parameter {
            name,
            place,
            about,
            schema,
            example,
            is_required: false,
        });
        self
    }

    /// The body that the operation reads.
    pub fn takes<T: JsonSchema + DeserializeOwned>(mut self, example: Value) -> Self {
        if let Err(error) = serde_json::from_value::<T>(example.clone()) {
            panic!(
                "{} {}: the example of the request: {error}",
                self.method, self.path
            );
        }
        self.request = Some(Shape {
            schema: schema_of::<T>,
            example,
        });
        self
    }

    /// A body that is no JSON value.
    pub fn takes_bytes(mut self, content_type: &'static str) -> Self {
        self.request = Some(Shape {
            schema: |_| schemars::json_schema!({"type": "string", "format": "binary"}),
            example: Value::String("…".into()),
        });
        self.request_type = content_type;
        self
    }

    pub fn gives<T: JsonSchema + Serialize + DeserializeOwned>(mut self, example: Value) -> Self {
        self.success = Success::Json(self.shape::<T>(example));
        self
    }

    pub fn gives_list<T: JsonSchema + Serialize + DeserializeOwned>(self, example: Value) -> Self {
        self.gives::<Vec<T>>(Value::Array(vec![example]))
    }

    pub fn streams<T: JsonSchema + Serialize + DeserializeOwned>(mut self, example: Value) -> Self {
        self.success = Success::Events(self.shape::<T>(example));
        self
    }

    /// A list of `T` for `Accept: application/json`, a stream of `T` for `text/event-stream`.
    pub fn lists_or_streams<T: JsonSchema + Serialize + DeserializeOwned>(mut self, example: Value) -> Self {
        let list = self.shape::<Vec<T>>(Value::Array(vec![example.clone()]));
        self.success = Success::JsonOrEvents(list, self.shape::<T>(example));
        self
    }

    /// A `T` for `Accept: application/json`, a stream of `E` for `text/event-stream`.
    pub fn gives_or_streams<T, E>(mut self, example: Value, event: Value) -> Self
    where
        T: JsonSchema + Serialize + DeserializeOwned,
        E: JsonSchema + Serialize + DeserializeOwned,
    {
        self.success = Success::JsonOrEvents(self.shape::<T>(example), self.shape::<E>(event));
        self
    }

    pub fn gives_bytes(mut self, content_type: &'static str, example: &'static str) -> Self {
        self.success = Success::Bytes {
            content_type,
            example,
        };
        self
    }

    pub fn attaches(mut self) -> Self {
        self.success = Success::Attach;
        self
    }

    pub fn gives_or_attaches<T: JsonSchema + Serialize + DeserializeOwned>(mut self, example: Value) -> Self {
        self.success = Success::JsonOrAttach(self.shape::<T>(example));
        self
    }

    pub fn may_fail(mut self, status: u16, when: &'static str) -> Self {
        self.failures.push((status, when));
        self
    }

    fn shape<T: JsonSchema + Serialize + DeserializeOwned>(&self, example: Value) -> Shape {
        let place = format!("{} {}", self.method, self.path);
        let read: T = serde_json::from_value(example.clone())
            .unwrap_or_else(|error| panic!("{place}: the example of the answer: {error}"));
        let written = serde_json::to_value(&read).expect("API values always serialise");
        assert_eq!(
            example, written,
            "{place}: the example of the answer is not as it is written"
        );
        Shape {
            schema: schema_of::<T>,
            example,
        }
    }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}
