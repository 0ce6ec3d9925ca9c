use std::collections::BTreeMap;

use api::wire::NewRelease;
use clap::Subcommand;
use types::Resource;

use crate::{
    context::Context,
    deploy::{copy_of, create_and_deploy},
    failure::{Failure, Result},
    output::{self, row},
    terminal,
};

/// Manage the app's resources
///
/// Manage what providers have made for the app, databases for example. Without a verb, list it.
///
/// What a resource needs its users to know becomes part of the app's environment; the app is deployed
/// anew with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn resource add tiles
  Created resource 431b3ffb-3b53-465a-b724-f31f1bedf6bb and release dfc582f6-4616-48a0-84b9-e1cee8976a4a.

  $ flynn resource
  ID                                    Provider ID                           Provider Name
  431b3ffb-3b53-465a-b724-f31f1bedf6bb  f37ebe08-2c1b-4126-9b5b-a07fedcfd4f9  tiles")]
pub struct Args {
    /// Print the resources as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Have a provider make a resource for the app
    #[command(after_help = "Examples:

  $ flynn resource add tiles
  Created resource 431b3ffb-3b53-465a-b724-f31f1bedf6bb and release dfc582f6-4616-48a0-84b9-e1cee8976a4a.")]
    Add {
        /// Name or id of the provider
        provider: String,
    },
    /// Have a provider remove a resource, with all that is in it
    #[command(after_help = "Examples:

  $ flynn resource remove tiles
  Deleted resource 431b3ffb-3b53-465a-b724-f31f1bedf6bb, created release efc99613-74da-4699-8645-511227d3271f.")]
    Remove {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        /// Name or id of the provider
        provider: String,
        /// Id of the resource; not needed if the app has one of this provider only
        resource: Option<String>,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            None => list(context, self.json).await,
            Some(Verb::Add { provider }) => add(context, &provider).await,
            Some(Verb::Remove {
                yes,
                provider,
                resource,
            }) => remove(context, &provider, resource, yes).await,
        }
    }
}

async fn list(context: &Context, as_json: bool) -> Result<()> {
    let controller = context.controller()?;
    let resources = controller.app_resources(context.app()?).await?;
    if as_json {
        output::print_json(&resources);
        return Ok(());
    }
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut rows = vec![row(["ID", "Provider ID", "Provider Name"])];
    for resource in &resources {
        let provider = resource.provider.to_string();
        if !names.contains_key(&provider) {
            let found = controller.provider(&provider).await?;
            names.insert(provider.clone(), found.name);
        }
        rows.push(row([&resource.id.to_string(), &provider, &names[&provider]]));
    }
    output::print_table(&rows);
    Ok(())
}

async fn known_provider(context: &Context, name: &str) -> Result<types::Provider> {
    let controller = context.controller()?;
    let error = match controller.provider(name).await {
        Ok(provider) => return Ok(provider),
        Err(error) if error.is_not_found() => error,
        Err(error) => return Err(error.into()),
    };
    let known = controller.providers().await.unwrap_or_default();
    let names: Vec<&str> = known.iter().map(|provider| provider.name.as_str()).collect();
    let hint = match (names.as_slice(), output::nearest(name, names.iter().copied())) {
        ([], _) => "the cluster has none: `flynn provider add NAME URL` adds one".to_owned(),
        (_, Some(near)) => format!("did you mean {near}? `flynn provider` lists all"),
        (_, None) => format!("there is {}", names.join(", ")),
    };
    let mut failure = Failure::new(format!("provider \"{name}\" not found")).with_hint(hint);
    failure.is_not_found = error.is_not_found();
    Err(failure)
}

async fn add(context: &Context, provider: &str) -> Result<()> {
    let (controller, app) = (context.controller()?, context.app_row().await?);
    let provider = known_provider(context, provider).await?;
    let resource = controller
        .provision_resource(&provider.id.to_string(), &app.name)
        .await?;
    let new = match context.find_release().await? {
        Some(mut release) => {
            release.env.extend(resource.env.clone());
            copy_of(&release)
        }
        None => NewRelease {
            app_id: Some(app.id),
            env: Some(resource.env.clone()),
            ..NewRelease::default()
        },
    };
    let release = create_and_deploy(controller, &app.name, &new).await.map_err(|failure| {
        let advice = format!(
            "the resource {} exists; `flynn env set` gives the app its environment, `flynn resource remove {}` takes it back",
            resource.id, provider.name
        );
        let hint = format!("{}\n{advice}", failure.hint);
        failure.with_hint(hint.trim_start())
    })?;
    eprintln!("Created resource {} and release {}.", resource.id, release.id);
    Ok(())
}

async fn remove(context: &Context, provider: &str, resource: Option<String>, yes: bool) -> Result<()> {
    let (controller, app) = (context.controller()?, context.app_row().await?);
    let provider = known_provider(context, provider).await?;
    let id = match resource {
        Some(id) => id,
        None => {
            let mut own = controller.app_resources(&app.name).await?;
            own.retain(|resource| resource.provider == provider.id);
            only_one(&own, &provider.name)?
        }
    };
    let question = format!(
        "This removes resource {id} of {} from {} with all that is in it.",
        provider.name, app.name
    );
    if !yes && terminal::can_ask() && !terminal::confirm_name(&question, &app.name)? {
        eprintln!("Nothing was removed.");
        return Ok(());
    }
    let removed = controller
        .delete_resource(&provider.id.to_string(), &id)
        .await
        .map_err(|error| match error.is_not_found() {
            true => Failure {
                is_not_found: true,
                ..Failure::new(format!("resource {id} not found"))
                    .with_hint("`flynn resource` lists the app's resources")
            },
            false => error.into(),
        })?;
    let Some(mut release) = context.find_release().await? else {
        eprintln!("Deleted resource {id}.");
        return Ok(());
    };
    // What the user has set differently since is the user's.
    release
        .env
        .retain(|name, value| removed.env.get(name) != Some(value));
    let new = create_and_deploy(controller, &app.name, &copy_of(&release)).await?;
    eprintln!("Deleted resource {id}, created release {}.", new.id);
    Ok(())
}

fn only_one(resources: &[Resource], provider: &str) -> Result<String> {
    match resources {
        [one] => Ok(one.id.to_string()),
        [] => Err(Failure::new(format!("the app has no resource of {provider}"))
            .with_hint("`flynn resource` lists the app's resources")),
        several => {
            let ids: Vec<String> = several.iter().map(|resource| resource.id.to_string()).collect();
            Err(
                Failure::new(format!("the app has several resources of {provider}"))
                    .with_hint(format!("name one of {}", ids.join(", "))),
            )
        }
    }
}
