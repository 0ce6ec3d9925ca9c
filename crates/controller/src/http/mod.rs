//! The API over HTTP: one file per kind of object, one line per path here.

mod apps;
mod artifacts;
mod backup;
mod body;
mod cluster;
mod contents;
mod cors;
mod deployments;
mod docs;
mod domain;
mod dry_run;
pub mod error;
mod events;
mod formation_stream;
mod formations;
mod hosts;
mod internal;
mod job_update;
mod jobs;
mod layers;
mod log;
mod providers;
mod releases;
mod routes;
mod settings;
mod sinks;
mod status;
mod volumes;

use axum::{
    Router,
    extract::State as Extract,
    middleware::from_fn_with_state,
    response::Response,
    routing::{get, post, put},
};
use http::StatusCode;
use types::{App, AppId};

use crate::Controller;

/// Handlers get the controller by this name, as `State` is the cluster's here.
type Shared = Extract<Controller>;

pub fn router(controller: Controller) -> Router {
    let keys = controller.config.keys.clone();
    let users = Router::new()
        .route("/apps", get(apps::list).post(apps::create))
        .route(
            "/apps/{app}",
            get(apps::get).post(apps::update).delete(apps::delete),
        )
        .route("/apps/{app}/meta", post(apps::update_meta))
        .route("/apps/{app}/gc", post(apps::collect_garbage))
        .route("/apps/{app}/resources", get(providers::resources_of_app))
        .route("/apps/{app}/log", get(log::get))
        .route("/releases", get(releases::list).post(releases::post))
        .route("/releases/{release}", get(releases::get))
        .route("/apps/{app}/releases", get(releases::list_of_app))
        .route(
            "/apps/{app}/releases/{release}",
            get(releases::get_of_app).delete(releases::delete),
        )
        .route(
            "/apps/{app}/release",
            get(releases::current).put(releases::set_current),
        )
        .route("/artifacts", get(artifacts::list).post(artifacts::create))
        .route("/artifacts/{artifact}", get(artifacts::get))
        .route("/apps/{app}/formations", get(formations::list))
        .route(
            "/apps/{app}/formations/{release}",
            get(formations::get)
                .put(formations::put)
                .delete(formations::delete),
        )
        .route("/formations", get(formations::all_or_follow))
        .route("/apps/{app}/scale/{release}", put(formations::put_scale))
        .route("/apps/{app}/deploy", post(deployments::post))
        .route("/apps/{app}/deployments", get(deployments::list))
        .route("/deployments/{deployment}", get(deployments::get))
        .route("/apps/{app}/jobs", get(jobs::list).post(jobs::create))
        .route(
            "/apps/{app}/jobs/{job}",
            get(jobs::get).put(job_update::put).delete(jobs::stop),
        )
        .route("/apps/{app}/jobs/{job}/exec", post(jobs::exec))
        .route("/active-jobs", get(jobs::active))
        .route("/routes", get(routes::all))
        .route("/apps/{app}/routes", get(routes::list).post(routes::post))
        .route(
            "/apps/{app}/routes/{kind}/{route}",
            get(routes::get).put(routes::update).delete(routes::delete),
        )
        .route("/providers", get(providers::list).post(providers::create))
        .route("/providers/{provider}", get(providers::get))
        .route(
            "/providers/{provider}/resources",
            get(providers::resources_of_provider).post(providers::provision),
        )
        .route(
            "/providers/{provider}/resources/{resource}",
            get(providers::get_resource)
                .put(providers::put_resource)
                .delete(providers::delete_resource),
        )
        .route(
            "/providers/{provider}/resources/{resource}/apps/{app}",
            put(providers::add_app).delete(providers::remove_app),
        )
        .route("/resources", get(providers::all_resources))
        .route("/backup", get(backup::get))
        .route("/domain", put(domain::migrate))
        .route("/volumes", get(volumes::list_or_follow))
        .route("/volumes/{volume}", put(volumes::put).delete(volumes::destroy))
        .route("/apps/{app}/volumes", get(volumes::list_of_app))
        .route("/apps/{app}/volumes/{volume}", get(volumes::get_of_app))
        .route(
            "/apps/{app}/volumes/{volume}/decommission",
            put(volumes::decommission),
        )
        .route("/sinks", get(sinks::list_or_follow).post(sinks::create))
        .route("/sinks/{sink}", get(sinks::get).delete(sinks::delete))
        .route("/events", get(events::list_or_follow))
        .route("/events/{event}", get(events::get))
        .route("/apps/{app}/dry-run", post(dry_run::create))
        .route("/layers/{digest}", get(layers::get).put(layers::put))
        .route("/hosts", get(status::hosts))
        .route("/hosts/{host}/drain", put(hosts::drain).delete(hosts::undrain))
        .route("/.well-known/status", get(status::status))
        .layer(from_fn_with_state(keys.clone(), daemon::auth::require_key));
    let parts = Router::new()
        .route("/internal/hosts/{host}", put(internal::report_host))
        .route("/internal/hosts/{host}/assignments", get(internal::assignments))
        .route("/internal/hosts/{host}/jobs/{job}", post(internal::report_job))
        .route("/internal/hosts/{host}/volumes/{volume}", post(volumes::report))
        .route("/internal/routing", get(internal::routing))
        .route("/internal/routers/{router}", post(internal::report_router))
        .route("/internal/layers", get(internal::layers))
        .route("/internal/apps", get(internal::apps))
        .route("/internal/contents", get(contents::list).put(contents::put))
        .route("/internal/cluster", get(cluster::show))
        .route(
            "/internal/cluster/bucket",
            put(settings::set_bucket).delete(settings::remove_bucket),
        )
        .route("/internal/here/bucket", get(settings::bucket_here))
        .route(
            "/internal/cluster/copies",
            get(settings::copies).put(settings::set_copies),
        )
        .route("/internal/cluster/tokens", post(cluster::create_token))
        .route("/internal/cluster/members", post(cluster::join))
        .route(
            "/internal/cluster/members/{member}",
            put(cluster::announce).delete(cluster::remove),
        )
        .route("/internal/cluster/members/{member}/vote", put(cluster::vote))
        .route("/internal/here/apps/{app}/log", get(log::get_of_this_host))
        .route("/internal/here/cluster", get(cluster::show))
        .route("/internal/here/stack", get(layers::stack))
        .route("/internal/services", get(internal::services))
        .route("/internal/services/{service}", post(internal::change_service))
        .layer(from_fn_with_state(keys, daemon::auth::require_internal_key));
    Router::new()
        .merge(users)
        .merge(parts)
        .layer(from_fn_with_state(controller.clone(), crate::leading::pass_on))
        .route("/ping", get(async || StatusCode::OK))
        .route("/ca-cert", get(status::ca_cert))
        .route("/openapi.json", get(docs::controller_document))
        .route("/openapi/{api}", get(docs::other_document))
        .route("/docs", get(docs::controller_page))
        .route("/docs/{api}", get(docs::other_page))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(axum::middleware::from_fn(cors::allow_all))
        .with_state(controller)
}

