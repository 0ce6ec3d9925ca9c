//! Log sinks: the contract's shapes, calls, and the trait by which a host's API asks what ships them.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use types::{Sink, SinkError, SinkId, SyslogFormat, SyslogSinkConfig, Timestamp, Uuid};

use crate::{ClientError, Controller, Error};

/// A sink as answers and streams carry it.
///
/// In a stream the end of what there is at first is an all-empty one, and one without a
/// configuration says that the sink was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SinkView {
    #[serde(default)]
    pub id: String,
    /// `syslog`.
    #[serde(default)]
    pub kind: String,
    /// Known to one host only, and not to the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_managed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<SyslogSinkConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

impl SinkView {
    pub fn of(sink: &Sink) -> SinkView {
        SinkView {
            id: sink.id.to_string(),
            kind: Sink::KIND.into(),
            host_managed: false,
            config: Some(sink.config.clone()),
            created_at: Some(sink.created_at),
            updated_at: Some(sink.updated_at),
        }
    }

    /// Ends the first part of a stream.
    pub fn is_end_of_list(&self) -> bool {
        self.id.is_empty()
    }
}

/// `POST /sinks`, and `PUT /sinks/:id` on a host. What is wrong with it is said in the contract's way.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NewSink {
    /// One is made where it is empty.
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub config: Option<serde_json::Value>,
}

impl NewSink {
    /// The sink to keep, if it is one; `id` is used where none is given.
    pub fn sink(&self, id: Uuid, now: Timestamp) -> Result<Sink, Error> {
        let id = match self.id.as_str() {
            "" => SinkId(id),
            text => text
                .parse()
                .map_err(|_| Error::validation("id", format!("{text:?} is not a UUID")))?,
        };
        if self.kind != Sink::KIND {
            let known = format!(
                "Enum error. The data must be equal to one of these values [{}].",
                Sink::KIND
            );
            return Err(Error::validation("kind", known));
        }
        let Some(config) = self.config.as_ref().filter(|config| config.is_object()) else {
            return Err(Error::validation("config", "must be an object with a url"));
        };
        if let Some(format) = config.get("format").filter(|format| !format.is_null())
            && !format
                .as_str()
                .is_some_and(|name| name.is_empty() || SyslogFormat::NAMES.contains(&name))
        {
            let known = format!(
                "has no format {format}; it is one of {}",
                SyslogFormat::NAMES.join(", ")
            );
            return Err(Error::validation("config.format", known));
        }
        let mut config = config.clone();
        if config.get("format").is_some_and(|format| format == "") {
            config["format"] = serde_json::Value::Null;
        }
        let config: SyslogSinkConfig = serde_json::from_value(config)
            .map_err(|error| Error::validation("config", format!("is not a syslog sink's: {error}")))?;
        config.check()?;
        Ok(Sink {
            id,
            config,
            created_at: now,
            updated_at: now,
        })
    }
}

impl From<SinkError> for Error {
    fn from(error: SinkError) -> Self {
        Error::validation(error.field, &error.reason).with_hint(error.hint)
    }
}

/// A sink with how one host fares with it: `GET /sinks` of the host's API. `status` is an addition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostSink {
    #[serde(flatten)]
    pub sink: SinkView,
    #[serde(default)]
    pub status: SinkStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SinkStatus {
    pub connected: bool,
    /// Of the log files, not yet known to have been taken by the receiver.
    pub behind_bytes: u64,
    /// Lines written to the receiver since the host's daemon started; those sent again count again.
    pub lines_sent: u64,
    /// Lines that were removed before they could be sent, since the host's daemon started.
    pub lines_lost: u64,
    /// What went wrong last, and when; kept when it goes well again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<Timestamp>,
}

/// What ships logs on a host.
#[async_trait]
pub trait Sinks: Send + Sync + 'static {
    /// By id.
    fn list(&self) -> Vec<HostSink>;
    /// Adds a sink of this host alone. One that is there with the same configuration is no error.
    async fn put(&self, id: &str, sink: NewSink) -> Result<HostSink, Error>;
    /// Removes a sink of this host alone.
    async fn remove(&self, id: &str) -> Result<(), Error>;
}

impl Controller {
    /// Newest first.
    pub async fn sinks(&self) -> Result<Vec<SinkView>, ClientError> {
        self.client().get("/sinks").await
    }

    pub async fn create_sink(&self, sink: &NewSink) -> Result<SinkView, ClientError> {
        self.client().post("/sinks", sink).await
    }

    /// Gives it as it was.
    pub async fn delete_sink(&self, id: &str) -> Result<SinkView, ClientError> {
        self.client()
            .delete_json(&format!("/sinks/{}", crate::client::escape(id)))
            .await
    }

    /// All sinks, an empty one, then every change.
    pub async fn follow_sinks(
        &self,
    ) -> Result<BoxStream<'static, Result<SinkView, ClientError>>, ClientError> {
        self.client().events("/sinks?since=0001-01-01T00:00:00Z").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        let new: NewSink = serde_json::from_str(body).unwrap();
        let answer = match new.sink(Uuid::from_u128(7), Timestamp::from_micros(0)) {
            Ok(sink) => serde_json::to_string(&SinkView::of(&sink)).unwrap(),
            Err(error) => error.message,
        };
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_sink_is_taken_as_the_original_took_it() {
        check(
            r#"{"id":"","kind":"syslog","config":{"url":"syslog://127.0.0.1:5140/","template":"{{.ID}}","format":"rfc6587"}}"#,
            r#"{"id":"00000000-0000-0000-0000-000000000007","kind":"syslog","config":{"url":"syslog://127.0.0.1:5140/","format":"rfc6587","template":"{{.ID}}"},"created_at":"1970-01-01T00:00:00Z","updated_at":"1970-01-01T00:00:00Z"}"#,
        );
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_is_kept() {
        check(
            r#"{"kind":"zzz","config":{}}"#,
            "kind Enum error. The data must be equal to one of these values [syslog].",
        );
        check(r#"{"kind":"syslog"}"#, "config must be an object with a url");
        check(r#"{"kind":"syslog","config":{}}"#, "config.url must be set");
        check(
            r#"{"kind":"syslog","config":{"url":"syslog://x","format":"json"}}"#,
            "config.format has no format \"json\"; it is one of rfc6587, newline, prefixed_newline",
        );
        check(
            r#"{"kind":"syslog","config":{"url":"syslog://x","template":"{{range .}}"}}"#,
            "config.template uses {{range .}}, which is not supported",
        );
    }

    #[test]
    fn the_end_of_a_list_is_all_empty() {
        let end = SinkView::default();
        assert_eq!(serde_json::to_string(&end).unwrap(), r#"{"id":"","kind":""}"#);
    }
}
