use std::path::{Path, PathBuf};

use api::wire::NewRelease;
use clap::Subcommand;
use serde_json::Value;
use types::{Deployment, DeploymentStatus, Release, ReleaseId};

use crate::{
    context::Context,
    deploy::{TransposeTimeout, copy_of, create_and_deploy, deploy},
    events::{Follower, Next},
    failure::{Failure, Result},
    output::{self, row},
    terminal,
};

const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Manage app releases
///
/// Manage an app's releases: code, environment and process types together. Without a verb, list
/// them, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn release
  ID                                    Created
  1a270395-8d31-4ec1-953a-0683b4f12635  11 seconds ago
  989ce4a8-0088-444c-8379-caddded4b957  2 hours ago

  $ flynn release rollback --yes
  Rolling back to release 989ce4a8-0088-444c-8379-caddded4b957 from 1a270395-8d31-4ec1-953a-0683b4f12635.
  Successfully rolled back to release 989ce4a8-0088-444c-8379-caddded4b957.")]
pub struct Args {
    /// Print release ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a release, by default the current one
    #[command(after_help = "Examples:

  $ flynn release show
  ID:             989ce4a8-0088-444c-8379-caddded4b957
  Process Types:  web, worker
  Created At:     2026-11-23 05:27:19.32457 +0000 UTC
  ENV[MY_VAR]     Hello World")]
    Show { id: Option<ReleaseId> },
    /// Make and deploy a release from an image that the cluster has
    ///
    /// The image is named by the id or the URI of its artifact, as `flynn release show` prints it. The
    /// file may have env, meta and processes.
    #[command(after_help = "Examples:

  $ cat config.json
  {\"processes\": {\"echo\": {\"args\": [\"socat\", \"-v\", \"tcp-l:8080,fork\", \"exec:/bin/cat\"], \"ports\": [{\"port\": 8080}]}}}
  $ flynn release add -f config.json flynn://slug/a5e66470b2812e91798db36eb103c1f1e135bbe167e4b2ad5ba425b8db98ee8d
  Created release 989ce4a8-0088-444c-8379-caddded4b957.")]
    Add {
        /// Type of the image
        #[arg(short = 't', value_name = "TYPE", default_value = "flynn", value_parser = ["flynn", "docker"], hide = true)]
        kind: String,
        /// The JSON file, - for standard input
        #[arg(short, long)]
        file: Option<PathBuf>,
        uri: String,
    },
    /// Make and deploy a release from another one, by default the current one, and a JSON file
    ///
    /// The file may have env, meta, processes and artifacts. What it has is laid over what the
    /// release has; a null removes.
    #[command(after_help = "Examples:

  $ cat update.json
  {\"processes\": {\"echo\": {\"omni\": true}}}
  $ flynn release update update.json
  Created release 1a270395-8d31-4ec1-953a-0683b4f12635.")]
    Update {
        /// Take nothing over from the other release
        #[arg(long)]
        clean: bool,
        /// The JSON file, - for standard input
        file: PathBuf,
        id: Option<ReleaseId>,
    },
    /// Delete a release and what only it uses
    #[command(after_help = "Examples:

  $ flynn release delete --yes c6b7f512-ef49-46f7-bb57-dd39e97bfb09
  Deleted release c6b7f512-ef49-46f7-bb57-dd39e97bfb09 (deleted 1 files)")]
    Delete {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        id: ReleaseId,
    },
    /// Deploy an earlier release again, by default the last one before the current that was live
    #[command(after_help = "Examples:

  $ flynn release rollback --yes
  Rolling back to release 989ce4a8-0088-444c-8379-caddded4b957 from 1a270395-8d31-4ec1-953a-0683b4f12635.
  Successfully rolled back to release 989ce4a8-0088-444c-8379-caddded4b957.")]
    Rollback {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        id: Option<ReleaseId>,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.quiet, self.json).await,
            Some(Verb::Show { id }) => show(context, id, self.json).await,
            Some(Verb::Add { kind, file, uri }) => add(context, &kind, file.as_deref(), &uri).await,
            Some(Verb::Update { clean, file, id }) => update(context, &file, id, clean).await,
            Some(Verb::Delete { yes, id }) => delete(context, id, yes).await,
            Some(Verb::Rollback { yes, id }) => rollback(context, id, yes).await,
        }
    }
}

