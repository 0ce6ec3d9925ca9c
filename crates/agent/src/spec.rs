//! From a job as the controller describes it to a container as the shim makes it. Pure but for
//! looking at what the job's mounts are.
//!
//! What the release says wins over what is filled in here: the environment that the controller sent
//! is never overridden.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use api::host::{ContainerConfig, HostJob};
use container::{
    Bind, BindKind, InlineFile, Limits, LogFile, Process, SeccompProfile, Spec, WindowSize,
    capability::{self, Capability},
};
use rustix::process::Signal;
use types::JobId;

/// Where Debian's images, and most others, look for the authorities they trust.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What tells the clients of package registries where that is; each has a name of its own.
const CA_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LOG_BYTES_MAX: u64 = 10 << 20;
/// Readers want the newest two. The rest is what a log sink that fell behind still has to send, also
/// while nobody runs who could keep it; the daemon removes what no sink waits for.
const LOG_FILES_MAX: u32 = 16;
/// How long a job that waits for somebody to attach waits.
const ATTACH_PATIENCE: Duration = Duration::from_secs(60);
/// Seconds between SIGTERM and SIGKILL where the release does not say.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The port of a job that names none, as the original's was.
const PORT: u16 = 8080;

/// What a container needs besides the job's own wishes.
#[derive(Debug, Clone)]
pub struct Facts {
    pub job: JobId,
    pub address: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub discoverd_url: String,
    pub host_id_base: u32,
    pub cgroup: String,
    pub layers: Vec<PathBuf>,
    /// The host's authorities, where it has them.
    pub ca_bundle: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub volumes: Vec<Bind>,
}

/// What is wrong with the job is said in words for its owner.
pub fn build(job: &HostJob, facts: &Facts) -> Result<Spec, String> {
    let config = &job.config;
    let has_profile = |name: &str| job.profiles.iter().any(|profile| profile == name);
    let builds_images = has_profile("images");
    let is_build = has_profile("build") || builds_images;
    if config.host_network {
        return Err("host_network is not supported: every job has a network of its own".into());
    }
    if config.args.is_empty() {
        return Err("the process type has no command to run".into());
    }
    let limit = |name: &str| u64::try_from(job.resources.limit(name)).unwrap_or(0);
    let uid = config.uid.unwrap_or(0);
    let mut binds = config
        .mounts
        .iter()
        .map(bind)
        .collect::<Result<Vec<Bind>, String>>()?;
    binds.extend(facts.volumes.iter().cloned());
    if let Some(bundle) = &facts.ca_bundle {
        binds.push(Bind {
            source: bundle.clone(),
            target: CA_BUNDLE.into(),
            kind: BindKind::File,
            read_only: true,
            idmapped: true,
        });
    }
    Ok(Spec {
        id: facts.job.to_string(),
        hostname: facts.job.to_string(),
        process: Process {
            args: config.args.clone(),
            env: env(job, facts, is_build),
            cwd: if config.working_dir.is_empty() {
                "/".into()
            } else {
                config.working_dir.clone()
            },
            uid,
            gid: config.gid.unwrap_or(uid),
            groups: config.groups.clone(),
            terminal: config.tty.then(|| window(config)),
        },
        host_id_base: facts.host_id_base,
        layers: facts.layers.clone(),
        temp_disk_bytes: limit("temp_disk"),
        binds,
        files: files(facts),
        stdin: config.stdin,
        limits: Limits {
            memory_bytes: Some(limit("memory")).filter(|bytes| *bytes > 0),
            cpu_milli: u32::try_from(limit("cpu")).ok().filter(|milli| *milli > 0),
            cpu_is_capped: false,
            processes_max: u32::try_from(limit("max_processes"))
                .ok()
                .filter(|count| *count > 0),
            open_files_max: Some(limit("max_fd")).filter(|count| *count > 0),
        },
        cgroup: facts.cgroup.clone(),
        extra_capabilities: extra_capabilities(config)?,
        seccomp: match (builds_images, is_build) {
            (true, _) => SeccompProfile::Images,
            (false, true) => SeccompProfile::Builder,
            (false, false) => SeccompProfile::Default,
        },
        readonly_root: false,
        log: facts.log.clone().map(|path| LogFile {
            path,
            bytes_max: LOG_BYTES_MAX,
            files_max: LOG_FILES_MAX,
        }),
        wait_for_attach_ms: config
            .wait_for_attach
            .then_some(ATTACH_PATIENCE.as_millis() as u64),
        stop_signal: signal(&config.stop_signal)?,
    })
}

