//! A whole cluster for one test: real daemon, router, containers and clients, in a network namespace
//! of its own, so that tests run side by side on the usual ports and touch nothing of the machine.
//!
//! Programs come from the build directory, images from `FLYNN_TEST_IMAGES` (script/test sets it; see
//! there). Everything a test made is gone after it, whether it passed or not.

mod hosts;
pub mod http;
mod lab;
pub mod measure;
mod net;
pub mod users;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub use hosts::Hosts;
pub use lab::Lab;
pub use net::{NetNs, Switch};

/// How long anything that a test waits for may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub net: NetNs,
    pub name: String,
    flynn_host_program: PathBuf,
    supervisor: Option<Child>,
    is_gone: bool,
}

/// What a process of a release runs.
pub struct Process {
    pub name: &'static str,
    pub args: Vec<String>,
    /// Whether it serves the app's route on port 8080.
    pub is_web: bool,
}

impl Process {
    pub fn web(script: &str) -> Process {
        Process {
            name: "web",
            args: python(script),
            is_web: true,
        }
    }

    pub fn worker(script: &str) -> Process {
        Process {
            name: "worker",
            args: vec!["bash".into(), "-c".into(), script.into()],
            is_web: false,
        }
    }
}

fn python(script: &str) -> Vec<String> {
    vec!["python3".into(), "-u".into(), "-c".into(), script.into()]
}

