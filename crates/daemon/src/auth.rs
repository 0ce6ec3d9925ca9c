//! Who is calling: every API asks for a key, also on loopback.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

/// Whose key a request carried; handlers find it in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// A person or their tools.
    User,
    /// A part of the platform.
    Internal,
}

/// The accepted keys, kept as digests so that comparing them tells nothing by its timing.
#[derive(Clone)]
pub struct Keys {
    accepted: Arc<[([u8; 32], Principal)]>,
}

impl Keys {
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, Principal)>) -> Self {
        let accepted = keys
            .into_iter()
            .map(|(key, principal)| (Sha256::digest(key).into(), principal))
            .collect();
        Keys { accepted }
    }

    pub fn principal(&self, key: &str) -> Option<Principal> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.accepted
            .iter()
            .find(|(accepted, _)| *accepted == digest)
            .map(|(_, principal)| *principal)
    }

    /// By `Authorization: Basic` (the password is the key, the user is ignored) or `Bearer`.
    pub fn authenticate(&self, headers: &HeaderMap) -> Option<Principal> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, credentials) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.principal(credentials.trim());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(BASE64_STANDARD.decode(credentials.trim()).ok()?).ok()?;
        self.principal(decoded.split_once(':')?.1)
    }
}

/// Middleware for `axum::middleware::from_fn_with_state(keys, auth::require_key)`: 401 with an empty
/// body (the contract's form) unless a known key is given; a [`Principal`] in the extensions then.
pub async fn require_key(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    match keys.authenticate(request.headers()) {
        Some(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        None => unauthorized(),
    }
}

/// Like [`require_key`], for paths that only the platform's own parts may call.
pub async fn require_internal_key(State(keys): State<Keys>, request: Request, next: Next) -> Response {
    match keys.authenticate(request.headers()) {
        Some(Principal::Internal) => next.run(request).await,
        _ => unauthorized(),
    }
}

pub fn unauthorized() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Basic realm=\"flynn\"")],
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(authorization: &str, expected: Option<Principal>) {
        let keys = Keys::new([("user-key", Principal::User), ("own-key", Principal::Internal)]);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        assert_eq!(keys.authenticate(&headers), expected, "{authorization}");
    }

    #[test]
    fn the_password_is_the_key_and_the_user_is_ignored() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        check(&basic(":user-key"), Some(Principal::User));
        check(&basic("anybody:own-key"), Some(Principal::Internal));
        check("Bearer user-key", Some(Principal::User));
        for refused in [
            &basic(":wrong"),
            &basic("user-key"),
            "Basic ???",
            "Basic",
            "Digest x",
            "user-key",
        ] {
            check(refused, None);
        }
    }
}
