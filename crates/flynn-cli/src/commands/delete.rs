use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    context::Context,
    deploy::TransposeTimeout,
    events::{Follower, Next},
    failure::{Failure, Result},
    git, terminal,
};

const QUIET: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Delete an app
///
/// Delete an app with its jobs, routes and releases.
///
/// In a git checkout that has a remote for the app, the remote is removed too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn -a turkeys-stupefy-perry delete
  This deletes the app turkeys-stupefy-perry with its jobs, routes, releases and resources.
  Type turkeys-stupefy-perry to go on: turkeys-stupefy-perry
  Deleted turkeys-stupefy-perry (removed 1 routes, deleted 2 releases, deprovisioned 0 resources)")]
pub struct Args {
    /// Name of the git remote to remove, empty for none
    #[arg(short, long, default_value = "flynn")]
    remote: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let app = context.app_row().await?;
        let question = format!(
            "This deletes the app {} with its jobs, routes, releases and resources.",
            app.name
        );
        if !self.yes && !terminal::confirm_name(&question, &app.name)? {
            eprintln!("App deletion aborted.");
            return Ok(());
        }
        let controller = context.controller()?;
        // By id: the name is free again as soon as the deletion is done.
        let id = app.id.to_string();
        let started = Instant::now();
        let mut events = Follower::open(controller, &id, &["app_deletion"]).await?;
        controller.delete_app(&id).await?;

        let mut is_announced = false;
        let deletion = loop {
            let patience = if is_announced {
                SILENCE_MAX
            } else {
                QUIET.saturating_sub(started.elapsed())
            };
            match tokio::time::timeout(patience, events.next())
                .await
                .transpose_timeout()
            {
                Ok(Some(Next::Event(event))) if event.object_id == id => break Some(event.data),
                Ok(Some(Next::Event(_))) => {}
                Ok(None) if !is_announced => {
                    is_announced = true;
                    eprintln!("Waiting for the app's jobs to stop ...");
                }
                // The events of an app that is gone may be gone as well.
                Ok(Some(Next::Reconnected) | None)
                | Err(Failure {
                    is_not_found: true, ..
                }) => match controller.app(&id).await {
                    Err(error) if error.is_not_found() => break None,
                    _ => {}
                },
                Err(failure) => return Err(failure),
            }
        };
        match deletion {
            Some(data) => eprintln!("Deleted {} ({})", app.name, summary(&data)?),
            None => eprintln!("Deleted {}", app.name),
        }

        let url = git::app_url(&context.cluster()?.git_url, &app.name);
        if git::remotes()
            .iter()
            .any(|remote| remote.name == self.remote && remote.url == url)
        {
            git::remove_remote(&self.remote)?;
        }
        Ok(())
    }
}

fn summary(data: &Value) -> Result<String> {
    if let Some(error) = data["error"].as_str().filter(|error| !error.is_empty()) {
        return Err(Failure::new(format!("the app could not be deleted: {error}")));
    }
    let count = |list: &str| data["app_deletion"][list].as_array().map_or(0, Vec::len);
    Ok(format!(
        "removed {} routes, deleted {} releases, deprovisioned {} resources",
        count("deleted_routes"),
        count("deleted_releases"),
        count("deleted_resources"),
    ))
}