async fn list(context: &Context, quiet: bool, as_json: bool) -> Result<()> {
    let releases = context.controller()?.app_releases(context.app()?).await?;
    if as_json {
        output::print_json(&releases);
        return Ok(());
    }
    if quiet {
        output::print(
            &releases
                .iter()
                .map(|release| format!("{}\n", release.id))
                .collect::<String>(),
        );
        return Ok(());
    }
    let now = output::now();
    let mut rows = vec![row(["ID", "Created"])];
    rows.extend(
        releases
            .iter()
            .map(|r| row([&r.id.to_string(), &output::ago(now, r.created_at)])),
    );
    output::print_table(&rows);
    Ok(())
}

async fn find(context: &Context, id: Option<ReleaseId>) -> Result<Release> {
    let Some(id) = id else {
        return context.release().await;
    };
    context
        .controller()?
        .release(id)
        .await
        .map_err(|error| match error.is_not_found() {
            true => Failure::new(format!("release {id} not found"))
                .with_hint("`flynn release` lists the app's releases"),
            false => error.into(),
        })
}

async fn show(context: &Context, id: Option<ReleaseId>, as_json: bool) -> Result<()> {
    let release = find(context, id).await?;
    if as_json {
        output::print_json(&release);
        return Ok(());
    }
    let mut rows = vec![row(["ID:", &release.id.to_string()])];
    for (position, id) in release.artifacts.iter().enumerate() {
        let artifact = context.controller()?.artifact(*id).await?;
        let kind = serde_json::to_value(artifact.kind).expect("a type is a text");
        let kind = kind.as_str().unwrap_or_default();
        rows.push(vec![
            format!("Artifact[{position}]:"),
            format!("{kind}+{}", artifact.uri),
        ]);
    }
    let types: Vec<&str> = release.processes.keys().map(String::as_str).collect();
    rows.push(row(["Process Types:", &types.join(", ")]));
    rows.push(row(["Created At:", &output::date_and_time(release.created_at)]));
    rows.extend(
        release
            .env
            .iter()
            .map(|(name, value)| vec![format!("ENV[{name}]"), value.clone()]),
    );
    output::print_table(&rows);
    Ok(())
}

async fn add(context: &Context, kind: &str, file: Option<&Path>, uri: &str) -> Result<()> {
    let controller = context.controller()?;
    let artifacts = controller.artifacts().await?;
    let uri = uri.strip_prefix("flynn+").unwrap_or(uri);
    let found = artifacts
        .iter()
        .find(|artifact| artifact.uri == uri || artifact.id.to_string() == uri);
    let Some(artifact) = found else {
        let hint = match kind {
            "docker" => "images of Docker registries are not pulled; push code with git instead",
            _ => "it is named by the id or the URI that `flynn release show` prints",
        };
        return Err(Failure::new(format!("the cluster has no image {uri:?}")).with_hint(hint));
    };
    let mut new = match file {
        Some(file) => read_release(file)?,
        None => NewRelease::default(),
    };
    new.app_id = Some(context.app_row().await?.id);
    new.artifacts = Some(vec![artifact.id]);
    let release = create_and_deploy(controller, context.app()?, &new).await?;
    eprintln!("Created release {}.", release.id);
    Ok(())
}

/// A file's JSON, with what a release may have checked.
fn read_release(file: &Path) -> Result<NewRelease> {
    serde_json::from_value(read_json(file)?).map_err(|error| no_release(file, &error))
}

