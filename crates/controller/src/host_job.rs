//! A job as its host is to run it: the release's images, command, environment and limits together.

use std::collections::BTreeMap;

use api::host::{ContainerConfig, HostJob, HostPort, HostService, Mountspec, VolumeBinding};
use state::State;
use types::{Artifact, Entrypoint, Job, OneOff, Port, ProcessType, VolumeState};

/// Seconds between SIGTERM and SIGKILL where a process type says nothing else.
pub const STOP_TIMEOUT_S: u32 = 30;

/// The start script of images made by buildpacks; it sets up the app's environment first.
const RUNNER: &str = "/runner/init";

/// `None` while something that the job refers to is missing (it was deleted meanwhile).
pub fn host_job(state: &State, job: &Job) -> Option<HostJob> {
    let app = state.apps.get(&job.app)?;
    let release = match job.release {
        Some(id) => Some(state.releases.get(&id)?),
        None => None,
    };
    let one_off = job.one_off.as_ref();
    let ids = match one_off {
        Some(one_off) if !one_off.artifacts.is_empty() => &one_off.artifacts,
        _ => &release?.artifacts,
    };
    let artifacts: Vec<_> = ids
        .iter()
        .map(|id| state.artifacts.get(id).cloned())
        .collect::<Option<_>>()?;
    let default = ProcessType::default();
    let process = release.and_then(|release| release.processes.get(&job.process_type));
    let process = if one_off.is_some() { &default } else { process? };
    let entrypoint = entrypoint(artifacts.iter().map(AsRef::as_ref));

    let mut env = entrypoint.env.clone();
    if let Some(release) = release
        && one_off.is_none_or(|one_off| one_off.release_env)
    {
        env.extend(release.env.clone());
    }
    env.extend(process.env.clone());
    env.extend(one_off.map(|one_off| one_off.env.clone()).unwrap_or_default());
    let reference = job.reference().to_string();
    let mut own = vec![
        ("FLYNN_APP_ID", app.id.to_string()),
        ("FLYNN_APP_NAME", app.name.clone()),
        ("FLYNN_PROCESS_TYPE", job.process_type.clone()),
        ("FLYNN_JOB_ID", reference.clone()),
    ];
    own.extend(release.map(|release| ("FLYNN_RELEASE_ID", release.id.to_string())));
    for (index, port) in process.ports.iter().enumerate() {
        own.push(("PORT", port.port.to_string()));
        env.insert(format!("PORT_{index}"), port.port.to_string());
    }
    own.reverse();
    env.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));

    let resources = match one_off {
        Some(one_off) => &one_off.resources,
        None => &process.resources,
    };
    let mut metadata = BTreeMap::from([
        (HostJob::APP.to_owned(), app.id.to_string()),
        (HostJob::APP_NAME.to_owned(), app.name.clone()),
        (HostJob::TYPE.to_owned(), job.process_type.clone()),
    ]);
    metadata.extend(release.map(|release| (HostJob::RELEASE.to_owned(), release.id.to_string())));
    if one_off.is_none() {
        metadata.insert(HostJob::FORMATION.to_owned(), "true".to_owned());
    }
    Some(HostJob {
        id: reference,
        mountspecs: artifacts
            .iter()
            .filter_map(|artifact| artifact.manifest.as_ref())
            .flat_map(mountspecs)
            .collect(),
        metadata,
        resources: resources.with_defaults(),
        partition: if one_off.is_some_and(|one_off| one_off.profile == "build") {
            "background"
        } else {
            "user"
        }
        .into(),
        config: ContainerConfig {
            args: command(job, process, &entrypoint),
            tty: one_off.is_some_and(|one_off| one_off.tty.is_some()),
            stdin: one_off.is_some_and(|one_off| one_off.attached),
            env,
            mounts: one_off.map(|one_off| one_off.mounts.clone()).unwrap_or_default(),
            volumes: volumes(state, job)?,
            ports: ports(&app.name, &job.process_type, process),
            working_dir: entrypoint.cwd.clone(),
            uid: entrypoint.uid,
            gid: entrypoint.gid,
            host_network: false,
            disable_log: one_off.is_some_and(|one_off| one_off.disable_log),
            linux_capabilities: process
                .linux_capabilities
                .clone()
                .or(entrypoint.linux_capabilities.clone()),
            tty_size: one_off.and_then(|one_off| one_off.tty),
            wait_for_attach: one_off.is_some_and(|one_off| one_off.attached),
            stop_timeout: process.stop_timeout.unwrap_or(STOP_TIMEOUT_S),
            groups: entrypoint.groups.clone(),
            stop_signal: entrypoint.stop_signal.clone(),
            healthcheck: entrypoint.healthcheck.clone().filter(|_| one_off.is_none()),
        },
        profiles: one_off.map(profiles).unwrap_or_default(),
    })
}

