//! Git repositories on disk: one bare repository per app, made when first asked for.
//!
//! They are by id, so a renamed app keeps its own. Nothing in them comes from a pusher but objects
//! and refs: hooks and configuration are given on the command line, and the machine's and root's own
//! git configuration are not read.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use daemon::{StateDir, files};
use tokio::{process::Command, sync::Mutex};
use types::AppId;

/// Objects that old tools wrote slightly wrong, and that every large host takes.
const TOLERATED: [&str; 13] = [
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "gitmodulesParse",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
    "missingTaggerEntry",
];

/// A Procfile, a heroku.yml.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Longest output of git that is kept as a value.
const ANSWER_BYTES_MAX: usize = 64 << 20;

pub struct Repos {
    directory: PathBuf,
    making: Mutex<()>,
}

#[derive(Debug, Clone)]
pub struct Repo {
    path: PathBuf,
    /// Where the objects of a push are until it is accepted.
    quarantine: BTreeMap<String, String>,
}

impl Repos {
    /// Also removes what a daemon that was killed left half done.
    pub fn open(state: &StateDir) -> io::Result<Repos> {
        let directory = state.repos();
        files::create_private_dir(&directory)?;
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.contains(".new-") || name.contains(".trash-") {
                files::remove_all(&path)?;
            } else {
                remove_quarantines(&path.join("objects"))?;
            }
        }
        Ok(Repos {
            directory,
            making: Mutex::new(()),
        })
    }

    /// The app's repository, made if there is none.
    pub async fn of(&self, app: AppId) -> Result<Repo> {
        let path = path_of(&self.directory, app);
        if !path.join("HEAD").exists() {
            let _alone = self.making.lock().await;
            if !path.join("HEAD").exists() {
                make(&path)
                    .await
                    .with_context(|| format!("cannot make the repository of app {app}"))?;
            }
        }
        Ok(Repo {
            path,
            quarantine: BTreeMap::new(),
        })
    }

    /// The app's repository, if there is one.
    pub fn existing(&self, app: AppId) -> Option<Repo> {
        let path = path_of(&self.directory, app);
        path.join("HEAD").exists().then(|| Repo {
            path,
            quarantine: BTreeMap::new(),
        })
    }

    /// All apps that have a repository.
    pub fn apps(&self) -> io::Result<Vec<AppId>> {
        let names = std::fs::read_dir(&self.directory)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| name.strip_suffix(".git")?.parse().ok())
            .collect())
    }
}

fn path_of(directory: &Path, app: AppId) -> PathBuf {
    directory.join(format!("{app}.git"))
}

