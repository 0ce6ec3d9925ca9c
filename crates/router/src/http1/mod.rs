//! HTTP/1.1, on both sides.
//!
//! ```text
//! connection ── head (parse, refuse) ── prepare (decide, new head) ── exchange
//!      waiting (send, wait for a head) ── response (new head) ── bodies (copy both) ───┘
//!                                                    body (framing) ── pump (copy one)
//! ```
//!
//! What is passed on has been understood: lengths and chunk sizes are checked byte by byte, because
//! a proxy that disagrees with its backend about where a message ends lets one client write the
//! next one's request. Whatever is ambiguous is refused, never repaired.

pub(crate) mod bodies;
pub mod body;
pub(crate) mod exchange;
pub mod head;
pub(crate) mod pump;
pub(crate) mod response;
pub(crate) mod tunnel;
pub(crate) mod waiting;

pub use body::Framing;
pub use head::{Refused, RequestHead, Scratch, parse_request_head};
