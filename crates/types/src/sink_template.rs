//! The text that a sink puts before each line of a job: the part of Go's `text/template` that says
//! something about a job.
//!
//! ```text
//! {{.ID}}  {{.Partition}}  {{.Metadata.key}}  {{index .Metadata "flynn-controller.app_name"}}
//! {{.Config.Env.LOG_TOKEN}}  {{index .Config.Env "LOG_TOKEN"}}  {{"text"}}  {{- .ID -}}  {{/* comment */}}
//! ```
//!
//! The original executed the whole language on its job's record. What is not in this list (functions,
//! conditions, loops, other fields) is refused when the sink is made, and never when a line is sent.
//! A key that a job does not have is empty.

use std::collections::BTreeMap;

/// A template that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Id,
    Partition,
    Metadata(String),
    Env(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TemplateError {
    pub reason: String,
}

/// What a template says something about.
#[derive(Debug, Clone, Copy)]
pub struct TemplateJob<'a> {
    /// `HOST-UUID`.
    pub id: &'a str,
    pub partition: &'a str,
    pub metadata: &'a BTreeMap<String, String>,
    pub env: &'a BTreeMap<String, String>,
}

fn error(reason: impl Into<String>) -> TemplateError {
    TemplateError {
        reason: reason.into(),
    }
}

impl Template {
    pub const HINT: &str =
        "templates may use {{.ID}}, {{.Partition}}, {{index .Metadata \"KEY\"}} and {{.Config.Env.KEY}}";

    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut template = Template::default();
        let mut rest = text;
        let mut trims_before = false;
        loop {
            let Some((before, after)) = rest.split_once("{{") else {
                template.text(rest, trims_before, false);
                return Ok(template);
            };
            let trims_after = after.starts_with("- ");
            template.text(before, trims_before, trims_after);
            let after = if trims_after { &after[1..] } else { after };
            let end =
                end_of_action(after).ok_or_else(|| error(format!("{{{{{after} is not closed by }}}}")))?;
            let (action, following) = (&after[..end], &after[end + 2..]);
            trims_before = action.ends_with(" -");
            let action = if trims_before {
                &action[..action.len() - 1]
            } else {
                action
            };
            template.action(action.trim())?;
            rest = following;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The text for one job, on one line.
    pub fn render(&self, job: &TemplateJob<'_>) -> String {
        let mut out = String::new();
        let value = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Id => out.push_str(job.id),
                Piece::Partition => out.push_str(job.partition),
                Piece::Metadata(key) => out.push_str(&value(job.metadata, key)),
                Piece::Env(key) => out.push_str(&value(job.env, key)),
            }
        }
        // A line of its own would be a message of its own to a receiver that splits at newlines.
        out.replace(['\n', '\r'], " ")
    }

    fn text(&mut self, text: &str, trims_start: bool, trims_end: bool) {
        let text = if trims_start { text.trim_start() } else { text };
        let text = if trims_end { text.trim_end() } else { text };
        if !text.is_empty() {
            self.pieces.push(Piece::Text(text.to_owned()));
        }
    }

    fn action(&mut self, action: &str) -> Result<(), TemplateError> {
        if action.starts_with("/*") && action.ends_with("*/") {
            return Ok(());
        }
        if action.is_empty() {
            return Err(error("has {{}} with nothing in it"));
        }
        let piece = match action.strip_prefix("index ") {
            Some(arguments) => index(arguments.trim()),
            None => match quoted(action) {
                Some(text) => Some(Piece::Text(text)),
                None => field(action),
            },
        };
        let unknown = || error(format!("uses {{{{{action}}}}}, which is not supported"));
        self.pieces.push(piece.ok_or_else(unknown)?);
        Ok(())
    }
}

/// Where an action's `}}` is; those within quotes and comments are none.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'`')) => quote = Some(byte),
            (None, b'/') if bytes[at..].starts_with(b"/*") => at += text[at..].find("*/")? + 1,
            (None, b'}') if bytes[at..].starts_with(b"}}") => return Some(at),
            (None, _) => {}
        }
        at += 1;
    }
    None
}

fn field(action: &str) -> Option<Piece> {
    let is_name = |key: &&str| {
        !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match action {
        ".ID" => Some(Piece::Id),
        ".Partition" => Some(Piece::Partition),
        _ => {
            let metadata = action.strip_prefix(".Metadata.").filter(is_name);
            let env = action.strip_prefix(".Config.Env.").filter(is_name);
            metadata
                .map(|key| Piece::Metadata(key.to_owned()))
                .or_else(|| env.map(|key| Piece::Env(key.to_owned())))
        }
    }
}

fn index(arguments: &str) -> Option<Piece> {
    let (map, key) = arguments.split_once(char::is_whitespace)?;
    let key = quoted(key.trim())?;
    match map {
        ".Metadata" => Some(Piece::Metadata(key)),
        ".Config.Env" => Some(Piece::Env(key)),
        _ => None,
    }
}

/// A Go string: raw between backticks, or between quotes, which JSON's strings are close enough to.
fn quoted(text: &str) -> Option<String> {
    if let Some(raw) = text.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
        return (!raw.contains('`')).then(|| raw.to_owned());
    }
    if !text.starts_with('"') {
        return None;
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, expected: &str) {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
        };
        let metadata = map(&[("flynn-controller.app_name", "shop"), ("team", "two\nlines")]);
        let env = map(&[("LOG_TOKEN", "t0k")]);
        let job = TemplateJob {
            id: "host0-1234",
            partition: "user",
            metadata: &metadata,
            env: &env,
        };
        let answer = match Template::parse(template) {
            Ok(template) => template.render(&job),
            Err(error) => error.reason,
        };
        assert_eq!(answer, expected, "{template}");
    }

    #[test]
    fn fields_of_a_job_are_filled_in() {
        check("", "");
        check("plain", "plain");
        check("{{.ID}}", "host0-1234");
        check("[{{ .ID }} {{.Partition}}]", "[host0-1234 user]");
        check(r#"{{index .Metadata "flynn-controller.app_name"}}"#, "shop");
        check(
            "{{index .Config.Env `LOG_TOKEN`}}/{{.Config.Env.LOG_TOKEN}}",
            "t0k/t0k",
        );
        check(r#"{{"a }} \"b\""}}{{/* }} not shown */}}!"#, "a }} \"b\"!");
        check("a {{- .ID -}} b", "ahost0-1234b");
    }

    #[test]
    fn what_a_job_lacks_is_empty_and_newlines_become_spaces() {
        check("<{{.Metadata.nothing}}>", "<>");
        check("{{.Metadata.team}}", "two lines");
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        check("{{.Resources}}", "uses {{.Resources}}, which is not supported");
        check("{{if .ID}}x{{end}}", "uses {{if .ID}}, which is not supported");
        check(
            "{{.ID | printf \"%s\"}}",
            "uses {{.ID | printf \"%s\"}}, which is not supported",
        );
        check(
            "{{.Metadata.flynn-controller.app}}",
            "uses {{.Metadata.flynn-controller.app}}, which is not supported",
        );
        check("{{}}", "has {{}} with nothing in it");
        check("x {{.ID", "{{.ID is not closed by }}");
    }
}