pub fn remove(state: &StateDir, app: AppId) -> io::Result<()> {
    let path = path_of(&state.repos(), app);
    // Gone under its name at once: a push that begins now must not find half of it.
    let trash = path.with_extension(format!("trash-{}", uuid::Uuid::new_v4()));
    match std::fs::rename(&path, &trash) {
        Ok(()) => files::remove_all(&trash),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_quarantines(objects: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(objects).into_iter().flatten() {
        let entry = entry?;
        if is_quarantine(&entry.file_name()) {
            files::remove_all(&entry.path())?;
        }
    }
    Ok(())
}

fn is_quarantine(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("tmp_objdir-"))
}

async fn make(path: &Path) -> Result<()> {
    let new = path.with_extension(format!("new-{}", uuid::Uuid::new_v4()));
    files::create_private_dir(&new)?;
    let made = async {
        let output = command()
            .args(["init", "--quiet", "--bare", "--template=", "-b", "main"])
            .arg(&new)
            .output()
            .await?;
        if !output.status.success() {
            bail!("git init: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        files::create_private_dir(&new.join("info"))?;
        // The source is what was pushed, not what the app would leave out of a release archive.
        std::fs::write(new.join("info/attributes"), "* -export-ignore -export-subst\n")?;
        std::fs::rename(&new, path)?;
        anyhow::Ok(())
    };
    let made = made.await;
    if made.is_err() {
        let _ = files::remove_all(&new);
    }
    made
}

/// git with an environment of its own.
fn command() -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LANG", "C.UTF-8")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ADVICE", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Repo {
    pub fn with_quarantine(mut self, quarantine: BTreeMap<String, String>) -> Repo {
        self.quarantine = quarantine;
        self
    }

    /// Takes away what pushes left that were cut off: git itself does not when it is killed. Nothing
    /// may be received meanwhile. The places given are to be deleted.
    pub fn take_quarantines(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path.join("objects"))
            .into_iter()
            .flatten()
            .flatten();
        let left = entries.filter(|entry| is_quarantine(&entry.file_name()));
        let taken = left.filter_map(|entry| {
            let trash = self
                .path
                .with_extension(format!("trash-{}", uuid::Uuid::new_v4()));
            std::fs::rename(entry.path(), &trash).ok().map(|()| trash)
        });
        taken.collect()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// git in this repository.
    pub fn git(&self) -> Command {
        let mut command = command();
        command
            .envs(&self.quarantine)
            .env("GIT_DIR", &self.path)
            .current_dir(&self.path);
        command
    }

    /// `git receive-pack` or `git upload-pack` for one request, to be given the repository's place as
    /// its last argument by this.
    pub fn service(&self, service: &str, hooks: &Path, pack_bytes_max: u64, arguments: &[&str]) -> Command {
        let mut command = command();
        command
            .current_dir(&self.path)
            .args([
                "-c",
                "safe.directory=*",
                "-c",
                "receive.autogc=false",
                "-c",
                "receive.fsckObjects=true",
            ])
            // Shallow clones are what most continuous integration pushes from.
            .args([
                "-c",
                "receive.shallowUpdate=true",
                "-c",
                "receive.denyDeleteCurrent=ignore",
            ])
            .args(["-c", "receive.advertisePushOptions=false", "-c", "pack.threads=1"])
            .arg("-c")
            .arg(format!("receive.maxInputSize={pack_bytes_max}"))
            .arg("-c")
            .arg(format!("core.hooksPath={}", hooks.display()));
        for problem in TOLERATED {
            command.arg("-c").arg(format!("receive.fsck.{problem}=ignore"));
        }
        command
            .arg(service)
            .arg("--stateless-rpc")
            .args(arguments)
            .arg(&self.path);
        command
    }

    /// Whether `object` is a commit.
    pub async fn is_commit(&self, object: &str) -> Result<bool> {
        Ok(self.answer(&["cat-file", "-t", object]).await?.as_deref() == Some("commit\n"))
    }

    /// Writes the tree of `commit` into `file` as a tar archive.
    pub async fn archive(&self, commit: &str, file: &Path) -> Result<Archived> {
        let mut child = self
            .git()
            .args(["archive", "--format=tar"])
            .arg("-o")
            .arg(file)
            .arg(commit)
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = read_some(child.stderr.take()).await;
        if child.wait().await?.success() {
            return Ok(Archived::Whole);
        }
        if stderr.contains("No space left on device") {
            return Ok(Archived::DiskFull);
        }
        bail!("git archive: {}", stderr.trim())
    }

    /// `COMMIT PATH` of each submodule in the tree of `commit`.
    pub async fn submodules(&self, commit: &str) -> Result<Vec<String>> {
        // Reading a large tree takes long, and few have any.
        if self
            .answer(&["cat-file", "-t", &format!("{commit}:.gitmodules")])
            .await?
            .is_none()
        {
            return Ok(vec![]);
        }
        let listing = self.answer(&["ls-tree", "-r", "-z", commit]).await?;
        Ok(submodules_of(&listing.context("git ls-tree failed")?))
    }

    /// The text of a small file in the tree of `commit`, if it is there.
    pub async fn text(&self, commit: &str, path: &str) -> Result<Option<String>> {
        let object = format!("{commit}:{path}");
        match self.answer(&["cat-file", "-s", &object]).await? {
            Some(size)
                if size
                    .trim()
                    .parse::<u64>()
                    .is_ok_and(|size| size <= TEXT_BYTES_MAX) =>
            {
                self.answer(&["cat-file", "blob", &object]).await
            }
            _ => Ok(None),
        }
    }

    /// Makes `branch` the one that a clone checks out.
    pub async fn set_head(&self, branch: &str) -> Result<()> {
        let wanted = format!("ref: refs/heads/{branch}\n");
        if std::fs::read_to_string(self.path.join("HEAD"))? != wanted {
            files::write_atomic(&self.path.join("HEAD"), wanted.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Packs what has become many small files, if it has.
    pub async fn tidy(&self) -> Result<()> {
        let mut git = self.git();
        git.args([
            "-c",
            "gc.autoDetach=false",
            "-c",
            "pack.threads=1",
            "gc",
            "--auto",
            "--quiet",
        ]);
        let output = git.output().await?;
        if !output.status.success() {
            bail!("git gc: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// What git says; `None` if it fails.
    pub async fn answer(&self, arguments: &[&str]) -> Result<Option<String>> {
        let output = self
            .git()
            .args(arguments)
            .output()
            .await
            .context("cannot run git; is it installed?")?;
        if output.stdout.len() > ANSWER_BYTES_MAX {
            bail!("git {} says too much", arguments[0]);
        }
        Ok(output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archived {
    Whole,
    DiskFull,
}

/// From `git ls-tree -r -z`: `MODE TYPE OBJECT\tPATH`. A path that no line can hold is left out.
fn submodules_of(listing: &str) -> Vec<String> {
    let entries = listing.split('\0').filter_map(|entry| entry.split_once('\t'));
    let links = entries.filter_map(|(head, path)| Some((head.strip_prefix("160000 commit ")?, path)));
    links
        .filter(|(_, path)| !path.contains('\n'))
        .map(|(commit, path)| format!("{commit} {path}"))
        .collect()
}

/// The beginning of what a process says; the rest is read and dropped, so that it never waits.
pub async fn read_some(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    use tokio::io::AsyncReadExt;
    const KEPT_BYTES: u64 = 16 << 10;
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let _ = (&mut stream).take(KEPT_BYTES).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submodules_are_found_among_files() {
        let (file, link) = ("a".repeat(40), "b".repeat(40));
        let listing = format!(
            "100644 blob {file}\tREADME\0160000 commit {link}\tlib/x y\0160000 commit {link}\tbad\nname\0"
        );
        assert_eq!(submodules_of(&listing), [format!("{link} lib/x y")]);
        assert_eq!(submodules_of(""), [""; 0]);
    }

    #[tokio::test]
    async fn many_at_once_make_one_repository_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let repos = Repos::open(&state).unwrap();
        let app = AppId(uuid::Uuid::new_v4());
        let made = futures::future::join_all((0..8).map(|_| repos.of(app))).await;
        assert!(made.iter().all(Result::is_ok));
        assert_eq!(repos.apps().unwrap(), [app]);
        let objects = state.repos().join(format!("{app}.git/objects"));
        std::fs::create_dir(objects.join("tmp_objdir-incoming-x")).unwrap();
        std::fs::create_dir(state.repos().join("x.new-1")).unwrap();
        let repos = Repos::open(&state).unwrap();
        assert!(!objects.join("tmp_objdir-incoming-x").exists());
        assert_eq!(std::fs::read_dir(state.repos()).unwrap().count(), 1);
        remove(&state, app).unwrap();
        remove(&state, app).unwrap();
        assert_eq!(repos.apps().unwrap(), []);
    }
}
