//! What a cluster keeps outside of its state, for a backup of all of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use types::Digest;

/// The part of a backup that is not in the state: keys, layers, repositories, volumes.
pub struct Contents {
    /// The state, as [`state::State::write_image`] wrote it.
    pub state: Vec<u8>,
    /// Layers that the state names.
    pub layers: BTreeSet<Digest>,
    pub domain: String,
}

/// Who reads and packs a cluster's files.
pub trait Archive: Send + Sync + 'static {
    /// Begins to pack. The stream ends with an error where the pack is not whole; dropping it stops the packing.
    fn pack(
        &self,
        contents: Contents,
    ) -> BoxFuture<'_, std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>>;
}
