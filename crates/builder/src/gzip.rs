//! Compressed request bodies, taken apart piece by piece.

use std::io::{self, Write};

use flate2::write::GzDecoder;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// A byte of gzip becomes 1 032 at most, so this bounds what is in memory at a time to 4 MiB.
const PIECE_BYTES: usize = 4 << 10;

pub struct Gunzip {
    decoder: GzDecoder<Vec<u8>>,
}

impl Default for Gunzip {
    fn default() -> Self {
        Gunzip {
            decoder: GzDecoder::new(Vec::new()),
        }
    }
}

impl Gunzip {
    pub async fn write(&mut self, compressed: &[u8], out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        for piece in compressed.chunks(PIECE_BYTES) {
            self.decoder.write_all(piece)?;
            self.pass_on(out).await?;
        }
        Ok(())
    }

    /// Fails if the compressed data ended too early.
    pub async fn finish(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.decoder.try_finish()?;
        self.pass_on(out).await
    }

    async fn pass_on(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let ready = std::mem::take(self.decoder.get_mut());
        out.write_all(&ready).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn what_was_compressed_comes_out_however_it_arrives() {
        let text = b"want 0123\n".repeat(10_000);
        let mut out = Vec::new();
        let mut gunzip = Gunzip::default();
        for piece in compressed(&text).chunks(7) {
            gunzip.write(piece, &mut out).await.unwrap();
        }
        gunzip.finish(&mut out).await.unwrap();
        assert_eq!(out, text);
    }

    #[tokio::test]
    async fn damage_and_an_early_end_are_errors() {
        let whole = compressed(b"want 0123\n");
        let mut gunzip = Gunzip::default();
        gunzip
            .write(&whole[..whole.len() - 3], &mut Vec::new())
            .await
            .unwrap();
        assert!(gunzip.finish(&mut Vec::new()).await.is_err());
        assert!(
            Gunzip::default()
                .write(b"this is no gzip at all", &mut Vec::new())
                .await
                .is_err()
        );
    }
}
