use std::io::Read;

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    context::Context,
    deploy,
    failure::{Failure, Result},
    images::{Images, Pull},
    output::{self, row},
};

/// Manage the app's images
///
/// Without a verb, list the images that the cluster's registry has for the app, and what they take on its disk. Images that no
/// tag and no release needs are removed by themselves, an hour later.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn image
  IMAGE        DIGEST               SIZE     LAYERS
  shop:latest  sha256:33d35c5a5c51  72.1 MB  6
  72.1 MB on disk

  $ flynn image --all

  $ flynn image pull docker.io/library/nginx:1.27")]
pub struct Args {
    /// Those of all apps
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Pull an image of another registry and deploy it
    #[command(after_help = "Examples:

  $ flynn image pull docker.io/library/nginx:1.27

  $ flynn image pull ghcr.io/acme/shop:v2 --username me --password-stdin <token")]
    Pull {
        #[command(flatten)]
        credentials: Credentials,
        image: String,
    },
}

/// Who may have an image.
#[derive(Debug, clap::Args)]
pub struct Credentials {
    /// User of the image's registry
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Read the user's password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// Pulls an image, and deploys the release that it becomes.
pub async fn pull(context: &Context, app: &str, image: String, credentials: Credentials) -> Result<()> {
    let mut password = String::new();
    if credentials.password_stdin {
        std::io::stdin()
            .take(64 << 10)
            .read_to_string(&mut password)
            .map_err(|error| Failure::new(format!("the password cannot be read: {error}")))?;
    }
    let pull = Pull {
        image,
        username: credentials.username.unwrap_or_default(),
        password: password.trim_end_matches(['\r', '\n']).to_owned(),
    };
    let release = Images::new(context.cluster()?)?.pull(app, &pull).await?;
    let controller = context.controller()?;
    if controller.app(app).await?.release != Some(release) {
        deploy::deploy(controller, app, release).await?;
    }
    let process = controller
        .release(release)
        .await?
        .processes
        .into_keys()
        .next()
        .unwrap_or_default();
    eprintln!("Image deployed, scale it with 'flynn scale {process}=N'");
    Ok(())
}

#[derive(Deserialize)]
struct Listed {
    bytes: u64,
    free_bytes: u64,
    apps: Vec<App>,
}

#[derive(Deserialize)]
struct App {
    name: String,
    bytes: u64,
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    repository: String,
    tag: String,
    digest: String,
    bytes: u64,
    layers: usize,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        if let Some(Verb::Pull { credentials, image }) = self.verb {
            let app = context.app_row().await?.name;
            return pull(context, &app, image, credentials).await;
        }
        let app = match self.all {
            true => None,
            false => Some(context.app_row().await?.name),
        };
        let registry = Images::new(context.cluster()?)?;
        let mut all: Value = registry.client().get("/images").await?;
        if let (Some(app), Some(apps)) = (&app, all["apps"].as_array_mut()) {
            apps.retain(|one| one["name"] == app.as_str());
        }
        if self.json {
            output::print_json(&all["apps"]);
            return Ok(());
        }
        let listed: Listed = serde_json::from_value(all)
            .map_err(|error| Failure::new(format!("the registry's answer cannot be understood: {error}")))?;
        let mut rows = vec![row(["IMAGE", "DIGEST", "SIZE", "LAYERS"])];
        for image in listed.apps.iter().flat_map(|app| &app.images) {
            let name = match image.tag.is_empty() {
                true => format!("{}@", image.repository),
                false => format!("{}:{}", image.repository, image.tag),
            };
            let digest: String = image.digest.chars().take(19).collect();
            rows.push(row([
                &name,
                &digest,
                &output::size(image.bytes),
                &image.layers.to_string(),
            ]));
        }
        output::print_table(&rows);
        match self.all {
            false => {
                let bytes = listed.apps.first().map_or(0, |app| app.bytes);
                output::print_line(&format!("{} on disk", output::size(bytes)));
            }
            true => {
                let mut rows = vec![row(["\nAPP", "ON DISK"])];
                rows.extend(
                    listed
                        .apps
                        .iter()
                        .map(|app| row([&app.name, &output::size(app.bytes)])),
                );
                output::print_table(&rows);
                output::print_line(&format!(
                    "{} in all, {} free",
                    output::size(listed.bytes),
                    output::size(listed.free_bytes)
                ));
            }
        }
        Ok(())
    }
}
