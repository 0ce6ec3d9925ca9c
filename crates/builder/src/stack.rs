//! The images that builds and apps run in: the host's stack, with packages added where a pack asks.

use std::{collections::BTreeSet, path::Path, process::Stdio};

use anyhow::{Context, bail};
use api::{Controller, wire::NewArtifact};
use daemon::StateDir;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};
use types::{ArtifactId, Digest, Entrypoint, ImageManifest, Layer, Platform, Rootfs};

use crate::{
    failure::{Failure, Result},
    output::Output,
    process::Group,
    push::Stop,
    repo::read_some,
    workspace::APP_ID,
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `stack.json`, as `script/base-image` writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Stack {
    run: Image,
    build: Image,
    recipe: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Image {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What apps run in.
    Run,
    /// What they are built in.
    Build,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Run => "run",
            Kind::Build => "build",
        }
    }
}

impl Stack {
    pub fn read(state: &StateDir) -> Result<Stack> {
        let text = daemon::files::read_if_exists(&state.stack())?;
        let text = text.ok_or_else(|| {
            Failure::refused([
                "This host has no base images to build in.",
                "Those who run it make them with script/base-image.",
            ])
        })?;
        Ok(serde_json::from_str(&text).with_context(|| format!("{} is damaged", state.stack().display()))?)
    }

    fn layers(&self, kind: Kind) -> &[Layer] {
        match kind {
            Kind::Run => &self.run.layers,
            Kind::Build => &self.build.layers,
        }
    }

    /// The artifact of an image, with `extra` on top.
    pub async fn artifact(
        &self,
        controller: &Controller,
        kind: Kind,
        extra: Option<&Layer>,
    ) -> Result<ArtifactId> {
        let mut layers = self.layers(kind).to_vec();
        layers.extend(extra.cloned());
        layers
            .iter_mut()
            .for_each(|layer| layer.media_type = Layer::EROFS.into());
        let mut uri = format!("flynn://stack/{}/{}", self.recipe, kind.name());
        uri.extend(extra.map(|layer| format!("/{}", layer.id)));
        let manifest = manifest(layers, Some(entrypoint(kind)));
        create_artifact(controller, uri, manifest, Default::default()).await
    }
}

impl Stack {
    /// What Dockerfiles are built in: the build image with `extra` on top, as root.
    pub async fn image_builder(&self, controller: &Controller, extra: &Layer) -> Result<ArtifactId> {
        let mut layers = self.layers(Kind::Build).to_vec();
        layers.push(extra.clone());
        layers
            .iter_mut()
            .for_each(|layer| layer.media_type = Layer::EROFS.into());
        let mut entrypoint = entrypoint(Kind::Build);
        (entrypoint.uid, entrypoint.gid, entrypoint.cwd) = (Some(0), Some(0), "/".into());
        entrypoint.env.insert("HOME".into(), "/root".into());
        // SETPCAP because each step is given fewer rights than the cage has.
        entrypoint.linux_capabilities = Some(vec!["CAP_SYS_ADMIN".into(), "CAP_SETPCAP".into()]);
        let uri = format!("flynn://stack/{}/images/{}", self.recipe, extra.id);
        create_artifact(
            controller,
            uri,
            manifest(layers, Some(entrypoint)),
            Default::default(),
        )
        .await
    }
}

fn entrypoint(kind: Kind) -> Entrypoint {
    let env = [("HOME", "/app"), ("PATH", PATH), ("LANG", "C.UTF-8")];
    let args: &[&str] = match kind {
        Kind::Run => &["/runner/init", "bash"],
        Kind::Build => &["/buildpacks/build"],
    };
    Entrypoint {
        env: env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        cwd: "/app".into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        linux_capabilities: None,
        uid: Some(APP_ID),
        gid: Some(APP_ID),
        ..Entrypoint::default()
    }
}

pub fn manifest(layers: Vec<Layer>, entrypoint: Option<Entrypoint>) -> ImageManifest {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ImageManifest {
        media_type: ImageManifest::MEDIA_TYPE.into(),
        meta: Default::default(),
        entrypoints: entrypoint
            .map(|entrypoint| ("_default".to_owned(), entrypoint))
            .into_iter()
            .collect(),
        rootfs: vec![Rootfs {
            platform: Some(Platform {
                architecture: architecture.into(),
                os: "linux".into(),
            }),
            layers,
        }],
    }
}

pub async fn create_artifact(
    controller: &Controller,
    uri: String,
    manifest: ImageManifest,
    meta: std::collections::BTreeMap<String, String>,
) -> Result<ArtifactId> {
    let size = serde_json::to_vec(&manifest)?.len() as i64;
    let artifact = NewArtifact {
        uri,
        meta: Some(meta).filter(|meta| !meta.is_empty()),
        manifest: Some(manifest),
        size: Some(size),
        ..NewArtifact::default()
    };
    let created = controller.create_artifact(&artifact).await;
    Ok(created
        .map_err(|error| Failure::of_controller("The image was not accepted", error))?
        .id)
}