/// By name, with or without `SIG`, or by number, as images have it.
fn signal(text: &str) -> Result<i32, String> {
    if text.is_empty() {
        return Ok(Signal::TERM.as_raw());
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = match name.parse::<i32>() {
        Ok(number) => Some(number).filter(|number| (1..=64).contains(number)),
        Err(_) => SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, signal)| signal.as_raw()),
    };
    found.ok_or_else(|| format!("its image asks to be stopped by the signal {text:?}, which is not known"))
}

/// Those that programs ask to be stopped by.
const SIGNALS: [(&str, Signal); 10] = [
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("HUP", Signal::HUP),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("WINCH", Signal::WINCH),
    ("ABRT", Signal::ABORT),
    ("CONT", Signal::CONT),
];

pub fn stop_grace(job: &HostJob) -> Duration {
    match job.config.stop_timeout {
        0 => STOP_TIMEOUT,
        seconds => Duration::from_secs(seconds.into()),
    }
}

fn window(config: &ContainerConfig) -> WindowSize {
    let size = config.tty_size.unwrap_or(types::Tty {
        columns: 80,
        lines: 24,
    });
    WindowSize {
        columns: size.columns,
        rows: size.lines,
    }
}

/// The original's list names everything the process has; here it adds to what every process has.
fn extra_capabilities(config: &ContainerConfig) -> Result<Vec<Capability>, String> {
    let mut extra = Vec::new();
    for name in config.linux_capabilities.iter().flatten() {
        let capability = Capability::try_from(name.clone())?;
        if !capability::DEFAULT.contains(&capability) {
            extra.push(capability);
        }
    }
    Ok(extra)
}

fn bind(mount: &types::Mount) -> Result<Bind, String> {
    let source = Path::new(&mount.location);
    let kind = match std::fs::metadata(source) {
        Ok(meta) if meta.is_dir() => BindKind::Directory,
        Ok(_) => BindKind::File,
        Err(error) => return Err(format!("its mount {} is not there: {error}", mount.location)),
    };
    Ok(Bind {
        source: source.to_owned(),
        target: mount.target.clone().into(),
        kind,
        read_only: !mount.writeable,
        idmapped: true,
    })
}

fn env(job: &HostJob, facts: &Facts, is_build: bool) -> BTreeMap<String, String> {
    let mut env = job.config.env.clone();
    let mut default = |name: &str, value: String| {
        env.entry(name.to_owned()).or_insert(value);
    };
    let ports: Vec<u16> = job.config.ports.iter().map(|port| port.port).collect();
    default("PORT", ports.first().copied().unwrap_or(PORT).to_string());
    for (index, port) in ports.iter().enumerate() {
        default(&format!("PORT_{index}"), port.to_string());
    }
    default("EXTERNAL_IP", facts.address.to_string());
    default("HOSTNAME", facts.job.to_string());
    default("DISCOVERD", facts.discoverd_url.clone());
    for (name, key) in [
        ("FLYNN_APP_ID", HostJob::APP),
        ("FLYNN_APP_NAME", HostJob::APP_NAME),
        ("FLYNN_RELEASE_ID", HostJob::RELEASE),
        ("FLYNN_PROCESS_TYPE", HostJob::TYPE),
    ] {
        default(name, job.metadata.get(key).cloned().unwrap_or_default());
    }
    default("FLYNN_JOB_ID", job.id.clone());
    default("PATH", PATH.into());
    default("HOME", home(job.config.uid.unwrap_or(0)).into());
    if job.config.tty {
        default("TERM", "xterm".into());
    }
    if is_build && facts.ca_bundle.is_some() {
        for name in CA_VARIABLES {
            default(name, CA_BUNDLE.into());
        }
    }
    env
}

/// The images of this platform have two users; an image with others sets HOME itself.
fn home(uid: u32) -> &'static str {
    match uid {
        0 => "/root",
        1000 => "/app",
        _ => "/",
    }
}

