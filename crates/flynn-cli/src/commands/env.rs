use std::collections::BTreeMap;

use api::{dry_run::Trial, wire::NewRelease};
use clap::Subcommand;
use types::Release;

use super::assignment;
use crate::{
    context::Context,
    deploy::{copy_of, create_and_deploy},
    dry_run,
    failure::{Failure, Result},
    output,
};

/// Manage environment variables
///
/// Manage an app's environment variables. Without a verb, list them. A change makes a new release
/// and deploys it: the app's jobs are replaced without an outage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn env set FOO=bar BAZ=foobar
  Created release 5058ae79-64f7-4c39-9a24-0bdd6e7d1bcb.

  $ flynn env
  BAZ=foobar
  FOO=bar

  $ flynn env get -t web FOO
  bar

  $ flynn env unset FOO
  Created release b1bbd9bc-76d6-436e-a2fd-245300bce72e.")]
pub struct Args {
    /// The variables of one process type only
    #[arg(short = 't', long, value_name = "TYPE", global = true)]
    process_type: Option<String>,
    /// Print the variables, or a dry run's answer, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set one or more variables
    #[command(after_help = "Examples:

  $ flynn env set FOO=bar BAZ=foobar
  Created release 5058ae79-64f7-4c39-9a24-0bdd6e7d1bcb.

  $ flynn env set --dry-run FOO=bar
  Dry run: nothing was changed.
    start 2 web on host0
    stop 2 web on host0
  It fits.")]
    Set {
        #[command(flatten)]
        dry_run: dry_run::Options,
        #[arg(required = true, value_name = "VAR=VALUE")]
        assignments: Vec<String>,
    },
    /// Delete one or more variables
    #[command(after_help = "Examples:

  $ flynn env unset FOO BAZ
  Created release b1bbd9bc-76d6-436e-a2fd-245300bce72e.")]
    Unset {
        #[command(flatten)]
        dry_run: dry_run::Options,
        #[arg(required = true, value_name = "VAR")]
        names: Vec<String>,
    },
    /// Print a variable's value
    #[command(after_help = "Examples:

  $ flynn env get FOO
  bar")]
    Get {
        #[arg(value_name = "VAR")]
        name: String,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let process_type = self.process_type.as_deref();
        match self.verb {
            None => {
                let variables = match context.find_release().await? {
                    Some(mut release) => variables(&mut release, process_type)?.clone(),
                    None => BTreeMap::new(),
                };
                if self.json {
                    output::print_json(&variables);
                    return Ok(());
                }
                output::print(
                    &variables
                        .iter()
                        .map(|(name, value)| format!("{name}={value}\n"))
                        .collect::<String>(),
                );
                Ok(())
            }
            Some(Verb::Get { name }) => {
                let mut release = context.release().await?;
                let id = release.id;
                match variables(&mut release, process_type)?.get(&name) {
                    Some(value) => output::print_line(value),
                    None => {
                        return Err(Failure::new(format!(
                            "var \"{name}\" not found in release \"{id}\""
                        )));
                    }
                }
                Ok(())
            }
            Some(Verb::Set { dry_run, assignments }) => {
                let assignments = assignments
                    .iter()
                    .map(|text| assignment(text))
                    .collect::<Result<Vec<_>>>()?;
                change(context, process_type, dry_run, self.json, |variables| {
                    variables.extend(assignments)
                })
                .await
            }
            Some(Verb::Unset { dry_run, names }) => {
                change(context, process_type, dry_run, self.json, |variables| {
                    variables.retain(|name, _| !names.contains(name))
                })
                .await
            }
        }
    }
}

/// The variables of a release, or of one of its process types.
fn variables<'a>(
    release: &'a mut Release,
    process_type: Option<&str>,
) -> Result<&'a mut BTreeMap<String, String>> {
    let Some(name) = process_type else {
        return Ok(&mut release.env);
    };
    let known = release.processes.keys().cloned().collect::<Vec<_>>().join(", ");
    match release.processes.get_mut(name) {
        Some(process) => Ok(&mut process.env),
        None if known.is_empty() => Err(
            Failure::new(format!("the release has no process type \"{name}\""))
                .with_hint("it has none yet: deploy the app first"),
        ),
        None => Err(
            Failure::new(format!("the release has no process type \"{name}\""))
                .with_hint(format!("it has {known}")),
        ),
    }
}

async fn change(
    context: &Context,
    process_type: Option<&str>,
    options: dry_run::Options,
    as_json: bool,
    edit: impl FnOnce(&mut BTreeMap<String, String>),
) -> Result<()> {
    let current = match process_type {
        Some(_) => Some(context.release().await?),
        None => context.find_release().await?,
    };
    let new = match current {
        Some(mut release) => {
            edit(variables(&mut release, process_type)?);
            copy_of(&release)
        }
        // An app that was never deployed can be given its environment beforehand.
        None => {
            let mut env = BTreeMap::new();
            edit(&mut env);
            NewRelease {
                app_id: Some(context.app_row().await?.id),
                env: Some(env),
                ..NewRelease::default()
            }
        }
    };
    if options.dry_run {
        let trial = Trial::Deploy { release: new };
        return dry_run::run(context.controller()?, context.app()?, &trial, as_json).await;
    }
    let release = create_and_deploy(context.controller()?, context.app()?, &new).await?;
    eprintln!("Created release {}.", release.id);
    Ok(())
}
