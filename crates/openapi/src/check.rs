//! Whether a value has the form that a JSON schema asks for.
//!
//! For tests. Knows what the committed schemas use, of draft 4 and of 2020-12, and panics at a keyword
//! that it does not know: nothing goes unchecked in silence. It is this small because the validators
//! there are bring two dozen crates and other features of shared ones, which would have the whole
//! workspace built twice.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Keywords that say nothing about a value's form.
const ANNOTATIONS: [&str; 12] = [
    "$schema",
    "id",
    "title",
    "description",
    "sortIndex",
    "examples",
    "example",
    "default",
    "definitions",
    "deprecated",
    "readOnly",
    "x-event-schema",
];

/// Schemas by where references find them.
#[derive(Default)]
pub struct Schemas {
    documents: BTreeMap<String, Value>,
}

impl Schemas {
    /// A document by the name that references to it begin with (`""` for references within itself).
    pub fn add(&mut self, name: &str, document: Value) {
        self.documents.insert(name.to_owned(), document);
    }

    /// What of `value` is not as the schema at `reference` asks, a line each.
    pub fn problems(&self, reference: &str, value: &Value) -> Vec<String> {
        let (document, schema) = self.find("", reference);
        self.problems_of(&document, schema, value)
    }

    /// The same for a schema that stands in the document `document`.
    pub fn problems_of(&self, document: &str, schema: &Value, value: &Value) -> Vec<String> {
        let mut problems = vec![];
        self.check(document, schema, value, "", &mut problems);
        problems
    }

    fn find(&self, document: &str, reference: &str) -> (String, &Value) {
        let (name, pointer) = reference.split_once('#').unwrap_or((reference, ""));
        let name = match name {
            "" => document,
            // The original's schemas name each other by path or by address.
            name => name.strip_prefix("https://flynn.io").unwrap_or(name),
        };
        let found = self.documents.get(name).and_then(|found| found.pointer(pointer));
        (
            name.to_owned(),
            found.unwrap_or_else(|| panic!("no schema is at {reference:?} (seen from {document:?})")),
        )
    }

    fn check(&self, document: &str, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
        let schema = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return problems.push(format!("{at}: nothing may be here")),
            Value::Object(schema) => schema,
            other => panic!("{other} is no schema"),
        };
        for (keyword, rule) in schema {
            match keyword.as_str() {
                "$ref" => {
                    let (document, target) = self.find(document, rule.as_str().unwrap_or_default());
                    self.check(&document, target, value, at, problems);
                }
                "type" => check_type(rule, value, at, problems),
                "enum" => {
                    if !rule.as_array().is_some_and(|known| known.contains(value)) {
                        problems.push(format!("{at}: {value} is none of {rule}"));
                    }
                }
                "const" if rule != value => problems.push(format!("{at}: {value} is not {rule}")),
                "const" => {}
                "allOf" => {
                    for part in rule.as_array().into_iter().flatten() {
                        self.check(document, part, value, at, problems);
                    }
                }
                "anyOf" | "oneOf" => {
                    let choices = rule.as_array().map(Vec::as_slice).unwrap_or_default();
                    let failed: Vec<_> = choices
                        .iter()
                        .map(|choice| {
                            let mut found = vec![];
                            self.check(document, choice, value, at, &mut found);
                            found
                        })
                        .collect();
                    if failed.iter().all(|found| !found.is_empty()) {
                        problems.push(format!("{at}: fits no choice: {}", failed.concat().join("; ")));
                    }
                }
                "properties" | "required" | "additionalProperties" => {}
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(document, rule, item, &format!("{at}/{index}"), problems);
                    }
                }
                "format" => check_format(rule.as_str().unwrap_or_default(), value, at, problems),
                "pattern" => check_pattern(rule.as_str().unwrap_or_default(), value, at, problems),
                "minLength" | "maxLength" | "minimum" | "maximum" | "minItems" | "maxItems" => {
                    check_bound(keyword, rule, value, at, problems);
                }
                known if ANNOTATIONS.contains(&known) => {}
                unknown => {
                    panic!("the schema keyword {unknown:?} is not known here; teach it to openapi::check")
                }
            }
        }
        if let Value::Object(object) = value {
            self.check_object(document, schema, object, at, problems);
        }
    }

    fn check_object(
        &self,
        document: &str,
        schema: &Map<String, Value>,
        object: &Map<String, Value>,
        at: &str,
        problems: &mut Vec<String>,
    ) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for name in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if !object.contains_key(name.as_str().unwrap_or_default()) {
                problems.push(format!("{at}: has no {name}"));
            }
        }
        for (name, member) in object {
            let at = format!("{at}/{name}");
            if let Some(rule) = properties.and_then(|properties| properties.get(name)) {
                self.check(document, rule, member, &at, problems);
            } else {
                match schema.get("additionalProperties") {
                    Some(Value::Bool(false)) => problems.push(format!("{at}: is not foreseen")),
                    Some(rule) => self.check(document, rule, member, &at, problems),
                    None => {}
                }
            }
        }
    }
}

