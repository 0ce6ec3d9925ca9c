//! Builds with a Dockerfile: buildah in a cage, the result pushed to the cluster's registry from in there.
//!
//! The cage is as that of buildpacks but for three things: its process is root in its own user namespace, it
//! may mount (the profile `images`), and it has the app's key, by which it reaches this app's images and no
//! others. What it builds is not looked at here: the registry takes it as it would from anybody, and makes the
//! release of it.
//!
//! Layers are kept between builds in the registry, too (`APP/cache`), so the cage begins empty each time and
//! the next build finds them on whatever host it runs.

use std::collections::BTreeMap;

use api::{Client, wire::NewJob};
use daemon::AppTokens;
use serde::Deserialize;
use serde_json::json;
use types::{App, Mount, Release, ReleaseId};

use crate::{
    build::Build,
    failure::{Failure, Result},
    release::BUILD_TYPE,
    workspace::Workspace,
};

/// App metadata: `dockerfile` or `buildpack`, where the repository's own look is not to decide.
const META_BUILDER: &str = "builder";
/// App metadata: `NAME=VALUE` pairs for `ARG`, separated by spaces.
const META_ARGUMENTS: &str = "docker-build-args";
const DOCKERFILE: &str = "Dockerfile";
/// Which of the app's repositories holds what builds made; pushes by hand have the others.
const REPOSITORY: &str = "build";
const TAG: &str = "git";
/// What the cage needs on top of the stack.
pub const PACKAGES: [&str; 3] = ["buildah", "crun", "netavark"];

/// Everything comes by variables, so that nothing of it is read as a command.
const SCRIPT: &str = r#"
set -eu
cd /tmp
mkdir -p build /storage
tar -xf .source.tar -C build
rm -f .source.tar
gateway=$(awk '$1 == "nameserver" {print $2; exit}' /etc/resolv.conf)
printf '%s %s\n' "$gateway" "${REGISTRY%%:*}" >>/etc/hosts
export REGISTRY_AUTH_FILE=/storage/auth.json HOME=/root TMPDIR=/storage
export BUILDAH_ISOLATION=chroot BUILDAH_NOPIVOT=true STORAGE_DRIVER=vfs
printf '{"auths":{"%s":{"auth":"%s"}}}' "$REGISTRY" "$(printf 'build:%s' "$APP_KEY" | base64 -w0)" >"$REGISTRY_AUTH_FILE"
mkdir -p /etc/containers
printf '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
printf 'unqualified-search-registries = ["docker.io"]\n[[registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY" >/etc/containers/registries.conf
printf '[storage]\ndriver = "vfs"\nrunroot = "/storage/run"\ngraphroot = "/storage/images"\n' >/etc/containers/storage.conf
arguments=()
while IFS= read -r line; do
  if [ -n "$line" ]; then arguments+=(--build-arg "$line"); fi
