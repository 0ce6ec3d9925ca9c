//! The part of an update that another host asks for: programs come in, and are put in place here.
//!
//! ```text
//! PUT  /host/update/SET/NAME?sha256=DIGEST    a program, kept in update/SET
//! POST /host/update/SET                       `flynn-host update` begins, in a process of its own
//! GET  /host/update/SET                       what it said, and how it ended
//! ```
//!
//! What a reader would get wrong: the daemon that starts the process is ended by it. So the process writes
//! into files, and whoever asks is answered by whichever daemon there is then.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use api::{
    Code, Error,
    update::{UpdateRequest, UpdateState, UpdateTo},
};
use axum::{
    Json, Router,
    extract::{Path as At, Query, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{post, put},
};
use daemon::{Keys, StateDir, files};
use futures::TryStreamExt;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt, process::Command};
use types::{Digest, Uuid};

use crate::update::{NAMES, own_program};

/// What the process is told to write how it ended into.
const ENDED: &str = "ended";
const SAID: &str = "said";
/// The text is for a person; what is longer than this is cut at its beginning.
const SAID_BYTES_MAX: usize = 64 << 10;

#[derive(Clone)]
struct Taken {
    sets: PathBuf,
    config: PathBuf,
}

/// Routes for a host's own API.
pub fn routes(state: &StateDir, config: &Path, keys: Keys) -> Router {
    let taken = Taken {
        sets: state.root().join("update"),
        config: config.to_owned(),
    };
    Router::new()
        .route("/host/update/{set}/{name}", put(take))
        .route("/host/update/{set}", post(begin).get(state_of))
        .route_layer(axum::middleware::from_fn_with_state(
            keys,
            daemon::auth::require_internal_key,
        ))
        .with_state(taken)
}

struct Failure(Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure(Error::unavailable(format!(
            "the host cannot keep the programs: {error}"
        )))
    }
}

#[derive(Deserialize)]
struct Named {
    sha256: Digest,
}

async fn take(
    State(taken): State<Taken>,
    At((set, name)): At<(Uuid, String)>,
    Query(named): Query<Named>,
    request: Request,
) -> Result<(), Failure> {
    if !NAMES.contains(&&*name) {
        return Err(Error::validation("name", "is no program of a host").into());
    }
    let directory = taken.sets.join(set.to_string());
    if !directory.exists() {
        // One update at a time: what an earlier one left is of no use.
        files::remove_all(&taken.sets)?;
        files::create_private_dir(&directory)?;
    }
    let draft = directory.join(format!("{name}.new"));
    let mut file = tokio::fs::File::create(&draft).await?;
    let mut hash = Sha256::new();
    let mut bytes = request.into_body().into_data_stream();
    let broke_off = |_| Error::invalid("the request's body broke off");
    while let Some(bytes) = bytes.try_next().await.map_err(broke_off)? {
        hash.update(&bytes);
        file.write_all(&bytes).await?;
    }
    if hex::encode(hash.finalize()) != named.sha256.as_str() {
        return Err(Error::validation("sha256", "is not that of the bytes that were sent").into());
    }
    file.sync_all().await?;
    drop(file);
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(&draft, directory.join(name))?;
    Ok(())
}

async fn begin(
    State(taken): State<Taken>,
    At(set): At<Uuid>,
    Json(request): Json<UpdateRequest>,
) -> Result<(), Failure> {
    let directory = taken.sets.join(set.to_string());
    files::create_private_dir(&directory)?;
    files::remove_all(&directory.join(ENDED))?;
    let said = fs::File::create(directory.join(SAID))?;
    let mut command = Command::new(own_program()?);
    command.arg("--config").arg(&taken.config).arg("update");
    match request.to {
        UpdateTo::Set => command.arg("--programs").arg(&directory),
        UpdateTo::Previous => command.arg("--previous"),
    };
    command
        .args(["--timeout", &request.timeout_s.to_string(), "--report"])
        .arg(directory.join(ENDED))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .process_group(0)
        .spawn()?;
    tracing::info!(%set, to = ?request.to, "another host updates this one");
    Ok(())
}

async fn state_of(State(taken): State<Taken>, At(set): At<Uuid>) -> Result<Json<UpdateState>, Failure> {
    let directory = taken.sets.join(set.to_string());
    let unknown = || Error::new(Code::NotFound, "there is no such update");
    let ended = files::read_if_exists(&directory.join(ENDED))?;
    let said = files::read_if_exists(&directory.join(SAID))?.ok_or_else(unknown)?;
    let mut from = said.len().saturating_sub(SAID_BYTES_MAX);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    let said = said[from..].to_owned();
    Ok(Json(UpdateState { said, ended }))
}
