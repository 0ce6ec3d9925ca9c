use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    context::Context,
    failure::{Failure, Result},
    git,
};

/// Build a directory on the cluster and deploy it
///
/// Build a directory on the cluster and deploy it, whether it is a git checkout or not: as it is now, with
/// what is not committed. What .gitignore names is left out; .dockerignore counts as well where a Dockerfile
/// builds it.
///
/// A Dockerfile is built with buildah, anything else by buildpacks. `flynn meta set builder=buildpack` (or
/// dockerfile) chooses.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn -a shop build .
  -----> Building with Dockerfile...")]
pub struct Args {
    #[arg(default_value = ".")]
    directory: PathBuf,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let app = context.app_row().await?;
        let url = git::app_url(&context.cluster()?.git_url, &app.name);
        if !self.directory.is_dir() {
            return Err(Failure::new(format!(
                "{} is no directory",
                self.directory.display()
            )));
        }
        // A repository beside the directory, which leaves no trace in it.
        let repository = Temporary(std::env::temp_dir().join(format!("flynn-build-{}", std::process::id())));
        let git = Git {
            repository: &repository.0,
            directory: &self.directory,
        };
        git.run(&["init", "--quiet", "--initial-branch=main"])?;
        git.run(&["add", "--all"])?;
        git.run(&["commit", "--quiet", "--allow-empty", "--message", "flynn build"])?;
        git.run(&["push", "--force", &url, "HEAD:refs/heads/main"])
    }
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Git<'a> {
    repository: &'a Path,
    directory: &'a Path,
}

impl Git<'_> {
    fn run(&self, args: &[&str]) -> Result<()> {
        let cannot = |error: std::io::Error| Failure::new(format!("git cannot be run: {error}"));
        let status = Command::new("git")
            .arg("--git-dir")
            .arg(self.repository)
            .arg("--work-tree")
            .arg(self.directory)
            .args([
                "-c",
                "user.name=flynn",
                "-c",
                "user.email=flynn@localhost",
                "-c",
                "core.autocrlf=false",
            ])
            .args(args)
            .stdin(Stdio::null())
            .status()
            .map_err(cannot)?;
        match status.success() {
            true => Ok(()),
            // git, or the build, has said why.
            false => Err(Failure::new(format!("git {} failed", args[0]))),
        }
    }
}
