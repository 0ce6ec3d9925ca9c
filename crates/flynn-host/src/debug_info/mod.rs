//! `flynn-host collect-debug-info`: what somebody needs who is to find out from elsewhere what is wrong, in one file.
//!
//! ```text
//! about  config  cluster ─┐
//! jobs   state's files    ├─▶ texts ─▶ scrub ─▶ tar.gz
//! kernel  network  logs  ─┘
//! ```
//!
//! What cannot be asked is said in its place, and the rest is collected all the same: whoever runs this has a
//! machine on which something does not work.

mod scrub;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use api::host::ActiveJob;
use container::cgroup::Cgroup;
use scrub::{Secrets, scrub_settings};
use tokio::process::Command;
use types::Host;

use crate::{cluster, config::Config, format::table, host_client};

/// For each thing that is asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of one log file, its end.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Of one job's output, its end; and of how many files.
const JOB_LOG_BYTES_MAX: u64 = 64 << 10;
const JOB_LOGS_MAX: usize = 200;
const UNIT_LINES: &str = "10000";

pub struct Wish {
    pub include_env: bool,
    pub this_host: bool,
    pub log_dir: PathBuf,
    pub filename: Option<PathBuf>,
}

pub async fn run(config: &Config, config_path: &Path, wish: Wish) -> Result<()> {
    let host = config.host_id()?;
    let seconds = daemon::now().as_micros() / 1_000_000;
    let name = format!("flynn-host-debug-{host}-{seconds}");
    let path = match &wish.filename {
        Some(path) => path.clone(),
        None => std::env::temp_dir().join(format!("{name}.tar.gz")),
    };
    let mut collection = Collection {
        secrets: known_secrets(config),
        texts: BTreeMap::new(),
    };
    collection.about(&host.to_string());
    collection.configuration(config, config_path);
    collection.cluster(config, wish.this_host).await;
    collection.jobs(config, &wish).await;
    collection.files(config);
    collection.machine(config).await;
    collection.logs(config, &wish).await;
    let count = collection.texts.len();
    write_tar(&path, &name, collection).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "Created a tarball with the debug information of {host} at {} ({count} files).",
        path.display()
    );
    println!(
        "Keys and secret variables were taken out as far as they are known; look through it before you pass it on."
    );
    Ok(())
}

struct Collection {
    secrets: Secrets,
    texts: BTreeMap<String, String>,
}

/// The keys of this cluster, by which they are found.
fn known_secrets(config: &Config) -> Secrets {
    let mut secrets = Secrets::default();
    // These are there because they belong to the keys, and everybody knows them.
    let is_name = |file: &Path| file.ends_with("domains") || file.ends_with("cluster.domain");
    for file in files_in(&config.state().secrets()) {
        if !is_name(&file)
            && let Ok(text) = fs::read_to_string(&file)
        {
            secrets.add_file(&text);
        }
    }
    secrets
}

impl Collection {
    fn add(&mut self, name: &str, text: impl Into<String>) {
        self.texts.insert(name.to_owned(), text.into());
    }

    /// As text, or why not.
    fn add_result(&mut self, name: &str, text: Result<String>) {
        self.add(
            name,
            text.unwrap_or_else(|error| format!("not known: {error:#}\n")),
        );
    }

    fn add_file(&mut self, name: &str, path: &Path, bytes_max: u64) {
        let text = end_of(path, bytes_max).with_context(|| format!("cannot read {}", path.display()));
        self.add_result(name, text);
    }

    fn about(&mut self, host: &str) {
        let uname = rustix::system::uname();
        let text = format!(
            "version  {}\nhost     {host}\ntime     {}\nkernel   {} {} {}\n",
            api::VERSION,
            daemon::now(),
            uname.release().to_string_lossy(),
            uname.version().to_string_lossy(),
            uname.machine().to_string_lossy(),
        );
        self.add("about.txt", text);
    }

    fn configuration(&mut self, config: &Config, path: &Path) {
        let read = |path: &Path| -> Result<String> {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(scrub_settings(&text))
        };
        self.add_result("config/host.toml", read(path));
        self.add_result("config/cluster.toml", read(&config.state().cluster()));
    }