fn no_release(file: &Path, error: &serde_json::Error) -> Failure {
    Failure::new(format!("{} is no release: {error}", file.display()))
        .with_hint("it is a JSON object with env, meta, processes or artifacts")
}

fn read_json(file: &Path) -> Result<Value> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display())))?;
    serde_json::from_str(&text).map_err(|error| no_release(file, &error))
}

async fn update(context: &Context, file: &Path, id: Option<ReleaseId>, clean: bool) -> Result<()> {
    let changes = read_json(file)?;
    let mut new = match clean {
        true => Value::Object(serde_json::Map::new()),
        false => serde_json::to_value(copy_of(&find(context, id).await?)).expect("a release is JSON"),
    };
    lay_over(&mut new, changes);
    let mut new: NewRelease = serde_json::from_value(new).map_err(|error| no_release(file, &error))?;
    new.app_id = Some(context.app_row().await?.id);
    let release = create_and_deploy(context.controller()?, context.app()?, &new).await?;
    eprintln!("Created release {}.", release.id);
    Ok(())
}

/// Lays `changes` over `base`: objects key by key, where null removes; everything else as a whole.
fn lay_over(base: &mut Value, changes: Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    base.remove(&key);
                } else {
                    lay_over(base.entry(key).or_insert(Value::Null), change);
                }
            }
        }
        (base, changes) => *base = changes,
    }
}

async fn delete(context: &Context, id: ReleaseId, yes: bool) -> Result<()> {
    let (controller, app) = (context.controller()?, context.app()?);
    if !yes {
        let name = context.app_row().await?.name;
        let question = format!("This deletes release {id} of {name}, and what only it uses.");
        if !terminal::confirm_name(&question, &name)? {
            eprintln!("Release deletion aborted.");
            return Ok(());
        }
    }
    let mut events = Follower::open(controller, app, &["release_deletion"]).await?;
    controller
        .delete_release(app, id)
        .await
        .map_err(|error| match error.is_not_found() {
            true => Failure {
                is_not_found: true,
                ..Failure::new(format!("release {id} not found"))
            },
            false => error.into(),
        })?;
    let data = loop {
        match tokio::time::timeout(SILENCE_MAX, events.next())
            .await
            .transpose_timeout()?
        {
            Some(Next::Event(event)) if event.object_id == id.to_string() => break event.data,
            Some(Next::Event(_)) => {}
            Some(Next::Reconnected) | None => {
                if !controller
                    .app_releases(app)
                    .await?
                    .iter()
                    .any(|release| release.id == id)
                {
                    eprintln!("Deleted release {id}");
                    return Ok(());
                }
            }
        }
    };
    if let Some(error) = data["error"].as_str().filter(|error| !error.is_empty()) {
        return Err(Failure::new(format!(
            "release {id} could not be deleted: {error}"
        )));
    }
    let deletion = &data["release_deletion"];
    let count = |list: &str| deletion[list].as_array().map_or(0, Vec::len);
    match count("remaining_apps") {
        0 => eprintln!("Deleted release {id} (deleted {} files)", count("deleted_files")),
        apps => eprintln!("Release {id} removed from the app; it stays for {apps} other apps that use it."),
    }
    Ok(())
}

async fn rollback(context: &Context, id: Option<ReleaseId>, yes: bool) -> Result<()> {
    let (controller, app) = (context.controller()?, context.app()?);
    let current = context.release().await?;
    let target = match id {
        Some(id) => id,
        None => {
            let (releases, deployments) = (
                controller.app_releases(app).await?,
                controller.deployments(app).await?,
            );
            let earlier = earlier_release(&current, &releases, &deployments);
            earlier.ok_or_else(|| Failure::new("there is no earlier release to go back to"))?
        }
    };
    if target == current.id {
        return Err(Failure::new(format!("release {target} is the current one"))
            .with_hint("`flynn release` lists the others; `flynn restart` deploys the current one again"));
    }
    if !yes
        && !terminal::confirm(&format!(
            "Are you sure you want to roll back to release \"{target}\"?"
        ))?
    {
        eprintln!("Rollback aborted.");
        return Ok(());
    }
    eprintln!("Rolling back to release {target} from {}.", current.id);
    deploy(controller, app, target).await?;
    eprintln!("Successfully rolled back to release {target}.");
    Ok(())
}