/// A web server that answers `text`, slowly where the path is `/slow/MILLISECONDS`, and finishes what
/// it has begun when it is told to end.
pub fn server(text: &str) -> String {
    format!(
        r#"
import os, signal, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        if self.path.startswith("/slow/"):
            time.sleep(int(self.path.split("/")[2]) / 1000)
        body = ({text:?} + " " + os.environ.get("MARK", "") + " " + os.environ["FLYNN_JOB_ID"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *args: threading.Thread(target=server.shutdown).start())
print("ready", flush=True)
server.serve_forever()
"#
    )
}

impl Cluster {
    /// A cluster that serves, with its key in a `.flynnrc` of its own.
    pub fn start() -> Result<Cluster> {
        Cluster::prepare()?.started()
    }

    /// The same with `flynn-host` and `flynn-shim` from a directory of its own, where they may be replaced.
    pub fn start_with_own_programs() -> Result<Cluster> {
        Cluster::prepare()?.with_own_programs()?.started()
    }

    fn with_own_programs(self) -> Result<Cluster> {
        let mut cluster = self;
        let programs = cluster.dir.path().join("programs");
        fs::create_dir(&programs)?;
        for name in ["flynn-host", "flynn-shim"] {
            fs::copy(program(name), programs.join(name))?;
        }
        let config = cluster.dir.path().join("host.toml");
        let own = format!("shim = {:?}", programs.join("flynn-shim"));
        let shared = format!("shim = {:?}", program("flynn-shim"));
        fs::write(&config, fs::read_to_string(&config)?.replace(&shared, &own))?;
        cluster.flynn_host_program = programs.join("flynn-host");
        Ok(cluster)
    }

    fn started(self) -> Result<Cluster> {
        let mut cluster = self;
        cluster.boot()?;
        cluster.add_to_cli()?;
        Ok(cluster)
    }

    /// Lets `flynn`, as run here, know of the cluster.
    pub fn add_to_cli(&self) -> Result<()> {
        self.flynn(&["cluster", "default", "default"]).ok();
        let command = self.flynn_host(&["cli-add-command"])?;
        let words: Vec<&str> = command.split_whitespace().skip(1).collect();
        self.flynn(&words)?;
        Ok(())
    }

    fn prepare() -> Result<Cluster> {
        let name = format!("fe{}", std::process::id());
        let net = NetNs::new(&name)?;
        Cluster::prepare_host(name, net, "host0")
    }

    /// A host that has images and a configuration, and does not run yet.
    fn prepare_host(name: String, net: NetNs, host: &str) -> Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("flynn-e2e-").tempdir()?;
        let state = dir.path().join("state");
        fs::create_dir_all(&state)?;
        let images = PathBuf::from(
            std::env::var("FLYNN_TEST_IMAGES").context("FLYNN_TEST_IMAGES is not set; run script/test")?,
        );
        // Layers are immutable, so clusters may share the files; each has names of its own for them.
        fs::create_dir_all(state.join("layers"))?;
        fs::create_dir_all(state.join("images"))?;
        for entry in fs::read_dir(images.join("layers"))? {
            let entry = entry?;
            let target = state.join("layers").join(entry.file_name());
            if fs::hard_link(entry.path(), &target).is_err() {
                fs::copy(entry.path(), &target)?;
            }
        }
        fs::copy(images.join("images/stack.json"), state.join("images/stack.json"))?;
        let repo = repo_root();
        let config = format!(
            "domain = \"flynn.localhost\"\nhost = {host:?}\nstate_dir = {state:?}\ncgroup = \"flynn-{name}\"\n\
             shim = {shim:?}\nbuildpacks = {packs:?}\npackage_layer = {layer:?}\n\
             [builds]\nmemory_bytes = {memory}\ndisk_bytes = {disk}\n",
            shim = program("flynn-shim"),
            packs = repo.join("buildpacks"),
            layer = repo.join("script/package-layer"),
            memory = 1_i64 << 30,
            disk = 1_u64 << 30,
        );
        fs::write(dir.path().join("host.toml"), config)?;
        fs::create_dir_all(dir.path().join("home"))?;
        Ok(Cluster {
            dir,
            net,
            name,
            flynn_host_program: program("flynn-host"),
            supervisor: None,
            is_gone: false,
        })
    }

    /// Starts daemon and router and waits until the API answers through the router.
    pub fn boot(&mut self) -> Result<()> {
        self.power_on()?;
        self.wait("the controller to answer through the router", || {
            let answer = self.request("controller.flynn.localhost", "/ping")?;
            Ok((answer.status == 200).then_some(()))
        })
    }

    /// Starts daemon and router.
    pub fn power_on(&mut self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("host.log"))?;
        let child = self
            .inside(&self.flynn_host_program)
            .arg("--config")
            .arg(self.dir.path().join("host.toml"))
            .arg("supervise")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        self.supervisor = Some(child);
        Ok(())
    }

    /// A command that runs in the cluster's network, with a home of its own.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.net.path().display()))
            .arg(program);
        let home = self.dir.path().join("home");
        command
            .env("HOME", &home)
            .env("GIT_CONFIG_GLOBAL", home.join(".gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env_remove("GIT_SSL_CAINFO")
            .env_remove("FLYNN_APP")
            .env_remove("FLYNNRC")
            .current_dir(self.dir.path());
        command
    }

    /// Runs `flynn` and gives its standard output; a failure is an error with all it said.
    pub fn flynn(&self, args: &[&str]) -> Result<String> {
        let output = self.try_flynn(args)?;
        succeeded(&format!("flynn {}", args.join(" ")), output)
    }

    pub fn try_flynn(&self, args: &[&str]) -> Result<Output> {
        Ok(self
            .inside(&program("flynn"))
            .args(args)
            .stdin(Stdio::null())
            .output()?)
    }

    pub fn flynn_host(&self, args: &[&str]) -> Result<String> {
        let config = self.dir.path().join("host.toml");
        let output = self
            .inside(&self.flynn_host_program)
            .arg("--config")
            .arg(config)
            .args(args)
            .output()?;
        succeeded(&format!("flynn-host {}", args.join(" ")), output)
    }

    pub fn git(&self, dir: &Path, args: &[&str]) -> Result<Output> {
        let identity = [
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.com",
            "-c",
            "init.defaultBranch=main",
        ];
        Ok(self
            .inside(Path::new("git"))
            .args(identity)
            .args(args)
            .current_dir(dir)
            .output()?)
    }

    /// A git repository with these files, committed.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
        let dir = self.dir.path().join("repos").join(name);
        fs::create_dir_all(&dir)?;
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("a file is in a directory"))?;
            fs::write(path, text)?;
        }
        succeeded("git init", self.git(&dir, &["init", "-q"])?)?;
        self.commit(&dir, "first")?;
        Ok(dir)
    }

    pub fn commit(&self, dir: &Path, message: &str) -> Result<()> {
        succeeded("git add", self.git(dir, &["add", "-A"])?)?;
        succeeded(
            "git commit",
            self.git(dir, &["commit", "-q", "--allow-empty", "-m", message])?,
        )?;
        Ok(())
    }

    /// Pushes `dir` to `app`: whether git succeeded, and what the pusher saw.
    pub fn push(&self, dir: &Path, app: &str) -> Result<(bool, String)> {
        let url = format!("https://git.flynn.localhost/{app}.git");
        let output = self.git(dir, &["push", &url, "HEAD:refs/heads/main", "--force"])?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// One request through the router.
    pub fn request(&self, host: &str, path: &str) -> Result<http::Answer> {
        self.net.within(|| http::get("127.0.0.1:80", host, path))
    }

    /// The body that `app` answers with.
    pub fn page(&self, app: &str) -> Result<String> {
        let answer = self.request(&format!("{app}.flynn.localhost"), "/")?;
        ensure!(
            answer.status == 200,
            "{app} answers {}: {}",
            answer.status,
            answer.text()
        );
        Ok(answer.text())
    }

    /// The text that the controller's API answers with.
    pub fn api_text(&self, path: &str) -> Result<String> {
        let key = fs::read_to_string(self.dir.path().join("state/secrets/controller.key"))?;
        let answer = self
            .net
            .within(|| http::call("127.0.0.1:1112", "GET", path, key.trim(), None))?;
        ensure!(answer.status == 200, "{path} answers {}", answer.status);
        Ok(answer.text())
    }

    /// A request to the controller's API with the users' key.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let key = fs::read_to_string(self.dir.path().join("state/secrets/controller.key"))?;
        let answer = self
            .net
            .within(|| http::call("127.0.0.1:1112", method, path, key.trim(), body))?;
        ensure!(
            answer.status == 200,
            "{method} {path} answers {}: {}",
            answer.status,
            answer.text()
        );
        if answer.body.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_slice(&answer.body)?)
        }
    }

    /// A release of the run image with these processes, which is not deployed yet.
    pub fn release(&self, app: &str, processes: &[Process], env: &[(&str, &str)]) -> Result<String> {
        let stack: Value =
            serde_json::from_slice(&fs::read(self.dir.path().join("state/images/stack.json"))?)?;
        let artifact = self.api(
            "POST",
            "/artifacts",
            Some(&json!({
                "type": "flynn",
                "uri": "flynn://test/run",
                "manifest": {
                    "_type": "application/vnd.flynn.image.manifest.v1+json",
                    "entrypoints": {"_default": {
                        "args": ["/bin/bash"], "uid": 1000, "gid": 1000, "cwd": "/app",
                        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/app"},
                    }},
                    "rootfs": [{"layers": stack["run"]["layers"]}],
                },
            })),
        )?;
        let id = self.api("GET", &format!("/apps/{app}"), None)?["id"].clone();
        let mut types = serde_json::Map::new();
        for process in processes {
            let mut entry = json!({"args": process.args});
            if process.is_web {
                let check = json!({"type": "tcp"});
                let service = json!({"name": format!("{app}-web"), "create": true, "check": check});
                entry["ports"] = json!([{"port": 8080, "proto": "tcp", "service": service}]);
            }
            types.insert(process.name.to_owned(), entry);
        }
        let env: serde_json::Map<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let body = json!({"app_id": id, "artifacts": [artifact["id"]], "env": env, "processes": types});
        Ok(self.api("POST", "/releases", Some(&body))?["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// Deploys a release and waits for its end: its status and its error.
    pub fn deploy(&self, app: &str, release: &str) -> Result<(String, String)> {
        let deployment = self.api(
            "POST",
            &format!("/apps/{app}/deploy"),
            Some(&json!({"id": release})),
        )?;
        let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
        self.wait("the deployment to end", || {
            let deployment = self.api("GET", &path, None)?;
            let status = deployment["status"].as_str().unwrap_or_default().to_owned();
            let error = deployment["error"].as_str().unwrap_or_default().to_owned();
            Ok(matches!(status.as_str(), "complete" | "failed").then_some((status, error)))
        })
    }

    /// An app with one release that runs `count` of its first process.
    pub fn app(&self, app: &str, processes: &[Process], count: u32) -> Result<()> {
        self.flynn(&["create", "-r", "", app])?;
        let release = self.release(app, processes, &[])?;
        let (status, error) = self.deploy(app, &release)?;
        ensure!(status == "complete", "the first deployment: {error}");
        self.flynn(&["-a", app, "scale", &format!("{}={count}", processes[0].name)])?;
        Ok(())
    }

    /// Jobs of an app that are in `state`.
    pub fn jobs(&self, app: &str, state: &str) -> Result<Vec<Value>> {
        let jobs = self.api("GET", &format!("/apps/{app}/jobs"), None)?;
        let jobs = jobs.as_array().cloned().unwrap_or_default();
        Ok(jobs.into_iter().filter(|job| job["state"] == state).collect())
    }

    /// Waits until `look` gives something; errors on the way count as "not yet" and are told at the end.
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait(what, PATIENCE, || self.host_log(), look)
    }

    /// The process id in a file of the run directory.
    pub fn pid(&self, part: &str) -> Result<i32> {
        let path = self.dir.path().join(format!("state/run/{part}.pid"));
        Ok(fs::read_to_string(path)?.trim().parse()?)
    }

    /// Pids of this cluster's shims.
    pub fn shims(&self) -> Vec<i32> {
        let jobs = self.dir.path().join("state/jobs");
        processes(|command| {
            command
                .first()
                .is_some_and(|program| program.ends_with("flynn-shim"))
                && command
                    .iter()
                    .any(|argument| argument.starts_with(&*jobs.to_string_lossy()))
        })
    }

    /// Kills everything of the platform and every container at once, as a power cut does.
    pub fn cut_power(&mut self) -> Result<()> {
        if let Some(child) = &mut self.supervisor {
            child.kill()?;
            child.wait()?;
        }
        self.supervisor = None;
        let config = self.dir.path().join("host.toml").to_string_lossy().into_owned();
        let platform = processes(|command| {
            command
                .first()
                .is_some_and(|program| program.ends_with("flynn-host"))
                && command.contains(&config)
        });
        for pid in platform.into_iter().chain(self.shims()).chain(self.contained()) {
            kill(pid);
        }
        self.wait("everything to be dead", || {
            Ok(self.contained().is_empty().then_some(()))
        })
    }

    /// Processes in this cluster's cgroups.
    pub fn contained(&self) -> Vec<i32> {
        let mut pids = vec![];
        for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            collect_pids(&Path::new(root).join(format!("flynn-{}", self.name)), &mut pids);
        }
        pids
    }

    pub fn host_log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("host.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Ends the cluster and checks that nothing of it is left on the machine.
    pub fn finish(mut self) -> Result<()> {
        self.end()?;
        let left = self.leftovers();
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_gone, true) {
            return Ok(());
        }
        if let Some(child) = &mut self.supervisor {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            child.wait()?;
        }
        self.flynn_host(&["teardown"])?;
        Ok(())
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left = self.mounts_and_loops();
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let path = controller.path().join(format!("flynn-{}", self.name));
            if path.exists() {
                left.push(format!("cgroup {}", path.display()));
            }
        }
        for pid in self.shims() {
            left.push(format!("shim {pid}"));
        }
        left
    }

    /// What of the cluster's directory is mounted on this machine or held by a loop device.
    pub fn mounts_and_loops(&self) -> Vec<String> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut left: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(&dir))
            .map(|line| format!("mount {line}"))
            .collect();
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if backing.contains(&dir) {
                left.push(format!("loop device of {}", backing.trim()));
            }
        }
        left
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the host's log:\n{}", self.host_log());
        }
        if let Err(error) = self.end() {
            eprintln!("--- cannot end the cluster: {error:#}");
            let _ = self.cut_power();
            let _ = self.flynn_host(&["teardown"]);
        }
    }
}

fn collect_pids(directory: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect_pids(&entry.path(), pids);
        }
    }
}

/// Processes whose command line is as wanted.
pub fn processes(is_wanted: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let mut pids = vec![];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<String> = command
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if is_wanted(&words) {
            pids.push(pid);
        }
    }
    pids
}

/// Waits until `look` gives something; errors on the way count as "not yet" and are told at the end, with
/// what `log` says then.
fn wait<T>(
    what: &str,
    patience: Duration,
    log: impl FnOnce() -> String,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut last = None;
    while began.elapsed() < patience {
        match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let why = last.map(|error| format!(": {error:#}")).unwrap_or_default();
    bail!("waited {} s for {what}{why}\n{}", patience.as_secs(), log());
}

/// SIGKILL to one process that this test's cluster started.
pub fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

pub fn succeeded(what: &str, output: Output) -> Result<String> {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "`{what}` failed ({}):\n{out}{err}",
        output.status
    );
    Ok(out.into_owned())
}

pub fn repo_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("e2e is in the repository")
        .to_owned()
}

/// A program of this workspace: beside the test's own directory in the build's output.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    let output = test
        .parent()
        .and_then(Path::parent)
        .expect("tests are in target/.../deps");
    output.join(name)
}
