//! Where a request goes, and what to do when that fails.
//!
//! ```text
//! feed::Update ──> Model ──> Table ──> decide(table, request, load, seed) ──> Decision
//!  (from the controller)   (immutable)                                          │ failed
//!                                                retry(attempt, budget) <───────┘
//! ```
//!
//! Everything here is a value or a pure function: sockets, time and dice belong to the caller, who
//! passes the number of requests in flight, whether a backend is out, and a random number. So the
//! whole routing behaviour can be drawn, replayed and tested without a network.
//!
//! A [`Table`] never changes. A request keeps the one it started with, which is why backends and
//! routes are named by index: an index is only good for the table that it came from.

pub mod feed;

mod decide;
mod model;
mod retry;
mod sticky;
mod table;

pub use decide::{Decision, Forward, Load, RequestHead, choose, decide, decide_tcp, normal_host};
pub use model::{Applied, Model};
pub use retry::{ATTEMPTS_MAX, Attempt, Budget, Failure, GiveUp, Retry, ejection_ms, is_idempotent, retry};
pub use sticky::{COOKIE_NAME, cookie_value, token};
pub use table::{Backend, BackendIndex, HttpPort, HttpRoute, Rows, Service, ServiceIndex, Table, TcpRoute};
