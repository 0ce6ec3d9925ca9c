//! From an image's configuration to what the platform runs: entrypoint, process types, ports. Pure.
//!
//! What an image says is a default; what its owner set on the release before stays: limits, volumes,
//! further process types. The image's command is not copied into the release but taken from the artifact,
//! so that a release that only changes the environment goes on with it.

use std::collections::BTreeMap;

use serde::Deserialize;
use types::{
    App, Entrypoint, HealthCheck, ImageHealthcheck, Port, PortService, ProcessType, Release, VolumeRequest,
};

use crate::layer::archive::{Accounts, Contents};

/// Where web processes listen that say nothing, as the original had it.
const WEB_PORT: u16 = 8080;
const WEB: &str = "web";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Containers have this many ids.
const IDS: u32 = 65_536;

/// An image's configuration: what of it concerns us.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: Execution,
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    #[serde(default, deserialize_with = "null_is_default")]
    user: String,
    #[serde(default, deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(default, deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(default)]
    healthcheck: Option<Healthcheck>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Healthcheck {
    #[serde(default, deserialize_with = "null_is_default")]
    test: Vec<String>,
    #[serde(default)]
    interval: i64,
    #[serde(default)]
    timeout: i64,
    #[serde(default)]
    start_period: i64,
    #[serde(default)]
    retries: i64,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What an image is to the platform, beside its layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub entrypoint: Entrypoint,
    /// The one that web requests go to.
    pub port: u16,
    pub volumes: Vec<String>,
    /// Of a cloud native buildpack: commands by type.
    pub process_types: BTreeMap<String, Vec<String>>,
}

impl Config {
    /// What keeps it from running here, in words for whoever pushed it.
    pub fn problem(&self, architecture: &str) -> Option<String> {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        let own = if self.architecture.is_empty() {
            architecture
        } else {
            &self.architecture
        };
        if os != "linux" || own != architecture {
            return Some(format!(
                "the image is for {os}/{own}, and this cluster runs linux/{architecture}. \
                 hint: build it with --platform linux/{architecture}"
            ));
        }
        None
    }

    /// `layers` are the image's, lowest first. What cannot be done is said in words.
    pub fn image(&self, layers: &[&Contents]) -> Result<Image, String> {
        let execution = &self.config;
        let passwd = accounts(layers, |layer| &layer.passwd);
        let group = accounts(layers, |layer| &layer.group);
        let user = User::resolve(&execution.user, &passwd, &group)?;
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for entry in &execution.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            types::check_env_key(name, value).map_err(|error| error.to_string())?;
            env.insert(name.to_owned(), value.to_owned());
        }
        env.entry("PATH".into()).or_insert_with(|| PATH.into());
        env.entry("HOME".into()).or_insert(user.home);
        let mut args = execution.entrypoint.clone();
        args.extend(execution.cmd.iter().cloned());
        let process_types = buildpack_types(&execution.labels, &execution.entrypoint)?;
        if args.is_empty() && process_types.is_empty() {
            return Err("the image has neither ENTRYPOINT nor CMD, so there is nothing to run".into());
        }
        let cwd = match execution.working_dir.as_str() {
            "" => "/".to_owned(),
            dir if dir.starts_with('/') => dir.to_owned(),
            dir => format!("/{dir}"),
        };
        let port = web_port(&execution.exposed_ports, env.get("PORT").map(String::as_str));
        let volumes = execution
            .volumes
            .keys()
            .filter(|path| path.starts_with('/') && path.len() > 1)
            .map(|path| path.trim_end_matches('/').to_owned())
            .collect();
        let healthcheck = execution.healthcheck.as_ref().and_then(Healthcheck::of_image);
        Ok(Image {
            entrypoint: Entrypoint {
                env,
                cwd,
                args,
                linux_capabilities: None,
                uid: Some(user.uid),
                gid: Some(user.gid),
                groups: user.groups,
                stop_signal: execution.stop_signal.clone(),
                healthcheck,
            },
            port,
            volumes,
            process_types,
        })
    }
}

