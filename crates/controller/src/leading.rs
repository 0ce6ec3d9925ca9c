//! Which requests this host answers itself, and which the host that leads.
//!
//! All are answered by the leader but those about this host alone, so that who asks any host reads what
//! he wrote by another. Where nobody leads, reading goes on from what this host has, and whatever would
//! change something or follow it is refused after a while.

use std::{sync::Mutex, time::Duration};

use api::{Error, peers};
use axum::{
    body::Body,
    extract::{Request, State as Extract},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http::{HeaderValue, Method, header};
use tokio::time::Instant;
use types::Timestamp;

use crate::{Controller, http::error::Failure};

/// A new leader is there within two seconds of the end of the last, if there is to be one.
const PATIENCE: Duration = Duration::from_secs(8);

/// A host that has just begun, or has just lost the leader, waits so long for one rather than tell old
/// news; where nobody leads for longer, waiting helps nobody.
const READ_PATIENCE: Duration = Duration::from_secs(3);

/// When a leader last answered, this host or another.
pub struct Answered(Mutex<Instant>);

impl Default for Answered {
    fn default() -> Self {
        Answered(Mutex::new(Instant::now()))
    }
}

impl Answered {
    fn note(&self) {
        *self.0.lock().expect("no panic while held") = Instant::now();
    }

    fn patience(&self) -> Duration {
        let since = self.0.lock().expect("no panic while held").elapsed();
        READ_PATIENCE.saturating_sub(since)
    }
}

pub async fn pass_on(Extract(controller): Extract<Controller>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let Some(forward) = controller.config.forward.clone() else {
        return next.run(request).await;
    };
    if is_of_this_host(path) {
        return next.run(request).await;
    }
    let is_report = request.method() == Method::PUT && path.starts_with("/internal/hosts/");
    let follows = path.starts_with("/internal/") && request.method() == Method::GET;
    let may_answer = request.method().is_safe() && (!follows || path == "/internal/cluster");
    if forward.leads() {
        controller.answered.note();
        let mut response = next.run(request).await;
        if is_report {
            let now = HeaderValue::from(controller.now().as_micros());
            response.headers_mut().insert(peers::CLUSTER_TIME, now);
        }
        return if follows {
            while_leading(&controller, response)
        } else {
            response
        };
    }
    let patience = if may_answer {
        controller.answered.patience()
    } else {
        PATIENCE
    };
    match forward
        .forward(peers::Part::Controller.name(), request, patience)
        .await
    {
        Ok(response) => {
            controller.answered.note();
            if is_report && let Some(time) = cluster_time(&response) {
                controller.clock.follow(time, daemon::now());
            }
            response
        }
        Err(request) if forward.leads() => {
            let response = next.run(request).await;
            if follows {
                while_leading(&controller, response)
            } else {
                response
            }
        }
        Err(request) if may_answer => next.run(request).await,
        Err(_) => {
            let error = Error::unavailable(
                "no host leads the cluster: most of those who vote on its state cannot be reached",
            );
            Failure(error.with_hint("apps go on; `flynn-host status` tells which hosts are missing"))
                .into_response()
        }
    }
}

fn is_of_this_host(path: &str) -> bool {
    path.starts_with("/layers/") || path.starts_with("/internal/here/")
}

fn cluster_time(response: &Response) -> Option<Timestamp> {
    let text = response.headers().get(peers::CLUSTER_TIME)?.to_str().ok()?;
    Some(Timestamp::from_micros(text.parse().ok()?))
}

/// Hosts and routers that follow this host turn to the next leader when it does not lead any more.
fn while_leading(controller: &Controller, response: Response) -> Response {
    if response.headers().contains_key(header::CONTENT_LENGTH) {
        return response;
    }
    let mut leadership = controller.store.leadership();
    let over = async move {
        let _ = leadership.wait_for(|leads| !leads).await;
    };
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(over))))
}
