//! Providers and resources: `/providers`, `/resources`, `/apps/:app/resources`.

use std::sync::Arc;

use api::{
    Error,
    provision::{NewProvider, ResourceRequest, ResourceUpdate},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use serde::Deserialize;
use state::{Change, State};
use types::{AppId, Provider, ProviderId, Resource, ResourceId, Uuid, check_env_key};

use super::{
    Shared,
    body::{Body, Ignored, Parameters},
    error::Failure,
    find_app_id, parse_id, uninterrupted,
};
use crate::providers::Address;

type Answer<T> = Result<Json<Arc<T>>, Failure>;
type List<T> = Result<Json<Vec<Arc<T>>>, Failure>;

const NAME_BYTES_MAX: usize = 100;
const APPS_MAX: usize = 1000;
/// As for a release's environment.
const ENV_BYTES_MAX: usize = 1 << 20;

pub async fn list(Extract(controller): Shared) -> Json<Vec<Arc<Provider>>> {
    let mut providers: Vec<_> = controller.state().providers.values().cloned().collect();
    providers.sort_by_key(|provider| std::cmp::Reverse((provider.created_at, provider.id)));
    Json(providers)
}

pub async fn get(Extract(controller): Shared, Path(provider): Path<String>) -> Answer<Provider> {
    Ok(Json(find_provider(&controller.state(), &provider)?))
}

pub async fn create(Extract(controller): Shared, Body(new): Body<NewProvider>) -> Answer<Provider> {
    // What stands in a path by name must not be taken for an id, nor end the path.
    let is_name = !new.name.is_empty()
        && new.name.len() <= NAME_BYTES_MAX
        && new
            .name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && new.name.parse::<ProviderId>().is_err();
    if !is_name {
        let reason = "must have 1 to 100 letters, digits, dashes, dots and underscores";
        return Err(Error::validation("name", reason).into());
    }
    if new.url.is_empty() {
        return Err(Error::validation("url", "must not be blank").into());
    }
    Address::parse(&new.url)?;
    let now = controller.now();
    let provider = Provider {
        id: ProviderId(Uuid::new_v4()),
        url: new.url,
        name: new.name,
        created_at: now,
        updated_at: now,
    };
    controller
        .write(Change::CreateProvider {
            provider: provider.clone(),
        })
        .await?;
    Ok(Json(Arc::new(provider)))
}

pub async fn all_resources(Extract(controller): Shared) -> Json<Vec<Arc<Resource>>> {
    Json(newest_first(
        controller.state().resources.values().cloned().collect(),
    ))
}

pub async fn resources_of_app(Extract(controller): Shared, Path(app): Path<String>) -> List<Resource> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(newest_first(state.resources_of(app).cloned().collect())))
}

pub async fn resources_of_provider(
    Extract(controller): Shared,
    Path(provider): Path<String>,
) -> List<Resource> {
    let state = controller.state();
    let provider = find_provider(&state, &provider)?;
    let resources = state.resources.values();
    let resources = resources.filter(|resource| resource.provider == provider.id);
    Ok(Json(newest_first(resources.cloned().collect())))
}

/// Has the provider make a resource. Goes on though the client may leave: what is made is kept.
pub async fn provision(
    Extract(controller): Shared,
    Path(provider): Path<String>,
    Body(request): Body<ResourceRequest>,
) -> Answer<Resource> {
    let state = controller.state();
    let provider = find_provider(&state, &provider)?;
    let apps = app_ids(&state, request.apps.unwrap_or_default())?;
    let config = request
        .config
        .filter(|config| !config.is_null())
        .unwrap_or_else(|| serde_json::json!({}));
    let made = uninterrupted(async move { controller.provision(&provider, apps, config).await }).await?;
    Ok(Json(Arc::new(made)))
}

pub async fn get_resource(
    Extract(controller): Shared,
    Path((provider, resource)): Path<(String, String)>,
) -> Answer<Resource> {
    Ok(Json(find_resource(&controller.state(), &provider, &resource)?))
}

