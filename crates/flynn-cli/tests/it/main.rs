//! The `flynn` binary against a controller with the real one's shapes.

mod actors;
mod archives;
mod attach;
mod bench;
mod clusters;
mod fake;
mod jobs;
mod log;
mod operating;
mod operators;
mod real;
mod releases;
mod routes;
mod state;
mod streams;
mod terminal;
mod tls;
mod walk;
mod whys;
