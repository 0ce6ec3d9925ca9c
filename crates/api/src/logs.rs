//! Log messages and queries, and the trait by which the controller asks for them.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use types::{AppId, Timestamp};

/// One line of an app's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Message {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_id: String,
    /// The job's UUID; empty for the platform's own lines, such as the router's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process_type: String,
    /// `app`, or the platform's part that wrote the line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// `stdout`, `stderr` or `init`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stream: String,
    pub timestamp: Timestamp,
}

/// The source of the message between what was kept and what is followed.
pub const MARK: &str = "mark";

/// `GET /apps/:app/log?…`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Query {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// A job's UUID or its whole id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// The newest N lines; 0 to 10 000. Everything that is kept where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_type: Option<String>,
    /// Among the platform's parts: after what was kept, a message that says nothing comes ([`MARK`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mark: bool,
    /// Comma-separated streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_types: Option<String>,
}

/// Where an app's log is read from.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// Messages in order of time; with `follow` the stream goes on until it is dropped.
    async fn query(&self, app: AppId, query: Query) -> Result<BoxStream<'static, Message>, crate::Error>;
    /// Removes everything that is kept for an app that was deleted.
    async fn forget(&self, app: AppId) -> Result<(), crate::Error>;
}

/// One event of the log stream: `{"event":"message","data":{…}}`, then `{"event":"eof"}`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SseLogChunk {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}