/// Creates it or replaces what is known of it; the provider is not asked.
pub async fn put_resource(
    Extract(controller): Shared,
    Path((provider, resource)): Path<(String, String)>,
    Body(update): Body<ResourceUpdate>,
) -> Answer<Resource> {
    let state = controller.state();
    let provider = find_provider(&state, &provider)?;
    let id: ResourceId = resource
        .parse()
        .map_err(|_| Error::validation("id", "must be a UUID"))?;
    let env = update.env.unwrap_or_default();
    for (key, value) in &env {
        check_env_key(key, value)?;
    }
    if env
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > ENV_BYTES_MAX
    {
        return Err(Error::validation("env", format!("is longer than {ENV_BYTES_MAX} bytes")).into());
    }
    let resource = Resource {
        id,
        provider: provider.id,
        external_id: update.external_id,
        env,
        apps: app_ids(&state, update.apps.unwrap_or_default())?,
        created_at: controller.now(),
    };
    let _busy = controller.providers.begin(id)?;
    controller.write(Change::PutResource { resource }).await?;
    answer(&controller.state(), id)
}

#[derive(Deserialize)]
pub struct Deletion {
    force: Option<String>,
}

/// Gives the resource back to its provider, and answers with what it was. With `?force=true` (an
/// addition) it is forgotten whatever the provider says: for providers that are gone for good.
pub async fn delete_resource(
    Extract(controller): Shared,
    Path((provider, resource)): Path<(String, String)>,
    Parameters(deletion): Parameters<Deletion>,
) -> Answer<Resource> {
    let resource = find_resource(&controller.state(), &provider, &resource)?;
    let is_forced = deletion.force.as_deref() == Some("true");
    let deleted = uninterrupted(async move {
        let _busy = controller.providers.begin(resource.id)?;
        // As it is now that nobody else changes it: another request may have been first.
        let resource = controller.state().resources.get(&resource.id).cloned();
        let resource = resource.ok_or_else(Error::not_found)?;
        match controller.give_back(&resource).await {
            Err(error) if is_forced => {
                tracing::warn!(resource = %resource.id, %error, "forgotten without its provider");
                let id = resource.id;
                controller.write(Change::DeleteResource { resource: id }).await?;
            }
            result => result?,
        }
        Ok(resource)
    })
    .await?;
    Ok(Json(deleted))
}

pub async fn add_app(
    Extract(controller): Shared,
    Path((provider, resource, app)): Path<(String, String, String)>,
    _: Ignored,
) -> Answer<Resource> {
    let state = controller.state();
    let id = find_resource(&state, &provider, &resource)?.id;
    let app = find_app_id(&state, &app)?;
    let _busy = controller.providers.begin(id)?;
    controller
        .write(Change::AddResourceApp { resource: id, app })
        .await?;
    answer(&controller.state(), id)
}

/// This app's use of this resource only; the original took all resources from the app.
pub async fn remove_app(
    Extract(controller): Shared,
    Path((provider, resource, app)): Path<(String, String, String)>,
) -> Answer<Resource> {
    let state = controller.state();
    let id = find_resource(&state, &provider, &resource)?.id;
    let app = find_app_id(&state, &app)?;
    let _busy = controller.providers.begin(id)?;
    controller
        .write(Change::RemoveResourceApp { resource: id, app })
        .await?;
    answer(&controller.state(), id)
}

fn answer(state: &State, id: ResourceId) -> Answer<Resource> {
    let resource = state.resources.get(&id).cloned();
    Ok(Json(resource.ok_or_else(Error::not_found)?))
}

fn find_provider(state: &State, provider: &str) -> Result<Arc<Provider>, Error> {
    state
        .find_provider(provider)
        .cloned()
        .ok_or_else(Error::not_found)
}

fn find_resource(state: &State, provider: &str, resource: &str) -> Result<Arc<Resource>, Error> {
    let provider = find_provider(state, provider)?;
    let id: ResourceId = parse_id(resource)?;
    let found = state
        .resources
        .get(&id)
        .filter(|found| found.provider == provider.id);
    found.cloned().ok_or_else(Error::not_found)
}

/// Each app once, by id or name.
fn app_ids(state: &State, apps: Vec<String>) -> Result<Vec<AppId>, Error> {
    if apps.len() > APPS_MAX {
        return Err(Error::validation(
            "apps",
            format!("has more than {APPS_MAX} apps"),
        ));
    }
    let mut ids = vec![];
    for app in apps {
        let unknown = || Error::validation("apps", format!("could not find app {app:?}"));
        let id = state.find_app(&app).ok_or_else(unknown)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn newest_first(mut resources: Vec<Arc<Resource>>) -> Vec<Arc<Resource>> {
    resources.sort_by_key(|resource| std::cmp::Reverse((resource.created_at, resource.id)));
    resources
}
