//! The `flynn` binary against a controller with the real one's shapes.

mod actors;
mod attach;
mod bench;
mod clusters;
mod fake;
mod jobs;
mod log;
mod real;
mod releases;
mod routes;
mod state;
mod streams;
mod terminal;
mod tls;
mod walk;
