use api::wire::AppUpdate;
use clap::Subcommand;
use serde_json::Value;
use types::{DeploymentStatus, Strategy};

use super::meta;
use crate::{
    context::Context,
    failure::{Failure, Result},
    output::{self, row},
};

const BATCH_SIZE: &str = "flynn-deploy-batch-size";

/// List deployments and say how they are done
///
/// List an app's deployments, newest first, and get or set how they are done.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn deployment
  ID                                    STATUS    CREATED             FINISHED
  a6d470d6-9638-4d74-ae71-91c3d9887714  running   4 seconds ago
  39f8b98b-2aed-40a5-9423-ae174b3fb7a9  complete  16 seconds ago      14 seconds ago
  f415ae79-0b41-4a49-bc42-d4f90c5a36c5  failed    About a minute ago  About a minute ago

  $ flynn deployment timeout 150

  $ flynn deployment timeout
  150")]
pub struct Args {
    /// Print the deployments as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Get or set the number of seconds that each job has to come up
    #[command(after_help = "Examples:

  $ flynn deployment timeout 150")]
    Timeout {
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        seconds: Option<i32>,
    },
    /// Get or set how many jobs the in-batches strategy replaces at a time
    #[command(after_help = "Examples:

  $ flynn deployment batch-size 3")]
    BatchSize {
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        size: Option<u32>,
    },
    /// Get or set the strategy: all-at-once, one-by-one, one-down-one-up or in-batches
    #[command(after_help = "Examples:

  $ flynn deployment strategy one-by-one")]
    Strategy { strategy: Option<String> },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.json).await,
            Some(Verb::Timeout { seconds: None }) => {
                output::print_line(&context.app_row().await?.deploy_timeout.to_string());
                Ok(())
            }
            Some(Verb::Timeout { seconds }) => {
                update(
                    context,
                    AppUpdate {
                        deploy_timeout: seconds,
                        ..AppUpdate::default()
                    },
                )
                .await
            }
            Some(Verb::BatchSize { size: Some(size) }) => {
                meta::change(context, |meta| {
                    meta.insert(BATCH_SIZE.to_owned(), size.to_string());
                })
                .await
            }
            Some(Verb::BatchSize { size: None }) => match context.app_row().await?.deploy_batch_size() {
                Some(size) => {
                    output::print_line(&size.to_string());
                    Ok(())
                }
                None => Err(Failure::new("the app has no batch size")
                    .with_hint("set one: `flynn deployment batch-size SIZE`")),
            },
            Some(Verb::Strategy { strategy: None }) => {
                output::print_line(&name_of(context.app_row().await?.strategy));
                Ok(())
            }
            Some(Verb::Strategy { strategy: Some(name) }) => {
                let strategy = serde_json::from_value(Value::String(name.clone())).map_err(|_| {
                    Failure::new(format!("unknown strategy \"{name}\""))
                        .with_hint("there is all-at-once, one-by-one, one-down-one-up and in-batches")
                })?;
                update(
                    context,
                    AppUpdate {
                        strategy: Some(strategy),
                        ..AppUpdate::default()
                    },
                )
                .await
            }
        }
    }
}

async fn update(context: &Context, update: AppUpdate) -> Result<()> {
    context.controller()?.update_app(context.app()?, &update).await?;
    Ok(())
}

fn name_of(strategy: Strategy) -> String {
    match serde_json::to_value(strategy) {
        Ok(Value::String(name)) => name,
        _ => unreachable!("a strategy is a text on the wire"),
    }
}

fn status_name(status: DeploymentStatus) -> &'static str {
    match status {
        DeploymentStatus::Pending => "pending",
        DeploymentStatus::Running => "running",
        DeploymentStatus::Complete => "complete",
        DeploymentStatus::Failed => "failed",
    }
}

async fn list(context: &Context, as_json: bool) -> Result<()> {
    let deployments = context.controller()?.deployments(context.app()?).await?;
    if as_json {
        output::print_json(&deployments);
        return Ok(());
    }
    let now = output::now();
    let mut rows = vec![row(["ID", "STATUS", "CREATED", "FINISHED"])];
    for deployment in &deployments {
        let finished = deployment
            .finished_at
            .map(|time| output::ago(now, time))
            .unwrap_or_default();
        let created = output::ago(now, deployment.created_at);
        rows.push(row([
            &deployment.id.to_string(),
            status_name(deployment.status),
            &created,
            &finished,
        ]));
    }
    output::print_table(&rows);
    Ok(())
}
