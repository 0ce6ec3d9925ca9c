use std::path::PathBuf;

use futures::StreamExt;
use http_body_util::BodyExt;
use types::{Artifact, Digest, Layer};

use super::cluster_backup::Destination;
use crate::{
    archive::{self, Writer},
    context::Context,
    failure::{Failure, Result},
    output,
};

/// Write an app to a file
///
/// Write an app's settings, current release, images, scale and routes to one file, a tar archive, from
/// which `flynn import` makes it anew, here or on another cluster.
///
/// What is in its resources and volumes is not written, and neither is its log.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn -a shop export -f shop.tar
  Exporting shop ...
  Exporting layer 1 of 2 (118.2MB) ...
  Exporting layer 2 of 2 (9.4MB) ...
  Exported shop.

  $ flynn -a shop export --quiet | ssh backup 'cat > shop.tar'")]
pub struct Args {
    /// File to write to [default: standard output]
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Do not tell how far it is
    #[arg(short, long)]
    quiet: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let tell = |text: String| {
            if !self.quiet {
                eprintln!("{text}");
            }
        };
        let controller = context.controller()?;
        let app = context.app_row().await?;
        let id = app.id.to_string();
        let release = context.find_release().await?;
        let mut archive = Writer::new(
            Destination::open(self.file.as_deref(), "archive")?,
            output::now().as_micros().div_euclid(1_000_000) as u64,
        );
        tell(format!("Exporting {} ...", app.name));
        archive.json(archive::APP, &app)?;
        archive.json(archive::ROUTES, &controller.app_routes(&id).await?)?;
        if let Some(release) = &release {
            archive.json(archive::RELEASE, release)?;
            let mut artifacts = vec![];
            for id in &release.artifacts {
                artifacts.push(controller.artifact(*id).await?);
            }
            archive.json(archive::ARTIFACTS, &artifacts)?;
            let layers = layers_of(&artifacts)?;
            for (number, (digest, layer)) in layers.iter().enumerate() {
                let length = layer.length as u64;
                let size = output::limit("memory", layer.length);
                tell(format!(
                    "Exporting layer {} of {} ({size}) ...",
                    number + 1,
                    layers.len()
                ));
                archive.begin(&format!("{digest}.layer"), length)?;
                let mut bytes = controller.layer(digest).await?.into_data_stream();
                let mut written = 0;
                while let Some(chunk) = bytes.next().await {
                    let chunk = chunk.map_err(|error| {
                        Failure::new(format!("layer {digest} broke off: {error}")).with_hint("try again")
                    })?;
                    written += chunk.len() as u64;
                    archive.write(&chunk)?;
                }
                if written != length {
                    return Err(Failure::new(format!(
                        "layer {digest} has {written} bytes where its image says {length}"
                    )));
                }
                archive.end(length)?;
            }
            if let Some(formation) = formation(context, release.id).await? {
                archive.json(archive::FORMATION, &formation)?;
            }
        }
        archive.finish()?;
        tell(format!("Exported {}.", app.name));
        let resources = controller.app_resources(&id).await.unwrap_or_default();
        if !resources.is_empty() {
            tell(format!(
                "What is in its {} resources was not exported.",
                resources.len()
            ));
        }
        Ok(())
    }
}

async fn formation(context: &Context, release: types::ReleaseId) -> Result<Option<types::Formation>> {
    match context.controller()?.formation(context.app()?, release).await {
        Ok(formation) => Ok(Some(formation)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every layer of the images, once.
fn layers_of(artifacts: &[Artifact]) -> Result<Vec<(Digest, Layer)>> {
    let mut layers: Vec<(Digest, Layer)> = vec![];
    let manifests = artifacts.iter().filter_map(|artifact| artifact.manifest.as_ref());
    for layer in manifests.flat_map(|manifest| manifest.layers()) {
        let digest: Digest = layer.id.parse().map_err(|_| {
            Failure::new(format!(
                "the image has a layer {:?} that is of no form known here",
                layer.id
            ))
        })?;
        if !layers.iter().any(|(known, _)| *known == digest) {
            layers.push((digest, layer.clone()));
        }
    }
    Ok(layers)
}
