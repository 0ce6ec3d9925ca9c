//! Passing requests on to the host that leads.
//!
//! Every host serves every API; what changes the cluster is done by the host that leads it. A
//! component asks its [`Forward`] whether that is this one, and hands requests over where it is not.

use axum::{extract::Request, response::Response};
use futures::future::BoxFuture;

pub trait Forward: Send + Sync + 'static {
    /// Whether this host leads.
    fn leads(&self) -> bool;

    /// Has the leader's `part` answer. Waits a little for a leader where there is none just now;
    /// gives the request back where none turns up in `patience`, or when it is this host.
    fn forward(
        &self,
        part: &'static str,
        request: Request,
        patience: std::time::Duration,
    ) -> BoxFuture<'static, Result<Response, Request>>;

    /// Has the `part` of the member with this number answer, or says why it cannot be reached.
    fn to(
        &self,
        node: u64,
        part: &'static str,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, String>>;
}
