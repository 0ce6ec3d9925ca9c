//! Scripts of any web page may call the API, as the original allowed: they need a key all the same.
//!
//! No page may use a key that the browser itself remembers (`Allow-Credentials` is absent): it has to
//! have one of its own, so a stranger's page can do nothing in a user's name.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

const HEADERS: &str =
    "Auth-Key, Authorization, Accept, Content-Type, If-Match, If-None-Match, Last-Event-Id, X-GRPC-Web";
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";

/// Outermost: browsers send no key with the question whether they may ask.
pub async fn allow_all(request: Request, next: Next) -> Response {
    let has_origin = request.headers().contains_key(header::ORIGIN);
    let is_preflight = request.method() == Method::OPTIONS;
    let mut response = match is_preflight {
        true => StatusCode::OK.into_response(),
        false => next.run(request).await,
    };
    if has_origin {
        add(response.headers_mut(), is_preflight);
    }
    response
}

fn add(headers: &mut HeaderMap, is_preflight: bool) {
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set(header::ACCESS_CONTROL_EXPOSE_HEADERS, "ETag");
    if is_preflight {
        set(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        set(header::ACCESS_CONTROL_MAX_AGE, "3600");
    }
}
