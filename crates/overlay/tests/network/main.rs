//! The network of jobs on real links, real rules and real packets. Each test has a network namespace of its own, so
//! they run side by side and never touch the machine's. They need root.

mod encrypted;
mod floating;
mod hosts;
mod ipv6;
mod isolation;
mod life;
mod world;
