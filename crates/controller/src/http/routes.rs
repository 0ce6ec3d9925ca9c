//! Routes: `/routes`, `/apps/:app/routes`.

use api::{
    Error,
    wire::{NewRoute, RouteView},
};
use axum::{
    Json,
    extract::{Path, State as Extract},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use state::{Change, State};
use types::{AppId, Certificate, CertificateId, Route, RouteId, RouteKind, Timestamp, Uuid};

use super::{Shared, body::Body, error::Failure, find_app_id, parse_id};
use crate::event_view;

pub async fn all(Extract(controller): Shared) -> Json<Vec<RouteView>> {
    let state = controller.state();
    Json(newest_first(
        &state,
        state.routes.values().map(AsRef::as_ref).collect(),
    ))
}

pub async fn list(
    Extract(controller): Shared,
    Path(app): Path<String>,
) -> Result<Json<Vec<RouteView>>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    Ok(Json(newest_first(
        &state,
        state.routes_of(app).map(AsRef::as_ref).collect(),
    )))
}

pub async fn get(
    Extract(controller): Shared,
    Path((app, kind, id)): Path<(String, String, String)>,
) -> Result<Json<RouteView>, Failure> {
    let state = controller.state();
    let (_, route) = find(&state, &app, &kind, &id)?;
    Ok(Json(event_view::route(&state, route)))
}

/// A type that the contract does not know is refused in the original's words.
pub async fn post(
    shared: Shared,
    app: Path<String>,
    Body(new): Body<serde_json::Value>,
) -> Result<Json<RouteView>, Failure> {
    if let Some(kind) = new.get("type").and_then(|kind| kind.as_str())
        && !matches!(kind, "http" | "tcp")
    {
        let reason = "Enum error. The data must be equal to one of these values [http tcp].";
        return Err(Error::validation("type", reason).into());
    }
    let new = serde_json::from_value(new).map_err(|_| super::body::syntax_error())?;
    create(shared, app, Body(new)).await
}

pub async fn create(
    Extract(controller): Shared,
    Path(app): Path<String>,
    Body(new): Body<NewRoute>,
) -> Result<Json<RouteView>, Failure> {
    let state = controller.state();
    let app = find_app_id(&state, &app)?;
    let certificate = certificate(&state, controller.now(), &new)?;
    let now = controller.now();
    let kind = new
        .kind
        .ok_or_else(|| Error::validation("type", "must be http or tcp"))?;
    let is_http = kind == RouteKind::Http;
    let route = Route {
        kind,
        id: RouteId(Uuid::new_v4()),
        parent_ref: state::parent_ref(app),
        service: check_service(new.service)?,
        port: new.port,
        leader: new.leader,
        created_at: now,
        updated_at: now,
        domain: if is_http {
            check_domain(&new.domain)?
        } else {
            String::new()
        },
        certificate_id: None,
        sticky: is_http && new.sticky,
        path: if is_http {
            check_path(new.path)?
        } else {
            String::new()
        },
        drain_backends: new.drain_backends,
        disable_keep_alives: is_http && new.disable_keep_alives,
    };
    if is_http && (new.port == 80 || new.port == 443) {
        return Err(Error::conflict("Port reserved for HTTP/HTTPS traffic").into());
    }
    let id = route.id;
    controller
        .write(Change::CreateRoute { route, certificate })
        .await?;
    answer(&controller.state(), id)
}

pub async fn update(
    Extract(controller): Shared,
    Path((app, kind, id)): Path<(String, String, String)>,
    Body(new): Body<NewRoute>,
) -> Result<Json<RouteView>, Failure> {
    let state = controller.state();
    let (_, old) = find(&state, &app, &kind, &id)?;
    let certificate = certificate(&state, controller.now(), &new)?;
    let is_http = old.kind == RouteKind::Http;
    let route = Route {
        service: check_service(new.service)?,
        leader: new.leader,
        sticky: is_http && new.sticky,
        drain_backends: new.drain_backends,
        disable_keep_alives: is_http && new.disable_keep_alives,
        updated_at: controller.now(),
        ..old.clone()
    };
    let id = route.id;
    controller
        .write(Change::UpdateRoute { route, certificate })
        .await?;
    answer(&controller.state(), id)
}

