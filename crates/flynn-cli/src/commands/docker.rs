use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::Subcommand;
use types::{Release, ReleaseId};

use crate::{
    config::Config,
    context::Context,
    deploy,
    failure::{Failure, Result},
    image_archive,
    images::{self, Images},
    output,
};

/// How long a release may take to be made of an image that is pushed: large layers are converted.
const RELEASE_MAX: Duration = Duration::from_secs(900);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Deploy Docker images to the cluster
///
/// Deploy Docker images to the cluster, also those of Podman, OCI archives and OCI directories.
///
/// Whoever has an engine that is logged in can use that as well: `docker push images.DOMAIN/APP`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn docker push my-custom-image:v2
  deploying Docker image: my-custom-image:v2
  exporting image with 'docker save my-custom-image:v2'
  uploading layer fccbfa2912f0cd6b9d13f91f288f112a2b825f3f758a4443aacb45bfc108cc74
  111.52 MB 25.56 MB/s 4s
  Docker image deployed, scale it with 'flynn scale app=N'

  $ flynn docker push image.tar

  $ flynn docker login
  $ docker push images.flynn.example.com/shop")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Push an image to the app and deploy it
    ///
    /// The image is one of the engine on this machine (Docker's or Podman's), a file that `docker save` wrote,
    /// an OCI archive or an OCI directory; for files, no engine is needed.
    #[command(after_help = "Examples:

  $ flynn docker push my-custom-image:v2

  $ flynn docker push ./image.tar --tag v2")]
    Push {
        /// Which image of a file that has several
        #[arg(long)]
        tag: Option<String>,
        image: String,
    },
    /// Log the engine on this machine in to the cluster's registry
    #[command(after_help = "Examples:

  $ flynn docker login
  Login Succeeded")]
    Login,
    /// Log the engine on this machine out
    #[command(after_help = "Examples:

  $ flynn docker logout")]
    Logout,
    /// Set the address that engines push to, where it is not images.DOMAIN
    #[command(after_help = "Examples:

  $ flynn docker set-push-url https://docker.flynn.example.com")]
    SetPushUrl { url: Option<String> },
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            Verb::Push { tag, image } => push(context, &image, tag.as_deref()).await,
            Verb::Login => login(context),
            Verb::Logout => {
                let host = push_host(context)?;
                run(engine()?, &["logout", &host], None)
            }
            Verb::SetPushUrl { url } => set_push_url(context, url),
        }
    }
}

