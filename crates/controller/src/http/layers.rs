//! Layers of images by digest: `/layers/:digest` (an addition). Exports take them, imports give them.
//!
//! A layer is written before the artifact that names it exists; until then its age keeps it from
//! being collected (see the agent's `gc`).

use std::{io, path::PathBuf};

use api::{Code, Error, images::LayerFile};
use axum::{
    Json,
    body::Body as RawBody,
    extract::{Path, Query, Request, State as Extract},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use http::header;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt,
};
use tokio_util::io::ReaderStream;
use types::Digest;

use super::{Shared, error::Failure, parse_id};

/// Longest layer that is taken. The largest of the platform's own is 1.2 GB.
const LAYER_BYTES_MAX: u64 = 20 << 30;
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
pub struct Stat {
    #[serde(default)]
    stat: Option<String>,
}

/// The layer's bytes, or with `?stat=true` only its length.
pub async fn get(
    Extract(controller): Shared,
    Path(digest): Path<String>,
    Query(query): Query<Stat>,
) -> Result<Response, Failure> {
    let digest: Digest = parse_id(&digest)?;
    let file = match File::open(controller.layer_path(&digest)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::not_found().into()),
        Err(error) => return Err(failed("read", &error)),
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
    let path = controller.layer_path(&digest);
    let mut body = request.into_body().into_data_stream();
    // Two uploads of one layer at once each have a file of their own. The name is one that the
    // collection of what nobody uses knows as half a file.
    let draft = Draft(path.with_extension(format!("new-{}", types::Uuid::new_v4())));
    let mut file = File::create(&draft.0)
        .await
        .map_err(|error| failed("write", &error))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(bytes) = body.try_next().await.map_err(|_| broke_off())? {
        length += bytes.len() as u64;
        if length > LAYER_BYTES_MAX {
            let message = format!("the layer is longer than {LAYER_BYTES_MAX} bytes");
            return Err(Error::new(Code::RequestBodyTooBig, message).into());
        }
        hash.update(&bytes);
        file.write_all(&bytes)
            .await
            .map_err(|error| failed("write", &error))?;
    }
    if hex::encode(hash.finalize()) != digest.as_str() {
        return Err(Error::validation("digest", "is not that of the bytes that were sent").into());
    }
    let kept = async {
        file.flush().await?;
        file.sync_all().await?;
        fs::rename(&draft.0, &path).await?;
        File::open(&controller.config.layers).await?.sync_all().await
    };
    kept.await.map_err(|error| failed("write", &error))?;
    let id = digest.to_string();
    Ok(Json(LayerFile { id, length }))
}

/// Half a file, which goes unless it has become the layer.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn broke_off() -> Failure {
    Error::invalid("the request's body broke off").into()
}

fn failed(verb: &str, error: &io::Error) -> Failure {
    Error::unavailable(format!("cannot {verb} the layer: {error}")).into()
}

impl crate::Controller {
    fn layer_path(&self, digest: &Digest) -> PathBuf {
        self.config.layers.join(format!("{digest}.erofs"))
    }
}
