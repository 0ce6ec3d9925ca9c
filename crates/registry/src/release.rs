//! A pushed image becomes an artifact and a release of its app.
//!
//! ```text
//!  manifest ─▶ prepare: the image for this architecture, its layers converted and compared
//!           ─▶ publish: artifact, release; deployed where the app says so
//! ```
//!
//! A release that would be the same as the app's current one is not made again: a push that is repeated
//! changes nothing.

use std::{collections::BTreeMap, sync::Arc};

use api::{
    ClientError, Controller,
    wire::{NewArtifact, NewRelease},
};
use types::{App, Digest, ImageManifest, Layer, Platform, Release, Rootfs};

use crate::{
    error::{Code, Failure, Result},
    image::{Config, Image, processes},
    layer::{
        converter::{ConvertError, Converter},
        worker::Converted,
    },
    manifest::{Body, Descriptor, Manifest},
    name::BlobDigest,
    store::{Repository, Store},
};

/// What a release says about the image it came from.
pub const META_IMAGE: &str = "docker.digest";
const META_TAG: &str = "docker.tag";
/// The original's, by which an app's releases made from images are known.
const META_RECEIVED: &str = "docker-receive";
/// App metadata: whether a push is deployed at once.
pub const META_DEPLOY: &str = "docker-push-deploy";

const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Docker builds no more than 127; the kernel stacks 500.
const LAYERS_MAX: usize = 300;

/// An image that can be run.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub image: Image,
    pub layers: Vec<Arc<Converted>>,
    /// Of the image itself, also where an index was pushed.
    pub digest: BlobDigest,
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(Code::ManifestInvalid, text)
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The image of a manifest, or of an index the one for this architecture.
pub async fn prepare(
    store: &Store,
    repository: &Repository,
    converter: &Converter,
    digest: &BlobDigest,
    manifest: &Manifest,
) -> Result<Prepared> {
    let chosen;
    let (digest, manifest) = match &manifest.body {
        Body::Image { .. } => (digest.clone(), manifest),
        Body::Index { manifests } => {
            let found = choose(manifests)?;
            let bytes = store.read(&found.digest)?.ok_or_else(|| missing(&found.digest))?;
            let media_type = repository.manifest(&found.digest)?;
            chosen = Manifest::parse(&bytes, media_type.as_deref())?;
            (found.digest.clone(), &chosen)
        }
    };
    let Body::Image { config, layers } = &manifest.body else {
        return Err(invalid("the index leads to another index, and not to an image"));
    };
    if store
        .size(&config.digest)
        .is_some_and(|size| size > CONFIG_BYTES_MAX)
    {
        return Err(invalid(format!(
            "the image's configuration is longer than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    let bytes = store
        .read(&config.digest)?
        .ok_or_else(|| missing(&config.digest))?;
    let config: Config = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("the image's configuration is not valid: {error}")))?;
    if let Some(problem) = config.problem(architecture()) {
        return Err(invalid(problem));
    }
    if layers.len() > LAYERS_MAX {
        return Err(invalid(format!(
            "the image has {} layers; {LAYERS_MAX} are taken",
            layers.len()
        )));
    }
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(invalid(format!(
            "the image has {} layers, and its configuration names {}",
            layers.len(),
            diff_ids.len()
        )));
    }
    let mut converted = Vec::with_capacity(layers.len());
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        if layer.is_foreign() {
            return Err(invalid(format!(
                "the layer {} is kept elsewhere and cannot be run",
                layer.digest
            )));
        }
        let done = converter.layer(&layer.digest, &store.blob(&layer.digest)).await;
        let done = done.map_err(|error| match error {
            ConvertError::Refused(text) => invalid(format!("the layer {} is refused: {text}", layer.digest)),
            ConvertError::Failed(text) if text.contains("No space left") => Failure::disk_full(),
            ConvertError::Failed(text) => {
                tracing::error!(layer = %layer.digest, error = text, "a layer cannot be converted");
                Failure::unavailable(format!("the layer {} cannot be unpacked: {text}", layer.digest))
            }
        })?;
        if *diff_id != format!("sha256:{}", done.contents.diff_id) {
            return Err(invalid(format!(
                "the layer {} is not the one that the configuration names: it is sha256:{} when unpacked, not {diff_id}",
                layer.digest, done.contents.diff_id
            )));
        }
        converted.push(done);
    }
    let contents: Vec<_> = converted.iter().map(|layer| &layer.contents).collect();
    let image = config.image(&contents).map_err(invalid)?;
    Ok(Prepared {
        image,
        layers: converted,
        digest,
    })
}

fn missing(digest: &BlobDigest) -> Failure {
    Failure::new(
        Code::ManifestBlobUnknown,
        format!("{digest} is not in this repository"),
    )
}

pub fn choose(manifests: &[Descriptor]) -> Result<&Descriptor> {
    let own = |descriptor: &&Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
    };
    manifests.iter().find(own).ok_or_else(|| {
        let others: Vec<String> = manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        invalid(format!(
            "there is no image for linux/{} among {}. hint: build it with --platform linux/{}",
            architecture(),
            others.join(", "),
            architecture()
        ))
    })
}

