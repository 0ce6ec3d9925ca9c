//! The fake controller's part for those who operate a cluster: providers, resources, volumes, sinks,
//! layers, the backup, the domain, dry runs.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State as Shared},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use serde_json::{Value, json};

use crate::fake::{Failure, Inner, Server};

type Answer = Result<Json<Value>, Failure>;

pub fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/providers", get(providers).post(create_provider))
        .route("/providers/{provider}", get(provider))
        .route("/providers/{provider}/resources", post(create_resource))
        .route("/providers/{provider}/resources/{id}", delete(delete_resource))
        .route("/apps/{app}/resources", get(resources))
        .route("/apps/{app}/volumes", get(app_volumes))
        .route("/volumes", get(volumes))
        .route("/apps/{app}/volumes/{id}", get(volume))
        .route("/apps/{app}/volumes/{id}/decommission", put(decommission))
        .route("/sinks", get(sinks).post(create_sink))
        .route("/sinks/{id}", delete(delete_sink))
        .route("/artifacts", get(artifacts).post(create_artifact))
        .route("/hosts", get(hosts))
        .route("/layers/{digest}", get(layer).put(put_layer))
        .route("/backup", get(async || vec![7_u8; 100_000]))
        .route("/domain", put(migrate))
        .route("/apps/{app}/dry-run", post(dry_run))
}

fn list(rows: &[Value]) -> Json<Value> {
    Json(json!(rows))
}

async fn providers(Shared(inner): Server) -> Json<Value> {
    list(&inner.lock().providers)
}

async fn artifacts(Shared(inner): Server) -> Json<Value> {
    list(&inner.lock().artifacts)
}

async fn hosts(Shared(inner): Server) -> Json<Value> {
    list(&inner.lock().hosts)
}

async fn volumes(Shared(inner): Server) -> Json<Value> {
    list(&inner.lock().volumes)
}

async fn sinks(Shared(inner): Server) -> Json<Value> {
    list(&inner.lock().sinks)
}

async fn create_provider(Shared(inner): Server, Json(mut new): Json<Value>) -> Json<Value> {
    let mut state = inner.lock();
    new["id"] = json!(state.next_id());
    new["created_at"] = json!(state.now());
    new["updated_at"] = json!(state.now());
    state.providers.push(new.clone());
    Json(new)
}

fn find(rows: &[Value], key: &str) -> Result<Value, Failure> {
    let found = rows.iter().find(|row| row["id"] == key || row["name"] == key);
    found.cloned().ok_or(Failure::NotFound)
}

async fn provider(Shared(inner): Server, Path(key): Path<String>) -> Answer {
    Ok(Json(find(&inner.lock().providers, &key)?))
}

async fn create_resource(
    Shared(inner): Server,
    Path(provider): Path<String>,
    Json(new): Json<Value>,
) -> Answer {
    let mut state = inner.lock();
    let provider = find(&state.providers, &provider)?;
    let app = state.app(new["apps"][0].as_str().unwrap())?.id;
    let resource = json!({
        "id": state.next_id(), "provider": provider["id"], "external_id": "/databases/1",
        "env": { "DATABASE_URL": "pg://u@h/d" }, "apps": [app], "created_at": state.now(),
    });
    state.resources.push(resource.clone());
    Ok(Json(resource))
}

async fn delete_resource(Shared(inner): Server, Path((provider, id)): Path<(String, String)>) -> Answer {
    let mut state = inner.lock();
    find(&state.providers, &provider)?;
    let resource = find(&state.resources, &id)?;
    state.resources.retain(|known| known["id"] != json!(id));
    Ok(Json(resource))
}

async fn resources(Shared(inner): Server, Path(app): Path<String>) -> Answer {
    let state = inner.lock();
    state.app(&app)?;
    Ok(list(&state.resources))
}

async fn app_volumes(Shared(inner): Server, Path(app): Path<String>) -> Answer {
    let state = inner.lock();
    state.app(&app)?;
    Ok(list(&state.volumes))
}

async fn volume(Shared(inner): Server, Path((_, id)): Path<(String, String)>) -> Answer {
    Ok(Json(find(&inner.lock().volumes, &id)?))
}

async fn decommission(Shared(inner): Server, Path((_, id)): Path<(String, String)>) -> Answer {
    let mut state = inner.lock();
    let now = state.now();
    let found = state.volumes.iter_mut().find(|volume| volume["id"] == json!(id));
    let volume = found.ok_or(Failure::NotFound)?;
    volume["decommissioned_at"] = json!(now);
    Ok(Json(volume.clone()))
}

async fn create_sink(Shared(inner): Server, Json(mut new): Json<Value>) -> Json<Value> {
    let mut state = inner.lock();
    new["id"] = json!(state.next_id());
    state.sinks.push(new.clone());
    Json(new)
}

async fn delete_sink(Shared(inner): Server, Path(id): Path<String>) -> Answer {
    let mut state = inner.lock();
    let sink = find(&state.sinks, &id)?;
    state.sinks.retain(|known| known["id"] != json!(id));
    Ok(Json(sink))
}

async fn create_artifact(Shared(inner): Server, Json(mut new): Json<Value>) -> Json<Value> {
    let mut state = inner.lock();
    if let Some(known) = state.artifacts.iter().find(|known| known["uri"] == new["uri"]) {
        return Json(known.clone());
    }
    new["id"] = json!(state.next_id());
    new["created_at"] = json!(state.now());
    state.artifacts.push(new.clone());
    Json(new)
}

async fn layer(
    Shared(inner): Server,
    Path(digest): Path<String>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
) -> Result<Response, Failure> {
    let state = inner.lock();
    let bytes = state.layers.get(&digest).ok_or(Failure::NotFound)?;
    if query.contains_key("stat") {
        return Ok(Json(json!({ "id": digest, "length": bytes.len() })).into_response());
    }
    Ok(bytes.clone().into_response())
}

async fn put_layer(Shared(inner): Server, Path(digest): Path<String>, bytes: Bytes) -> Json<Value> {
    inner.lock().layers.insert(digest.clone(), bytes.to_vec());
    Json(json!({ "id": digest, "length": bytes.len() }))
}

async fn migrate(Shared(inner): Server, Json(new): Json<Value>) -> Json<Value> {
    let mut state = inner.lock();
    let mut migration = json!({
        "id": state.next_id(), "old_domain": new["old_domain"], "domain": new["domain"], "created_at": state.now(),
    });
    let answer = migration.clone();
    let id = migration["id"].as_str().unwrap().to_owned();
    let data = json!({ "domain_migration": migration });
    inner.happen_to(&mut state, None, "domain_migration", id.clone(), data);
    migration["finished_at"] = json!(state.now());
    let data = json!({ "domain_migration": migration });
    inner.happen_to(&mut state, None, "domain_migration", id, data);
    Json(answer)
}

async fn dry_run(Shared(inner): Server, Path(app): Path<String>, Json(trial): Json<Value>) -> Answer {
    let mut state = inner.lock();
    state.app(&app)?;
    state.requests.push(("dry-run".into(), trial));
    Ok(Json(state.preview.clone()))
}
