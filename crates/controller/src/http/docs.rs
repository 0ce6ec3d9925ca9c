//! The description of the platform's APIs: as OpenAPI documents, and as pages made from them.
//!
//! Open, like `/ping`: the documents are the same for every cluster and hold nothing of this one, and
//! who has no key yet may read what to do with one. The pages need nothing from elsewhere and run no
//! script.

use std::{fmt::Write, sync::OnceLock};

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde_json::Value;

const CONTROLLER: &str = include_str!("../../../../docs/api/controller.json");
const HOST: &str = include_str!("../../../../docs/api/host.json");
const DISCOVERD: &str = include_str!("../../../../docs/api/discoverd.json");

/// Name of the document, the document, the address of its page, the page.
static APIS: [(&str, &str, &str, OnceLock<String>); 3] = [
    ("controller.json", CONTROLLER, "/docs", OnceLock::new()),
    ("host.json", HOST, "/docs/host", OnceLock::new()),
    ("discoverd.json", DISCOVERD, "/docs/discoverd", OnceLock::new()),
];

pub async fn controller_document() -> Response {
    document(CONTROLLER)
}

pub async fn other_document(Path(name): Path<String>) -> Response {
    match APIS.iter().find(|(known, ..)| *known == name) {
        Some((_, text, ..)) => document(text),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub async fn controller_page() -> Response {
    page("/docs")
}

pub async fn other_page(Path(name): Path<String>) -> Response {
    page(&format!("/docs/{name}"))
}

fn document(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn page(place: &str) -> Response {
    let Some((_, text, _, page)) = APIS.iter().find(|(_, _, known, _)| *known == place) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let page = page.get_or_init(|| render(text, place));
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    ];
    (headers, page.as_str()).into_response()
}

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem }
nav a { margin-right: 1rem } a { color: #0a58ca }
details { border: 1px solid #ccc; border-radius: 4px; margin: .4rem 0; padding: .3rem .7rem }
summary { cursor: pointer } code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; border-radius: 4px }
.method { display: inline-block; width: 4.5rem; font-weight: bold }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid #ddd; padding: .2rem .6rem .2rem 0; vertical-align: top }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b } pre { background: #2a2a2a } a { color: #7ab7ff }
  details { border-color: #444 } td { border-color: #333 }
}";

fn render(text: &str, place: &str) -> String {
    let document: Value = serde_json::from_str(text).expect("the document is committed as JSON");
    let title = escaped(&document["info"]["title"]);
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><nav>"
    );
    for (name, _, other, _) in &APIS {
        let label = name.trim_end_matches(".json");
        let _ = if *other == place {
            write!(page, "<strong>{label}</strong> ")
        } else {
            write!(page, "<a href=\"{other}\">{label}</a> ")
        };
    }
    let source = APIS.iter().find(|(_, _, known, _)| *known == place);
    let source = source.map(|(name, ..)| *name).unwrap_or_default();
    let _ = write!(
        page,
        "<a href=\"/openapi/{source}\">OpenAPI</a></nav><h1>{title}</h1>"
    );
    paragraphs(&mut page, &document["info"]["description"]);
    for tag in items(&document["tags"]) {
        let _ = write!(page, "<h2>{}</h2>", escaped(&tag["name"]));
        paragraphs(&mut page, &tag["description"]);
        for (path, methods) in members(&document["paths"]) {
            for (method, operation) in members(methods) {
                if operation["tags"][0] == tag["name"] {
                    render_operation(&mut page, &document, path, method, operation);
                }
            }
        }
    }
    page.push_str("<h2>Objects</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let _ = write!(
            page,
            "<details id=\"{0}\"><summary><code>{0}</code></summary>",
            escape(name)
        );
        render_schema(&mut page, schema);
        page.push_str("</details>");
    }
    page.push_str("</html>\n");
    page
}

