//! Layers of images from outside: from a compressed archive to an image file named by its digest.
//!
//! ```text
//!  blob ─▶ converter ──(a process of its own, no rights)──▶ worker: unpack ─▶ archive ─▶ erofs ─▶ layers/DIGEST.erofs
//! ```

pub mod archive;
pub mod converter;
pub mod erofs;
mod sparse;
pub mod worker;

#[cfg(test)]
mod tests;
