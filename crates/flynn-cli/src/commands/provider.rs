use clap::Subcommand;

use crate::{
    context::Context,
    failure::Result,
    output::{self, row},
};

/// Manage resource providers
///
/// Manage the cluster's providers: services that make resources, such as databases, for apps. Without
/// a verb, list them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn provider
  ID                                    NAME   URL
  f37ebe08-2c1b-4126-9b5b-a07fedcfd4f9  tiles  https://tiles.example.com/resources

  $ flynn provider add tiles https://tiles.example.com/resources
  Created provider tiles.")]
pub struct Args {
    /// Print the providers as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a provider
    ///
    /// A resource is made by POST to the address, and removed by DELETE with the resource's id.
    #[command(after_help = "Examples:

  $ flynn provider add tiles https://tiles.example.com/resources
  Created provider tiles.")]
    Add {
        name: String,
        /// http://, https:// or discoverd+http://
        url: String,
    },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let controller = context.controller()?;
        match self.verb {
            None => {
                let providers = controller.providers().await?;
                if self.json {
                    output::print_json(&providers);
                    return Ok(());
                }
                // The original printed no heading over nothing.
                if providers.is_empty() {
                    return Ok(());
                }
                let mut rows = vec![row(["ID", "NAME", "URL"])];
                rows.extend(
                    providers
                        .iter()
                        .map(|provider| row([&provider.id.to_string(), &provider.name, &provider.url])),
                );
                output::print_table(&rows);
            }
            Some(Verb::Add { name, url }) => {
                let provider = controller.create_provider(&name, &url).await?;
                eprintln!("Created provider {}.", provider.name);
            }
        }
        Ok(())
    }
}
