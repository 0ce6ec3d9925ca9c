use api::wire::NewApp;

use crate::{
    context::Context,
    failure::{Failure, Result},
    git, terminal,
};

/// Create an app
///
/// Create an app. Without a name, the cluster makes one up.
///
/// In a git checkout, a remote 'flynn' is added, to which the app is then pushed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn create
  Created turkeys-stupefy-perry

  $ flynn create shop
  Created shop
  $ git push flynn main

  $ flynn create --image docker.io/library/nginx web")]
pub struct Args {
    /// Name of the git remote to create, empty for none
    #[arg(short, long, default_value = "flynn")]
    remote: String,
    /// Replace a git remote of this name without asking
    #[arg(short, long)]
    yes: bool,
    /// Deploy this image of another registry
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    credentials: super::image::Credentials,
    name: Option<String>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let cluster = context.cluster()?;
        let wants_remote = !self.remote.is_empty() && !cluster.git_url.is_empty() && git::is_checkout();
        if wants_remote && !may_replace(&self.remote, self.yes)? {
            eprintln!("App creation aborted.");
            return Ok(());
        }
        let name = self.name.unwrap_or_default();
        let app = context
            .controller()?
            .create_app(&NewApp {
                name,
                ..NewApp::default()
            })
            .await?;
        eprintln!("Created {}", app.name);
        if wants_remote {
            git::set_remote(&self.remote, &git::app_url(&cluster.git_url, &app.name)).map_err(|failure| {
                failure.with_hint(format!(
                    "the app exists; `flynn -a {} remote add` tries the remote again",
                    app.name
                ))
            })?;
        }
        if let Some(image) = self.image {
            super::image::pull(context, &app.name, image, self.credentials)
                .await
                .map_err(|failure| {
                    let again = format!("the app exists; `flynn -a {} image pull …` tries again", app.name);
                    let hint = [failure.hint.as_str(), &again].join("\n");
                    failure.with_hint(hint.trim_start())
                })?;
        }
        Ok(())
    }
}

/// Whether a remote is free, or may be replaced.
pub fn may_replace(remote: &str, yes: bool) -> Result<bool> {
    let Some(known) = git::remotes().into_iter().find(|known| known.name == remote) else {
        return Ok(true);
    };
    if yes {
        return Ok(true);
    }
    terminal::confirm(&format!(
        "There is already a git remote called \"{remote}\" ({}). Replace it?",
        known.url
    ))
    .map_err(|failure| Failure::new(format!("the git remote \"{remote}\" exists")).with_hint(failure.hint))
}