    async fn cluster(&mut self, config: &Config, this_host: bool) {
        let view = asked(async { cluster::view(&host_client::controller(config)?).await }).await;
        match view {
            Ok(view) => {
                self.add("cluster/list.txt", table(&cluster::list(&view, daemon::now())));
                self.add("cluster/status.txt", cluster::report(&view, daemon::now()));
            }
            Err(error) => self.add("cluster/status.txt", format!("not known: {error:#}\n")),
        }
        let hosts: Result<Vec<Host>> =
            asked(async { Ok(host_client::controller(config)?.client().get("/hosts").await?) }).await;
        self.add_result("cluster/hosts.json", json(&hosts));
        let volumes: Result<serde_json::Value> =
            asked(async { Ok(host_client::controller(config)?.client().get("/volumes").await?) }).await;
        self.add_result("cluster/volumes.json", json(&volumes));
        if this_host {
            return;
        }
        // What other hosts say of themselves. Their logs and machines are theirs to collect.
        for other in hosts.into_iter().flatten() {
            if config.host_id().is_ok_and(|own| own == other.id) {
                continue;
            }
            let status: Result<serde_json::Value> =
                asked(async { Ok(host_client::host_of(config, &other)?.get("/host/status").await?) }).await;
            self.add_result(&format!("hosts/{}/status.json", other.id), json(&status));
            let jobs: Result<BTreeMap<String, ActiveJob>> =
                asked(async { Ok(host_client::host_of(config, &other)?.get("/host/jobs").await?) }).await;
            let jobs = self.without_environment(jobs, false);
            self.add_result(&format!("hosts/{}/jobs.json", other.id), json(&jobs));
        }
    }

    async fn jobs(&mut self, config: &Config, wish: &Wish) {
        let status: Result<serde_json::Value> =
            asked(async { Ok(host_client::host(config)?.get("/host/status").await?) }).await;
        self.add_result("host/status.json", json(&status));
        let jobs = asked(async { Ok(host_client::host(config)?.get("/host/jobs").await?) }).await;
        let jobs = self.without_environment(jobs, wish.include_env);
        self.add_result("host/jobs.json", json(&jobs));
    }

    /// The names of variables stay; values that are secret are looked for in everything else.
    fn without_environment(
        &mut self,
        jobs: Result<BTreeMap<String, ActiveJob>>,
        include_env: bool,
    ) -> Result<BTreeMap<String, ActiveJob>> {
        let mut jobs = jobs?;
        if include_env {
            return Ok(jobs);
        }
        let environments = jobs.values_mut().filter_map(|job| job.job.as_mut());
        for (name, value) in environments.flat_map(|job| job.config.env.iter_mut()) {
            self.secrets.add_variable(name, value);
            *value = "[removed]".into();
        }
        Ok(jobs)
    }

    /// Which there are, how large and how old; not what is in them.
    fn files(&mut self, config: &Config) {
        let state = config.state();
        for (name, directory) in [
            ("raft", state.raft()),
            ("layers", state.layers()),
            ("jobs", state.jobs()),
            ("run", state.run()),
            ("volumes", state.volumes()),
            ("builds", state.builds()),
        ] {
            let mut text = String::new();
            for path in files_in(&directory) {
                let size = fs::symlink_metadata(&path)
                    .map(|meta| meta.len())
                    .unwrap_or_default();
                let _ = writeln!(text, "{size:>14} {}", path.display());
            }
            self.add(&format!("files/{name}.txt"), text);
        }
        self.add_file("host/network.json", &state.network_map(), LOG_BYTES_MAX);
    }

    async fn machine(&mut self, config: &Config) {
        for file in [
            "version",
            "uptime",
            "loadavg",
            "meminfo",
            "cpuinfo",
            "mounts",
            "cgroups",
            "filesystems",
            "modules",
            "net/dev",
            "net/sockstat",
            "net/snmp",
            "pressure/cpu",
            "pressure/memory",
            "pressure/io",
            "sys/net/ipv4/ip_forward",
            "sys/kernel/random/boot_id",
            "sys/user/max_user_namespaces",
            "self/cgroup",
            "self/mountinfo",
        ] {
            let name = format!("machine/proc-{}.txt", file.replace('/', "-"));
            self.add_file(&name, &Path::new("/proc").join(file), LOG_BYTES_MAX);
        }
        self.add_file(
            "machine/os-release.txt",
            Path::new("/etc/os-release"),
            LOG_BYTES_MAX,
        );
        self.add_file(
            "machine/resolv.conf.txt",
            Path::new("/etc/resolv.conf"),
            LOG_BYTES_MAX,
        );
        self.add_result("machine/cgroup.txt", cgroups(config));
        let table = format!("nft list table inet {}", config.network.table);
        for (name, command) in [
            ("processes", "ps -eo pid,ppid,user,stat,etime,rss,args --forest"),
            ("disks", "df -hT"),
            ("links", "ip -details -statistics link"),
            ("addresses", "ip address"),
            ("routes", "ip route show table all"),
            ("rules", "ip rule"),
            ("neighbours", "ip neighbour"),
            ("namespaces", "lsns"),
            ("sockets", "ss -tunlp"),
            ("nftables", table.as_str()),
            ("kernel-log", "dmesg --ctime"),
        ] {
            let text = output(command).await;
            self.add_result(&format!("machine/{name}.txt"), text);
        }
    }

