//! Apps: `/apps`.

use std::{collections::BTreeMap, sync::Arc};

use api::{Error, wire};
use axum::{
    Json,
    extract::{Path, Request, State as Extract},
};
use state::Change;
use types::{
    App, AppId, DEFAULT_DEPLOY_TIMEOUT_S, META_GC_RELEASES_MAX, Route, RouteId, RouteKind, Strategy, Uuid,
    check_app_name,
};

use super::{
    Shared,
    body::{self, Ignored, syntax_error},
    error::Failure,
    find_app, find_app_id,
};
use crate::{domain, random_name};

type Answer = Result<Json<Arc<App>>, Failure>;

/// Longest value or key of an app's metadata.
const META_BYTES_MAX: usize = 64 << 10;

pub async fn list(Extract(controller): Shared) -> Json<Vec<Arc<App>>> {
    let mut apps: Vec<_> = controller.state().apps.values().cloned().collect();
    apps.sort_by_key(|app| std::cmp::Reverse((app.created_at, app.id)));
    Json(apps)
}

pub async fn get(Extract(controller): Shared, Path(app): Path<String>) -> Answer {
    Ok(Json(find_app(&controller.state(), &app)?))
}

pub async fn create(Extract(controller): Shared, request: Request) -> Answer {
    let new: wire::NewApp = parse(request).await?;
    if !new.name.is_empty() {
        check_app_name(&new.name)?;
    }
    let meta = new
        .meta
        .unwrap_or_else(|| [(META_GC_RELEASES_MAX.to_owned(), "10".to_owned())].into());
    check_meta(&meta)?;
    let now = controller.now();
    let name_given = !new.name.is_empty();
    let mut app = App {
        id: new.id.unwrap_or_else(|| AppId(Uuid::new_v4())),
        name: new.name,
        meta,
        strategy: new.strategy.unwrap_or_default(),
        release: None,
        deploy_timeout: check_timeout(new.deploy_timeout)?.unwrap_or(DEFAULT_DEPLOY_TIMEOUT_S),
        created_at: now,
        updated_at: now,
    };
    loop {
        if !name_given {
            let mut random = [0; 4];
            getrandom::fill(&mut random).expect("the kernel has random numbers");
            app.name = random_name(random);
        }
        let domain = domain::current(&controller.state(), &controller.config);
        let route = default_route(&app, &domain.name);
        match controller
            .write(Change::CreateApp {
                app: app.clone(),
                route,
            })
            .await
        {
            Ok(_) => return Ok(Json(Arc::new(app))),
            // Two apps were given the same random name; another name would not help a taken id.
            Err(error)
                if error.code == api::Code::ObjectExists
                    && !name_given
                    && !controller.state().apps.contains_key(&app.id) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub async fn update(Extract(controller): Shared, Path(app): Path<String>, request: Request) -> Answer {
    let update: wire::AppUpdate = parse(request).await?;
    let id = find_app_id(&controller.state(), &app)?;
    // Null and empty both mean "unchanged" here; only the path `meta` can clear.
    let meta = update.meta.filter(|meta| !meta.is_empty());
    change(&controller, id, meta, update.strategy, update.deploy_timeout).await
}

pub async fn update_meta(Extract(controller): Shared, Path(app): Path<String>, request: Request) -> Answer {
    let update: wire::AppUpdate = parse(request).await?;
    let id = find_app_id(&controller.state(), &app)?;
    change(
        &controller,
        id,
        Some(update.meta.unwrap_or_default()),
        update.strategy,
        update.deploy_timeout,
    )
    .await
}

pub async fn delete(Extract(controller): Shared, Path(app): Path<String>) -> Result<(), Failure> {
    let id = find_app_id(&controller.state(), &app)?;
    controller.write(Change::DeleteApp { app: id }).await?;
    Ok(())
}

/// Deletes releases beyond what the app's metadata want kept; an event tells which.
pub async fn collect_garbage(
    Extract(controller): Shared,
    Path(app): Path<String>,
    _: Ignored,
) -> Result<(), Failure> {
    let id = find_app_id(&controller.state(), &app)?;
    controller.write(Change::CollectReleases { app: id }).await?;
    Ok(())
}

async fn change(
    controller: &crate::Controller,
    id: AppId,
    meta: Option<BTreeMap<String, String>>,
    strategy: Option<Strategy>,
    deploy_timeout: Option<i32>,
) -> Answer {
    if let Some(meta) = &meta {
        check_meta(meta)?;
    }
    let deploy_timeout = check_timeout(deploy_timeout)?;
    controller
        .write(Change::UpdateApp {
            app: id,
            meta,
            strategy,
            deploy_timeout,
        })
        .await?;
    Ok(Json(find_app(&controller.state(), &id.to_string())?))
}

/// The body, after the one check that the original made on its raw form.
async fn parse<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let bytes = body::read(request).await?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| syntax_error())?;
    if let Some(serde_json::Value::String(strategy)) = value.get("strategy")
        && serde_json::from_value::<Strategy>(strategy.clone().into()).is_err()
    {
        let known = "all-at-once one-by-one sirenia discoverd-meta one-down-one-up in-batches";
        let reason = format!("Enum error. The data must be equal to one of these values [{known}].");
        return Err(Error::validation("strategy", reason).into());
    }
    serde_json::from_value(value).map_err(|_| syntax_error())
}

fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), Error> {
    let bytes: usize = meta.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > META_BYTES_MAX {
        return Err(Error::validation(
            "meta",
            format!("is longer than {META_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

fn check_timeout(seconds: Option<i32>) -> Result<Option<i32>, Error> {
    match seconds {
        Some(seconds) if !(0..=86_400).contains(&seconds) => Err(Error::validation(
            "deploy_timeout",
            "must be between 0 and 86400 seconds",
        )),
        // The original takes 0 for "not given".
        Some(0) => Ok(None),
        other => Ok(other),
    }
}

/// The route that every app has from its beginning: `NAME.DOMAIN`. A name that is too long to be a
/// label of a domain name gets none.
fn default_route(app: &App, domain: &str) -> Option<Route> {
    let is_system = app
        .meta
        .get("flynn-system-app")
        .is_some_and(|value| value == "true");
    (app.name.len() <= 63 && !is_system).then(|| Route {
        kind: RouteKind::Http,
        id: RouteId(Uuid::new_v4()),
        parent_ref: state::parent_ref(app.id),
        service: format!("{}-web", app.name),
        port: 0,
        leader: false,
        created_at: app.created_at,
        updated_at: app.created_at,
        domain: format!("{}.{domain}", app.name),
        certificate_id: None,
        sticky: false,
        path: "/".into(),
        drain_backends: true,
        disable_keep_alives: false,
    })
}