impl Healthcheck {
    /// `NONE` and an empty list are no check.
    fn of_image(&self) -> Option<ImageHealthcheck> {
        let args = match self.test.split_first()? {
            (kind, rest) if kind == "CMD" => rest.to_vec(),
            (kind, rest) if kind == "CMD-SHELL" => vec!["/bin/sh".into(), "-c".into(), rest.first()?.clone()],
            _ => return None,
        };
        (!args.is_empty()).then(|| ImageHealthcheck {
            args,
            interval: self.interval.max(0),
            timeout: self.timeout.max(0),
            start_period: self.start_period.max(0),
            retries: self.retries.max(0),
        })
    }
}

/// The topmost layer that says something about a file of accounts.
fn accounts(layers: &[&Contents], of: impl Fn(&Contents) -> &Accounts) -> String {
    for layer in layers.iter().rev() {
        match of(layer) {
            Accounts::Unchanged => {}
            Accounts::Removed => break,
            Accounts::Text(text) => return text.clone(),
        }
    }
    String::new()
}

struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

impl User {
    /// `USER`, `USER:GROUP`, by name or number, as Docker reads it.
    fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
        let (user, asked_group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let number: Option<u32> = user.parse().ok();
        // A name of digits is looked for as a name first.
        let found = lines().find(|fields| fields.first() == Some(&user)).or_else(|| {
            lines().find(|fields| number.is_some() && fields.get(2).and_then(|id| id.parse().ok()) == number)
        });
        let field = |index: usize| found.as_ref().and_then(|fields| fields.get(index)).copied();
        let uid = match field(2).and_then(|id| id.parse().ok()).or(number) {
            Some(uid) => uid,
            None => {
                return Err(format!(
                    "the image runs as the user {user:?}, who is not in its /etc/passwd. hint: use the number"
                ));
            }
        };
        let name = field(0).unwrap_or_default().to_owned();
        let primary = field(3).and_then(|id| id.parse().ok());
        let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let id_of = |fields: &Vec<&str>| fields.get(2).and_then(|id| id.parse::<u32>().ok());
        let gid = match asked_group.filter(|group| !group.is_empty()) {
            None => primary.unwrap_or(0),
            Some(asked) => match groups()
                .find(|fields| fields.first() == Some(&asked))
                .and_then(|fields| id_of(&fields))
                .or_else(|| asked.parse().ok())
            {
                Some(gid) => gid,
                None => {
                    return Err(format!(
                        "the image runs as the group {asked:?}, which is not in its /etc/group. hint: use the number"
                    ));
                }
            },
        };
        let is_member = |fields: &Vec<&str>| {
            !name.is_empty()
                && fields
                    .get(3)
                    .is_some_and(|members| members.split(',').any(|member| member == name))
        };
        // A group that was asked for stands for itself, as Docker has it.
        let mut more: Vec<u32> = match asked_group {
            Some(_) => vec![],
            None => groups()
                .filter(is_member)
                .filter_map(|fields| id_of(&fields))
                .filter(|id| *id != gid && *id < IDS)
                .collect(),
        };
        // Where there are others its own is among them, as after a login.
        if !more.is_empty() {
            more.insert(0, gid);
        }
        if uid >= IDS || gid >= IDS {
            return Err(format!(
                "the image runs as {uid}:{gid}; a container has ids below {IDS}"
            ));
        }
        let home = field(5)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/")
            .to_owned();
        Ok(User {
            uid,
            gid,
            groups: more,
            home,
        })
    }
}

/// Of several ports what the image's own PORT says, then the usual ones, then the lowest.
fn web_port(exposed: &BTreeMap<String, serde_json::Value>, port: Option<&str>) -> u16 {
    let tcp: Vec<u16> = exposed
        .keys()
        .map(|text| text.split_once('/').unwrap_or((text, "tcp")))
        .filter(|(_, protocol)| protocol.eq_ignore_ascii_case("tcp"))
        .filter_map(|(number, _)| number.parse().ok().filter(|port| *port != 0))
        .collect();
    let own = port
        .and_then(|text| text.parse::<u16>().ok())
        .filter(|port| *port != 0);
    let preferred = [own, Some(WEB_PORT), Some(80)];
    let usual = preferred.into_iter().flatten().find(|port| tcp.contains(port));
    usual.or(tcp.iter().min().copied()).or(own).unwrap_or(WEB_PORT)
}

