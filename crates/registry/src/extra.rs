//! What the platform's own tools ask beside the specification: which images there are, and what they take.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use daemon::Principal;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use types::AppId;

use crate::{
    Registry,
    error::{Code, Failure, Result},
    http::Caller,
    manifest::{Body, Manifest},
    name::{BlobDigest, Reference},
    release::{self, Wish},
    store::Repository,
};

pub fn routes() -> Router<Arc<Registry>> {
    Router::new()
        .route("/images", get(images))
        .route("/pull", post(crate::pull::pull))
        .route("/publish", post(publish))
}

/// `GET /images`: what each app has here.
#[derive(Debug, Serialize)]
struct Images {
    /// On disk, what apps share counted once.
    bytes: u64,
    free_bytes: u64,
    apps: Vec<AppImages>,
}

#[derive(Debug, Serialize)]
struct AppImages {
    app: AppId,
    name: String,
    /// On disk, as if it shared nothing with others.
    bytes: u64,
    images: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    /// `APP` or `APP/MORE`.
    repository: String,
    /// Empty where the image has no tag any more.
    tag: String,
    digest: BlobDigest,
    /// As it was pushed: compressed.
    bytes: u64,
    layers: usize,
}

async fn images(
    State(registry): State<Arc<Registry>>,
    headers: HeaderMap,
) -> std::result::Result<Json<Images>, Response> {
    use axum::response::IntoResponse;
    list(&registry, &headers)
        .await
        .map(Json)
        .map_err(Failure::into_response)
}

/// `POST /publish`, for the builder: an image that a build has pushed becomes a release, deployed by whoever
/// asked for the build.
#[derive(Deserialize)]
struct Publish {
    repository: String,
    reference: String,
    #[serde(default)]
    meta: BTreeMap<String, String>,
    #[serde(default)]
    commands: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Published {
    release: types::ReleaseId,
}

async fn publish(
    State(registry): State<Arc<Registry>>,
    headers: HeaderMap,
    Json(asked): Json<Publish>,
) -> std::result::Result<Json<Published>, Failure> {
    let caller = registry.caller(&headers)?;
    if caller != Caller::Cluster(Principal::Internal) {
        return Err(Failure::new(
            Code::Denied,
            "this is for the platform's own builds",
        ));
    }
    let unknown = || Failure::new(Code::ManifestUnknown, "the build has pushed no image");
    let name = asked.repository.parse().map_err(|()| unknown())?;
    let on = registry.repository(&caller, &name).await?;
    let digest = match asked.reference.parse().map_err(|()| unknown())? {
        Reference::Digest(digest) => digest,
        Reference::Tag(tag) => on.repository.tag(&tag)?.ok_or_else(unknown)?,
    };
    let media_type = on.repository.manifest(&digest)?.ok_or_else(unknown)?;
    let bytes = registry.store.read(&digest)?.ok_or_else(unknown)?;
    let manifest = Manifest::parse(&bytes, Some(&media_type))?;
    registry.fetch_parts(&on.repository, &manifest).await?;
    let prepared = release::prepare(
        &registry.store,
        &on.repository,
        &registry.converter,
        &digest,
        &manifest,
    )
    .await?;
    let wish = Wish {
        tag: asked.reference,
        is_deployed_by_client: true,
        meta: asked.meta,
        commands: asked.commands,
        ..Wish::default()
    };
    let _turn = registry.publishing.lock().await;
    let release = release::publish(&registry.controller, &on.app, &prepared, &wish).await?;
    Ok(Json(Published { release: release.id }))
}

async fn list(registry: &Arc<Registry>, headers: &HeaderMap) -> Result<Images> {
    let caller = registry.caller(headers)?;
    registry.catch_up_all().await?;
    let apps = registry
        .controller
        .apps()
        .await
        .map_err(|error| Failure::unavailable(format!("the controller does not answer: {error}")))?;
    let names: BTreeMap<AppId, String> = apps.into_iter().map(|app| (app.id, app.name)).collect();
    let registry = registry.clone();
    let listed = tokio::task::spawn_blocking(move || listed(&registry, &names, &caller)).await;
    listed.unwrap_or_else(|_| Err(Failure::unavailable("the registry is shutting down")))
}

fn listed(registry: &Registry, names: &BTreeMap<AppId, String>, caller: &Caller) -> Result<Images> {
    let store = &registry.store;
    let mut apps: BTreeMap<AppId, AppImages> = BTreeMap::new();
    let mut blobs: BTreeMap<AppId, BTreeMap<BlobDigest, u64>> = BTreeMap::new();
    for repository in store.repositories()? {
        let Some((app, name)) = repository.app().and_then(|app| Some((app, names.get(&app)?))) else {
            continue;
        };
        if matches!(caller, Caller::App(own) if *own != app) {
            continue;
        }
        let own = blobs.entry(app).or_default();
        for digest in repository.blobs()?.into_iter().chain(repository.manifests()?) {
            let size = store.size(&digest).unwrap_or_default();
            own.insert(digest, size);
        }
        let entry = apps.entry(app).or_insert_with(|| AppImages {
            app,
            name: name.clone(),
            bytes: 0,
            images: vec![],
        });
        entry.images.extend(of_repository(registry, &repository, name)?);
    }
    for (app, entry) in &mut apps {
        entry.bytes = blobs[app].values().sum();
    }
    let all: BTreeMap<_, _> = blobs.into_values().flatten().collect();
    Ok(Images {
        bytes: all.values().sum(),
        free_bytes: store.free_bytes()?,
        apps: apps.into_values().collect(),
    })
}

fn of_repository(registry: &Registry, repository: &Repository, app: &str) -> Result<Vec<Listed>> {
    let rest = repository.rest();
    let name = if rest.is_empty() {
        app.to_owned()
    } else {
        format!("{app}/{rest}")
    };
    let mut tags: Vec<(String, BlobDigest)> = vec![];
    for tag in repository.tags()? {
        tags.extend(repository.tag(&tag)?.map(|digest| (tag, digest)));
    }
    for digest in repository.manifests()? {
        if tags.iter().all(|(_, tagged)| *tagged != digest) {
            tags.push((String::new(), digest));
        }
    }
    let mut listed = vec![];
    for (tag, digest) in tags {
        let Some(manifest) = registry
            .store
            .read(&digest)?
            .and_then(|bytes| Manifest::parse(&bytes, None).ok())
        else {
            continue;
        };
        listed.push(Listed {
            repository: name.clone(),
            tag,
            digest,
            bytes: manifest.blobs().map(|blob| blob.size).sum(),
            layers: match &manifest.body {
                Body::Image { layers, .. } => layers.len(),
                Body::Index { .. } => 0,
            },
        });
    }
    Ok(listed)
}