/// Makes layers of Debian packages.
pub struct Packages<'a> {
    pub state: &'a StateDir,
    /// The program that does it.
    pub program: &'a Path,
    pub buildpacks: &'a Path,
    pub out: &'a Output,
    pub stop: Stop<'a>,
}

impl Packages<'_> {
    /// A layer of `packages` for on top of an image; quick when it was made before.
    ///
    /// Installing runs the packages' own scripts as root on the host, and a build may ask for what it
    /// likes. So only packages are installed that this host's own packs list.
    pub async fn layer(&self, stack: &Stack, kind: Kind, packages: &[String]) -> Result<Option<Layer>> {
        if packages.is_empty() {
            return Ok(None);
        }
        self.check_known(packages)?;
        self.trusted_layer(stack, kind, packages).await.map(Some)
    }

    fn check_known(&self, packages: &[String]) -> Result<()> {
        let known = known_packages(self.buildpacks)?;
        if let Some(unknown) = packages.iter().find(|name| !known.contains(*name)) {
            let shown: String = unknown.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(Failure::refused([
                format!(
                    "The buildpack needs the Debian package {shown:?}, which no pack of this platform lists."
                ),
                "A pack of your own can bring what it needs along in its bin/compile.".into(),
            ]));
        }
        Ok(())
    }

    /// Of packages that the platform itself asks for.
    pub async fn trusted_layer(&self, stack: &Stack, kind: Kind, packages: &[String]) -> Result<Layer> {
        let base: Vec<_> = stack.layers(kind).iter().map(|layer| layer.id.as_str()).collect();
        let mut command = Command::new(self.program);
        command
            .arg("--base")
            .arg(base.join(","))
            .arg(self.state.layers())
            .args(packages)
            .stdin(Stdio::null());
        let digest = tokio::select! {
            digest = self.make(command) => digest?,
            failure = self.stop.wanted() => return Err(failure),
        };
        let digest: Digest = digest
            .parse()
            .map_err(|_| anyhow::anyhow!("{} named no layer", self.program.display()))?;
        let length_bytes = std::fs::metadata(self.state.layers().join(format!("{digest}.erofs")))?.len();
        Ok(Layer::erofs(&digest, length_bytes))
    }

    /// The last line that the program prints; the others are shown.
    async fn make(&self, command: Command) -> Result<String> {
        let mut group =
            Group::spawn(command).with_context(|| format!("cannot run {}", self.program.display()))?;
        let (stdin, stdout, stderr) = group.streams();
        drop(stdin);
        let said = tokio::spawn(read_some(Some(stderr)));
        let mut lines = BufReader::new(stdout).lines();
        let mut last: Option<String> = None;
        while let Some(line) = lines.next_line().await? {
            if let Some(shown) = last.replace(line) {
                self.out.detail(shown);
            }
        }
        if !group.wait().await?.success() {
            let said = said.await.unwrap_or_default();
            return (|| bail!("packages cannot be installed: {}", said.trim()))().map_err(Failure::Broken);
        }
        Ok(last.unwrap_or_default().trim().to_owned())
    }
}

/// What the host's packs list.
fn known_packages(buildpacks: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut known = BTreeSet::new();
    for entry in
        std::fs::read_dir(buildpacks).with_context(|| format!("cannot read {}", buildpacks.display()))?
    {
        for list in ["bin/packages", "bin/run-packages"] {
            let text = daemon::files::read_if_exists(&entry.as_ref().expect("read").path().join(list))
                .unwrap_or_default();
            known.extend(listed(&text.unwrap_or_default()));
        }
    }
    Ok(known)
}

/// Names, with `#` before comments.
fn listed(text: &str) -> impl Iterator<Item = String> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_packages_are_read_as_the_driver_reads_them() {
        let names: Vec<_> = listed("# all\nruby ruby-dev # two\n\n\tbundler\n").collect();
        assert_eq!(names, ["ruby", "ruby-dev", "bundler"]);
    }

    #[test]
    fn the_stack_is_read_as_it_is_written() {
        let digest = "ab".repeat(32);
        let layer = format!(r#"{{"id":"{digest}","length":5,"hashes":{{"sha256":"{digest}"}}}}"#);
        let text = format!(
            r#"{{"run":{{"layers":[{layer}]}},"build":{{"layers":[{layer},{layer}]}},"recipe":"r"}}"#
        );
        let stack: Stack = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (stack.layers(Kind::Run).len(), stack.layers(Kind::Build).len()),
            (1, 2)
        );
    }
}
