//! Layers of images on as many hosts as asked: fetched where they are needed, and copied so that the end
//! of one host takes none along.
//!
//! Which hosts keep a layer follows from its digest and the hosts that there are, so every host finds
//! out for itself what it lacks, and nothing has to be written down. A layer that is needed elsewhere
//! is fetched there and stays for as long as anything in the cluster names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{
    ClientError, Error,
    client::empty_body,
    contents::{LOST_AFTER, keepers},
    peers::Part,
};
use axum::body::Body;
use daemon::{Shutdown, files};
use futures::TryStreamExt;
use http::Method;
use state::State;
use types::{Digest, Host, HostId, HostState};

use crate::Controller;

/// How soon what changed is looked at.
pub const ROUND: Duration = Duration::from_secs(5);

/// Fetches under way: a layer that several jobs wait for comes once.
#[derive(Default)]
pub struct Fetches(Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

pub async fn run(controller: Controller, shutdown: Shutdown) {
    if controller.config.peers.is_none() || controller.config.membership.is_none() {
        return;
    }
    loop {
        tokio::select! {
            _ = tokio::time::sleep(ROUND) => {}
            _ = shutdown.cancelled() => return,
        }
        tokio::select! {
            _ = round(&controller) => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

async fn round(controller: &Controller) {
    let state = controller.state();
    let has_bucket = controller
        .config
        .objects
        .as_ref()
        .is_some_and(|objects| objects.is_on());
    if state.members.len() < 2 && !has_bucket {
        return;
    }
    let hosts = living(controller, &state);
    let own = controller.config.membership.as_ref().map(|own| own.host.clone());
    let Some(own) = own else { return };
    let of_images = in_use(&state)
        .into_iter()
        .filter_map(|layer| layer.parse::<Digest>().ok())
        .filter(|digest| keepers(digest.as_str(), &hosts, state.settings.copies).contains(&&own));
    // Any host may come to lead, and then builds.
    let of_stack = controller.stack_layers().await;
    for digest in of_images.chain(of_stack) {
        if tokio::fs::try_exists(controller.layer_path(&digest))
            .await
            .unwrap_or(true)
        {
            continue;
        }
        match controller.fetch_layer(&digest).await {
            Ok(true) => tracing::info!(%digest, "keeps a copy of a layer"),
            Ok(false) => tracing::debug!(%digest, "no host has a layer that is in use"),
            Err(error) => tracing::warn!(%digest, %error, "a layer cannot be copied; trying again"),
        }
    }
}

/// Hosts that count as keeping what they were chosen for.
pub fn living(controller: &Controller, state: &State) -> Vec<HostId> {
    let now = controller.now();
    let hosts = state.hosts.values().filter(|host| match host.state {
        HostState::Up => true,
        HostState::Silent { since } => now.since(since) < LOST_AFTER,
    });
    hosts.map(|host| host.id.clone()).collect()
}

/// Layers that some image is made of.
pub fn in_use(state: &State) -> Vec<String> {
    let manifests = state
        .artifacts
        .values()
        .filter_map(|artifact| artifact.manifest.as_ref());
    let layers = manifests.flat_map(|manifest| manifest.layers());
    let mut digests: Vec<_> = layers.map(|layer| layer.id.clone()).collect();
    digests.sort();
    digests.dedup();
    digests
}

impl Controller {
    pub(crate) fn layer_path(&self, digest: &Digest) -> PathBuf {
        self.config.layers.join(format!("{digest}.erofs"))
    }

    /// Other hosts that are up.
    fn others(&self) -> Vec<Arc<Host>> {
        let own = self.config.membership.as_ref().map(|own| own.host.clone());
        let state = self.state();
        let hosts = state.hosts.values().filter(|host| host.state == HostState::Up);
        hosts
            .filter(|host| Some(&host.id) != own.as_ref())
            .cloned()
            .collect()
    }

    /// Gets a layer from another host; whether any has it.
    pub(crate) async fn fetch_layer(&self, digest: &Digest) -> Result<bool, Error> {
        if self.config.peers.is_none() {
            return Ok(false);
        }
        let turn = {
            let mut fetches = self.fetches.0.lock().expect("no panic while held");
            fetches.entry(digest.clone()).or_default().clone()
        };
        let fetched = {
            let _turn = turn.lock().await;
            self.fetch_layer_alone(digest).await
        };
        let mut fetches = self.fetches.0.lock().expect("no panic while held");
        if Arc::strong_count(&turn) <= 2 {
            fetches.remove(digest);
        }
        fetched
    }

    async fn fetch_layer_alone(&self, digest: &Digest) -> Result<bool, Error> {
        if tokio::fs::try_exists(self.layer_path(digest))
            .await
            .unwrap_or(false)
        {
            return Ok(true);
        }
        let mut failed = None;
        for host in self.others() {
            match self.fetch_layer_from(&host, digest).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%digest, host = %host.id, %error, "a layer cannot be fetched");
                    failed = Some(error);
                }
            }
        }
        match self.fetch_layer_object(digest).await {
            Ok(false) => failed.map_or(Ok(false), Err),
            fetched => fetched,
        }
    }

    async fn fetch_layer_from(&self, host: &Host, digest: &Digest) -> Result<bool, Error> {
        let of_client = |error: ClientError| Error::unavailable(format!("host {}: {error}", host.id));
        let client = self.client_of(host, Part::Controller).map_err(of_client)?;
        let path = format!("/layers/{digest}?here=true");
        let asked = client.stream(Method::GET, &path, empty_body(), "*/*").await;
        let response = match asked {
            Ok(response) => response,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(of_client(error)),
        };
        let bytes = Body::new(response.into_body()).into_data_stream();
        self.keep_layer(digest, bytes.map_err(drop)).await?;
        Ok(true)
    }

    /// Layers of the images that builds and apps of buildpacks run in; the list is another host's where
    /// this one has none.
    async fn stack_layers(&self) -> Vec<Digest> {
        let Some(path) = self.config.stack.clone() else {
            return vec![];
        };
        let text = match files::read_if_exists(&path) {
            Ok(Some(text)) => Some(text),
            Ok(None) => self.fetch_stack(&path).await,
            Err(_) => None,
        };
        layers_of(&text.unwrap_or_default())
    }

    async fn fetch_stack(&self, path: &std::path::Path) -> Option<String> {
        for host in self.others() {
            let client = self.client_of(&host, Part::Controller).ok()?;
            let Ok(text) = client.text("/internal/here/stack").await else {
                continue;
            };
            let kept = path
                .parent()
                .map_or(Ok(()), files::create_private_dir)
                .and_then(|()| files::write_atomic(path, text.as_bytes(), 0o600));
            match kept {
                Ok(()) => {
                    tracing::info!(from = %host.id, "took over the list of base images");
                    return Some(text);
                }
                Err(error) => tracing::warn!(%error, "cannot keep the list of base images"),
            }
        }
        None
    }
}

/// Of all images that the list is of. What else stands there, such as the digest of their recipe, is no layer, and no
/// host would have it.
fn layers_of(stack: &str) -> Vec<Digest> {
    let stack: serde_json::Value = serde_json::from_str(stack).unwrap_or_default();
    let images = stack.as_object().into_iter().flat_map(serde_json::Map::values);
    let layers = images
        .filter_map(|image| image.get("layers")?.as_array())
        .flatten();
    let digests: BTreeSet<Digest> = layers
        .filter_map(|layer| layer.get("id")?.as_str()?.parse().ok())
        .collect();
    digests.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_base_images_names_layers_and_other_things() {
        let [one, two, recipe] = ["1", "2", "3"].map(|digit| digit.repeat(64));
        let text = format!(
            r#"{{"run": {{"layers": [{{"id": "{one}", "length": 7}}]}},
                 "build": {{"layers": [{{"id": "{one}"}}, {{"id": "{two}"}}]}},
                 "recipe": "{recipe}"}}"#
        );
        let expected: Vec<Digest> = vec![one.parse().unwrap(), two.parse().unwrap()];
        assert_eq!(layers_of(&text), expected);
        assert_eq!(layers_of(""), []);
    }
}
