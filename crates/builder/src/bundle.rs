//! A repository as one file, and back.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail};
use daemon::files;

use crate::{repo::Repo, version::Version};

impl Repo {
    /// Writes all refs with all that they name into `file`.
    pub async fn bundle(&self, file: &Path) -> Result<()> {
        let mut git = self.git();
        git.args(["-c", "pack.threads=1", "bundle", "create", "--quiet"])
            .arg(file)
            .arg("--all");
        let output = git.output().await.context("cannot run git")?;
        if !output.status.success() {
            bail!("git bundle: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Makes all refs what they are in a bundle of `version`. `shallow` names the commits whose parents it lacks; a
    /// version without refs has no bundle.
    pub async fn take_bundle(&self, file: &Path, version: &Version, shallow: &str) -> Result<()> {
        let path = self.path().join("shallow");
        let own = files::read_if_exists(&path)?.unwrap_or_default();
        let lines: BTreeSet<&str> = own.lines().chain(shallow.lines()).collect();
        let is_object = |line: &str| line.len() >= 40 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !shallow.lines().all(is_object) {
            bail!("what it says of where it ends cannot be read");
        }
        if !shallow.is_empty() {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            files::write_atomic(&path, text.as_bytes(), 0o600)?;
        }
        if version.refs.is_empty() {
            for name in self.version().await?.refs.keys() {
                self.answer(&["update-ref", "-d", name])
                    .await?
                    .context("git cannot delete a ref")?;
            }
        } else {
            self.fetch(&file.display().to_string(), "").await?;
        }
        self.put_head(&version.head)
    }
}

#[cfg(test)]
mod tests {
    use types::{AppId, Uuid};

    use super::*;
    use crate::repo::Repos;

    async fn git(repo: &Repo, arguments: &[&str]) -> String {
        let mut git = repo.git();
        for (name, value) in [("NAME", "a"), ("EMAIL", "a@example.com")] {
            git.env(format!("GIT_AUTHOR_{name}"), value)
                .env(format!("GIT_COMMITTER_{name}"), value);
        }
        let output = git.args(arguments).output().await.unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    async fn commit(repo: &Repo, parents: &[&str], name: &str) -> String {
        let tree = git(repo, &["mktree"]).await;
        let mut arguments = vec!["commit-tree", &tree, "-m", name];
        parents.iter().for_each(|parent| arguments.extend(["-p", parent]));
        let commit = git(repo, &arguments).await;
        git(repo, &["update-ref", &format!("refs/heads/{name}"), &commit]).await;
        commit
    }

    #[tokio::test]
    async fn a_repository_comes_back_from_its_bundle_with_what_it_had_not() {
        let dir = tempfile::tempdir().unwrap();
        let repos = Repos::open(&daemon::StateDir::new(dir.path())).unwrap();
        let from = repos.of(AppId(Uuid::from_u128(1))).await.unwrap();
        let to = repos.of(AppId(Uuid::from_u128(2))).await.unwrap();
        let first = commit(&from, &[], "main").await;
        commit(&from, &[&first], "other").await;
        from.put_head("refs/heads/other").unwrap();
        commit(&to, &[], "gone").await;
        let (file, version) = (dir.path().join("bundle"), from.version().await.unwrap());
        from.bundle(&file).await.unwrap();
        to.take_bundle(&file, &version, "").await.unwrap();
        assert_eq!(to.version().await.unwrap(), version);
    }

    #[tokio::test]
    async fn a_shallow_repository_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let repos = Repos::open(&daemon::StateDir::new(dir.path())).unwrap();
        let whole = repos.of(AppId(Uuid::from_u128(1))).await.unwrap();
        let from = repos.of(AppId(Uuid::from_u128(2))).await.unwrap();
        let to = repos.of(AppId(Uuid::from_u128(3))).await.unwrap();
        let first = commit(&whole, &[], "old").await;
        commit(&whole, &[&first], "main").await;
        let url = format!("file://{}", whole.path().display());
        git(
            &from,
            &[
                "fetch",
                "--quiet",
                "--depth=1",
                "--update-shallow",
                &url,
                "+refs/heads/main:refs/heads/main",
            ],
        )
        .await;
        let shallow = std::fs::read_to_string(from.path().join("shallow")).unwrap();
        let (file, version) = (dir.path().join("bundle"), from.version().await.unwrap());
        from.bundle(&file).await.unwrap();
        to.take_bundle(&file, &version, &shallow).await.unwrap();
        assert_eq!(to.version().await.unwrap(), version);
        assert_eq!(git(&to, &["rev-list", "--count", "main"]).await, "1");
        git(&to, &["fsck", "--connectivity-only"]).await;
    }
}
