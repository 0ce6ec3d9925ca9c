//! `GET /backup`: everything that it takes to bring the cluster back on an empty machine, as one tar.

use api::Error;
use axum::{
    Json,
    body::Body,
    extract::State as Extract,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha512};
use state::Change;
use types::{BackupId, BackupStatus, ClusterBackup, Uuid};

use super::{Shared, error::Failure};
use crate::{Controller, backup::Contents};

/// A client that asks for JSON is told of the last backup instead.
pub async fn get(Extract(controller): Shared, headers: HeaderMap) -> Result<Response, Failure> {
    let wants_json = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == b"application/json");
    if wants_json {
        let backup = controller
            .state()
            .last_backup
            .clone()
            .ok_or_else(Error::not_found)?;
        return Ok(Json(backup).into_response());
    }
    let archive = controller
        .config
        .archive
        .clone()
        .ok_or_else(|| Error::unavailable("this controller has no files to back up"))?;
    let state = controller.state();
    let mut image = vec![];
    state
        .write_image(&mut image)
        .map_err(|error| Error::unavailable(error.to_string()))?;
    let layers = crate::copies::in_use(&state);
    let layers: Vec<types::Digest> = layers.iter().filter_map(|layer| layer.parse().ok()).collect();
    for digest in &layers {
        // Those that are on other hosts only; without one that none has, the backup goes without it.
        if let Err(error) = controller.fetch_layer(digest).await {
            tracing::warn!(%digest, %error, "a layer cannot be fetched for the backup");
        }
    }
    let layers = layers.into_iter().collect();
    let contents = Contents {
        state: image,
        layers,
        domain: controller.config.domain.clone(),
    };
    let now = controller.now();
    let backup = ClusterBackup {
        id: BackupId(Uuid::new_v4()),
        status: BackupStatus::Running,
        sha512: String::new(),
        size: 0,
        error: String::new(),
        created_at: now,
        updated_at: now,
        completed_at: None,
    };
    controller
        .write(Change::PutBackup {
            backup: backup.clone(),
        })
        .await?;
    let mut report = Report {
        controller,
        backup: Some(backup),
        hash: Sha512::new(),
    };
    let stream = match archive.pack(contents).await {
        Ok(stream) => stream,
        Err(error) => {
            report.end(Some(error.to_string()));
            return Err(Error::unavailable(format!("the backup cannot be made: {error}")).into());
        }
    };
    Ok((
        [(header::CONTENT_TYPE, "application/tar")],
        Body::from_stream(counted(stream, report)),
    )
        .into_response())
}

/// Passes the stream on, and records how it ended.
fn counted(
    stream: BoxStream<'static, std::io::Result<Bytes>>,
    report: Report,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    futures::stream::unfold((stream, report), |(mut stream, mut report)| async move {
        let item = stream.next().await;
        match &item {
            Some(Ok(bytes)) => report.took(bytes),
            Some(Err(error)) => report.end(Some(error.to_string())),
            None => report.end(None),
        }
        item.map(|item| (item, (stream, report)))
    })
}

/// Says how a backup ended, also where the one who asked for it has gone.
struct Report {
    controller: Controller,
    /// Until it has ended.
    backup: Option<ClusterBackup>,
    hash: Sha512,
}

impl Report {
    fn took(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        if let Some(backup) = &mut self.backup {
            backup.size += bytes.len() as u64;
        }
    }

    fn end(&mut self, error: Option<String>) {
        let Some(mut backup) = self.backup.take() else {
            return;
        };
        match error {
            None => {
                backup.status = BackupStatus::Complete;
                backup.sha512 = hex::encode(std::mem::take(&mut self.hash).finalize());
                backup.completed_at = Some(self.controller.now());
            }
            Some(error) => {
                backup.status = BackupStatus::Error;
                backup.error = error;
            }
        }
        let controller = self.controller.clone();
        tokio::spawn(async move {
            if let Err(error) = controller.write(Change::PutBackup { backup }).await {
                tracing::warn!(%error, "cannot record how the backup ended");
            }
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(Some("whoever asked for it went away".into()));
    }
}
