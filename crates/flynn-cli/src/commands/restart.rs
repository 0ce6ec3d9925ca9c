use crate::{
    context::Context,
    deploy::{copy_of, create_and_deploy},
    failure::Result,
};

/// Restart an app's jobs without an outage
///
/// Deploy the app's release once more: new jobs are started, and the old ones are stopped when the
/// new ones are up. To end single jobs, use `flynn kill`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn restart
  Created release 5058ae79-64f7-4c39-9a24-0bdd6e7d1bcb.")]
pub struct Args {}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let release = context.release().await?;
        let new = create_and_deploy(context.controller()?, context.app()?, &copy_of(&release)).await?;
        eprintln!("Created release {}.", new.id);
        Ok(())
    }
}