done <<<"$BUILD_ARGUMENTS"
for file in /env/*; do
  if [ -f "$file" ]; then arguments+=(--secret "id=$(basename "$file"),src=$file"); fi
done
files=$(ulimit -Hn)
image=$REGISTRY/$APP/build:git
buildah build --format docker --layers --cache-from "$REGISTRY/$APP/cache" --cache-to "$REGISTRY/$APP/cache" \
  --ulimit "nofile=$files:$files" --ulimit nproc=1024:1024 "${arguments[@]}" \
  --file "build/$DOCKERFILE" --tag "$image" build
printf -- '-----> Pushing the image\n'
buildah push --quiet "$image"
"#;

/// What a commit has that tells how it is built.
#[derive(Debug, Clone, Default)]
pub struct Looks {
    pub has_dockerfile: bool,
    /// `.buildpacks`, or the variable BUILDPACK_URL.
    pub names_buildpacks: bool,
    pub heroku_yml: Option<String>,
}

/// The Dockerfile to build with; `None` for buildpacks. What the app says comes first, then what its
/// repository says, then what is there: a Dockerfile wins over what a buildpack would find, as one is written
/// to be used.
pub fn choose(app: &App, looks: &Looks) -> Result<Option<String>> {
    match app.meta.get(META_BUILDER).map(String::as_str) {
        Some("buildpack" | "buildpacks") => return Ok(None),
        Some("dockerfile" | "docker") if looks.has_dockerfile || looks.heroku_yml.is_some() => {}
        Some("dockerfile" | "docker") => {
            return Err(Failure::refused([
                "The app is built with a Dockerfile, and there is none in this commit.",
                "Add one, or let buildpacks build it: flynn meta set builder=buildpack",
            ]));
        }
        Some(other) => {
            return Err(Failure::refused([
                format!("The app's builder is {other:?}, which is not known."),
                "Set one that is: flynn meta set builder=dockerfile (or buildpack)".to_owned(),
            ]));
        }
        None if looks.heroku_yml.as_deref().and_then(path_of).is_some() => {}
        None if looks.names_buildpacks || !looks.has_dockerfile => return Ok(None),
        None => {}
    }
    let path = looks.heroku_yml.as_deref().and_then(path_of);
    let path = path.unwrap_or_else(|| DOCKERFILE.into());
    let is_within = !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != "..");
    match is_within {
        true => Ok(Some(path)),
        false => Err(Failure::refused([format!(
            "{path:?} is no Dockerfile of this repository."
        )])),
    }
}

/// `build: docker: web: PATH` of a heroku.yml, or the first type's where there is no web.
fn path_of(text: &str) -> Option<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut within: Vec<(usize, &str)> = vec![];
    let mut found: Option<String> = None;
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let depth = indent(line);
        within.retain(|(above, _)| *above < depth);
        let (key, value) = line.trim().split_once(':')?;
        let names: Vec<&str> = within.iter().map(|(_, name)| *name).collect();
        let value = value.trim().trim_matches(['"', '\'']);
        if names == ["build", "docker"] && !value.is_empty() && (key == "web" || found.is_none()) {
            found = Some(value.to_owned());
        }
        within.push((depth, key));
    }
    found
}

/// `NAME=VALUE` by lines, from the app's metadata.
fn arguments(app: &App) -> String {
    let text = app.meta.get(META_ARGUMENTS).map_or("", String::as_str);
    let pairs = text.split_whitespace().filter(|pair| pair.contains('='));
    pairs.collect::<Vec<_>>().join("\n")
}

/// Commands by type of a repository's Procfile, which an image's own command gives way to.
pub fn procfile(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, command)| (name.trim().to_owned(), command.trim().to_owned()))
        .filter(|(name, command)| types::check_process_type(name).is_ok() && !command.is_empty())
        .collect()
}

/// The registry as the builder and its cages reach it.
pub struct Registry {
    pub client: Client,
    /// `images.DOMAIN:PORT`, for those in the cage.
    pub host: String,
    pub tokens: AppTokens,
}

/// The job that builds and pushes.
pub fn job(
    build: &Build<'_>,
    registry: &Registry,
    workspace: &Workspace,
    image: types::ArtifactId,
    dockerfile: &str,
    resources: types::Resources,
) -> NewJob {
    let mount = |location: &std::path::Path, target: &str, writeable| Mount {
        location: location.display().to_string(),
        target: target.to_owned(),
        writeable,
    };
    let app = build.app;
    let env = [
        ("APP", app.name.clone()),
        ("APP_KEY", registry.tokens.issue(app.id, &app.name)),
        ("REGISTRY", registry.host.clone()),
        ("DOCKERFILE", dockerfile.to_owned()),
        ("BUILD_ARGUMENTS", arguments(app)),
        ("SOURCE_VERSION", build.commit.to_owned()),
    ];
    NewJob {
        artifacts: vec![image],
        args: vec!["/bin/bash".into(), "-c".into(), SCRIPT.into()],
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        disable_log: true,
        resources,
        process_type: BUILD_TYPE.into(),
        mounts: vec![
            mount(&workspace.work(), "/tmp", true),
            mount(&workspace.env(), "/env", false),
        ],
        host: Some(build.builder.host.clone()),
        profile: "images".into(),
        ..NewJob::default()
    }
}

/// Has the registry make a release of what the cage has pushed.
pub async fn publish(
    build: &Build<'_>,
    registry: &Registry,
    branch: &str,
    procfile: &BTreeMap<String, String>,
) -> Result<Release> {
    #[derive(Deserialize)]
    struct Published {
        release: ReleaseId,
    }
    let question = json!({
        "repository": format!("{}/{REPOSITORY}", build.app.name), "reference": TAG, "commands": procfile,
        "meta": {"git": "true", "git.commit": build.commit, "git.branch": branch, "builder": "dockerfile"},
    });
    let refused = |error| Failure::of_controller("The image was not accepted", error);
    let published: Published = registry
        .client
        .post("/publish", &question)
        .await
        .map_err(refused)?;
    let controller = &build.builder.controller;
    let release = controller.release(published.release).await;
    release.map_err(|error| Failure::of_controller("The release cannot be read", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(meta: &[(&str, &str)], looks: Looks, expected: &str) {
        let at = types::Timestamp::from_system(std::time::SystemTime::UNIX_EPOCH);
        let app = App {
            id: types::AppId(uuid::Uuid::nil()),
            name: "shop".into(),
            meta: meta
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            strategy: types::Strategy::default(),
            release: None,
            deploy_timeout: 120,
            created_at: at,
            updated_at: at,
        };
        let told = match choose(&app, &looks) {
            Ok(Some(path)) => path,
            Ok(None) => "buildpack".into(),
            Err(Failure::Refused(lines)) => lines.join(" "),
            Err(other) => format!("{other:?}"),
        };
        assert!(told.contains(expected), "{told}");
    }

    #[test]
    fn the_app_says_how_it_is_built_then_its_repository_then_its_files() {
        let with = |has_dockerfile, names_buildpacks, heroku_yml: Option<&str>| Looks {
            has_dockerfile,
            names_buildpacks,
            heroku_yml: heroku_yml.map(str::to_owned),
        };
        check(&[], with(false, false, None), "buildpack");
        check(&[], with(true, false, None), "Dockerfile");
        check(&[], with(true, true, None), "buildpack");
        check(&[("builder", "buildpack")], with(true, false, None), "buildpack");
        check(&[("builder", "dockerfile")], with(true, true, None), "Dockerfile");
        check(
            &[("builder", "dockerfile")],
            with(false, false, None),
            "there is none",
        );
        check(&[("builder", "make")], with(true, false, None), "not known");
        let yml = "setup:\n  addons: []\nbuild:\n  docker:\n    worker: w/Dockerfile # x\n    web: deploy/Dockerfile\n";
        check(&[], with(false, false, Some(yml)), "deploy/Dockerfile");
        check(
            &[],
            with(false, false, Some("build:\n  docker:\n    web: ../../x\n")),
            "no Dockerfile of this",
        );
        check(&[], with(true, false, Some("run:\n  web: x\n")), "Dockerfile");
    }

    #[test]
    fn a_procfile_names_commands() {
        let found = procfile("web: serve --all\n# no\nworker:work\nbad name: x\nempty:\n");
        let told: Vec<_> = found
            .iter()
            .map(|(name, command)| format!("{name}={command}"))
            .collect();
        assert_eq!(told, ["web=serve --all", "worker=work"]);
    }
}