/// How a push asks for its release.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub tag: String,
    /// What the process of an app without any is to be called.
    pub first_process: Option<String>,
    /// Only release, whoever deploys it.
    pub is_deployed_by_client: bool,
    /// For a build: what else the release says of itself. With any, there is always a new release.
    pub meta: BTreeMap<String, String>,
    /// For a build: commands by process type, run by the image's shell.
    pub commands: BTreeMap<String, String>,
}

/// The release of an image; the one that is there already where nothing is new.
pub async fn publish(
    controller: &Controller,
    app: &App,
    prepared: &Prepared,
    wish: &Wish,
) -> Result<Release> {
    let id = app.id.to_string();
    let artifact = controller
        .create_artifact(&artifact(prepared)?)
        .await
        .map_err(|error| of_controller("the image was not accepted", error))?;
    let previous = match controller.app_release(&id).await {
        Ok(release) => Some(release),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(of_controller("the app's release cannot be read", error)),
    };
    let mut image = prepared.image.clone();
    let commands = wish.commands.iter();
    image.process_types.extend(commands.map(|(name, command)| {
        let args = ["/bin/sh", "-c", command].map(str::to_owned);
        (name.clone(), args.to_vec())
    }));
    let processes = processes(app, previous.as_ref(), &image, wish.first_process.as_deref());
    let repeated = previous
        .as_ref()
        .filter(|previous| wish.meta.is_empty() && previous.artifacts == [artifact.id]);
    if let Some(previous) = repeated {
        let is_same = previous.meta.get(META_IMAGE) == Some(&prepared.digest.to_string());
        if is_same && processes.keys().eq(previous.processes.keys()) {
            return Ok(previous.clone());
        }
    }
    let (mut env, mut meta) = (BTreeMap::new(), BTreeMap::new());
    if let Some(previous) = &previous {
        env.extend(previous.env.clone());
        let is_of_push = |name: &str| name == "git" || name.starts_with("git.") || name == "buildpack";
        meta.extend(
            previous
                .meta
                .clone()
                .into_iter()
                .filter(|(name, _)| !is_of_push(name)),
        );
    }
    meta.insert(META_RECEIVED.into(), "true".into());
    meta.insert(META_IMAGE.into(), prepared.digest.to_string());
    meta.insert(META_TAG.into(), wish.tag.clone());
    meta.extend(wish.meta.clone());
    let release = controller
        .create_release(&NewRelease {
            app_id: Some(app.id),
            artifacts: Some(vec![artifact.id]),
            env: Some(env),
            meta: Some(meta),
            processes: Some(processes),
        })
        .await
        .map_err(|error| of_controller("the release was not accepted", error))?;
    let is_deployed =
        !wish.is_deployed_by_client && app.meta.get(META_DEPLOY).is_some_and(|value| value == "true");
    if previous.is_none() && !wish.is_deployed_by_client {
        // Nothing runs, so nothing is replaced; `flynn scale web=1` starts it.
        controller
            .set_app_release(&id, release.id)
            .await
            .map_err(|error| of_controller("the release cannot be made the app's", error))?;
    } else if is_deployed {
        controller
            .deploy(&id, release.id)
            .await
            .map_err(|error| of_controller("the release was made, and cannot be deployed", error))?;
    }
    tracing::info!(app = %app.name, release = %release.id, image = %prepared.digest, is_deployed, "image released");
    Ok(release)
}

fn artifact(prepared: &Prepared) -> Result<NewArtifact> {
    let layers = prepared
        .layers
        .iter()
        .map(|layer| {
            let digest: Digest = layer.digest.parse().map_err(|error: &str| invalid(error))?;
            Ok(Layer::erofs(&digest, layer.length))
        })
        .collect::<Result<Vec<_>>>()?;
    let manifest = ImageManifest {
        media_type: ImageManifest::MEDIA_TYPE.into(),
        meta: BTreeMap::new(),
        entrypoints: [("_default".to_owned(), prepared.image.entrypoint.clone())].into(),
        rootfs: vec![Rootfs {
            platform: Some(Platform {
                architecture: architecture().into(),
                os: "linux".into(),
            }),
            layers,
        }],
    };
    let text = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    Ok(NewArtifact {
        // By what it is to the platform: the same image under two names is one artifact.
        uri: format!("flynn://image/{}", BlobDigest::of(&text).hex()),
        // By which the state knows what it may remove with its last release.
        meta: Some([("blobstore".to_owned(), "true".to_owned())].into()),
        size: Some(text.len() as i64),
        manifest: Some(manifest),
        ..NewArtifact::default()
    })
}

fn of_controller(what: &str, error: ClientError) -> Failure {
    if error.may_retry() {
        return Failure::unavailable(format!("{what}: {error}"));
    }
    match error {
        ClientError::Api(error) => {
            let hint = if error.hint.is_empty() {
                String::new()
            } else {
                format!(". hint: {}", error.hint)
            };
            Failure::new(Code::Denied, format!("{what}: {}{hint}", error.message))
        }
        error => Failure::unavailable(format!("{what}: {error}")),
    }
}
