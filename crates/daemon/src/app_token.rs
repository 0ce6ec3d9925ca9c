//! Keys of apps: what a job may show to the registry, and nothing else.
//!
//! A key says whose it is and proves it by a MAC under the cluster's internal key, so every host can
//! make and check them and none has to be kept. It ends with the internal key, or with the app: an app
//! that takes a deleted one's name has another id.

use ring::hmac;
use types::AppId;

/// Before what is signed, so that no other use of the same secret can make one.
const PURPOSE: &str = "flynn app key v1";
const MAC_BYTES: usize = 16;

/// Whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppToken {
    pub app: AppId,
    pub name: String,
}

#[derive(Clone)]
pub struct AppTokens {
    key: hmac::Key,
}

impl AppTokens {
    pub fn new(internal_key: &str) -> Self {
        AppTokens {
            key: hmac::Key::new(hmac::HMAC_SHA256, internal_key.as_bytes()),
        }
    }

    /// `APPID.NAME.MAC`: nothing in it needs escaping in a URL.
    pub fn issue(&self, app: AppId, name: &str) -> String {
        let mac = hmac::sign(&self.key, signed(app, name).as_bytes());
        format!("{app}.{name}.{}", hex::encode(&mac.as_ref()[..MAC_BYTES]))
    }

    pub fn verify(&self, token: &str) -> Option<AppToken> {
        let (who, mac) = token.rsplit_once('.')?;
        let (app, name) = who.split_once('.')?;
        let token = AppToken {
            app: app.parse().ok()?,
            name: name.to_owned(),
        };
        let expected = self.issue(token.app, name);
        let expected = expected.rsplit_once('.')?.1;
        // By comparing MACs of both, so that the time taken says nothing about how much of it is right.
        let blind = |text: &str| hmac::sign(&self.key, text.as_bytes());
        (blind(mac).as_ref() == blind(expected).as_ref()).then_some(token)
    }
}

fn signed(app: AppId, name: &str) -> String {
    format!("{PURPOSE}\n{app}\n{name}")
}

#[cfg(test)]
mod tests {
    use types::Uuid;

    use super::*;

    #[test]
    fn a_key_is_of_one_app_and_one_cluster() {
        let (tokens, others) = (AppTokens::new("a"), AppTokens::new("b"));
        let app = AppId(Uuid::from_u128(7));
        let token = tokens.issue(app, "my-shop");
        let expected = AppToken {
            app,
            name: "my-shop".into(),
        };
        assert_eq!(tokens.verify(&token), Some(expected));
        assert_eq!(others.verify(&token), None);
        let longer = format!("{token}0");
        for bad in [
            "",
            ".",
            "..",
            &token.replace("shop", "shoe"),
            &token[..token.len() - 1],
            &longer,
        ] {
            assert_eq!(tokens.verify(bad), None, "{bad}");
        }
    }
}