/// As Go's standard router answers unknown paths, which is what clients of the original saw.
async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "404 page not found\n")
}

/// The app that a path names, by id or name.
fn find_app(state: &state::State, app: &str) -> Result<std::sync::Arc<App>, api::Error> {
    state.find_app(app).cloned().ok_or_else(api::Error::not_found)
}

fn find_app_id(state: &state::State, app: &str) -> Result<AppId, api::Error> {
    find_app(state, app).map(|app| app.id)
}

/// An id in a path; what is no id names nothing.
fn parse_id<T: std::str::FromStr>(text: &str) -> Result<T, api::Error> {
    text.parse().map_err(|_| api::Error::not_found())
}

/// Carries something out to its end, though the client may leave before: between asking somebody else
/// and remembering the answer nothing may be dropped.
async fn uninterrupted<T: Send + 'static>(
    work: impl Future<Output = Result<T, api::Error>> + Send + 'static,
) -> Result<T, api::Error> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(api::Error::new(api::Code::UnknownError, error.to_string())))
}

/// A streamed answer of server-sent events; a keep-alive every 30 s shows that the other side is there.
fn event_stream<S>(stream: S) -> Response
where
    S: futures::Stream<Item = bytes::Bytes> + Send + 'static,
{
    use futures::StreamExt;
    let interval = tokio::time::interval_at(
        tokio::time::Instant::now() + KEEP_ALIVE_INTERVAL,
        KEEP_ALIVE_INTERVAL,
    );
    let keep_alives = tokio_stream::wrappers::IntervalStream::new(interval).map(|_| None);
    let events = stream
        .map(Some)
        .chain(futures::stream::once(async { Some(bytes::Bytes::new()) }));
    let merged = futures::stream::select(events, keep_alives)
        // The empty item marks the end of the events, which must end the keep-alives too.
        .take_while(|item| std::future::ready(item.as_ref().is_none_or(|bytes| !bytes.is_empty())))
        .map(|item| item.unwrap_or(bytes::Bytes::from_static(api::sse::KEEP_ALIVE)))
        .map(Ok::<_, std::convert::Infallible>);
    Response::builder()
        .header(http::header::CONTENT_TYPE, api::sse::CONTENT_TYPE)
        .header(http::header::CACHE_CONTROL, "no-cache")
        .body(axum::body::Body::from_stream(merged))
        .expect("constant headers are valid")
}

const KEEP_ALIVE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(30);