fn render_operation(page: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        page,
        "<details><summary><code><span class=method>{}</span>{}</code> — {}</summary>",
        method.to_uppercase(),
        escape(path),
        escaped(&operation["summary"]),
    );
    paragraphs(page, &operation["description"]);
    if operation["parameters"].is_array() {
        page.push_str("<table>");
        for parameter in items(&operation["parameters"]) {
            let _ = write!(
                page,
                "<tr><td><code>{}</code><td>{}<td>{}<td>{}",
                escaped(&parameter["name"]),
                escaped(&parameter["in"]),
                form(&parameter["schema"]),
                escaped(&parameter["description"]),
            );
        }
        page.push_str("</table>");
    }
    if let Some(content) = operation["requestBody"]["content"].get("application/json") {
        page.push_str("<p>Takes ");
        render_content(page, content);
    }
    for (status, response) in members(&operation["responses"]) {
        let reference = response["$ref"]
            .as_str()
            .and_then(|reference| reference.strip_prefix('#'));
        let response = reference.and_then(|at| document.pointer(at)).unwrap_or(response);
        let _ = write!(
            page,
            "<p><strong>{status}</strong> {}",
            escaped(&response["description"])
        );
        // Errors all have the same form; their examples would only make the page longer.
        if status.starts_with('2') {
            for (content_type, content) in members(&response["content"]) {
                let _ = write!(page, " <code>{}</code> ", escape(content_type));
                render_content(page, content);
            }
        }
    }
    page.push_str("</details>");
}

fn render_content(page: &mut String, content: &Value) {
    let schema = content.get("x-event-schema").unwrap_or(&content["schema"]);
    let example = match &content["example"] {
        Value::String(text) => text.clone(),
        value => serde_json::to_string_pretty(value).expect("values always serialise"),
    };
    let _ = write!(page, "{}</p><pre>{}</pre>", form(schema), escape(&example));
}

fn render_schema(page: &mut String, schema: &Value) {
    paragraphs(page, &schema["description"]);
    if !schema["properties"].is_object() {
        let _ = write!(page, "<p>{}</p>", form(schema));
        return;
    }
    page.push_str("<table>");
    for (name, member) in members(&schema["properties"]) {
        let is_required = items(&schema["required"]).any(|required| required == name);
        let _ = write!(
            page,
            "<tr><td><code>{}</code>{}<td>{}<td>{}",
            escape(name),
            if is_required { "" } else { "?" },
            form(member),
            escaped(&member["description"]),
        );
    }
    page.push_str("</table>");
}

/// A schema in a few words, with links to those that have a name.
fn form(schema: &Value) -> String {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|reference| reference.rsplit('/').next())
    {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    let choices = items(&schema["anyOf"]).chain(items(&schema["oneOf"]));
    let mut words: Vec<_> = choices.map(form).collect();
    words.extend(
        items(&schema["enum"])
            .chain(schema.get("const"))
            .map(|value| escape(&value.to_string())),
    );
    if words.is_empty() {
        let kinds = match &schema["type"] {
            Value::Array(kinds) => kinds.clone(),
            Value::Null => vec![],
            kind => vec![kind.clone()],
        };
        words = kinds
            .iter()
            .map(|kind| form_of(kind.as_str().unwrap_or_default(), schema))
            .collect();
    }
    if words.is_empty() {
        "any".into()
    } else {
        words.join(" or ")
    }
}

fn form_of(kind: &str, schema: &Value) -> String {
    match (kind, schema.get("additionalProperties")) {
        ("array", _) => format!("list of {}", form(&schema["items"])),
        ("object", Some(member)) if member.is_object() => format!("map of {}", form(member)),
        ("string", _) if schema["format"].is_string() => escaped(&schema["format"]),
        (kind, _) => escape(kind),
    }
}

fn paragraphs(page: &mut String, text: &Value) {
    for paragraph in text.as_str().unwrap_or_default().split("\n\n") {
        if !paragraph.is_empty() {
            let _ = write!(page, "<p>{}</p>", escape(paragraph));
        }
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn escaped(text: &Value) -> String {
    escape(text.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_name_every_operation_and_take_nothing_from_elsewhere() {
        for (name, text, place, _) in &APIS {
            let page = render(text, place);
            let document: Value = serde_json::from_str(text).unwrap();
            for (path, _) in members(&document["paths"]) {
                assert!(page.contains(&escape(path)), "{name} lacks {path}");
            }
            for outside in ["<script", "<link", "<img", "src="] {
                assert!(!page.contains(outside), "{name} has {outside}");
            }
        }
    }
}
