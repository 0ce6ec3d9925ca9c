//! The API is the original's: what it answered to its own client and to probes is asked of the real
//! controller again, and compared.
//!
//! Where an answer differs, `docs/api/differences.md` has to say so and why; a line of it that names
//! no difference any more is an error, too. The description of the API (`docs/api/controller.json`)
//! is held to the same answers, and a fuzzer driven by it asks for everything in every wrong way.

mod compare;
mod described;
mod fuzz;
mod replay;
mod schemas;
mod server;
mod tolerated;