    async fn logs(&mut self, config: &Config, wish: &Wish) {
        if Path::new("/run/systemd/system").exists() {
            for unit in ["flynn-host", "flynn-router", "flynn-tunnel"] {
                let text = output(&format!(
                    "journalctl --no-pager --unit {unit} --lines {UNIT_LINES}"
                ))
                .await;
                self.add_result(&format!("logs/{unit}.txt"), text);
            }
        }
        for path in files_in(&wish.log_dir) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with("flynn") {
                self.add_file(&format!("logs/{name}"), &path, LOG_BYTES_MAX);
            }
        }
        // The newest ones.
        let mut files: Vec<_> = files_below(&config.state().logs())
            .into_iter()
            .map(|path| (fs::metadata(&path).and_then(|meta| meta.modified()).ok(), path))
            .collect();
        files.sort_by(|a, b| b.cmp(a));
        for (_, path) in files.into_iter().take(JOB_LOGS_MAX) {
            let Ok(inside) = path.strip_prefix(config.state().logs()) else {
                continue;
            };
            self.add_file(
                &format!("logs/apps/{}", inside.display()),
                &path,
                JOB_LOG_BYTES_MAX,
            );
        }
    }
}

fn json<T: serde::Serialize>(value: &Result<T>) -> Result<String> {
    match value {
        Ok(value) => Ok(serde_json::to_string_pretty(value)? + "\n"),
        Err(error) => anyhow::bail!("{error:#}"),
    }
}

/// Of the end of a file as much as this.
fn end_of(path: &Path, bytes_max: u64) -> Result<String> {
    let mut file = fs::File::open(path)?;
    // Files of /proc have no length, and cannot be read from their end.
    let length = file.metadata()?.len();
    if length > bytes_max {
        file.seek(SeekFrom::Start(length - bytes_max))?;
    }
    let mut bytes = vec![];
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (directories, mut files): (Vec<_>, Vec<_>) = files_in(directory)
        .into_iter()
        .partition(|path| path.is_dir() && !path.is_symlink());
    files.extend(directories.iter().flat_map(|path| files_below(path)));
    files
}

/// Everything of this cluster on this machine, with its processes and memory.
fn cgroups(config: &Config) -> Result<String> {
    let root = Cgroup::locate(&config.cgroup)?;
    let mut text = String::new();
    for directory in root.directories() {
        let mut waiting = vec![directory.to_owned()];
        while let Some(path) = waiting.pop() {
            let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
            let _ = writeln!(
                text,
                "{}  processes {:?}  memory {}",
                path.display(),
                read("cgroup.procs").split_whitespace().collect::<Vec<_>>(),
                [read("memory.current"), read("memory.usage_in_bytes")]
                    .concat()
                    .trim(),
            );
            waiting.extend(files_in(&path).into_iter().filter(|path| path.is_dir()));
        }
    }
    Ok(text)
}

async fn asked<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
}

/// What a command prints, of both kinds.
async fn output(command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    let program = words.next().context("no command")?;
    let run = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = asked(async { run.await.with_context(|| format!("cannot run {program}")) }).await?;
    let mut text = format!("$ {command}\n{}", String::from_utf8_lossy(&output.stdout));
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let _ = writeln!(text, "({})", output.status);
    }
    Ok(text)
}

/// For its owner's eyes only.
fn write_tar(path: &Path, name: &str, collection: Collection) -> Result<()> {
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let gzip = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    let mut tar = tar::Builder::new(gzip);
    let seconds = u64::try_from(daemon::now().as_micros() / 1_000_000).unwrap_or_default();
    for (inside, text) in &collection.texts {
        let text = collection.secrets.scrub(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        tar.append_data(&mut header, format!("{name}/{inside}"), text.as_bytes())?;
    }
    tar.into_inner()?.finish()?.sync_all()?;
    Ok(())
}
