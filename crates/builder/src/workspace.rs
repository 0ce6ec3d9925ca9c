//! What is on a build disk, and what a build may be believed.
//!
//! ```text
//!   work/    /tmp of the cage: source, then build/, out/, out.layers/, out.meta/     gone after the build
//!   home/    /app of the cage                                                        gone after the build
//!   env/     /env: the app's configuration, one file per variable                    gone after the build
//!   cache/   /cache: kept, the packs' own
//!   layers/  /layers: kept, dependency layers by key, read-only in the cage
//!   layers.json, needs.json                                                          kept, ours
//! ```
//!
//! Everything in `work`, `home` and `cache` was written by foreign code. A link in there may point
//! at any file of the host, so nothing in there is opened, renamed into place or packed before it is
//! known to be no link. That suffices, since nothing of the build runs any more by then.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use daemon::files;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    disk,
    failure::{Failure, Result},
};

/// The user that builds and apps run as.
pub const APP_ID: u32 = 1000;

const RESULT_BYTES_MAX: u64 = 1 << 20;
const LAYERS_MAX: usize = 32;
const TYPES_MAX: usize = 100;

pub struct Workspace {
    root: PathBuf,
}

/// What a build found out: `out.meta/release.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Outcome {
    #[serde(default)]
    pub buildpack: String,
    /// Commands by process type.
    #[serde(default)]
    pub process_types: BTreeMap<String, String>,
    /// Environment that packs suggest.
    #[serde(default)]
    pub config_vars: BTreeMap<String, String>,
    /// Debian packages that the run image has to have.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Keys of dependency layers, lowest first.
    #[serde(default)]
    pub layers: Vec<String>,
}

/// Debian packages that a build asks for: `out.meta/needs.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    #[serde(default)]
    pub build: Vec<String>,
    #[serde(default)]
    pub run: Vec<String>,
}

/// A packed dependency layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    pub digest: String,
    pub length_bytes: u64,
}

impl Workspace {
    pub fn new(root: &Path) -> Workspace {
        Workspace {
            root: root.to_owned(),
        }
    }

    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub fn env(&self) -> PathBuf {
        self.root.join("env")
    }

    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn layer(&self, key: &str) -> PathBuf {
        self.layers().join(key)
    }

    pub fn slug(&self) -> PathBuf {
        self.work().join("out")
    }

    fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Empty directories for a build.
    pub fn prepare(&self, env: &BTreeMap<String, String>) -> io::Result<()> {
        fs::set_permissions(&self.root, Permissions::from_mode(0o700))?;
        self.discard()?;
        files::create_private_dir(&self.trash())?;
        make_dir(&self.work(), 0o1777, Some(APP_ID))?;
        make_dir(&self.home(), 0o755, Some(APP_ID))?;
        make_dir(&self.env(), 0o755, None)?;
        if !self.cache().exists() {
            make_dir(&self.cache(), 0o755, Some(APP_ID))?;
        }
        if !self.layers().exists() {
            make_dir(&self.layers(), 0o755, None)?;
        }
        for (name, value) in env.iter().filter(|(name, _)| is_file_name(name)) {
            let file = self.env().join(name);
            fs::write(&file, value)?;
            give(&file)?;
        }
        Ok(())
    }

    /// Gives a file of the work directory to the user that builds run as.
    pub fn give(&self, name: &str) -> io::Result<()> {
        give(&self.work().join(name))
    }

    /// Clears the work of an attempt that has to be repeated.
    pub fn prepare_again(&self) -> io::Result<()> {
        self.throw(&self.work())?;
        self.throw(&self.home())?;
        make_dir(&self.work(), 0o1777, Some(APP_ID))?;
        make_dir(&self.home(), 0o755, Some(APP_ID))
    }

    /// Puts everything that only one build needs out of the way.
    pub fn discard(&self) -> io::Result<()> {
        for path in [self.work(), self.home(), self.env()] {
            self.throw(&path)?;
        }
        Ok(())
    }

