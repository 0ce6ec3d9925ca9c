//! What a repository is at, by a name of its own, and how another copy gets there.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use daemon::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::Digest;

use crate::repo::Repo;

/// Refs name commits, and commits name everything else: what has these has the same repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub digest: Digest,
    /// The branch that a clone checks out, whole: `refs/heads/main`.
    pub head: String,
    /// Objects by the refs' whole names.
    pub refs: BTreeMap<String, String>,
}

impl Version {
    /// From `git for-each-ref`: `OBJECT REF` each.
    fn of(head: String, listing: &str) -> Version {
        let refs: BTreeMap<String, String> = listing
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(object, name)| (name.to_owned(), object.to_owned()))
            .collect();
        let mut hash = Sha256::new_with_prefix(format!("HEAD {head}\n"));
        for (name, object) in &refs {
            hash.update(format!("{object} {name}\n"));
        }
        let digest = hex::encode(hash.finalize());
        Version {
            digest: digest.parse().expect("it is of hexadecimal digits"),
            head,
            refs,
        }
    }
}

impl Repo {
    pub async fn version(&self) -> Result<Version> {
        let head = std::fs::read_to_string(self.path().join("HEAD")).context("the repository has no HEAD")?;
        let head = head
            .trim_end()
            .strip_prefix("ref: ")
            .unwrap_or_default()
            .to_owned();
        let listing = self
            .answer(&["for-each-ref", "--format=%(objectname) %(refname)"])
            .await?
            .context("git cannot list the refs")?;
        Ok(Version::of(head, &listing))
    }

    /// Makes all refs what they are at `url`, which asks for the key.
    pub async fn fetch(&self, url: &str, key: &str) -> Result<()> {
        let mut git = self.git();
        git.args([
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--force",
            "--update-shallow",
        ])
        .args([
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
        ])
        .args([url, "+refs/*:refs/*"]);
        // In the environment, which other users of the machine cannot read.
        let settings = [
            ("http.extraHeader", format!("Authorization: {}", basic(key))),
            ("http.lowSpeedLimit", "1000".into()),
            ("http.lowSpeedTime", "30".into()),
            ("http.followRedirects", "false".into()),
            ("pack.threads", "1".into()),
            ("core.hooksPath", "/dev/null".into()),
        ];
        git.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (index, (name, value)) in settings.iter().enumerate() {
            git.env(format!("GIT_CONFIG_KEY_{index}"), name)
                .env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let output = git.output().await.context("cannot run git")?;
        if !output.status.success() {
            bail!("git fetch: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// [`Version::head`] of another copy.
    pub fn put_head(&self, head: &str) -> Result<()> {
        let is_branch = head.starts_with("refs/heads/") && !head.contains(char::is_control);
        anyhow::ensure!(is_branch, "HEAD is no branch");
        let path: &Path = &self.path().join("HEAD");
        let wanted = format!("ref: {head}\n");
        if std::fs::read_to_string(path)? != wanted {
            files::write_atomic(path, wanted.as_bytes(), 0o600)?;
        }
        Ok(())
    }
}

/// The value of a header that brings a key along.
pub fn basic(key: &str) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    format!("Basic {}", BASE64_STANDARD.encode(format!(":{key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_refs_and_its_head() {
        let of = |head: &str, listing: &str| Version::of(head.into(), listing).digest;
        let one = of("refs/heads/main", "a1 refs/heads/main\nb2 refs/tags/v1\n");
        assert_eq!(
            one,
            of("refs/heads/main", "b2 refs/tags/v1\na1 refs/heads/main\n")
        );
        assert_ne!(
            one,
            of("refs/heads/main", "b2 refs/heads/main\na1 refs/tags/v1\n")
        );
        assert_ne!(
            one,
            of("refs/heads/master", "a1 refs/heads/main\nb2 refs/tags/v1\n")
        );
    }
}
