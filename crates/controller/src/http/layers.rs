//! Layers of images by digest: `/layers/:digest` (an addition). Exports take them, imports give them.
//!
//! A layer is written before the artifact that names it exists; until then its age keeps it from
//! being collected (see the agent's `gc`).

use std::{io, path::PathBuf};

use api::{Code, Error, images::LayerFile};
use axum::{
    Json,
    body::Body as RawBody,
    extract::{Path, Request, State as Extract},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::header;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt,
};
use tokio_util::io::ReaderStream;
use types::Digest;

use super::{Shared, body::Parameters, error::Failure, parse_id};

/// Longest layer that is taken. The largest of the platform's own is 1.2 GB.
const LAYER_BYTES_MAX: u64 = 20 << 30;
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
pub struct Stat {
    #[serde(default)]
    stat: Option<String>,
    /// Whether other hosts are left in peace.
    #[serde(default)]
    here: bool,
}

/// The layer's bytes, or with `?stat=true` only its length.
pub async fn get(
    Extract(controller): Shared,
    Path(digest): Path<String>,
    Parameters(query): Parameters<Stat>,
) -> Result<Response, Failure> {
    let digest: Digest = parse_id(&digest)?;
    let is_here = fs::try_exists(controller.layer_path(&digest)).await;
    if !query.here && is_here.is_ok_and(|is_here| !is_here) {
        controller.fetch_layer(&digest).await?;
    }
    let file = match File::open(controller.layer_path(&digest)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::not_found().into()),
        Err(error) => return Err(failed("read", &error).into()),
    };
    let length = file
        .metadata()
        .await
        .map_err(|error| failed("read", &error))?
        .len();
    if query.stat.as_deref() == Some("true") {
        let id = digest.to_string();
        return Ok(Json(LayerFile { id, length }).into_response());
    }
    let body = RawBody::from_stream(ReaderStream::with_capacity(file, CHUNK_BYTES));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Takes a layer in, if its bytes are those of the digest. One that is there already stays.
pub async fn put(
    Extract(controller): Shared,
    Path(digest): Path<String>,
    request: Request,
) -> Result<Json<LayerFile>, Failure> {
    let invalid = |_| Error::validation("digest", "must be 64 lower-case hexadecimal digits");
    let digest: Digest = digest.parse().map_err(invalid)?;
    let body = request.into_body().into_data_stream();
    let length = controller.keep_layer(&digest, body.map_err(drop)).await?;
    let id = digest.to_string();
    Ok(Json(LayerFile { id, length }))
}

/// The list of base images, as it is on this host.
pub async fn stack(Extract(controller): Shared) -> Result<Vec<u8>, Failure> {
    let path = controller.config.stack.clone().ok_or_else(Error::not_found)?;
    match fs::read(&path).await {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::not_found().into()),
        Err(error) => Err(failed("read", &error).into()),
    }
}

impl crate::Controller {
    /// Takes bytes in if they are those of the digest; how many there are.
    pub(crate) async fn keep_layer(
        &self,
        digest: &Digest,
        mut bytes: impl Stream<Item = Result<Bytes, ()>> + Unpin,
    ) -> Result<u64, Error> {
        let path = self.layer_path(digest);
        // Two uploads of one layer at once each have a file of their own. The name is one that the
        // collection of what nobody uses knows as half a file.
        let draft = Draft(path.with_extension(format!("new-{}", types::Uuid::new_v4())));
        let mut file = File::create(&draft.0)
            .await
            .map_err(|error| failed("write", &error))?;
        let (mut hash, mut length) = (Sha256::new(), 0);
        while let Some(bytes) = bytes.try_next().await.map_err(|()| broke_off())? {
            length += bytes.len() as u64;
            if length > LAYER_BYTES_MAX {
                let message = format!("the layer is longer than {LAYER_BYTES_MAX} bytes");
                return Err(Error::new(Code::RequestBodyTooBig, message));
            }
            hash.update(&bytes);
            file.write_all(&bytes)
                .await
                .map_err(|error| failed("write", &error))?;
        }
        if hex::encode(hash.finalize()) != digest.as_str() {
            return Err(Error::validation(
                "digest",
                "is not that of the bytes that were sent",
            ));
        }
        let kept = async {
            file.flush().await?;
            file.sync_all().await?;
            fs::rename(&draft.0, &path).await?;
            File::open(&self.config.layers).await?.sync_all().await
        };
        kept.await.map_err(|error| failed("write", &error))?;
        Ok(length)
    }
}

/// Half a file, which goes unless it has become the layer.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn broke_off() -> Error {
    Error::invalid("the request's body broke off")
}

fn failed(verb: &str, error: &io::Error) -> Error {
    Error::unavailable(format!("cannot {verb} the layer: {error}"))
}
