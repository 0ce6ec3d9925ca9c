//! The original's JSON schemas, and which answer each is for.

use std::path::Path;

use openapi::check::Schemas;
use serde_json::Value;

pub struct Originals {
    schemas: Schemas,
}

impl Originals {
    pub fn read() -> Originals {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/schema");
        let mut schemas = Schemas::default();
        for directory in ["", "controller", "router"] {
            for entry in std::fs::read_dir(root.join(directory)).expect("it is committed") {
                let path = entry.expect("it can be read").path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("it can be read");
                let relative = path.strip_prefix(&root).expect("it is below").with_extension("");
                let name = format!("/schema/{}", relative.display());
                schemas.add(&name, serde_json::from_str(&text).expect("it is JSON"));
            }
        }
        Originals { schemas }
    }

    /// Problems of an answer as the original's schemas see it: kind, place, in words.
    pub fn problems(
        &self,
        operation: &str,
        status: u16,
        answer: &Value,
    ) -> Vec<(&'static str, String, String)> {
        let name = match status {
            200 => match of(operation) {
                Some(name) => name,
                None => return vec![],
            },
            _ => "error",
        };
        let name = match name {
            "formation" if answer["app"].is_object() => "expanded_formation",
            name => name,
        };
        let reference = format!("/schema/controller/{name}#");
        let items = match answer {
            Value::Array(items) => items.iter().map(|item| ("/*", item)).collect(),
            other => vec![("", other)],
        };
        // The schemas call these ids UUIDs. The original's answers never were, and it did not look.
        let is_slip = |place: &str| {
            ["/parent_ref", "/service", "/external_id", "/object_id"]
                .iter()
                .any(|end| place.ends_with(end))
        };
        let problems = items
            .into_iter()
            .flat_map(|(at, item)| {
                let found = self.schemas.problems(&reference, item);
                found.into_iter().map(move |problem| (at, problem))
            })
            .map(|(at, problem)| {
                let (place, what) = problem.split_once(": ").unwrap_or((&problem, ""));
                let kind = if what == "is not foreseen" { "+" } else { "schema" };
                (kind, format!("{at}{place}"), what.to_owned())
            })
            .filter(|(_, place, what)| !(what.ends_with("is no uuid") && is_slip(place)));
        problems.collect()
    }
}

/// The schema of what an operation answers with, or lists.
fn of(operation: &str) -> Option<&'static str> {
    let (method, path) = operation.split_once(' ')?;
    if method == "DELETE" && !path.contains("/resources/") {
        return None;
    }
    Some(match path {
        "/apps" | "/apps/{app}" | "/apps/{app}/meta" => "app",
        "/releases"
        | "/releases/{release}"
        | "/apps/{app}/releases"
        | "/apps/{app}/releases/{release}"
        | "/apps/{app}/release" => "release",
        "/artifacts" | "/artifacts/{artifact}" => "artifact",
        "/apps/{app}/formations" | "/apps/{app}/formations/{release}" => "formation",
        "/formations" => "expanded_formation",
        "/apps/{app}/scale/{release}" => "scale_request",
        "/apps/{app}/deploy" | "/apps/{app}/deployments" | "/deployments/{deployment}" => "deployment",
        "/apps/{app}/jobs" | "/apps/{app}/jobs/{job}" | "/active-jobs" => "job",
        "/routes" | "/apps/{app}/routes" | "/apps/{app}/routes/{kind}/{route}" => "route",
        "/events" | "/events/{event}" => "event",
        "/providers" | "/providers/{provider}" => "provider",
        "/sinks" | "/sinks/{sink}" => "sink",
        "/volumes" | "/volumes/{volume}" | "/apps/{app}/volumes" => "volume",
        path if path.contains("/volumes/") => "volume",
        path if path.contains("resources") => "resource",
        "/domain" => "domain_migration",
        _ => return None,
    })
}