    /// Deletes what was thrown away, and gives its blocks back to the host's disk.
    pub fn empty_trash(&self) -> anyhow::Result<()> {
        let mut was_empty = true;
        for entry in fs::read_dir(self.trash())? {
            files::remove_all(&entry?.path())?;
            was_empty = false;
        }
        match was_empty {
            true => Ok(()),
            false => disk::run(std::process::Command::new("fstrim").arg(&self.root)),
        }
    }

    /// Deletes what was kept for later builds, which only takes time to make again.
    pub fn forget_kept(&self) -> anyhow::Result<()> {
        for path in [self.cache(), self.layers(), self.root.join("layers.json")] {
            self.throw(&path)?;
        }
        self.empty_trash()
    }

    fn throw(&self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let moved = fs::rename(path, self.trash().join(uuid::Uuid::new_v4().to_string()));
        // On a full disk even a name may be too much.
        moved.or_else(|_| files::remove_all(path))
    }

    /// What the build wrote down about its result.
    pub fn outcome(&self) -> Result<Outcome> {
        let outcome: Outcome = self.read_meta("release.json")?;
        if !is_directory(&self.slug()) {
            return Err(Failure::refused(["The build left no result."]));
        }
        if outcome.process_types.len() > TYPES_MAX {
            return Err(Failure::refused([format!(
                "A release has at most {TYPES_MAX} process types."
            )]));
        }
        for name in outcome.process_types.keys() {
            types::check_process_type(name)
                .map_err(|error| Failure::refused([format!("The Procfile {}.", error.reason)]))?;
        }
        if outcome.layers.len() > LAYERS_MAX || !outcome.layers.iter().all(|key| is_layer_key(key)) {
            return Err(Failure::refused([
                "The buildpack made layers that cannot be used.",
            ]));
        }
        Ok(outcome)
    }

    /// The packages that the build cannot go on without.
    pub fn needs(&self) -> Result<Needs> {
        self.read_meta("needs.json")
    }

    fn read_meta<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let directory = self.work().join("out.meta");
        let text = is_directory(&directory)
            .then(|| read_plain(&directory.join(name)).ok())
            .flatten();
        let parsed = text.and_then(|text| serde_json::from_slice(&text).ok());
        parsed.ok_or_else(|| Failure::refused([format!("The build left no {name} that can be understood.")]))
    }

    /// Takes over the layers that this build made and throws away those that it does not use.
    pub fn adopt_layers(&self, keys: &[String]) -> Result<()> {
        let made = self.work().join("out.layers");
        for key in keys {
            let new = made.join(key);
            if is_directory(&made) && is_directory(&new) {
                self.throw(&self.layer(key))?;
                fs::rename(&new, self.layer(key))?;
            } else if !is_directory(&self.layer(key)) {
                return Err(Failure::refused([format!(
                    "The buildpack names a layer {key} that it did not make."
                )]));
            }
        }
        for entry in fs::read_dir(self.layers())? {
            let entry = entry?;
            if !keys.iter().any(|key| entry.file_name().to_str() == Some(key)) {
                self.throw(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Which layers were packed into what.
    pub fn packed(&self) -> BTreeMap<String, PackedLayer> {
        self.read_own("layers.json").unwrap_or_default()
    }

    pub fn set_packed(&self, packed: &BTreeMap<String, PackedLayer>) -> io::Result<()> {
        self.write_own("layers.json", packed)
    }

    /// What the last build needed, as the next one will.
    pub fn known_needs(&self) -> Option<Needs> {
        self.read_own("needs.json")
    }

    pub fn set_known_needs(&self, needs: &Needs) -> io::Result<()> {
        self.write_own("needs.json", needs)
    }

    fn read_own<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.root.join(name)).ok()?).ok()
    }

    fn write_own(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        files::write_atomic(&self.root.join(name), &serde_json::to_vec(value)?, 0o600)
    }
}

fn make_dir(path: &Path, mode: u32, owner: Option<u32>) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    match owner {
        Some(owner) => chown(path, Some(owner), Some(owner)),
        None => Ok(()),
    }
}

/// To the user that builds run as, whatever this process's umask left.
fn give(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, Permissions::from_mode(0o600))?;
    chown(file, Some(APP_ID), Some(APP_ID))
}

