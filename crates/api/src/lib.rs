//! The HTTP contract: what travels between the parts of the platform and its users.
//!
//! Request and answer shapes, the error envelope, event streams, the attach protocol, and clients
//! for all of it. Components never call each other's code: they meet here, over HTTP or by the
//! traits of [`logs`]. The rows that answers carry as they are kept come from `types`; what differs
//! on the wire is in [`wire`] (for users) and [`host`] (between controller and hosts).

pub mod attach;
pub mod client;
pub mod contents;
pub mod controller;
pub mod discoverd;
pub mod dry_run;
pub mod error;
pub mod host;
pub mod images;
pub mod logs;
pub mod objects;
pub mod peers;
pub mod provision;
pub mod resources;
pub mod sinks;
pub mod sse;
pub mod tls;
pub mod update;
pub mod wire;

pub use client::{Client, ClientError, Endpoint, Trust};
pub use controller::Controller;
pub use error::{Code, Error};

/// The platform's version, as every part reports it.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
