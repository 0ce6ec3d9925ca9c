//! Log sinks: where the lines of every job are sent besides being kept.

use std::{fmt, net::Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    SinkId, Timestamp,
    sink_template::{Template, TemplateError},
};

/// The port of a URL that names none, as the original had it.
const PORT: u16 = 514;

/// How one message is told from the next on a connection.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SyslogFormat {
    /// Octet counting: the message's length, a space, the message.
    #[default]
    Rfc6587,
    /// Every message ends with a newline.
    Newline,
    /// The same, with the template's text before the message's header, where services want their token.
    PrefixedNewline,
}

impl SyslogFormat {
    pub const NAMES: [&str; 3] = ["rfc6587", "newline", "prefixed_newline"];
}

/// A receiver of RFC 5424 messages over TCP or TLS.
///
/// The order of fields is that in which the original printed them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SyslogSinkConfig {
    /// `syslog://HOST[:PORT]`, or `syslog+tls://`.
    #[serde(default)]
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<SyslogFormat>,
    /// APP-NAME is the app's id and not its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_ids: bool,
    /// The receiver's certificate is not checked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Put before each line; see [`Template`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Messages carry `[flynn seq="…"]`, which numbers the lines of a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub structured_data: bool,
}

/// What is wrong with a sink's configuration, and with which field of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SinkError {
    pub field: &'static str,
    pub reason: String,
    pub hint: String,
}

impl SyslogSinkConfig {
    pub fn format(&self) -> SyslogFormat {
        self.format.unwrap_or_default()
    }

    /// Everything that can be wrong about it before anything is sent.
    pub fn check(&self) -> Result<(SyslogUrl, Template), SinkError> {
        let url = SyslogUrl::parse(&self.url)?;
        let template = Template::parse(&self.template).map_err(|TemplateError { reason }| SinkError {
            field: "config.template",
            reason,
            hint: Template::HINT.into(),
        })?;
        Ok((url, template))
    }
}

/// Where a sink's receiver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogUrl {
    pub is_tls: bool,
    /// A name or an address; one of IPv6 without its brackets.
    pub host: String,
    pub port: u16,
}

impl SyslogUrl {
    pub fn parse(text: &str) -> Result<SyslogUrl, SinkError> {
        let wrong = |reason: String| SinkError {
            field: "config.url",
            reason,
            hint: "give a URL such as syslog://logs.example.com:514 or syslog+tls://logs.example.com:6514"
                .into(),
        };
        if text.is_empty() {
            return Err(wrong("must be set".into()));
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong(format!("{text:?} is no URL")))?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "syslog" => false,
            "syslog+tls" => true,
            _ => {
                return Err(wrong(format!(
                    "has the scheme {scheme:?}; only syslog and syslog+tls are known"
                )));
            }
        };
        let place = rest.strip_suffix('/').unwrap_or(rest);
        if place.contains(['/', '?', '#', '@']) {
            return Err(wrong(format!("{text:?} has more than a host and a port")));
        }
        let (host, port) = match place.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, port))) => {
                host.parse::<Ipv6Addr>()
                    .map_err(|_| wrong(format!("{host:?} is no IPv6 address")))?;
                (host, port)
            }
            Some(None) => return Err(wrong(format!("{place:?} lacks its closing bracket"))),
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORT,
            Some("") => PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong(format!("{port:?} is no port")))?,
            None => return Err(wrong(format!("{place:?} is no host and port"))),
        };
        let is_host = !host.is_empty()
            && host.len() <= 253
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
        if !is_host {
            return Err(wrong(format!("{host:?} is no host")));
        }
        Ok(SyslogUrl {
            is_tls,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for SyslogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') {
            ("[", "]")
        } else {
            ("", "")
        };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

/// A sink as the cluster keeps it: every host sends to it. The only kind is `syslog`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Sink {
    pub id: SinkId,
    pub config: SyslogSinkConfig,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Sink {
    pub const KIND: &str = "syslog";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: &str) {
        let answer = match SyslogUrl::parse(url) {
            Ok(url) => format!("{}{url}", if url.is_tls { "tls " } else { "" }),
            Err(error) => error.reason,
        };
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_url_names_a_host_and_perhaps_a_port() {
        check("syslog://x", "x:514");
        check("syslog://127.0.0.1:5140/", "127.0.0.1:5140");
        check("syslog+tls://rsyslog.host:514/", "tls rsyslog.host:514");
        check("syslog://[::1]:99", "[::1]:99");
        check("syslog+TLS://[::1]", "tls [::1]:514");
    }

    #[test]
    fn what_is_no_such_url_is_refused_in_words() {
        check("", "must be set");
        check("logs.example.com:514", "\"logs.example.com:514\" is no URL");
        check(
            "http://x",
            "has the scheme \"http\"; only syslog and syslog+tls are known",
        );
        check("syslog://", "\"\" is no host");
        check("syslog://x:0", "\"0\" is no port");
        check(
            "syslog://x:514/token",
            "\"syslog://x:514/token\" has more than a host and a port",
        );
        check("syslog://[::1", "\"[::1\" lacks its closing bracket");
        check("syslog://a b", "\"a b\" is no host");
    }

    #[test]
    fn a_configuration_prints_as_the_original_printed_it() {
        let text = r#"{"url":"syslog://127.0.0.1:5140/","format":"rfc6587","template":"{{.ID}}"}"#;
        let config: SyslogSinkConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        let least = r#"{"url":"syslog://x"}"#;
        let config: SyslogSinkConfig = serde_json::from_str(least).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), least);
    }
}
