//! Layers in the cluster's bucket: brought there by the first of the hosts that keep each, fetched from there when no
//! host has it, removed by the host that leads when no image names it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use api::{
    Error,
    contents::keepers,
    objects::{COLLECT_INTERVAL, Collection, GRACE, ObjectError, Objects, Source},
};
use daemon::Shutdown;
use futures::TryStreamExt;
use types::Digest;

use crate::{Controller, copies};

const PREFIX: &str = "layers/";

fn key(digest: &Digest) -> String {
    format!("{PREFIX}{digest}.erofs")
}

pub async fn run(controller: Controller, shutdown: Shutdown) {
    let Some(objects) = controller.config.objects.clone() else {
        return;
    };
    let (mut collection, mut collected_at) = (Collection::new(), Instant::now());
    loop {
        tokio::select! {
            _ = tokio::time::sleep(copies::ROUND) => {}
            _ = shutdown.cancelled() => return,
        }
        if !objects.is_on() {
            continue;
        }
        let work = async {
            let waiting = bring(&controller, &objects).await;
            objects.note("layers", waiting);
            // With nothing to bring nobody would notice that it is back.
            if objects.status().is_some_and(|status| status.error.is_some()) {
                objects.probe().await;
            }
            let is_leader = *controller.store.leadership().borrow();
            if is_leader && collected_at.elapsed() >= COLLECT_INTERVAL {
                collected_at = Instant::now();
                if let Err(error) = collect(&controller, &*objects, &mut collection).await {
                    tracing::debug!(%error, "cannot remove layers from the bucket");
                }
            }
        };
        tokio::select! {
            () = work => {}
            _ = shutdown.cancelled() => return,
        }
    }
}

/// How many are still not there of those that this host has to bring.
async fn bring(controller: &Controller, objects: &Arc<dyn Objects>) -> usize {
    let state = controller.state();
    let hosts = copies::living(controller, &state);
    let own = controller.config.membership.as_ref().map(|own| &own.host);
    let is_own = |digest: &Digest| {
        let first = keepers(digest.as_str(), &hosts, 1).first().copied();
        own.is_none() || first == own
    };
    let layers = copies::in_use(&state).into_iter();
    let layers = layers
        .filter_map(|layer| layer.parse::<Digest>().ok())
        .filter(is_own);
    let (mut waiting, mut is_down) = (0, false);
    for digest in layers {
        let path = controller.layer_path(&digest);
        // Where it is not here yet, it is being fetched.
        if is_down || !tokio::fs::try_exists(&path).await.unwrap_or(false) {
            waiting += 1;
            continue;
        }
        if objects.keep(&key(&digest), Source::File(&path)).await.is_err() {
            waiting += 1;
            is_down = true;
        }
    }
    waiting
}

async fn collect(
    controller: &Controller,
    objects: &dyn Objects,
    collection: &mut Collection,
) -> Result<(), ObjectError> {
    let state = controller.state();
    let layers = copies::in_use(&state).into_iter();
    let needed: BTreeSet<_> = layers.map(|layer| format!("{PREFIX}{layer}.erofs")).collect();
    let removed = collection
        .round(objects, &[PREFIX], |key| needed.contains(key), GRACE)
        .await?;
    if removed > 0 {
        tracing::info!(layers = removed, "unused layers removed from the bucket");
    }
    Ok(())
}

impl Controller {
    /// Gets a layer from the cluster's bucket; whether it has it.
    pub(crate) async fn fetch_layer_object(&self, digest: &Digest) -> Result<bool, Error> {
        let Some(objects) = self.config.objects.as_ref().filter(|objects| objects.is_on()) else {
            return Ok(false);
        };
        let of_bucket = |error: ObjectError| Error::unavailable(error.message).with_hint(error.hint);
        let Some(bytes) = objects.get(&key(digest)).await.map_err(of_bucket)? else {
            return Ok(false);
        };
        self.keep_layer(digest, bytes.map_err(drop)).await?;
        tracing::info!(%digest, "fetched a layer from the bucket");
        Ok(true)
    }
}
