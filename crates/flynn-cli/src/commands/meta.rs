use std::collections::BTreeMap;

use api::wire::AppUpdate;
use clap::Subcommand;

use super::assignment;
use crate::{
    context::Context,
    failure::Result,
    output::{self, row},
};

/// Manage app metadata
///
/// Manage an app's metadata, which other programs may use. Without a verb, list it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn meta set foo=baz bar=qux

  $ flynn meta
  KEY  VALUE
  bar  qux
  foo  baz

  $ flynn meta unset foo")]
pub struct Args {
    /// Print the metadata as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set one or more keys
    #[command(after_help = "Examples:

  $ flynn meta set foo=baz bar=qux")]
    Set {
        #[arg(required = true, value_name = "KEY=VALUE")]
        assignments: Vec<String>,
    },
    /// Remove one or more keys
    #[command(after_help = "Examples:

  $ flynn meta unset foo")]
    Unset {
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => {
                let meta = context.app_row().await?.meta;
                if self.json {
                    output::print_json(&meta);
                    return Ok(());
                }
                let mut rows = vec![row(["KEY", "VALUE"])];
                rows.extend(meta.iter().map(|(key, value)| row([key, value])));
                output::print_table(&rows);
                Ok(())
            }
            Some(Verb::Set { assignments }) => {
                let assignments = assignments
                    .iter()
                    .map(|text| assignment(text))
                    .collect::<Result<Vec<_>>>()?;
                change(context, |meta| meta.extend(assignments)).await
            }
            Some(Verb::Unset { keys }) => {
                change(context, |meta| meta.retain(|key, _| !keys.contains(key))).await
            }
        }
    }
}

/// Changes an app's metadata, keeping all of it that `edit` leaves alone.
pub async fn change(context: &Context, edit: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<()> {
    let app = context.app_row().await?;
    let mut meta = app.meta;
    edit(&mut meta);
    let update = AppUpdate {
        meta: Some(meta),
        ..AppUpdate::default()
    };
    context
        .controller()?
        .update_app_meta(&app.id.to_string(), &update)
        .await?;
    Ok(())
}