/// The newest release older than the current one that is not known to have failed and that runs
/// something, if the current one does. Going by age, and not by what ran last, lets one go back
/// further by rolling back twice.
fn earlier_release(current: &Release, releases: &[Release], deployments: &[Deployment]) -> Option<ReleaseId> {
    let has = |id: ReleaseId, status: DeploymentStatus| {
        deployments
            .iter()
            .any(|deployment| deployment.new_release == id && deployment.status == status)
    };
    let has_failed = |id| has(id, DeploymentStatus::Failed) && !has(id, DeploymentStatus::Complete);
    let mut earlier: Vec<&Release> = releases
        .iter()
        .filter(|release| release.created_at < current.created_at && !has_failed(release.id))
        .filter(|release| !release.artifacts.is_empty() || current.artifacts.is_empty())
        .collect();
    earlier.sort_by_key(|release| release.created_at);
    earlier.last().map(|release| release.id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(number: u8) -> String {
        format!("00000000-0000-0000-0000-0000000000{number:02}")
    }

    fn release(number: u8, has_code: bool) -> Release {
        let artifacts = if has_code { vec![id(99)] } else { vec![] };
        let created_at = format!("2026-11-23T00:00:{number:02}Z");
        serde_json::from_value(
            json!({ "id": id(number), "app_id": id(0), "artifacts": artifacts, "created_at": created_at }),
        )
        .unwrap()
    }

    fn deployment(number: u8, status: &str) -> Deployment {
        serde_json::from_value(json!({
            "id": id(50 + number), "app": id(0), "new_release": id(number), "strategy": "all-at-once",
            "status": status, "deploy_timeout": 120, "created_at": "2026-11-23T00:00:00Z",
        }))
        .unwrap()
    }

    fn check(current: u8, failed: &[u8], expected: Option<u8>) {
        // Release 1 is an environment set before the first push.
        let releases: Vec<_> = (1..=5).rev().map(|number| release(number, number > 1)).collect();
        let deployments: Vec<_> = (1..=5)
            .map(|number| {
                deployment(
                    number,
                    if failed.contains(&number) {
                        "failed"
                    } else {
                        "complete"
                    },
                )
            })
            .collect();
        let found = earlier_release(&release(current, current > 1), &releases, &deployments);
        assert_eq!(
            found.map(|id| id.to_string()),
            expected.map(id),
            "from {current} with {failed:?} failed"
        );
    }

    #[test]
    fn rolling_back_goes_to_the_newest_older_release_that_worked() {
        check(5, &[], Some(4));
        check(5, &[4, 3], Some(2));
        check(4, &[5], Some(3));
    }

    #[test]
    fn rolling_back_twice_goes_back_twice() {
        check(4, &[], Some(3));
        check(3, &[], Some(2));
    }

    #[test]
    fn nobody_is_rolled_back_to_a_release_without_code() {
        check(2, &[], None);
        check(1, &[], None);
    }

    #[test]
    fn a_change_is_laid_over_key_by_key() {
        let mut base =
            json!({ "env": { "A": "1", "B": "2" }, "processes": { "web": { "args": ["x", "y"] } } });
        lay_over(
            &mut base,
            json!({ "env": { "B": null, "C": "3" }, "processes": { "web": { "args": ["z"] } } }),
        );
        assert_eq!(
            base,
            json!({ "env": { "A": "1", "C": "3" }, "processes": { "web": { "args": ["z"] } } })
        );
    }
}
