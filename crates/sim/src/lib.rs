//! A whole cluster in one thread under one seed: the real state and the real scheduler on every machine, with
//! machines, network, clocks and users made up.
//!
//! ```text
//! world      time, what happens next, who reaches whom          consensus   who leads, what is committed
//! machine    one host: its copy of the state, its jobs          leader      hears hosts, plans, carries plans out
//! trouble    what goes wrong, and what users ask for            laws        what must be true whatever happens
//! ```
//!
//! What a reader would get wrong:
//! * Consensus is not simulated but assumed: one log, which grows only by a leader of the newest term that
//!   reaches a majority. That the store keeps this promise is what its history checker looks at. What is
//!   simulated is what a leader that does not know that it is none any more may still do.
//! * Actions become commands by the controller's own translation, so a plan that the state refuses shows here.
//! * Every machine has its own idea of the time; only laws look at the true one.
//!
//! The scheduler's own simulation has the rest: deployments, crashes, tags, memory, and every placement checked
//! against the slow way. Here are what needs more than one machine.

mod consensus;
mod laws;
mod leader;
mod machine;
mod random;
mod trouble;
mod world;

pub use random::Random;
pub use trouble::Trouble;
pub use world::World;