pub async fn delete(
    Extract(controller): Shared,
    Path((app, kind, id)): Path<(String, String, String)>,
) -> Result<(), Failure> {
    let state = controller.state();
    let (app, route) = find(&state, &app, &kind, &id)?;
    controller
        .write(Change::DeleteRoute { app, route: route.id })
        .await?;
    Ok(())
}

fn answer(state: &State, id: RouteId) -> Result<Json<RouteView>, Failure> {
    let route = state.routes.get(&id).ok_or_else(Error::not_found)?;
    Ok(Json(event_view::route(state, route)))
}

fn find<'a>(state: &'a State, app: &str, kind: &str, id: &str) -> Result<(AppId, &'a Route), Error> {
    let app = find_app_id(state, app)?;
    let id: RouteId = parse_id(id)?;
    let parent = state::parent_ref(app);
    let route = state
        .routes
        .get(&id)
        .filter(|route| route.parent_ref == parent && route.kind.to_string() == kind);
    route
        .map(|route| (app, route.as_ref()))
        .ok_or_else(Error::not_found)
}

fn newest_first(state: &State, mut routes: Vec<&Route>) -> Vec<RouteView> {
    routes.sort_by_key(|route| std::cmp::Reverse((route.created_at, route.id)));
    routes
        .into_iter()
        .map(|route| event_view::route(state, route))
        .collect()
}

fn check_service(service: String) -> Result<String, Error> {
    let ok = !service.is_empty()
        && service.len() <= 200
        && service
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if ok {
        Ok(service)
    } else {
        Err(Error::validation(
            "service",
            "must name a service, such as APP-web",
        ))
    }
}

/// A domain name, `*.` before one, or `*`; lower-cased.
fn check_domain(domain: &str) -> Result<String, Error> {
    let domain = domain.to_ascii_lowercase();
    let name = domain.strip_prefix("*.").unwrap_or(&domain);
    let is_name = name.len() <= 253
        && !name.is_empty()
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if is_name || domain == "*" {
        return Ok(domain);
    }
    let reason = format!("{domain:?} is no domain name");
    Err(Error::validation("domain", reason)
        .with_hint("give a name such as www.example.com or *.example.com, without http://"))
}

fn check_path(path: String) -> Result<String, Error> {
    if path.is_empty() {
        return Ok("/".into());
    }
    let ok = path.starts_with('/')
        && path.ends_with('/')
        && path.len() <= 1024
        && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if ok {
        Ok(path)
    } else {
        Err(Error::validation(
            "path",
            "must begin and end with / and be a URL's path",
        ))
    }
}

/// The certificate that a request brings along, if its key fits. Without a key it is one that is here
/// already: who lists routes and makes them again was not told their keys.
fn certificate(state: &State, now: Timestamp, new: &NewRoute) -> Result<Option<Certificate>, Error> {
    let (cert, key) = match &new.certificate {
        Some(given) if !given.cert.is_empty() || !given.key.is_empty() => {
            (given.cert.trim(), given.key.trim())
        }
        _ => (new.tls_cert.trim(), new.tls_key.trim()),
    };
    if cert.is_empty() && key.is_empty() {
        return Ok(None);
    }
    if key.is_empty()
        && let Some(known) = state.certificates.values().find(|known| known.cert == cert)
    {
        return Ok(Some(Certificate::clone(known)));
    }
    check_key_pair(cert, key)?;
    Ok(Some(Certificate {
        id: CertificateId(Uuid::new_v4()),
        cert: cert.to_owned(),
        key: key.to_owned(),
        created_at: now,
        updated_at: now,
    }))
}

pub fn check_key_pair(cert: &str, key: &str) -> Result<(), Error> {
    let invalid = |reason: String| Error::validation("certificate", reason);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("cannot be read: {error}")))?;
    if chain.is_empty() {
        return Err(invalid("has no certificate in PEM form".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| invalid(format!("key cannot be read: {error}")))?;
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(chain, key, &provider)
        .map_err(|error| invalid(format!("and its key do not belong together: {error}")))?;
    Ok(())
}