fn files(facts: &Facts) -> Vec<InlineFile> {
    let file = |path: &str, content: String| InlineFile {
        path: path.into(),
        content,
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    let hostname = facts.job.to_string();
    vec![
        file("/etc/resolv.conf", format!("nameserver {}\n", facts.dns)),
        file(
            "/etc/hosts",
            format!(
                "127.0.0.1 localhost\n::1 localhost\n{} {hostname}\n",
                facts.address
            ),
        ),
        file("/etc/hostname", format!("{hostname}\n")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::host::HostPort;

    fn facts() -> Facts {
        Facts {
            job: JobId(uuid::Uuid::from_bytes([7; 16])),
            address: Ipv4Addr::new(100, 100, 0, 2),
            dns: Ipv4Addr::new(100, 100, 0, 1),
            discoverd_url: "http://100.100.0.1:1111".into(),
            host_id_base: 1 << 20,
            cgroup: "/flynn/x".into(),
            layers: vec!["/layers/a.erofs".into()],
            ca_bundle: Some("/host/ca.crt".into()),
            log: None,
            volumes: Vec::new(),
        }
    }

    fn job() -> HostJob {
        let mut job = HostJob {
            id: "host0-x".into(),
            ..HostJob::default()
        };
        job.config.args = vec!["serve".into()];
        job
    }

    #[test]
    fn ports_are_told_and_what_the_release_sets_is_left_alone() {
        let mut job = job();
        job.config.ports = [3000, 3001]
            .map(|port| HostPort {
                port,
                ..HostPort::default()
            })
            .to_vec();
        job.config.env.insert("PORT".into(), "9".into());
        let env = build(&job, &facts()).unwrap().process.env;
        let got: Vec<&str> = [
            "PORT",
            "PORT_0",
            "PORT_1",
            "EXTERNAL_IP",
            "DISCOVERD",
            "FLYNN_JOB_ID",
        ]
        .iter()
        .map(|name| env[*name].as_str())
        .collect();
        assert_eq!(
            got,
            [
                "9",
                "3000",
                "3001",
                "100.100.0.2",
                "http://100.100.0.1:1111",
                "host0-x"
            ]
        );
    }

    #[test]
    fn a_job_without_ports_has_the_default_one() {
        assert_eq!(build(&job(), &facts()).unwrap().process.env["PORT"], "8080");
    }

    #[test]
    fn only_builds_are_pointed_at_the_hosts_authorities_but_all_have_them() {
        let plain = build(&job(), &facts()).unwrap();
        assert!(!plain.process.env.contains_key("SSL_CERT_FILE"));
        assert_eq!(plain.binds[0].target, Path::new(CA_BUNDLE));
        assert_eq!(plain.seccomp, SeccompProfile::Default);
        let mut job = job();
        job.profiles = vec!["build".into()];
        let build = build(&job, &facts()).unwrap();
        assert_eq!(build.process.env["NODE_EXTRA_CA_CERTS"], CA_BUNDLE);
        assert_eq!(build.seccomp, SeccompProfile::Builder);
    }

    #[test]
    fn limits_come_from_the_resources_and_their_defaults() {
        let limits = build(&job(), &facts()).unwrap().limits;
        assert_eq!(
            (limits.memory_bytes, limits.processes_max),
            (Some(1 << 30), Some(1024))
        );
    }

    #[test]
    fn the_polite_signal_is_the_images() {
        let told: Vec<_> = ["", "SIGQUIT", "winch", "3", "SIGNOTHING", "99"]
            .map(|text| signal(text).unwrap_or(-1))
            .to_vec();
        assert_eq!(told, [15, 3, 28, 3, -1, -1]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_in_words() {
        let refused = |change: fn(&mut HostJob)| {
            let mut job = job();
            change(&mut job);
            build(&job, &facts()).unwrap_err()
        };
        assert!(refused(|job| job.config.args.clear()).contains("no command"));
        assert!(refused(|job| job.config.host_network = true).contains("host_network"));
        assert!(refused(|job| job.config.linux_capabilities = Some(vec!["CAP_X".into()])).contains("CAP_X"));
        let mount = |job: &mut HostJob| {
            job.config.mounts = vec![types::Mount {
                location: "/nowhere".into(),
                target: "/x".into(),
                writeable: false,
            }];
        };
        assert!(refused(mount).contains("/nowhere"));
    }
}
