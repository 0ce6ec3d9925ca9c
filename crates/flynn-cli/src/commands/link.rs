use std::collections::BTreeSet;

use types::{App, AppId};

use super::meta;
use crate::{
    context::Context,
    failure::{Failure, Result},
    output::{self, nearest, row},
};

/// Let the app connect to the jobs of another
///
/// Let the app's jobs open connections to the jobs of another app, on any host. Without such a link jobs reach
/// those of their own app only. It goes one way, and the other app need not know of it. Without an argument, list
/// the apps that the app may connect to.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn link database
  Jobs of shop may connect to those of database.

  $ flynn link
  ID                                    NAME
  b888ecaa-2476-409a-a817-712f1923fe7d  database

  $ flynn link database --remove
  Jobs of shop may no longer connect to those of database; connections that are open stay.")]
pub struct Args {
    /// Name or id of the other app
    #[arg(value_name = "OTHER")]
    other: Option<String>,
    /// Take the link back
    #[arg(long, requires = "other")]
    remove: bool,
    /// Print the list as JSON
    #[arg(long, conflicts_with = "other")]
    json: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let app = context.app_row().await?;
        match &self.other {
            None => list(context, &app, self.json).await,
            Some(other) if self.remove => remove(context, &app, other).await,
            Some(other) => add(context, &app, other).await,
        }
    }
}

async fn list(context: &Context, app: &App, as_json: bool) -> Result<()> {
    let mut linked = linked_apps(context, app).await?;
    linked.sort_by(|one, other| one.name.cmp(&other.name));
    if as_json {
        output::print_json(&linked);
        return Ok(());
    }
    let mut rows = vec![row(["ID", "NAME"])];
    rows.extend(linked.iter().map(|app| row([&app.id.to_string(), &app.name])));
    output::print_table(&rows);
    Ok(())
}

/// Those that exist: a link to an app that was deleted means nothing, as ids are not used twice.
async fn linked_apps(context: &Context, app: &App) -> Result<Vec<App>> {
    let links: BTreeSet<AppId> = app.links().collect();
    let apps = context.controller()?.apps().await?;
    Ok(apps.into_iter().filter(|app| links.contains(&app.id)).collect())
}

async fn add(context: &Context, app: &App, name: &str) -> Result<()> {
    let apps = context.controller()?.apps().await?;
    let Some(other) = apps.iter().find(|other| is_called(other, name)) else {
        let hint = match nearest(name, apps.iter().map(|app| app.name.as_str())) {
            Some(near) => format!("did you mean {near}? `flynn apps` lists all"),
            None => "`flynn apps` lists all apps of this cluster".into(),
        };
        return Err(Failure::new(format!("app \"{name}\" not found")).with_hint(hint));
    };
    if other.id == app.id {
        return Err(Failure::new("jobs of an app may always connect to each other")
            .with_hint("name the other app: `flynn -a APP link OTHER`"));
    }
    let mut links: BTreeSet<AppId> = app.links().collect();
    links.insert(other.id);
    write(context, &links).await?;
    eprintln!("Jobs of {} may connect to those of {}.", app.name, other.name);
    Ok(())
}

async fn remove(context: &Context, app: &App, name: &str) -> Result<()> {
    let linked = linked_apps(context, app).await?;
    let Some(other) = linked.iter().find(|other| is_called(other, name)) else {
        return Err(Failure::new(format!("{} has no link to \"{name}\"", app.name))
            .with_hint("`flynn link` lists those that it has"));
    };
    let mut links: BTreeSet<AppId> = app.links().collect();
    links.remove(&other.id);
    write(context, &links).await?;
    eprintln!(
        "Jobs of {} may no longer connect to those of {}; connections that are open stay.",
        app.name, other.name
    );
    Ok(())
}

fn is_called(app: &App, name: &str) -> bool {
    app.name == name || app.id.to_string() == name
}

async fn write(context: &Context, links: &BTreeSet<AppId>) -> Result<()> {
    let ids: Vec<String> = links.iter().map(|id| id.to_string()).collect();
    meta::change(context, |meta| match ids.is_empty() {
        true => drop(meta.remove(types::META_LINKS)),
        false => drop(meta.insert(types::META_LINKS.into(), ids.join(","))),
    })
    .await
}
