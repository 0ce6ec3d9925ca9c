//! The cluster's registry of images: `docker push images.DOMAIN/APP` makes a release of the app.
//!
//! ```text
//!  client ─▶ router ─▶ http ─┬─▶ upload ─▶ store (blobs by digest)
//!                            ├─▶ manifests ─▶ release: layer::converter ─▶ controller (artifact, release)
//!                            └─▶ lists
//!  gc: what no tag, no release and no young push needs
//! ```
//!
//! What a reader would get wrong:
//! * The first part of a repository's name is an app, and there is nothing else. `APP/MORE` is kept for
//!   whatever the app's owner likes, and makes no releases.
//! * A blob is what clients sent, compressed, and is given back as it came. What jobs run from are image
//!   files made of it (see [`layer`]), in the host's `layers`, collected by other rules.
//! * A manifest is kept only after the image turned out to be one that can be run.
//!
//! It starts nothing: releases are made through the controller's API.

mod copies;
mod error;
mod extra;
mod gc;
mod http;
mod image;
pub mod layer;
mod manifest;
mod name;
mod pull;
mod release;
mod remote;
mod store;
mod upload;

#[cfg(test)]
mod tests;

use std::{io::Read, path::PathBuf, sync::Arc, time::Duration};

use ::http::{HeaderMap, header};
use anyhow::{Context, Result};
use api::{Controller, Endpoint};
use base64::{Engine, prelude::BASE64_STANDARD};
use daemon::{AppTokens, Keys, Shutdown, StateDir};
use tokio::net::TcpListener;
use types::{AppId, HostId};

use self::{
    error::{Code, Failure},
    http::{Caller, On},
    layer::converter::{Converter, Worker},
    name::{BlobDigest, RepositoryName},
    store::Store,
    upload::Uploads,
};

pub use layer::worker::main as convert_layer;

pub struct Config {
    pub state: StateDir,
    /// Where the controller's API is, with the internal key.
    pub controller: Endpoint,
    /// Whose keys may push and pull.
    pub keys: Keys,
    /// For keys of apps.
    pub internal_key: String,
    /// What converts layers.
    pub worker: Worker,
    pub blob_bytes_max: u64,
    /// What pushes leave free of the disk.
    pub disk_reserve_bytes: u64,
    pub host: HostId,
    /// Passes requests on to the host that leads; a host that is alone for ever needs none.
    pub forward: Option<Arc<dyn daemon::Forward>>,
    /// The cluster's bucket, where it has one.
    pub objects: Option<Arc<dyn api::objects::Objects>>,
}

pub(crate) struct Registry {
    store: Store,
    uploads: Uploads,
    converter: Converter,
    controller: Controller,
    keys: Keys,
    tokens: AppTokens,
    /// Releases of pushes are made in turn.
    publishing: tokio::sync::Mutex<()>,
    /// Where there may be other hosts.
    copies: Option<copies::Copies>,
    objects: Option<Arc<dyn api::objects::Objects>>,
}

/// Serves until `shutdown`.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<()> {
    let registry = Arc::new(Registry::open(config)?);
    tokio::join!(
        daemon::server::serve(listener, http::router(registry.clone()), shutdown.clone()),
        gc::run(&registry, shutdown.clone()),
        copies::run(&registry, shutdown.clone()),
        copies::objects::run(&registry, shutdown.clone()),
    );
    Ok(())
}

/// Removes the images of an app that is gone.
pub async fn forget(state: &StateDir, app: AppId) -> Result<()> {
    let root = directory(state);
    tokio::task::spawn_blocking(move || {
        Store::open(root)
            .and_then(|store| store.forget(app))
            .context("cannot remove the app's images")
    })
    .await?
}

fn directory(state: &StateDir) -> PathBuf {
    state.root().join("registry")
}

impl Registry {
    fn open(config: Config) -> Result<Registry> {
        let root = directory(&config.state);
        let store = Store::open(root.clone()).context("cannot open the registry's files")?;
        let limits = upload::Limits {
            blob_bytes_max: config.blob_bytes_max,
            disk_reserve_bytes: config.disk_reserve_bytes,
        };
        let copies = config
            .forward
            .map(|forward| copies::Copies::new(config.host, config.internal_key.clone(), forward));
        Ok(Registry {
            copies,
            objects: config.objects,
            uploads: Uploads::new(store.clone(), limits),
            converter: Converter::new(config.worker, config.state.layers(), &root, Default::default())?,
            controller: Controller::new(&config.controller)?,
            keys: config.keys,
            tokens: AppTokens::new(&config.internal_key),
            publishing: Default::default(),
            store,
        })
    }

    fn caller(&self, headers: &HeaderMap) -> error::Result<Caller> {
        if let Some(principal) = self.keys.authenticate(headers) {
            return Ok(Caller::Cluster(principal));
        }
        let token = password(headers).and_then(|password| self.tokens.verify(&password));
        token.map(|token| Caller::App(token.app)).ok_or_else(|| {
            let text = "the cluster's key is needed. hint: docker login with it as the password, or `flynn docker login`";
            Failure::new(Code::Unauthorized, text)
        })
    }

    /// The repository of a name, whose app has to be there and be the caller's.
    async fn repository(&self, caller: &Caller, name: &RepositoryName) -> error::Result<On> {
        let shown = name.app();
        let unknown = || {
            let text = format!("there is no app \"{shown}\". hint: `flynn create {shown}` makes it");
            Failure::new(Code::NameUnknown, text)
        };
        types::check_app_name(shown).map_err(|_| unknown())?;
        let app = match self.controller.app(shown).await {
            Ok(app) => app,
            Err(error) if error.is_not_found() => return Err(unknown()),
            Err(error) => {
                return Err(Failure::unavailable(format!(
                    "the controller does not answer: {error}"
                )));
            }
        };
        if matches!(caller, Caller::App(own) if *own != app.id) {
            return Err(Failure::new(
                Code::Denied,
                format!("this key is not one for the app \"{shown}\""),
            ));
        }
        let repository = self.store.repository(app.id, name);
        self.catch_up(&repository).await?;
        Ok(On {
            name: name.clone(),
            repository,
            app,
        })
    }

    /// Begins to convert what looks like a layer, so that it is done when the manifest comes.
    fn convert_early(self: &Arc<Self>, on: &On, digest: &BlobDigest) {
        if on.repository.is_cache() {
            return;
        }
        let path = self.store.blob(digest);
        let mut first = [0; 512];
        let count = std::fs::File::open(&path).and_then(|mut file| file.read(&mut first));
        let is_packed = matches!(first[..4], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]);
        let is_archive = first[257..262] == *b"ustar";
        if !count.is_ok_and(|count| count > 4) || !(is_packed || is_archive) {
            return;
        }
        let (registry, digest) = (self.clone(), digest.clone());
        tokio::spawn(async move {
            // What is wrong with it is told when a manifest needs it.
            if let Err(error) = registry.converter.layer(&digest, &path).await {
                tracing::debug!(layer = %digest, %error, "not converted early");
            }
        });
    }
}

/// What Basic authentication brings along as the password.
fn password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(credentials.trim()).ok()?).ok()?;
    Some(decoded.split_once(':')?.1.to_owned())
}

/// Between two collections, and how old has to be what goes.
const INTERVAL: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(3600);
