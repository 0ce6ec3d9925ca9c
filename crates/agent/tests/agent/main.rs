//! The agent as a whole, against a controller made of values: with containers made of values too
//! ([`sim`], every point at which it may be killed), and with real ones ([`real`], needs root).

mod controller;
mod described;
mod life;
mod machine;
mod real;
mod session;
mod sim;
mod volumes;
