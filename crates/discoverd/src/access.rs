//! Who may see and change which service.
//!
//! The cluster's keys open everything. The key that each job has ([`daemon::app_token`]) opens the
//! services of its own app: those named like the app, or with a dash after its name, unless they are
//! known to be somebody else's (`shop` has no business with `shop-web-web` of the app `shop-web`).

use std::sync::Arc;

use api::{Code, Error};
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use daemon::{AppToken, AppTokens, Keys, auth};
use discovery::Owner;
use http::{HeaderMap, header, request::Parts};
use types::AppId;

use crate::{Shared, http::Failure};

/// What decides who is let in.
#[derive(Clone)]
pub(crate) struct Gate {
    pub keys: Keys,
    pub tokens: AppTokens,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    Cluster,
    App(Arc<AppToken>),
}

impl Caller {
    pub fn app(&self) -> Option<AppId> {
        match self {
            Caller::Cluster => None,
            Caller::App(token) => Some(token.app),
        }
    }

    pub fn may_use(&self, shared: &Shared, service: &str) -> Result<(), Failure> {
        let Caller::App(token) = self else {
            return Ok(());
        };
        let owner = shared.read(|registry| registry.owner(service));
        if is_of(service, &token.name) && (owner == Owner::Nobody || owner == Owner::App(token.app)) {
            return Ok(());
        }
        let message = format!("service {service:?} is not one of app {:?}", token.name);
        let hint = format!("a job's key is for services named {0} or {0}-…", token.name);
        Err(Error::new(Code::Forbidden, message).with_hint(hint).into())
    }
}

fn is_of(service: &str, app: &str) -> bool {
    service
        .strip_prefix(app)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Puts the [`Caller`] into the request, or refuses it as everywhere: 401 and no body.
pub async fn require(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let caller = match gate.keys.authenticate(headers) {
        Some(_) => Some(Caller::Cluster),
        None => token(headers)
            .and_then(|token| gate.tokens.verify(&token))
            .map(|token| Caller::App(Arc::new(token))),
    };
    match caller {
        Some(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        None => auth::unauthorized().into_response(),
    }
}

fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let credentials = value.strip_prefix("Basic ").or(value.strip_prefix("basic "))?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(credentials.trim()).ok()?).ok()?;
    Some(decoded.split_once(':')?.1.to_owned())
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let caller = parts.extensions.get().cloned();
        caller.ok_or_else(|| Error::new(Code::Unauthorized, "no key was given").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apps_services_are_named_after_it() {
        for (service, is_own) in [
            ("shop", true),
            ("shop-web", true),
            ("shops", false),
            ("sho", false),
            ("", false),
        ] {
            assert_eq!(is_of(service, "shop"), is_own, "{service}");
        }
    }
}
