//! What there is: tags, repositories, and what refers to a manifest.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, header, request::Parts};
use serde_json::{Value, json};

use super::{Caller, On, header_value, query};
use crate::{
    Registry,
    error::{Code, Failure, Result},
    manifest::{Body, Descriptor, Manifest, OCI_INDEX},
    name::BlobDigest,
};

/// Entries in one answer where the client does not say.
const PAGE: usize = 1000;

pub fn tags(on: &On, request: &Parts) -> Result<Response> {
    if !on.repository.exists() {
        return Err(Failure::new(
            Code::NameUnknown,
            format!("nothing has been pushed to {} yet", on.name),
        ));
    }
    let path = format!("/v2/{}/tags/list", on.name);
    page(
        request,
        &path,
        on.repository.tags()?,
        |tags| json!({"name": on.name.as_str(), "tags": tags}),
    )
}

/// All repositories that the caller has something of.
pub async fn catalog(registry: &Arc<Registry>, caller: &Caller, request: &Parts) -> Result<Response> {
    registry.catch_up_all().await?;
    let apps = registry
        .controller
        .apps()
        .await
        .map_err(|error| Failure::unavailable(format!("the controller does not answer: {error}")))?;
    let names: BTreeMap<_, _> = apps.into_iter().map(|app| (app.id, app.name)).collect();
    let mut found: Vec<String> = registry
        .store
        .repositories()?
        .into_iter()
        .filter_map(|repository| {
            let app = repository.app()?;
            if matches!(caller, Caller::App(own) if *own != app) {
                return None;
            }
            let rest = repository.rest();
            let name = names.get(&app)?;
            Some(if rest.is_empty() {
                name.clone()
            } else {
                format!("{name}/{rest}")
            })
        })
        .collect();
    found.sort();
    page(
        request,
        "/v2/_catalog",
        found,
        |names| json!({"repositories": names}),
    )
}

fn page(
    request: &Parts,
    path: &str,
    mut names: Vec<String>,
    body: impl Fn(&[String]) -> Value,
) -> Result<Response> {
    let count = match query(request, "n") {
        None => PAGE,
        Some(text) => match text.parse::<usize>() {
            Ok(count) => count.min(PAGE),
            Err(_) => {
                return Err(Failure::new(Code::Unsupported, "n is a number")
                    .with_status(http::StatusCode::BAD_REQUEST));
            }
        },
    };
    if let Some(last) = query(request, "last") {
        names.retain(|name| *name > last);
    }
    let shown = &names[..count.min(names.len())];
    let mut response = Json(body(shown)).into_response();
    if shown.len() < names.len()
        && let Some(last) = shown.last()
    {
        let link = format!(
            "<{path}?n={count}&last={}>; rel=\"next\"",
            api::client::escape(last)
        );
        response.headers_mut().insert(header::LINK, header_value(&link));
    }
    Ok(response)
}

/// Manifests whose subject this is. Those of clients that keep a list of their own, under a tag made of
/// the digest, are among them.
pub fn referrers(
    registry: &Arc<Registry>,
    on: &On,
    digest: &BlobDigest,
    request: &Parts,
) -> Result<Response> {
    let mut found: BTreeMap<BlobDigest, Descriptor> = BTreeMap::new();
    if let Some(list) = on.repository.tag(&digest.file_name())?
        && let Some(bytes) = registry.store.read(&list)?
        && let Ok(Manifest {
            body: Body::Index { manifests },
            ..
        }) = Manifest::parse(&bytes, None)
    {
        found.extend(manifests.into_iter().map(|one| (one.digest.clone(), one)));
    }
    for (digest, bytes) in on.repository.referrers(digest)? {
        if let Ok(descriptor) = serde_json::from_slice(&bytes) {
            found.insert(digest, descriptor);
        }
    }
    let wanted = query(request, "artifactType").filter(|kind| !kind.is_empty());
    let manifests: Vec<_> = found
        .into_values()
        .filter(|one| wanted.is_none() || one.artifact_type == wanted)
        .collect();
    let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let mut response = Json(body).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header_value(OCI_INDEX));
    if wanted.is_some() {
        let filters = HeaderName::from_static("oci-filters-applied");
        response
            .headers_mut()
            .insert(filters, header_value("artifactType"));
    }
    Ok(response)
}
