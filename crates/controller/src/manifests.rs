//! Fetches the manifest of an image that was made known by its address alone.
//!
//! The request must say how long the manifest is and at least one of its hashes: what lies at an address
//! changes, and an image must not.

use std::{collections::BTreeMap, time::Duration};

use api::{Client, Endpoint, Error, Trust};
use sha2::{Digest, Sha256, Sha512, Sha512_256};
use types::ImageManifest;

const TIMEOUT: Duration = Duration::from_secs(30);
/// A manifest names layers; it holds none.
const BYTES_MAX: i64 = 4 << 20;

pub async fn fetch(uri: &str, size: i64, hashes: &BTreeMap<String, String>) -> Result<ImageManifest, Error> {
    if size <= 0 {
        return Err(Error::validation("size", "must be greater than zero"));
    }
    if size > BYTES_MAX {
        return Err(Error::validation("size", format!("must be at most {BYTES_MAX}")));
    }
    let failed =
        |reason: String| Error::validation("manifest", format!("could not be fetched from {uri}: {reason}"));
    let fetched = tokio::time::timeout(TIMEOUT, get(uri, size)).await;
    let text = fetched
        .map_err(|_| failed(format!("no answer within {} s", TIMEOUT.as_secs())))?
        .map_err(failed)?;
    verify(text.as_bytes(), size, hashes).map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

async fn get(uri: &str, size: i64) -> Result<String, String> {
    let parsed: http::Uri = uri.parse().map_err(|_| "it is no URL".to_owned())?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err("it is no URL".into());
    };
    if !matches!(scheme, "http" | "https") {
        return Err(format!("nothing is fetched by {scheme}"));
    }
    let endpoint = Endpoint {
        url: format!("{scheme}://{authority}"),
        key: String::new(),
        trust: Trust::System,
    };
    let client = Client::new(&endpoint).map_err(|error| error.to_string())?;
    // One byte more tells a longer one from one that is as long as it should be.
    let client = client.with_answer_bytes_max(size as usize + 1);
    let path = parsed.path_and_query().map_or("/", |path| path.as_str());
    client.text(path).await.map_err(|error| error.to_string())
}

fn verify(manifest: &[u8], size: i64, hashes: &BTreeMap<String, String>) -> Result<(), String> {
    if manifest.len() as i64 != size {
        return Err(format!("it has another size than {size}"));
    }
    let mut has_hash = false;
    for (algorithm, expected) in hashes {
        let found = match algorithm.as_str() {
            "sha256" => hex::encode(Sha256::digest(manifest)),
            "sha512" => hex::encode(Sha512::digest(manifest)),
            "sha512_256" => hex::encode(Sha512_256::digest(manifest)),
            _ => continue,
        };
        has_hash = true;
        if found != *expected {
            return Err(format!("its {algorithm} is {found} and not {expected}"));
        }
    }
    if !has_hash {
        return Err("no hash of it was given (sha256, sha512 or sha512_256)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(manifest: &str, size: i64, hashes: &[(&str, &str)], expected: &str) {
        let hashes = hashes.iter().map(|(name, hash)| ((*name).into(), (*hash).into()));
        let said = match verify(manifest.as_bytes(), size, &hashes.collect()) {
            Ok(()) => "ok".to_owned(),
            Err(reason) => reason,
        };
        assert_eq!(said, expected, "{manifest}");
    }

    #[test]
    fn a_manifest_is_the_one_that_was_meant() {
        // `printf '{}' | sha256sum`
        let sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        check("{}", 2, &[("sha256", sha256)], "ok");
        check("{}", 2, &[("sha256", sha256), ("md5", "?")], "ok");
        check("{ }", 2, &[("sha256", sha256)], "it has another size than 2");
        check(
            "{}",
            2,
            &[("md5", "?")],
            "no hash of it was given (sha256, sha512 or sha512_256)",
        );
        check(
            "[]",
            2,
            &[("sha256", "0")],
            &format!("its sha256 is {} and not 0", hex::encode(Sha256::digest("[]"))),
        );
        check(
            "{}",
            2,
            &[("sha256", sha256), ("sha512_256", "0")],
            &format!(
                "its sha512_256 is {} and not 0",
                hex::encode(Sha512_256::digest("{}"))
            ),
        );
    }

    #[tokio::test]
    async fn only_what_can_be_checked_is_fetched() {
        let said = async |uri: &str, size: i64| match fetch(uri, size, &BTreeMap::new()).await {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.message,
        };
        assert_eq!(
            said("http://127.0.0.1:1/x", 0).await,
            "size must be greater than zero"
        );
        assert_eq!(
            said("flynn://a/b", 9).await,
            "manifest could not be fetched from flynn://a/b: nothing is fetched by flynn"
        );
        assert!(said("http://127.0.0.1:1/x", 9).await.contains("cannot reach"));
    }
}
