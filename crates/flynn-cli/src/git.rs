//! What `flynn` reads from and writes to git: remotes of the checkout, and the user's settings
//! for a cluster's git server. All of it is done by the `git` program.

use std::{path::Path, process::Command};

use crate::failure::{Failure, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    pub url: String,
}

fn git(arguments: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new("git")
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
}

/// Runs git for its effect.
fn git_do(arguments: &[&str]) -> Result<()> {
    let output = git(arguments).map_err(|error| {
        Failure::new(format!("cannot run git: {error}")).with_hint("install git, or use --no-git")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "`git {}` failed: {}",
        arguments.join(" "),
        stderr.trim_end()
    )))
}

/// Whether the current directory belongs to a checkout.
pub fn is_checkout() -> bool {
    git(&["rev-parse", "--git-dir"]).is_ok_and(|output| output.status.success())
}

/// A setting of the checkout or of the user.
pub fn setting(name: &str) -> Option<String> {
    let output = git(&["config", "--get", name])
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()).filter(|value| !value.is_empty())
}

/// The remotes of the checkout; none outside of one, or without git.
pub fn remotes() -> Vec<Remote> {
    let Ok(output) = git(&["config", "--get-regexp", r"^remote\..*\.url$"]) else {
        return vec![];
    };
    parse_remotes(&String::from_utf8_lossy(&output.stdout))
}

fn parse_remotes(text: &str) -> Vec<Remote> {
    let remote = |line: &str| {
        let (key, url) = line.split_once(' ')?;
        let name = key.strip_prefix("remote.")?.strip_suffix(".url")?;
        Some(Remote {
            name: name.to_owned(),
            url: url.to_owned(),
        })
    };
    text.lines().filter_map(remote).collect()
}

/// Adds a remote, or points the one of this name to `url`.
pub fn set_remote(name: &str, url: &str) -> Result<()> {
    let verb = if remotes().iter().any(|remote| remote.name == name) {
        "set-url"
    } else {
        "add"
    };
    git_do(&["remote", verb, "--", name, url])
}

pub fn remove_remote(name: &str) -> Result<()> {
    git_do(&["remote", "remove", "--", name])
}

/// Tells git which authority the server at `git_url` has, and to ask this program for its key.
pub fn configure_server(git_url: &str, ca_cert: &Path, program: &Path) -> Result<()> {
    let ca_cert = ca_cert.to_string_lossy();
    let helper = format!("{} git-credentials", shell_escape(&program.to_string_lossy()));
    git_do(&[
        "config",
        "--global",
        "--replace-all",
        &format!("http.{git_url}.sslCAInfo"),
        &ca_cert,
    ])?;
    git_do(&[
        "config",
        "--global",
        "--replace-all",
        &format!("credential.{git_url}.helper"),
        &helper,
    ])
}

/// Undoes [`configure_server`]; what is not there is no failure.
pub fn forget_server(git_url: &str) {
    for section in [format!("http.{git_url}"), format!("credential.{git_url}")] {
        let _ = git(&["config", "--global", "--remove-section", &section]);
    }
}

/// Git runs an absolute path as a shell command, but only if it begins with the slash: quotes
/// around it would make it the name of a helper.
fn shell_escape(path: &str) -> String {
    let mut escaped = String::new();
    for c in path.chars() {
        if !c.is_ascii_alphanumeric() && !"/._-+,:@%".contains(c) && c.is_ascii() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The app whose repository `url` is, if it is one of the server at `git_url`.
pub fn app_of_url(url: &str, git_url: &str) -> Option<String> {
    if git_url.is_empty() {
        return None;
    }
    let path = url
        .strip_prefix(git_url.trim_end_matches('/'))?
        .strip_prefix('/')?;
    let app = path.trim_end_matches('/').trim_end_matches(".git");
    (!app.is_empty() && !app.contains('/')).then(|| app.to_owned())
}

/// Where an app is pushed to.
pub fn app_url(git_url: &str, app: &str) -> String {
    format!("{}/{app}.git", git_url.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_known_by_its_remote() {
        let server = "https://git.flynn.test:8443";
        for (url, app) in [
            ("https://git.flynn.test:8443/shop.git", Some("shop")),
            ("https://git.flynn.test:8443/shop", Some("shop")),
            ("https://git.flynn.test/shop.git", None),
            ("https://git.flynn.test:84431/shop.git", None),
            ("https://git.flynn.test:8443/a/b.git", None),
            ("git@github.com:me/shop.git", None),
        ] {
            assert_eq!(app_of_url(url, server).as_deref(), app, "{url}");
        }
        assert_eq!(app_of_url("https://x/y.git", ""), None);
        assert_eq!(app_url(server, "shop"), "https://git.flynn.test:8443/shop.git");
    }

    #[test]
    fn remotes_are_read_from_gits_settings() {
        let remotes = parse_remotes("remote.origin.url git@host:x y.git\nremote.a.b.url https://z\n");
        let remotes: Vec<_> = remotes
            .iter()
            .map(|r| (r.name.as_str(), r.url.as_str()))
            .collect();
        assert_eq!(remotes, [("origin", "git@host:x y.git"), ("a.b", "https://z")]);
    }

    #[test]
    fn a_path_with_spaces_is_still_one_word_that_begins_with_a_slash() {
        assert_eq!(shell_escape("/opt/my tools/fly'nn"), r"/opt/my\ tools/fly\'nn");
    }
}
