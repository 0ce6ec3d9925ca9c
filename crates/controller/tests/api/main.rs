//! The controller's API over HTTP, with a real store on disk: what it answers, keeps, refuses and
//! tells. Hosts, providers and discovery are played by the tests.

mod concurrency;
mod contract;
mod deletions;
mod domain;
mod events;
mod habits;
mod providers;
mod settings;
mod world;
