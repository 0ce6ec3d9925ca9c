//! An app's log from all hosts as one.
//!
//! Each host keeps what was written on it; here the hosts' logs are merged by time. A host that does
//! not answer is left out: what the others have is better than nothing.

use std::{sync::Arc, time::Duration};

use api::{
    ClientError, Error,
    client::escape,
    logs::{MARK, Message, Query, SseLogChunk},
    peers::Part,
};
use futures::{StreamExt, future, stream, stream::BoxStream};
use types::{AppId, Host, JobRef};

use crate::Controller;

/// How long a host may take until it begins to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

type Messages = BoxStream<'static, Message>;

impl Controller {
    pub(crate) async fn log(&self, app: AppId, query: Query) -> Result<Messages, Error> {
        let others = self.hosts_with_logs(&query);
        if others.is_empty() {
            return self.config.logs.query(app, query).await;
        }
        let (follow, lines) = (query.follow, query.lines);
        let query = Query {
            mark: follow,
            ..query
        };
        let mut sources = vec![self.config.logs.query(app, query.clone()).await?];
        let remote = others.iter().map(|host| self.log_of(host, app, &query));
        for (host, messages) in others.iter().zip(future::join_all(remote).await) {
            match messages {
                Ok(messages) => sources.push(messages),
                Err(error) => {
                    tracing::warn!(host = %host.id, %error, "a host does not give its part of a log")
                }
            }
        }
        Ok(match follow {
            true => then_live(sources, lines).boxed(),
            false => in_order(sources, lines).boxed(),
        })
    }

    /// Other hosts that may have lines.
    fn hosts_with_logs(&self, query: &Query) -> Vec<Arc<Host>> {
        let (Some(own), true) = (&self.config.membership, self.config.peers.is_some()) else {
            return vec![];
        };
        let state = self.state();
        let job = query.job_id.as_ref().and_then(|id| id.parse::<JobRef>().ok());
        let of_job = job.and_then(|job| state.jobs.get(&job.job)?.host.clone());
        let hosts = state.hosts.values().filter(|host| host.id != own.host);
        hosts
            .filter(|host| host.state == types::HostState::Up)
            .filter(|host| of_job.as_ref().is_none_or(|wanted| host.id == *wanted))
            .cloned()
            .collect()
    }

    async fn log_of(&self, host: &Host, app: AppId, query: &Query) -> Result<Messages, ClientError> {
        let mut path = format!(
            "/internal/here/apps/{app}/log?follow={}&mark={}",
            query.follow, query.mark
        );
        let lines = query.lines.map(|lines| lines.to_string());
        let filters = [
            ("lines", &lines),
            ("job_id", &query.job_id),
            ("process_type", &query.process_type),
            ("stream_types", &query.stream_types),
        ];
        for (name, value) in filters {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", escape(value)));
            }
        }
        let client = self.client_of(host, Part::Controller)?;
        let asked = client.events::<SseLogChunk>(&path);
        let chunks = tokio::time::timeout(ANSWER_MAX, asked)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Unreachable {
                    url: host.addr.clone(),
                    reason: "no answer".into(),
                })
            })?;
        let messages = chunks
            .take_while(|chunk| future::ready(chunk.as_ref().is_ok_and(|chunk| chunk.event == "message")))
            .filter_map(|chunk| future::ready(message_of(chunk.ok())));
        Ok(messages.boxed())
    }
}

fn message_of(chunk: Option<SseLogChunk>) -> Option<Message> {
    serde_json::from_value(chunk?.data?).ok()
}

/// Merges what each gives in order of time; the newest `lines` where given.
fn in_order(sources: Vec<Messages>, lines: Option<usize>) -> Messages {
    if let Some(lines) = lines {
        let all = async move {
            let lists = future::join_all(sources.into_iter().map(|source| source.collect::<Vec<_>>())).await;
            stream::iter(newest(lists.into_iter().flatten().collect(), Some(lines)))
        };
        return stream::once(all).flatten().boxed();
    }
    let sources: Vec<_> = sources
        .into_iter()
        .map(|source| Box::pin(source.peekable()))
        .collect();
    stream::unfold(sources, |mut sources| async move {
        let mut first: Option<(usize, types::Timestamp)> = None;
        for (index, source) in sources.iter_mut().enumerate() {
            if let Some(message) = source.as_mut().peek().await
                && first.is_none_or(|(_, earliest)| message.timestamp < earliest)
            {
                first = Some((index, message.timestamp));
            }
        }
        let message = sources[first?.0].next().await?;
        Some((message, sources))
    })
    .boxed()
}

/// What each has up to its mark in order, then what comes as it comes.
fn then_live(sources: Vec<Messages>, lines: Option<usize>) -> Messages {
    let all = async move {
        let pasts = future::join_all(sources.into_iter().map(past)).await;
        let (pasts, rest): (Vec<_>, Vec<_>) = pasts.into_iter().unzip();
        let past = newest(pasts.into_iter().flatten().collect(), lines);
        stream::iter(past).chain(stream::select_all(rest))
    };
    stream::once(all).flatten().boxed()
}

/// What comes before the mark, and the rest.
async fn past(mut source: Messages) -> (Vec<Message>, Messages) {
    let mut past = vec![];
    while let Some(message) = source.next().await {
        if message.source == MARK {
            break;
        }
        past.push(message);
    }
    (past, source)
}

fn newest(mut messages: Vec<Message>, lines: Option<usize>) -> Vec<Message> {
    messages.sort_by_key(|message| message.timestamp);
    let surplus = lines.map_or(0, |lines| messages.len().saturating_sub(lines));
    messages.split_off(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(times: &[i64]) -> Messages {
        let messages = times.iter().map(|at| Message {
            host_id: String::new(),
            job_id: String::new(),
            msg: at.to_string(),
            process_type: String::new(),
            source: if *at == 0 { MARK.into() } else { "app".to_owned() },
            stream: String::new(),
            timestamp: types::Timestamp::from_micros(*at),
        });
        stream::iter(messages.collect::<Vec<_>>()).boxed()
    }

    async fn texts(messages: Messages) -> String {
        let texts: Vec<_> = messages.map(|message| message.msg).collect().await;
        texts.join(" ")
    }

    #[tokio::test]
    async fn the_logs_of_hosts_are_one_in_order_of_time() {
        let sources = || vec![source(&[1, 4, 6]), source(&[]), source(&[2, 3, 5])];
        assert_eq!(texts(in_order(sources(), None)).await, "1 2 3 4 5 6");
        assert_eq!(texts(in_order(sources(), Some(4))).await, "3 4 5 6");
        assert_eq!(texts(in_order(sources(), Some(0))).await, "");
    }

    #[tokio::test]
    async fn what_is_followed_comes_after_all_that_was_kept() {
        let sources = vec![source(&[1, 4, 0, 9]), source(&[2, 3, 0, 8])];
        let text = texts(then_live(sources, Some(3))).await;
        let (past, live) = text.split_at(5);
        assert_eq!(past, "2 3 4");
        let mut live: Vec<_> = live.split_whitespace().collect();
        live.sort_unstable();
        assert_eq!(live, ["8", "9"]);
    }
}
