//! The distribution specification's requests, each by its name there, against a registry whose
//! controller is a stand-in.

mod conformance;
mod images;
mod order;
mod world;