/// Its volumes, outer paths before what is mounted within them.
fn volumes(state: &State, job: &Job) -> Option<Vec<VolumeBinding>> {
    let rows: Option<Vec<_>> = job.volumes.iter().map(|id| state.volumes.get(id)).collect();
    let mut bindings: Vec<_> = rows?
        .into_iter()
        .map(|volume| VolumeBinding {
            target: volume.path.clone(),
            volume: volume.id,
            writeable: true,
            delete_on_stop: volume.delete_on_stop,
            is_new: volume.state == VolumeState::Pending,
        })
        .collect();
    bindings.sort_by(|one, other| one.target.cmp(&other.target));
    Some(bindings)
}

/// What the job runs, for the API: the command without the image's own start script is what users
/// know it by, but the original showed it whole, so it is.
pub fn args(state: &State, job: &Job) -> Vec<String> {
    match (&job.one_off, job.release.and_then(|id| state.releases.get(&id))) {
        (Some(one_off), _) => one_off.args.clone(),
        (None, Some(release)) => release
            .processes
            .get(&job.process_type)
            .map(|process| process.args.clone())
            .filter(|args| !args.is_empty())
            .unwrap_or_else(|| {
                let artifacts = release.artifacts.iter().filter_map(|id| state.artifacts.get(id));
                entrypoint(artifacts.map(AsRef::as_ref)).args
            }),
        (None, None) => vec![],
    }
}

/// The command of a further process in a job, set up as the job's own was.
pub fn exec_args(state: &State, job: &Job, args: Vec<String>) -> Vec<String> {
    let Some(release) = job.release.and_then(|id| state.releases.get(&id)) else {
        return args;
    };
    let artifacts = release
        .artifacts
        .iter()
        .filter_map(|id| state.artifacts.get(id))
        .map(AsRef::as_ref);
    with_runner(&entrypoint(artifacts), args)
}

/// Services that a process type offers: (service, port).
pub fn services<'a>(
    app_name: &'a str,
    process_type: &'a str,
    process: &'a ProcessType,
) -> impl Iterator<Item = (String, &'a Port)> {
    process.ports.iter().map(move |port| {
        let named = port
            .service
            .as_ref()
            .map(|service| service.name.as_str())
            .filter(|name| !name.is_empty());
        let name = named.or(Some(process.service.as_str()).filter(|name| !name.is_empty()));
        (
            name.map_or_else(|| format!("{app_name}-{process_type}"), str::to_owned),
            port,
        )
    })
}

fn ports(app_name: &str, process_type: &str, process: &ProcessType) -> Vec<HostPort> {
    services(app_name, process_type, process)
        .map(|(name, port)| HostPort {
            port: port.port,
            proto: if port.proto.is_empty() {
                "tcp".into()
            } else {
                port.proto.clone()
            },
            service: Some(HostService {
                name,
                create: true,
                check: port.service.as_ref().and_then(|service| service.check.clone()),
            }),
        })
        .collect()
}

/// How an image stack starts: the topmost image that says something wins, environment adds up.
fn entrypoint<'a>(artifacts: impl Iterator<Item = &'a Artifact>) -> Entrypoint {
    let mut all = Entrypoint::default();
    for entry in artifacts.filter_map(|artifact| artifact.manifest.as_ref()?.default_entrypoint()) {
        all.env.extend(entry.env.clone());
        if !entry.args.is_empty() {
            all.args = entry.args.clone();
        }
        if !entry.cwd.is_empty() {
            all.cwd = entry.cwd.clone();
        }
        all.groups = match entry.uid {
            Some(_) => entry.groups.clone(),
            None => all.groups,
        };
        all.uid = entry.uid.or(all.uid);
        all.gid = entry.gid.or(all.gid);
        if !entry.stop_signal.is_empty() {
            all.stop_signal = entry.stop_signal.clone();
        }
        all.healthcheck = entry.healthcheck.clone().or(all.healthcheck);
        all.linux_capabilities = entry.linux_capabilities.clone().or(all.linux_capabilities);
    }
    all
}

fn command(job: &Job, process: &ProcessType, entrypoint: &Entrypoint) -> Vec<String> {
    let args = match &job.one_off {
        Some(one_off) => one_off.args.clone(),
        None => process.args.clone(),
    };
    if args.is_empty() {
        entrypoint.args.clone()
    } else {
        with_runner(entrypoint, args)
    }
}

/// Commands of images with a start script go through it, or they would lack the app's environment.
fn with_runner(entrypoint: &Entrypoint, mut args: Vec<String>) -> Vec<String> {
    let has_runner = entrypoint.args.first().is_some_and(|first| first == RUNNER);
    if has_runner && args.first().is_some_and(|first| first != RUNNER) {
        args.insert(0, RUNNER.to_owned());
    }
    args
}

fn mountspecs(manifest: &types::ImageManifest) -> Vec<Mountspec> {
    manifest
        .layers()
        .map(|layer| Mountspec {
            kind: "erofs".into(),
            id: layer.id.clone(),
            url: String::new(),
            size: layer.length,
            hashes: layer.hashes.clone(),
            meta: layer.meta.clone(),
        })
        .collect()
}

fn profiles(one_off: &OneOff) -> Vec<String> {
    Some(one_off.profile.clone())
        .filter(|profile| !profile.is_empty())
        .into_iter()
        .collect()
}