fn check_type(rule: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("the schema type {other:?} is not known"),
    };
    let fits = match rule {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        other => panic!("{other} is no type"),
    };
    if !fits {
        problems.push(format!("{at}: {value} is no {rule}"));
    }
}

fn check_format(format: &str, value: &Value, at: &str, problems: &mut Vec<String>) {
    let Some(text) = value.as_str() else { return };
    let fits = match format {
        "date-time" => text.parse::<types::Timestamp>().is_ok(),
        "uuid" => text.parse::<types::AppId>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "uri" => text.contains(':'),
        // Of numbers, whose bounds stand beside it.
        _ => true,
    };
    if !fits {
        problems.push(format!("{at}: {text:?} is no {format}"));
    }
}

fn check_pattern(pattern: &str, value: &Value, at: &str, problems: &mut Vec<String>) {
    let Some(text) = value.as_str() else { return };
    let fits = match pattern {
        r"^[a-z\d]+(-[a-z\d]+)*$" => types::check_app_name(text).is_ok(),
        "^[A-Za-z0-9._]{1,63}$" => text.parse::<types::HostId>().is_ok(),
        // What Rust integers as keys of maps are described by.
        r"^\d+$" => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
        other => panic!("the pattern {other:?} is not known here; teach it to openapi::check"),
    };
    if !fits {
        problems.push(format!("{at}: {text:?} is not {pattern}"));
    }
}

fn check_bound(keyword: &str, rule: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    let size = match (keyword, value) {
        ("minLength" | "maxLength", Value::String(text)) => text.chars().count() as f64,
        ("minItems" | "maxItems", Value::Array(items)) => items.len() as f64,
        ("minimum" | "maximum", Value::Number(number)) => number.as_f64().unwrap_or_default(),
        _ => return,
    };
    let bound = rule.as_f64().unwrap_or_else(|| panic!("{rule} is no bound"));
    let fits = if keyword.starts_with("min") {
        size >= bound
    } else {
        size <= bound
    };
    if !fits {
        problems.push(format!("{at}: {value} breaks {keyword} {rule}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: Value, value: Value, expected: &[&str]) {
        let mut schemas = Schemas::default();
        schemas.add(
            "/a",
            json!({"definitions": {"id": {"type": "string", "format": "uuid"}}}),
        );
        schemas.add("/b", schema);
        assert_eq!(schemas.problems("/b#", &value), expected);
    }

    #[test]
    fn values_are_held_against_references_types_and_what_is_foreseen() {
        let schema = json!({
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": {
                "id": {"$ref": "/a#/definitions/id"},
                "counts": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
            },
        });
        let id = "b888ecaa-2476-409a-a817-712f1923fe7d";
        check(schema.clone(), json!({"id": id, "counts": {"web": 1}}), &[]);
        check(schema.clone(), json!({}), &[": has no \"id\""]);
        check(schema.clone(), json!({"id": "x"}), &["/id: \"x\" is no uuid"]);
        check(
            schema,
            json!({"id": id, "more": 1, "counts": {"web": -1}}),
            &["/counts/web: -1 breaks minimum 0", "/more: is not foreseen"],
        );
    }

    #[test]
    fn one_of_several_forms_is_enough() {
        let schema = json!({"anyOf": [{"type": "string"}, {"type": ["integer", "null"]}]});
        check(schema.clone(), json!(null), &[]);
        check(
            schema,
            json!([]),
            &[": fits no choice: : [] is no \"string\"; : [] is no [\"integer\",\"null\"]"],
        );
    }
}
