//! What the router says when it has no backend's answer to pass on.

use crate::buffer::Buffer;

/// In which form the client wants to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    Html,
    Json,
    #[default]
    Text,
}

impl Format {
    /// From an `Accept` field: whichever of the three is named first.
    pub fn accepted(value: &[u8]) -> Format {
        let value = String::from_utf8_lossy(value).to_ascii_lowercase();
        for range in value.split(',') {
            let media = range.split(';').next().unwrap_or("").trim();
            if media == "text/html" || media == "application/xhtml+xml" {
                return Format::Html;
            }
            if media == "application/json" || media.ends_with("+json") {
                return Format::Json;
            }
            if media == "text/plain" {
                return Format::Text;
            }
        }
        Format::Text
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub status: u16,
    pub title: String,
    pub text: String,
    pub hint: Option<String>,
    /// For the access log, as Heroku numbers them.
    pub code: Option<&'static str>,
    /// Seconds.
    pub retry_after: Option<u32>,
    pub allow: Option<&'static str>,
}

impl Page {
    fn new(status: u16, title: &str, text: impl Into<String>) -> Page {
        Page {
            status,
            title: title.into(),
            text: text.into(),
            hint: None,
            code: None,
            retry_after: None,
            allow: None,
        }
    }

    pub fn no_such_app(host: &str) -> Page {
        let text = match host {
            "" => "The request names no host, so there is no telling which app it is for.".to_string(),
            host => format!("No app answers at {host}."),
        };
        Page {
            hint: Some(
                "Is the name spelled right? Its owner can add it with: flynn route add http DOMAIN".into(),
            ),
            ..Page::new(404, "No such app", text)
        }
    }

    pub fn nothing_running(app: &str) -> Page {
        let text = match app {
            "" => "There is a route here, but nothing is running behind it.".to_string(),
            app => format!("The app {app} is here, but nothing of it is running."),
        };
        let hint = match app {
            "" => "Its owner can start it with: flynn scale web=1".to_string(),
            app => format!("Its owner can start it with: flynn -a {app} scale web=1"),
        };
        Page {
            hint: Some(hint),
            code: Some("H14"),
            retry_after: Some(5),
            ..Page::new(503, "Nothing running", text)
        }
    }

    pub fn not_reached() -> Page {
        Page {
            code: Some("H21"),
            retry_after: Some(5),
            ..Page::new(
                503,
                "App not reached",
                "The app's processes do not accept connections at the moment.",
            )
        }
    }

    pub fn broken() -> Page {
        Page {
            code: Some("H13"),
            ..Page::new(
                502,
                "App failed",
                "The app closed the connection without a proper answer.",
            )
        }
    }

    pub fn too_slow() -> Page {
        Page {
            code: Some("H12"),
            ..Page::new(504, "App too slow", "The app did not answer in time.")
        }
    }

    pub fn client_too_slow() -> Page {
        Page::new(408, "Request too slow", "The request did not arrive in time.")
    }

    pub fn not_ready() -> Page {
        Page::new(
            503,
            "Not ready",
            "This router has not heard yet what it should serve.",
        )
    }

    pub fn healthy() -> Page {
        Page::new(200, "OK", "This router knows what it should serve.")
    }

    pub fn draining() -> Page {
        Page::new(
            503,
            "Draining",
            "This router still answers, but is about to be switched off.",
        )
    }

    pub fn refused(refused: crate::http1::Refused) -> Page {
        let title = match refused.status() {
            400 => "Bad request",
            405 => "Method not allowed",
            414 => "Address too long",
            431 => "Header fields too large",
            501 => "Not implemented",
            _ => "HTTP version not supported",
        };
        let mut page = Page::new(refused.status(), title, refused.reason());
        if page.status == 405 {
            page.allow = Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        }
        page
    }

    pub fn content_type(format: Format) -> &'static str {
        match format {
            Format::Html => "text/html; charset=utf-8",
            Format::Json => "application/json",
            Format::Text => "text/plain; charset=utf-8",
        }
    }

    pub fn body(&self, format: Format) -> String {
        let hint = self.hint.as_deref();
        match format {
            Format::Text => {
                let mut text = format!("{}: {}\n", self.title, self.text);
                if let Some(hint) = hint {
                    text.push_str(hint);
                    text.push('\n');
                }
                text
            }
            Format::Json => {
                let mut object = serde_json::json!({
                    "status": self.status,
                    "message": format!("{}: {}", self.title, self.text),
                });
                if let Some(hint) = hint {
                    object["hint"] = hint.into();
                }
                format!("{object}\n")
            }
            Format::Html => {
                let hint = hint
                    .map(|hint| format!("<p><small>{}</small></p>\n", escaped(hint)))
                    .unwrap_or_default();
                format!(
                    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                     <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
                     <style>body{{font:1.1em/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em}}\
                     small{{color:#666}}</style>\n<h1>{title}</h1>\n<p>{text}</p>\n{hint}</html>\n",
                    title = escaped(&self.title),
                    text = escaped(&self.text),
                )
            }
        }
    }

    /// The whole HTTP/1.1 response. The status line stands for both versions.
    pub fn write(&self, out: &mut Buffer, format: Format, is_answer_to_head: bool, keeps_alive: bool) -> u64 {
        let body = self.body(format);
        out.put_str("HTTP/1.1 ");
        out.put_number(u64::from(self.status));
        out.put_str(" ");
        out.put_str(&self.title);
        out.put_str("\r\nContent-Type: ");
        out.put_str(Page::content_type(format));
        out.put_str("\r\nCache-Control: no-store\r\nContent-Length: ");
        out.put_number(body.len() as u64);
        if let Some(seconds) = self.retry_after {
            out.put_str("\r\nRetry-After: ");
            out.put_number(u64::from(seconds));
        }
        if let Some(allow) = self.allow {
            out.put_str("\r\nAllow: ");
            out.put_str(allow);
        }
        out.put_str(if keeps_alive {
            "\r\nConnection: keep-alive\r\n\r\n"
        } else {
            "\r\nConnection: close\r\n\r\n"
        });
        if is_answer_to_head {
            return 0;
        }
        out.put_str(&body);
        body.len() as u64
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_accept() {
        assert_eq!(
            Format::accepted(b"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
            Format::Html
        );
        assert_eq!(Format::accepted(b"application/json, text/html"), Format::Json);
        assert_eq!(Format::accepted(b"*/*"), Format::Text);
    }

    #[test]
    fn a_host_cannot_write_html_into_the_page() {
        let page = Page::no_such_app("<script>").body(Format::Html);
        assert!(!page.contains("<script>"), "{page}");
    }
}