/// A directory itself, no link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// A plain file of bounded size, not by a link, and without waiting for somebody to write a pipe.
fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > RESULT_BYTES_MAX {
        return Err(io::Error::other("not a plain small file"));
    }
    let mut text = Vec::new();
    file.take(RESULT_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn is_layer_key(key: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !key.is_empty() && key.len() <= 128 && !key.starts_with('.') && key.bytes().all(is_plain)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains('/') && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::new(dir.path());
        let env = [
            ("A".to_owned(), "1".to_owned()),
            ("../B".to_owned(), "2".to_owned()),
        ]
        .into();
        workspace.prepare(&env).unwrap();
        (dir, workspace)
    }

    fn finish(workspace: &Workspace, json: &str) {
        let work = workspace.work();
        fs::create_dir_all(work.join("out/app")).unwrap();
        fs::create_dir_all(work.join("out.meta")).unwrap();
        fs::write(work.join("out.meta/release.json"), json).unwrap();
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result {
            Err(Failure::Refused(lines)) => lines.join(" | "),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn configuration_becomes_files_and_only_files_of_the_directory() {
        let (_dir, workspace) = workspace();
        assert_eq!(fs::read_to_string(workspace.env().join("A")).unwrap(), "1");
        assert_eq!(fs::read_dir(workspace.env()).unwrap().count(), 1);
    }

    #[test]
    fn a_result_is_read() {
        let (_dir, workspace) = workspace();
        finish(
            &workspace,
            r#"{"buildpack":"Node.js","process_types":{"web":"node ."},"layers":["node-1"]}"#,
        );
        let outcome = workspace.outcome().unwrap();
        assert_eq!(outcome.process_types["web"], "node .");
        assert!(refusal(workspace.adopt_layers(&outcome.layers)).contains("did not make"));
        fs::create_dir_all(workspace.work().join("out.layers/node-1/usr")).unwrap();
        fs::create_dir_all(workspace.layer("old")).unwrap();
        workspace.adopt_layers(&outcome.layers).unwrap();
        assert!(workspace.layer("node-1").join("usr").exists() && !workspace.layer("old").exists());
        workspace.adopt_layers(&outcome.layers).unwrap();
        workspace.discard().unwrap();
        assert!(!workspace.work().exists());
        assert_eq!(fs::read_dir(workspace.trash()).unwrap().count(), 4);
    }

    #[test]
    fn links_in_a_result_are_not_followed() {
        let (_dir, workspace) = workspace();
        let secret = workspace.cache().join("elsewhere");
        fs::create_dir_all(secret.join("app")).unwrap();
        fs::write(secret.join("release.json"), "{}").unwrap();
        symlink(&secret, workspace.work().join("out.meta")).unwrap();
        assert!(refusal(workspace.outcome()).contains("release.json"));
        fs::remove_file(workspace.work().join("out.meta")).unwrap();
        fs::create_dir(workspace.work().join("out.meta")).unwrap();
        symlink(
            secret.join("release.json"),
            workspace.work().join("out.meta/release.json"),
        )
        .unwrap();
        assert!(refusal(workspace.outcome()).contains("release.json"));
        fs::remove_dir_all(workspace.work().join("out.meta")).unwrap();
        finish(&workspace, "{}");
        fs::remove_dir_all(workspace.slug()).unwrap();
        symlink(&secret, workspace.slug()).unwrap();
        assert!(refusal(workspace.outcome()).contains("no result"));
        symlink(&secret, workspace.work().join("out.layers")).unwrap();
        assert!(refusal(workspace.adopt_layers(&["app".into()])).contains("did not make"));
    }

    #[test]
    fn nonsense_in_a_result_is_refused() {
        for bad in [
            "",
            "7",
            r#"{"process_types":{"a b":"x"}}"#,
            r#"{"layers":["../../etc"]}"#,
            r#"{"layers":[".."]}"#,
            r#"{"layers":["a/b"]}"#,
        ] {
            let (_dir, workspace) = workspace();
            finish(&workspace, bad);
            assert!(!refusal(workspace.outcome()).is_empty(), "{bad}");
        }
    }
}
