use std::{collections::BTreeMap, io::Read, path::PathBuf};

use api::{
    Controller,
    wire::{NewApp, NewArtifact, NewRelease, NewRoute, NewScaleRequest, RouteView},
};
use serde::de::DeserializeOwned;
use tokio_stream::wrappers::ReceiverStream;
use types::{App, Artifact, Digest, Formation, Layer, Release};

use crate::{
    archive::{self, Entry},
    context::Context,
    failure::{Failure, Result},
    output,
};

/// Make an app from a file
///
/// Make a new app from what `flynn export` wrote: settings, release, images and scale, with --routes
/// its routes too.
///
/// Of an archive of the original Flynn the settings, the environment, the scale and the routes are
/// taken; its images are of another form, so the code has to be pushed again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn import -f shop.tar
  Imported shop: web=2 worker=1

  $ flynn import -f shop.tar --name shop-staging --routes")]
pub struct Args {
    /// File to read [default: standard input]
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Name of the new app [default: that of the exported one]
    #[arg(short, long)]
    name: Option<String>,
    /// Do not tell how far it is
    #[arg(short, long)]
    quiet: bool,
    /// Import the routes too
    #[arg(short, long)]
    routes: bool,
    /// Leave databases out that the original put into the archive
    #[arg(long)]
    skip_databases: bool,
    /// How many pg_restore jobs to use, as older versions had it
    #[arg(short, long, hide = true)]
    jobs: Option<u32>,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let controller = context.controller()?;
        let source: Box<dyn Read + Send> = match &self.file {
            None => Box::new(std::io::stdin()),
            Some(file) => Box::new(
                std::fs::File::open(file)
                    .map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display())))?,
            ),
        };
        let mut parts = Parts::default();
        let mut entries = archive::read(source);
        while let Some(entry) = entries.recv().await {
            match entry? {
                Entry::Json { name, bytes } => {
                    parts.json.insert(name, bytes);
                    if parts.json.len() == 1 {
                        parts.check_name(controller, self.name.as_deref()).await?;
                    }
                }
                Entry::Layer { id, bytes } => self.take_layer(controller, &parts, id, bytes).await?,
                Entry::Other { name } if name.ends_with(".dump") && self.skip_databases => {
                    self.tell(&format!("{name} is left out."));
                }
                Entry::Other { name } if name.ends_with(".dump") => {
                    return Err(Failure::new(format!(
                        "{name}: the archive has a database, which cannot be imported"
                    ))
                    .with_hint("--skip-databases imports the app without it"));
                }
                Entry::Other { .. } => {}
            }
        }
        let mut app: App = parts.need(archive::APP)?;
        let old_name = app.name.clone();
        app.name = self.name.clone().unwrap_or(app.name);
        let release: Option<Release> = parts.find(archive::RELEASE)?;
        let artifacts: Vec<Artifact> = parts.find(archive::ARTIFACTS)?.unwrap_or_default();
        let formation: Option<Formation> = parts.find(archive::FORMATION)?;
        let routes: Vec<RouteView> = parts.find(archive::ROUTES)?.unwrap_or_default();
        let is_runnable = artifacts.iter().all(is_ours);
        let mut images = vec![];
        if is_runnable {
            for artifact in &artifacts {
                images.push(controller.create_artifact(&again(artifact)).await?.id);
            }
        }
        let renamed = |service: &str| rename(service, &old_name, &app.name);
        let created = controller
            .create_app(&NewApp {
                name: app.name.clone(),
                meta: Some(app.meta.clone()),
                strategy: Some(app.strategy),
                deploy_timeout: Some(app.deploy_timeout),
                ..NewApp::default()
            })
            .await?;
        let half = |failure: Failure| {
            let advice = format!(
                "the app {0} was made in part: `flynn -a {0} delete` removes it, then try again",
                created.name
            );
            let hint = format!("{}\n{advice}", failure.hint);
            failure.with_hint(hint.trim_start())
        };
        let id = created.id.to_string();
        let mut scale = String::new();
        if let Some(mut release) = release {
            for process in release.processes.values_mut() {
                process.service = renamed(&process.service);
                for port in &mut process.ports {
                    if let Some(service) = &mut port.service {
                        service.name = renamed(&service.name);
                    }
                }
            }
            let new = NewRelease {
                app_id: Some(created.id),
                artifacts: Some(images),
                env: Some(release.env),
                meta: Some(release.meta),
                processes: Some(release.processes),
            };
            let release = controller
                .create_release(&new)
                .await
                .map_err(|error| half(error.into()))?;
            controller
                .deploy(&id, release.id)
                .await
                .map_err(|error| half(error.into()))?;
            if let Some(formation) = formation.filter(|_| is_runnable) {
                let counts = formation.processes.iter().filter(|(_, count)| **count > 0);
                scale = counts.map(|(name, count)| format!(" {name}={count}")).collect();
                let request = NewScaleRequest {
                    new_processes: Some(formation.processes),
                    new_tags: Some(formation.tags).filter(|tags| !tags.is_empty()),
                };
                controller
                    .scale(&id, release.id, &request)
                    .await
                    .map_err(|error| half(error.into()))?;
            }
        }
        if self.routes {
            self.import_routes(controller, &id, routes, &renamed)
                .await
                .map_err(half)?;
        }
        let scale = if scale.is_empty() {
            String::new()
        } else {
            format!(":{scale}")
        };
        eprintln!("Imported {}{scale}", created.name);
        if !is_runnable {
            eprintln!(
                "Its images are of the original's form: push its code to start it (git push flynn main)."
            );
        }
        Ok(())
    }

    fn tell(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Passes a layer on to the cluster, unless it has it.
    async fn take_layer(
        &self,
        controller: &Controller,
        parts: &Parts,
        id: String,
        bytes: tokio::sync::mpsc::Receiver<std::io::Result<bytes::Bytes>>,
    ) -> Result<()> {
        let artifacts: Vec<Artifact> = parts.need(archive::ARTIFACTS)?;
        let manifests = artifacts.iter().filter_map(|artifact| artifact.manifest.as_ref());
        let layer = manifests
            .flat_map(|manifest| manifest.layers())
            .find(|layer| layer.id == id);
        let Some(layer) = layer.filter(|layer| is_erofs(layer)) else {
            return Ok(());
        };
        let digest: Digest = id
            .parse()
            .map_err(|_| Failure::new(format!("the archive has a layer {id:?}, which is no digest")))?;
        if controller.find_layer(&digest).await?.is_some() {
            return Ok(());
        }
        self.tell(&format!(
            "Uploading layer {} ({}) ...",
            &digest.as_str()[..12],
            output::limit("memory", layer.length)
        ));
        controller.put_layer(&digest, ReceiverStream::new(bytes)).await?;
        Ok(())
    }

    async fn import_routes(
        &self,
        controller: &Controller,
        app: &str,
        mut routes: Vec<RouteView>,
        renamed: &impl Fn(&str) -> String,
    ) -> Result<()> {
        let existing = controller.app_routes(app).await?;
        // A path needs its domain's root first, and the list has the newest first.
        routes.reverse();
        routes.sort_by_key(|view| view.route.path != "/");
        for view in routes {
            let route = view.route;
            let is_there = existing
                .iter()
                .any(|known| (&known.route.domain, &known.route.path) == (&route.domain, &route.path));
            if is_there {
                continue;
            }
            let certificate = view.certificate.filter(|certificate| !certificate.key.is_empty());
            if certificate.is_none() && route.certificate_id.is_some() {
                self.tell(&format!("The certificate of {} was not exported.", route.domain));
            }
            let new = NewRoute {
                kind: Some(route.kind),
                service: renamed(&route.service),
                port: route.port,
                leader: route.leader,
                domain: route.domain.clone(),
                certificate,
                sticky: route.sticky,
                path: route.path.clone(),
                drain_backends: route.drain_backends,
                disable_keep_alives: route.disable_keep_alives,
                ..NewRoute::default()
            };
            match controller.create_route(app, &new).await {
                Ok(_) => {}
                // On the cluster that it comes from, the app itself has the route still.
                Err(error) if error.code() == Some(api::Code::Conflict) => {
                    eprintln!("The route {} is taken: {error}", view_name(&new));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn view_name(route: &NewRoute) -> String {
    match route.kind {
        Some(types::RouteKind::Tcp) => format!("tcp:{}", route.port),
        _ => format!("{}{}", route.domain, route.path),
    }
}

/// What was read of an archive so far.
#[derive(Default)]
struct Parts {
    json: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    fn find<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.json.get(name) else {
            return Ok(None);
        };
        // The original wrote `null` for what there was none of.
        serde_json::from_slice(bytes).map_err(|error| {
            Failure::new(format!("{name} in the archive cannot be understood: {error}"))
                .with_hint("it is a file that `flynn export` wrote, all of it")
        })
    }

    fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.find(name)?.ok_or_else(|| {
            Failure::new(format!("the archive has no {name}"))
                .with_hint("it is a file that `flynn export` wrote, all of it")
        })
    }

    /// Before anything is uploaded: a name that is taken is told at once.
    async fn check_name(&self, controller: &Controller, given: Option<&str>) -> Result<()> {
        let Some(app) = self.find::<App>(archive::APP)? else {
            return Ok(());
        };
        let name = given.unwrap_or(&app.name);
        match controller.app(name).await {
            Ok(_) => Err(
                Failure::new(format!("object_exists: application \"{name}\" already exists"))
                    .with_hint("give the new app another name: --name NAME"),
            ),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn again(artifact: &Artifact) -> NewArtifact {
    NewArtifact {
        kind: artifact.kind,
        uri: artifact.uri.clone(),
        meta: Some(artifact.meta.clone()),
        manifest: artifact.manifest.clone(),
        hashes: Some(artifact.hashes.clone()),
        size: artifact.size,
        layer_url_template: artifact.layer_url_template.clone(),
    }
}

fn is_ours(artifact: &Artifact) -> bool {
    let manifest = artifact.manifest.as_ref();
    manifest.is_some_and(|manifest| manifest.layers().all(is_erofs))
}

/// Layers that say no type are of the platform's own, if they are named by their digest.
fn is_erofs(layer: &Layer) -> bool {
    match layer.media_type.as_str() {
        "" => layer.hashes.get("sha256") == Some(&layer.id),
        media_type => media_type == Layer::EROFS,
    }
}

/// Services are named after their app; those of others stay.
fn rename(service: &str, old: &str, new: &str) -> String {
    match service
        .strip_prefix(old)
        .filter(|rest| rest.is_empty() || rest.starts_with('-'))
    {
        Some(rest) => format!("{new}{rest}"),
        None => service.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_follow_the_name_of_their_app() {
        assert_eq!(rename("shop-web", "shop", "shop-2"), "shop-2-web");
        assert_eq!(rename("shop", "shop", "other"), "other");
        assert_eq!(rename("shopping-web", "shop", "other"), "shopping-web");
        assert_eq!(rename("", "shop", "other"), "");
    }
}
