use clap::Subcommand;

use super::create::may_replace;
use crate::{
    context::Context,
    failure::{Failure, Result},
    git,
};

/// Manage git remotes
///
/// Give a git checkout a remote that deploys to an app. The app is named with -a.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:

  $ flynn -a turkeys-stupefy-perry remote add
  Created remote flynn with url https://git.flynn.example.com/turkeys-stupefy-perry.git")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a remote, or replace one
    #[command(after_help = "Examples:

  $ flynn -a shop-staging remote add staging
  Created remote staging with url https://git.flynn.example.com/shop-staging.git")]
    Add {
        /// Replace a git remote of this name without asking
        #[arg(short, long)]
        yes: bool,
        #[arg(default_value = "flynn")]
        remote: String,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let Verb::Add { yes, remote } = self.verb;
        if context.given_app().is_none() {
            return Err(
                Failure::new("no app is named").with_hint("name it with -a: `flynn -a APP remote add`")
            );
        }
        let app = context.app_row().await?;
        if !git::is_checkout() {
            return Err(Failure::new("this is no git checkout").with_hint("make it one: `git init`"));
        }
        let git_url = &context.cluster()?.git_url;
        if git_url.is_empty() {
            return Err(Failure::new("the cluster was added without git")
                .with_hint("add it again with `flynn cluster add -f`, without --no-git"));
        }
        if !may_replace(&remote, yes)? {
            eprintln!("Remote not added.");
            return Ok(());
        }
        let url = git::app_url(git_url, &app.name);
        git::set_remote(&remote, &url)?;
        eprintln!("Created remote {remote} with url {url}");
        Ok(())
    }
}