async fn push(context: &Context, name: &str, tag: Option<&str>) -> Result<()> {
    let app = context.app_row().await?;
    let registry = Images::new(context.cluster()?)?;
    eprintln!("deploying Docker image: {name}");
    let (path, _exported) = match Path::new(name).exists() {
        true => (PathBuf::from(name), None),
        false => {
            let file = export(name)?;
            (file.path.clone(), Some(file))
        }
    };
    let image = image_archive::read(&path, tag)?;
    for blob in &image.blobs {
        if registry.has(&app.name, blob).await? {
            continue;
        }
        let id = blob
            .digest
            .split_once(':')
            .map_or(blob.digest.as_str(), |(_, hex)| hex);
        eprintln!("uploading layer {id}");
        let began = Instant::now();
        registry.push_blob(&app.name, blob).await?;
        eprintln!("{}", rate(blob.length, began.elapsed()));
    }
    let tag = tag
        .or_else(|| name.rsplit_once(':').map(|(_, tag)| tag))
        .filter(|tag| {
            tag.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
        .unwrap_or("latest");
    let release = registry.push_manifests(&app.name, tag, "app", &image).await?;
    let id: ReleaseId = match release.and_then(|id| id.parse().ok()) {
        Some(id) => id,
        None => wait_for_release(context, &image.manifest).await?.id,
    };
    let controller = context.controller()?;
    if app.release != Some(id) {
        deploy::deploy(controller, &app.id.to_string(), id).await?;
    }
    let release = controller.release(id).await?;
    let process = ["app", "web"]
        .into_iter()
        .find(|name| release.processes.contains_key(*name))
        .or_else(|| release.processes.keys().next().map(String::as_str))
        .unwrap_or("app");
    eprintln!("Docker image deployed, scale it with 'flynn scale {process}=N'");
    Ok(())
}

/// The answer to a push does not wait for large layers; their release is made later.
async fn wait_for_release(context: &Context, manifest: &[u8]) -> Result<Release> {
    use sha2::{Digest as _, Sha256};
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(manifest)));
    let (controller, app) = (context.controller()?, context.app()?);
    let began = Instant::now();
    eprintln!("waiting until its layers are unpacked");
    while began.elapsed() < RELEASE_MAX {
        let releases = controller.app_releases(app).await?;
        let found = releases
            .into_iter()
            .find(|release| release.meta.get("docker.digest") == Some(&digest));
        if let Some(release) = found {
            return Ok(release);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Err(Failure::new("the image was pushed, and no release came of it")
        .with_hint("the host's log says why: `flynn-host log` or journalctl -u flynn-host"))
}

/// A file that goes with its owner.
struct Exported {
    path: PathBuf,
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn export(name: &str) -> Result<Exported> {
    let engine = engine().map_err(|failure| {
        Failure::new(format!("there is no file {name}, and {}", failure.message)).with_hint(failure.hint)
    })?;
    let file = Exported {
        path: std::env::temp_dir().join(format!("flynn-image-{}.tar", std::process::id())),
    };
    eprintln!("exporting image with '{engine} save {name}'");
    let began = Instant::now();
    run(
        engine,
        &["save", "--output", &file.path.display().to_string(), name],
        None,
    )?;
    let length = file.path.metadata().map_or(0, |meta| meta.len());
    eprintln!("{}", rate(length, began.elapsed()));
    Ok(file)
}

/// `111.58 MB 109.70 MB/s 1s`, as the original printed it.
fn rate(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(0.001);
    let per_second = (bytes as f64 / seconds) as u64;
    format!(
        "{} {}/s {}s",
        output::size(bytes),
        output::size(per_second),
        time.as_secs()
    )
}

/// The program that has images on this machine.
fn engine() -> Result<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    ["docker", "podman"].into_iter().find(is_there).ok_or_else(|| {
        Failure::new("there is neither docker nor podman on this machine").with_hint(
            "without an engine, name a file that `docker save` wrote, an OCI archive or an OCI directory",
        )
    })
}

fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<()> {
    use std::io::Write;
    let cannot = |error: std::io::Error| Failure::new(format!("{program} cannot be run: {error}"));
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .spawn()
        .map_err(cannot)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        let _ = stdin.write_all(input.as_bytes());
    }
    match child.wait().map_err(cannot)? {
        status if status.success() => Ok(()),
        _ => Err(Failure::new(format!(
            "{program} {} failed",
            args.first().unwrap_or(&"")
        ))),
    }
}

fn push_host(context: &Context) -> Result<String> {
    let cluster = context.cluster()?;
    let url = match cluster.docker_push_url.is_empty() {
        true => images::url(cluster),
        false => cluster.docker_push_url.clone(),
    };
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    Ok(host.trim_end_matches('/').to_owned())
}

fn login(context: &Context) -> Result<()> {
    let (host, key) = (push_host(context)?, context.cluster()?.key.clone());
    run(
        engine()?,
        &["login", "--username", "flynn", "--password-stdin", &host],
        Some(&key),
    )
    .map_err(|failure| {
        let path = format!("/etc/docker/certs.d/{host}/ca.crt");
        failure.with_hint(format!(
            "where the cluster has an authority of its own, the engine has to trust it: put it to {path}"
        ))
    })
}

fn set_push_url(context: &Context, url: Option<String>) -> Result<()> {
    let mut cluster = context.cluster()?.clone();
    cluster.docker_push_url = match (url, cluster.domain()) {
        (Some(url), _) if url.starts_with("https://") || url.starts_with("http://") => url,
        (Some(url), _) => {
            return Err(Failure::new(format!("{url:?} is no URL")).with_hint("begin it with https://"));
        }
        (None, Some(domain)) => format!("https://docker.{domain}"),
        (None, None) => {
            return Err(
                Failure::new("the cluster's address does not tell its domain").with_hint("name the URL")
            );
        }
    };
    let mut config = Config::load()?;
    config.put(cluster);
    config.save()
}