/// The process types of an image made by cloud native buildpacks: each is started by a program of its own.
fn buildpack_types(
    labels: &BTreeMap<String, String>,
    entrypoint: &[String],
) -> Result<BTreeMap<String, Vec<String>>, String> {
    const LABEL: &str = "io.buildpacks.build.metadata";
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default, deserialize_with = "null_is_default")]
        processes: Vec<Process>,
        #[serde(default)]
        launcher: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Process {
        #[serde(rename = "type", default)]
        name: String,
    }
    let Some(text) = labels.get(LABEL) else {
        return Ok(BTreeMap::new());
    };
    let metadata: Metadata =
        serde_json::from_str(text).map_err(|error| format!("its label {LABEL} cannot be read: {error}"))?;
    let has_launcher = metadata.launcher.is_some()
        || entrypoint
            .first()
            .is_some_and(|program| program.starts_with("/cnb/"));
    if !has_launcher {
        return Ok(BTreeMap::new());
    }
    let names = metadata.processes.into_iter().map(|process| process.name);
    let known = names.filter(|name| types::check_process_type(name).is_ok());
    Ok(known
        .map(|name| {
            let program = format!("/cnb/process/{name}");
            (name, vec![program])
        })
        .collect())
}

/// The process types of a release of this image. `first` is what the process of a new app is called.
pub fn processes(
    app: &App,
    previous: Option<&Release>,
    image: &Image,
    first: Option<&str>,
) -> BTreeMap<String, ProcessType> {
    let mut processes = previous
        .map(|release| release.processes.clone())
        .unwrap_or_default();
    let is_ours = previous.is_some_and(|release| release.meta.contains_key(crate::release::META_IMAGE));
    if !is_ours {
        // What a build made does not run in another image; its owner's limits and volumes stay.
        for process in processes.values_mut() {
            if process
                .args
                .first()
                .is_some_and(|program| program == "/runner/init")
            {
                process.args.clear();
            }
        }
    }
    for (name, args) in &image.process_types {
        let process = processes.entry(name.clone()).or_default();
        process.args = args.clone();
    }
    let known = [WEB, "app"]
        .into_iter()
        .find(|name| processes.contains_key(*name));
    let serving = match (known, first) {
        (Some(known), _) => known,
        // One of workers only.
        (None, _) if !image.process_types.is_empty() => return processes,
        (None, Some(first)) => first,
        (None, None) => WEB,
    }
    .to_owned();
    let process = processes.entry(serving).or_default();
    listen(app, process, image);
    for path in &image.volumes {
        if !process.volumes.iter().any(|volume| volume.path == *path) {
            process.volumes.push(VolumeRequest {
                path: path.clone(),
                delete_on_stop: false,
            });
        }
    }
    processes
}

