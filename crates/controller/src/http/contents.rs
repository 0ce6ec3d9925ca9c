//! Versions of what hosts keep beside the state, for the parts that keep it: `/internal/contents`.

use std::sync::Arc;

use api::{Error, contents::NewContent};
use axum::{
    Json,
    extract::{Query, State as Extract},
};
use serde::Deserialize;
use state::Change;
use types::Content;

use super::{Shared, body::Body, error::Failure};

#[derive(Deserialize)]
pub struct Asked {
    name: Option<String>,
}

/// All, or the one of a name.
pub async fn list(Extract(controller): Shared, Query(asked): Query<Asked>) -> Json<Vec<Arc<Content>>> {
    let state = controller.state();
    let found = match asked.name {
        Some(name) => state.contents.get(&name).into_iter().cloned().collect(),
        None => state.contents.values().cloned().collect(),
    };
    Json(found)
}

pub async fn put(
    Extract(controller): Shared,
    Body(new): Body<NewContent>,
) -> Result<Json<Arc<Content>>, Failure> {
    let change = Change::PutContent {
        name: new.name.clone(),
        app: new.app,
        after: new.after,
        digest: new.digest,
    };
    controller.write(change).await?;
    let content = controller.state().contents.get(&new.name).cloned();
    Ok(Json(content.ok_or_else(Error::not_found)?))
}
