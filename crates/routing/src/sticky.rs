//! The cookie that brings a client back to the same backend.
//!
//! The value says nothing to whoever reads it and cannot be made up: it is a keyed hash of service
//! and backend. Nothing is ever decrypted; a table knows the token of each of its backends, and a
//! token that matches none of them counts as no cookie.

use ring::hmac;

/// The original's name, so that sessions survive a move from it.
pub const COOKIE_NAME: &str = "_backend";

/// 128 bits as hex: beyond guessing, short enough for a cookie.
pub fn token(key: &[u8], service: &str, backend: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut context = hmac::Context::with_key(&key);
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    context.update(&(service.len() as u64).to_be_bytes());
    context.update(service.as_bytes());
    context.update(backend.as_bytes());
    hex::encode(&context.sign().as_ref()[..16])
}

/// The value of our cookie in a `Cookie` header.
pub fn cookie_value(header: &str) -> Option<&str> {
    header.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_depends_on_key_service_and_backend() {
        let base = token(b"key", "shop-web", "b1");
        assert_eq!(base.len(), 32);
        assert_eq!(base, token(b"key", "shop-web", "b1"));
        assert_ne!(base, token(b"other", "shop-web", "b1"));
        assert_ne!(base, token(b"key", "shop-webb", "1"));
        assert_ne!(base, token(b"key", "shop-web", "b2"));
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        assert_eq!(cookie_value("a=1; _backend=xyz; b=2"), Some("xyz"));
        assert_eq!(cookie_value("my_backend=1"), None);
        assert_eq!(cookie_value(""), None);
    }
}