/// Ports and service of the process that serves the app's route.
fn listen(app: &App, process: &mut ProcessType, image: &Image) {
    let service = match process.service.is_empty() {
        true => format!("{}-web", app.name),
        false => process.service.clone(),
    };
    let check = process
        .ports
        .first()
        .and_then(|port| port.service.as_ref()?.check.clone())
        .unwrap_or_else(|| HealthCheck {
            kind: "tcp".into(),
            ..HealthCheck::default()
        });
    process.ports = vec![Port {
        port: image.port,
        proto: "tcp".into(),
        service: Some(PortService {
            name: service.clone(),
            create: true,
            check: Some(check),
        }),
    }];
    process.service = service;
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001:Node:/srv/node:/bin/sh\nbad\n";
    const GROUP: &str = "root:x:0:\nnode:x:1001:\nvideo:x:44:root,node\nstaff:x:50:\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let check = |text: &str, expected: &str| {
            let told = match User::resolve(text, PASSWD, GROUP) {
                Ok(user) => format!("{}:{} {:?} {}", user.uid, user.gid, user.groups, user.home),
                Err(error) => error,
            };
            assert!(told.contains(expected), "{text}: {told}");
        };
        check("", "0:0 [0, 44] /root");
        check("node", "1000:1001 [1001, 44] /srv/node");
        check("1000", "1000:1001 [1001, 44] /srv/node");
        check("node:staff", "1000:50 [] /srv/node");
        check("7:9", "7:9 [] /");
        check("7", "7:0 [] /");
        check("nobody", "not in its /etc/passwd");
        check("node:wheel", "not in its /etc/group");
        check("70000", "ids below");
    }

    fn image(config: &str) -> Result<Image, String> {
        let config: Config = serde_json::from_str(&format!(r#"{{"config":{config}}}"#)).unwrap();
        let contents = Contents {
            passwd: Accounts::Text(PASSWD.into()),
            group: Accounts::Text(GROUP.into()),
            ..Contents::default()
        };
        config.image(&[&contents, &Contents::default()])
    }

    #[test]
    fn what_an_image_says_becomes_its_entrypoint() {
        let image = image(
            r#"{"Entrypoint":["/serve"],"Cmd":["--all"],"Env":["A=1=2","PATH=/x"],"User":"node",
                "WorkingDir":"/srv","StopSignal":"SIGQUIT","Volumes":{"/data/":{}},"ExposedPorts":{"443/tcp":{},"80/tcp":{}},
                "Healthcheck":{"Test":["CMD-SHELL","curl -f x"],"Interval":5000000000}}"#,
        )
        .unwrap();
        let entrypoint = &image.entrypoint;
        assert_eq!(entrypoint.args, ["/serve", "--all"]);
        assert_eq!(
            (entrypoint.env["A"].as_str(), entrypoint.env["HOME"].as_str()),
            ("1=2", "/srv/node")
        );
        assert_eq!(
            (entrypoint.uid, entrypoint.gid, &entrypoint.groups[..]),
            (Some(1000), Some(1001), &[1001, 44][..])
        );
        assert_eq!(
            (entrypoint.cwd.as_str(), entrypoint.stop_signal.as_str()),
            ("/srv", "SIGQUIT")
        );
        assert_eq!(
            entrypoint.healthcheck.as_ref().unwrap().args,
            ["/bin/sh", "-c", "curl -f x"]
        );
        assert_eq!((image.port, image.volumes), (80, vec!["/data".to_owned()]));
    }

    #[test]
    fn an_image_that_says_nothing_about_ports_listens_where_it_is_told() {
        let first = |config: &str| image(config).unwrap().port;
        assert_eq!(first(r#"{"Cmd":["x"]}"#), 8080);
        assert_eq!(first(r#"{"Cmd":["x"],"Env":["PORT=3000"]}"#), 3000);
        assert_eq!(
            first(r#"{"Cmd":["x"],"ExposedPorts":{"5000":{},"4000/tcp":{}}}"#),
            4000
        );
        assert_eq!(first(r#"{"Cmd":["x"],"ExposedPorts":{"53/udp":{}}}"#), 8080);
        assert!(image("{}").unwrap_err().contains("nothing to run"));
        assert!(image("null").unwrap_err().contains("nothing to run"));
    }

    #[test]
    fn buildpack_images_tell_their_process_types() {
        let label =
            r#"{"processes":[{"type":"web","command":"x"},{"type":"worker"}],"launcher":{"version":"1"}}"#;
        let label = serde_json::to_string(label).unwrap();
        let image = image(&format!(
            r#"{{"Entrypoint":["/cnb/process/web"],"Labels":{{"io.buildpacks.build.metadata":{label}}}}}"#
        ))
        .unwrap();
        let types: Vec<_> = image
            .process_types
            .iter()
            .map(|(name, args)| format!("{name}={}", args[0]))
            .collect();
        assert_eq!(types, ["web=/cnb/process/web", "worker=/cnb/process/worker"]);
    }

    #[test]
    fn images_of_other_machines_are_refused() {
        let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        assert_eq!(
            config(r#"{"architecture":"amd64","os":"linux"}"#).problem("amd64"),
            None
        );
        let problem = config(r#"{"architecture":"arm64","os":"linux"}"#)
            .problem("amd64")
            .unwrap();
        assert!(
            problem.contains("linux/arm64") && problem.contains("--platform linux/amd64"),
            "{problem}"
        );
        assert!(
            config(r#"{"architecture":"amd64","os":"windows"}"#)
                .problem("amd64")
                .is_some()
        );
    }
}
