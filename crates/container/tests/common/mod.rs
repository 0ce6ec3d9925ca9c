//! A place to run containers in: a tiny root file system, a cgroup, and a look at what is left.
//!
//! The tests need root, cgroups and Debian's `busybox-static`; without them they fail and say so.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use container::cgroup::Cgroup;
use container::{
    Adopted, Attached, Control, Event, ExecSession, ExecSpec, ExitRecord, Limits, LogFile, Outcome, Process,
    SeccompProfile, Shim, Spec, StartError, WindowSize, logline,
};

/// Longer than anything here takes; only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub directory: tempfile::TempDir,
    pub shim: Shim,
    cgroup: String,
    jobs: AtomicU32,
}

pub struct Job {
    pub directory: PathBuf,
    pub spec: Spec,
    pub pid: u32,
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing after {PATIENCE:?}"),
    }
}

/// Waits for something that has no event: polls, up to the patience.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl World {
    pub fn new() -> World {
        let directory = tempfile::Builder::new()
            .prefix("container-test-")
            .tempdir()
            .expect("a directory for the test");
        make_root(&directory.path().join("root"));
        let unique = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        World {
            shim: Shim::new(env!("CARGO_BIN_EXE_flynn-shim")),
            cgroup: format!("/{unique}"),
            directory,
            jobs: AtomicU32::new(0),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A job that runs a script.
    pub fn spec(&self, script: &str) -> Spec {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let id = format!("job{number}");
        Spec {
            hostname: id.clone(),
            process: process(script),
            host_id_base: 1_000_000 + number * 65_536,
            layers: vec![self.root()],
            temp_disk_bytes: 16 << 20,
            binds: Vec::new(),
            files: Vec::new(),
            stdin: false,
            limits: Limits {
                memory_bytes: Some(64 << 20),
                cpu_milli: Some(1000),
                cpu_is_capped: false,
                processes_max: Some(64),
                open_files_max: Some(1 << 20),
            },
            cgroup: format!("{}/{id}", self.cgroup),
            extra_capabilities: Vec::new(),
            seccomp: SeccompProfile::Default,
            readonly_root: false,
            log: Some(LogFile {
                path: self.directory.path().join(format!("{id}.log")),
                bytes_max: 16 << 20,
                files_max: 3,
            }),
            wait_for_attach_ms: None,
            stop_signal: libc::SIGTERM,
            id,
        }
    }

    pub async fn create(&self, spec: &Spec) -> (Job, container::Created) {
        let directory = self.directory.path().join(&spec.id);
        let created = within("create", self.shim.create(&directory, spec)).await;
        let created = created.unwrap_or_else(|error| panic!("create: {error}; {}", shim_log(&directory)));
        (
            Job {
                pid: created.pid,
                spec: spec.clone(),
                directory,
            },
            created,
        )
    }

    pub async fn start(&self, spec: &Spec) -> Job {
        let (job, created) = self.create(spec).await;
        within("start", created.start())
            .await
            .unwrap_or_else(|error| panic!("start: {error}"));
        job
    }

    pub async fn start_failure(&self, spec: &Spec) -> ExitRecord {
        let directory = self.directory.path().join(&spec.id);
        let result = match within("create", self.shim.create(&directory, spec)).await {
            Ok(created) => within("start", created.start()).await.map(drop),
            Err(error) => Err(error),
        };
        match result {
            Err(StartError::NotStarted(record)) => record,
            other => panic!("expected a failure to start, not {other:?}"),
        }
    }

    /// Runs a script to its end; how it ended, and what it wrote.
    pub async fn run(&self, spec: &Spec) -> (ExitRecord, String) {
        let job = self.start(spec).await;
        let record = job.end().await;
        (record, job.log())
    }

    /// Runs a script that is expected to end well.
    pub async fn output(&self, script: &str) -> String {
        let (record, output) = self.run(&self.spec(script)).await;
        assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{script}\n{output}");
        output
    }

    /// Nothing of any job may be left on the host.
    pub async fn check_nothing_left(&self) {
        let unique = self.cgroup.trim_start_matches('/');
        let parent = Cgroup::locate(&self.cgroup).unwrap();
        until("no process in a cgroup", || parent.processes().is_empty()).await;
        for number in 0..self.jobs.load(Ordering::Relaxed) {
            let cgroup = Cgroup::locate(&format!("{}/job{number}", self.cgroup)).unwrap();
            assert!(!cgroup.exists(), "a cgroup of job{number} is left");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(unique), "a mount is left on the host");
        until("no loop device", || {
            loop_files().iter().all(|file| !file.contains(unique))
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whatever a failed test left running; of a good one only the empty parent is left.
        if let Ok(parent) = Cgroup::locate(&self.cgroup) {
            drop(parent.destroy());
        }
    }
}

impl Job {
    pub async fn control(&self) -> Control {
        within("connect", Control::connect(&self.directory))
            .await
            .expect("a control socket")
    }

    pub async fn attach(&self) -> Attached {
        within("attach", self.control().await.attach(true, true, true))
            .await
            .expect("attach")
    }

    /// Waits for the end; its record.
    pub async fn end(&self) -> ExitRecord {
        let record = within("wait", container::wait(&self.directory))
            .await
            .expect("an exit record");
        until("the shim is gone", || !self.directory.join("ctl.sock").exists()).await;
        assert_eq!(
            ExitRecord::read(&self.directory).expect("a readable record"),
            Some(record.clone())
        );
        assert_eq!(shim_log(&self.directory), "");
        record
    }

    pub async fn adopt(&self) -> Adopted {
        within("adopt", container::adopt(&self.directory))
            .await
            .expect("adopt")
    }

    /// Everything it wrote, both streams.
    pub fn log(&self) -> String {
        let path = &self.spec.log.as_ref().expect("a job with a log").path;
        let content = fs::read(path).unwrap_or_default();
        content
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| logline::parse(line).unwrap_or_else(|| panic!("not a log line: {line:?}")))
            .map(|line| {
                let end = if line.is_partial { "" } else { "\n" };
                format!("{}{end}", String::from_utf8_lossy(line.text))
            })
            .collect()
    }

    pub async fn wait_for_log(&self, text: &str) {
        until(&format!("{text:?} in the log"), || self.log().contains(text)).await;
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::locate(&self.spec.cgroup).unwrap()
    }

    pub async fn exec(&self, world: &World, spec: &ExecSpec) -> Result<ExecSession, StartError> {
        within("exec", world.shim.exec(&self.directory, spec)).await
    }

    /// Runs one more script inside; how it ended, and its output.
    pub async fn exec_output(&self, world: &World, script: &str) -> (Outcome, String) {
        let spec = ExecSpec {
            process: process(script),
            stdin: false,
        };
        let mut session = self
            .exec(world, &spec)
            .await
            .unwrap_or_else(|error| panic!("exec: {error}"));
        read_to_end(&mut session.0).await
    }

    pub async fn kill_and_end(&self) -> ExitRecord {
        self.control().await.stop(Duration::ZERO).await.expect("stop");
        self.end().await
    }
}

pub async fn read_to_end(attached: &mut Attached) -> (Outcome, String) {
    let mut output = Vec::new();
    loop {
        match within("output", attached.reader.next())
            .await
            .expect("a readable socket")
        {
            Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => output.extend(bytes),
            Some(Event::Exit(record)) => {
                return (record.outcome, String::from_utf8_lossy(&output).into_owned());
            }
            None => panic!("cut off after {:?}", String::from_utf8_lossy(&output)),
        }
    }
}

/// Reads output until it has the text in it.
pub async fn read_until(attached: &mut Attached, text: &str) -> String {
    let mut output = String::new();
    while !output.contains(text) {
        match within(text, attached.reader.next())
            .await
            .expect("a readable socket")
        {
            Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => output += &String::from_utf8_lossy(&bytes),
            other => panic!("waited for {text:?}, got {other:?} after {output:?}"),
        }
    }
    output
}

pub fn process(script: &str) -> Process {
    Process {
        args: vec!["sh".into(), "-c".into(), script.into()],
        env: BTreeMap::from([
            ("PATH".into(), "/bin:/sbin".into()),
            ("HOME".into(), "/home/app".into()),
        ]),
        cwd: "/".into(),
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
        terminal: None,
    }
}

pub fn size(columns: u16, rows: u16) -> WindowSize {
    WindowSize { columns, rows }
}

pub fn shim_log(job_dir: &Path) -> String {
    fs::read_to_string(job_dir.join("shim.log")).unwrap_or_default()
}

pub fn parent_of(pid: impl std::fmt::Display) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn loop_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").expect("sysfs");
    devices
        .flatten()
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .collect()
}

fn make_root(root: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists());
    let busybox = busybox.expect("these tests need busybox-static");
    for directory in ["bin", "sbin", "etc", "home/app", "tmp", "var/tmp", "usr/bin"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let names = std::process::Command::new(busybox)
        .arg("--list")
        .output()
        .expect("busybox runs")
        .stdout;
    for name in String::from_utf8(names)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(root.join("home/app"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(root.join("home/app"), Some(1000), Some(1000)).unwrap();
}
