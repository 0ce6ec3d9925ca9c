use crate::{
    context::Context,
    failure::Result,
    output::{self, row},
};

/// List all apps
///
/// List all apps of the cluster, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn apps
  ID                                    NAME
  b888ecaa-2476-409a-a817-712f1923fe7d  shop
  232b847b-0ab3-47aa-8c7a-4ea20d7da4cd  blog")]
pub struct Args {
    /// Print the apps as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let apps = context.controller()?.apps().await?;
        if self.json {
            output::print_json(&apps);
            return Ok(());
        }
        let mut rows = vec![row(["ID", "NAME"])];
        rows.extend(apps.iter().map(|app| row([&app.id.to_string(), &app.name])));
        output::print_table(&rows);
        Ok(())
    }
}
