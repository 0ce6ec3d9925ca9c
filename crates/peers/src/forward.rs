//! Passes requests on to the host that leads, whichever that is at the moment.
//!
//! A request is sent again when nothing of it can have been carried out: it never reached anybody, or
//! whoever got it does not lead. Reading is sent again in any case. An answer that is being streamed
//! breaks off when another host leads, so that whoever follows it begins anew with that one.

use std::time::Duration;

use api::peers::PASSED_ON;
use axum::{
    Json,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use daemon::Forward;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use tokio::{sync::watch, time::Instant};

use crate::pool::Pool;

/// Bodies up to this length are kept, to be sent again.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// Between attempts, where nothing says when to try again.
const PAUSE: Duration = Duration::from_millis(100);
const ANOTHER_LEADS: &str = "another host leads the cluster now";
/// What a controller answers with that was passed a request on and does not lead.
const NOT_LEADING: HeaderName = HeaderName::from_static("flynn-not-leading");

#[derive(Clone)]
pub struct Forwarding {
    pub(crate) node: u64,
    pub(crate) pool: Pool,
    pub(crate) leader: watch::Receiver<Option<u64>>,
    pub(crate) leadership: watch::Receiver<bool>,
}

impl Forward for Forwarding {
    fn leads(&self) -> bool {
        *self.leadership.borrow()
    }

    fn forward(
        &self,
        part: &'static str,
        request: Request,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Response, Request>> {
        self.clone().pass(part, request, patience).boxed()
    }

    fn to(
        &self,
        node: u64,
        part: &'static str,
        mut request: Request,
    ) -> BoxFuture<'static, Result<Response, String>> {
        let (from, pool) = (HeaderValue::from(self.node), self.pool.clone());
        request.headers_mut().insert(PASSED_ON, from);
        async move {
            let sent = pool
                .send(&format!("http://node-{node}/{part}"), request, false)
                .await;
            sent.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

impl Forwarding {
    async fn pass(
        mut self,
        part: &'static str,
        mut request: Request,
        patience: Duration,
    ) -> Result<Response, Request> {
        if request.headers().contains_key(PASSED_ON) {
            // Two hosts that each take the other for the leader.
            return Ok(not_leading());
        }
        let deadline = Instant::now() + patience;
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (mut kept, mut once) = match keep(request).await {
            Ok(kept) => kept,
            Err(refused) => return Ok(refused),
        };
        loop {
            let leader = *self.leader.borrow_and_update();
            let leads = *self.leadership.borrow_and_update();
            if let Some(leader) = leader.filter(|leader| *leader != self.node) {
                let request = kept.request(&mut once);
                match self.pass_once(leader, part, request, upgrade.is_some()).await {
                    Tried::Answered(mut response) => {
                        if let Some(client) = upgrade
                            && response.status() == StatusCode::SWITCHING_PROTOCOLS
                        {
                            join(client, &mut response);
                        }
                        return Ok(self.until_another_leads(leader, response));
                    }
                    Tried::Lost(why) if !kept.is_safe() => {
                        tracing::debug!(leader, why, "a request was lost on its way to the leader");
                        return Ok(lost());
                    }
                    Tried::Lost(why) | Tried::Unsent(why) => {
                        tracing::debug!(leader, why, "the leader cannot be reached");
                    }
                }
                if kept.body.is_none() && once.is_none() {
                    return Ok(lost());
                }
            }
            if leads || Instant::now() >= deadline {
                return Err(kept.request(&mut once).map_upgrade(upgrade));
            }
            let soon = deadline.min(Instant::now() + PAUSE);
            tokio::select! {
                _ = self.leader.changed() => {}
                _ = self.leadership.changed() => {}
                _ = tokio::time::sleep_until(soon) => {}
            }
        }
    }

    async fn pass_once(&self, leader: u64, part: &str, mut request: Request, upgrades: bool) -> Tried {
        let from = HeaderValue::from(self.node);
        request.headers_mut().insert(PASSED_ON, from);
        let target = format!("http://node-{leader}/{part}");
        let mut leaders = self.leader.clone();
        let another = leaders.wait_for(|now| now.is_some_and(|now| now != leader));
        tokio::select! {
            response = self.pool.send(&target, request, upgrades) => match response {
                Ok(response) if response.headers().contains_key(NOT_LEADING) => {
                    Tried::Unsent("it does not lead".into())
                }
                Ok(response) => Tried::Answered(response),
                Err(error) if error.is_connect() => Tried::Unsent(error.to_string()),
                Err(error) => Tried::Lost(error.to_string()),
            },
            _ = another => Tried::Lost(ANOTHER_LEADS.into()),
        }
    }

    fn until_another_leads(&self, leader: u64, response: Response) -> Response {
        if response.headers().contains_key(header::CONTENT_LENGTH)
            || response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            return response;
        }
        let mut leaders = self.leader.clone();
        let another = async move {
            let _ = leaders.wait_for(|now| now.is_some_and(|now| now != leader)).await;
        };
        response.map(|body| {
            let end = futures::stream::once(another)
                .map(|()| Err(axum::Error::new(std::io::Error::other(ANOTHER_LEADS))));
            let pieces = body.into_data_stream().map(Some).chain(ended());
            let merged = futures::stream::select(pieces, end.map(Some)).scan(false, |is_over, piece| {
                let next = (!*is_over).then_some(piece).flatten();
                *is_over = next.as_ref().is_none_or(Result::is_err);
                std::future::ready(next)
            });
            Body::from_stream(merged)
        })
    }
}

/// Marks the end of a stream that is merged with one that has none.
fn ended() -> impl futures::Stream<Item = Option<Result<Bytes, axum::Error>>> + Send {
    futures::stream::once(async { None })
}

enum Tried {
    Answered(Response),
    /// Nobody has carried anything out.
    Unsent(String),
    /// Nobody knows.
    Lost(String),
}

/// A request that may be sent again.
struct Kept {
    parts: Parts,
    /// Where it is short.
    body: Option<Bytes>,
}

impl Kept {
    fn request(&mut self, once: &mut Option<Body>) -> Request {
        let body = match (&self.body, once.take()) {
            (Some(bytes), _) => Body::from(bytes.clone()),
            (None, Some(body)) => body,
            (None, None) => Body::empty(),
        };
        Request::from_parts(self.parts.clone(), body)
    }

    fn is_safe(&self) -> bool {
        self.parts.method.is_safe()
    }
}

async fn keep(request: Request) -> Result<(Kept, Option<Body>), Response> {
    let (parts, body) = request.into_parts();
    let length = parts.headers.get(header::CONTENT_LENGTH);
    let length: Option<usize> = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let is_streamed = parts.headers.contains_key(header::TRANSFER_ENCODING);
    match length {
        Some(length) if length > KEPT_BYTES_MAX => Ok((Kept { parts, body: None }, Some(body))),
        None if is_streamed => Ok((Kept { parts, body: None }, Some(body))),
        _ => {
            let bytes = axum::body::to_bytes(body, KEPT_BYTES_MAX).await;
            let bytes = bytes.map_err(|_| StatusCode::BAD_REQUEST.into_response())?;
            let body = Some(bytes);
            Ok((Kept { parts, body }, None))
        }
    }
}

trait MapUpgrade {
    fn map_upgrade(self, upgrade: Option<OnUpgrade>) -> Self;
}

impl MapUpgrade for Request {
    fn map_upgrade(mut self, upgrade: Option<OnUpgrade>) -> Self {
        if let Some(upgrade) = upgrade {
            self.extensions_mut().insert(upgrade);
        }
        self
    }
}

/// Joins a client's connection to the one that the answer came by.
fn join(client: OnUpgrade, response: &mut Response) {
    let Some(server) = response.extensions_mut().remove::<OnUpgrade>() else {
        return;
    };
    crate::pool::join(client, server);
}

fn lost() -> Response {
    let error = api::Error::unavailable(
        "the host that leads the cluster was lost meanwhile; what was asked may have been carried out or not",
    );
    unavailable(error.with_hint("look whether it was carried out before trying again"))
}

/// The answer to a request that was passed on by mistake: whoever passed it on tries another host.
pub(crate) fn not_leading() -> Response {
    let mut response = unavailable(api::Error::unavailable("this host does not lead the cluster"));
    response
        .headers_mut()
        .insert(NOT_LEADING, HeaderValue::from_static("true"));
    response
}

fn unavailable(error: api::Error) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(error)).into_response()
}
