//! How long a container takes to start. `script/bench-start` builds what this needs and calls it.
//!
//! `runtimes`: one container after another, from the request to the first byte of its output: ours with
//! its network, its layers mounted and its limits; crun and runc with an equivalent bundle, whose root
//! file system is mounted beforehand and whose network namespace has nothing in it. To be run in mount
//! and network namespaces of its own, in which cgroup2 is not mounted, because crun refuses a machine
//! that has both versions.
//!
//! `cluster`: many jobs at once and `flynn run` in a whole cluster.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use container::{Control, Event, Limits, SeccompProfile, Shim, Spec};
use e2e::{
    Cluster, PATIENCE, Process,
    measure::{self, Series, Unit},
    program, succeeded,
};
use overlay::Network;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize| {
        arguments
            .get(index)
            .context("an argument is missing")?
            .parse::<usize>()
            .context("a number")
    };
    println!("{}", measure::machine());
    match arguments.get(1).map(String::as_str) {
        Some("runtimes") => {
            let layer = PathBuf::from(arguments.get(2).context("which layer?")?);
            let calls = fs::read_to_string(arguments.get(3).context("which system calls?")?)?;
            runtimes(&layer, &calls, number(4)?)
        }
        Some("cluster") => cluster(number(2)?, number(3)?),
        _ => bail!("usage: bench_start runtimes LAYER SYSTEM-CALLS RUNS | cluster JOBS RUNS"),
    }
}

const MEMORY_BYTES: u64 = 256 << 20;
const PROCESSES_MAX: u32 = 128;
const OPEN_FILES_MAX: u64 = 10_000;
const FIRST_ID: u32 = 1_000_000;
/// Between two containers: most of what the kernel does after a container's end is done by then.
const PAUSE: Duration = Duration::from_millis(50);

/// What all runtimes share.
struct Bench {
    dir: tempfile::TempDir,
    layer: PathBuf,
    cgroup: String,
}

fn runtimes(layer: &Path, calls: &str, runs: usize) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("bench-start-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let bench = Bench {
        dir,
        layer: layer.to_owned(),
        cgroup: format!("/flynn-bench-{}", std::process::id()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let measured = measure_runtimes(&bench, calls, runs, &runtime);
    remove_cgroups(&bench.cgroup);
    // What is mounted in there would keep the directory.
    for name in ["root", "upper", "layer"] {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(bench.dir.path().join(name))
            .stderr(Stdio::null())
            .status();
    }
    measured
}

fn measure_runtimes(
    bench: &Bench,
    calls: &str,
    runs: usize,
    runtime: &tokio::runtime::Runtime,
) -> Result<()> {
    let subnet = "100.101.0.0/22".parse().context("a subnet")?;
    let network = runtime.block_on(Network::open(
        overlay::Config::new("bs", "bench_start", subnet),
        [],
        Default::default(),
    ))?;
    let root = mounted_root(bench)?;
    let shim = Shim::new(program("flynn-shim"));
    // Docker's profile has all three architectures of the machine; compiling a filter for one is less work.
    let variants = [
        (
            "as Docker has it",
            &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"][..],
        ),
        ("one architecture", &["SCMP_ARCH_X86_64"][..]),
    ];
    let mut peers = vec![];
    for name in ["crun", "runc"] {
        if Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("{name} is not installed: left out");
            continue;
        }
        for (variant, architectures) in variants {
            let bundle = bench.dir.path().join(format!("{name}-{}", architectures.len()));
            fs::create_dir_all(&bundle)?;
            let config = config(
                &root,
                &format!("{}/{name}-{}", bench.cgroup, architectures.len()),
                calls,
                architectures,
            );
            fs::write(bundle.join("config.json"), config.to_string())?;
            peers.push((name, format!("{name}, seccomp {variant}"), bundle));
        }
    }
    let labels: Vec<&str> = ["flynn-shim with network", "flynn-shim alone"]
        .into_iter()
        .chain(peers.iter().map(|(_, label, _)| label.as_str()))
        .collect();
    let mut series = Series::default();
    for label in &labels {
        series.name(label);
    }
    // The first round finds nothing in the caches and is not counted. Each begins with another one, because
    // the kernel still clears away namespaces of the one before.
    for run in 0..=runs {
        for turn in 0..labels.len() {
            let which = (run + turn) % labels.len();
            let time = match which {
                0 => {
                    let phases = runtime.block_on(ours(bench, &shim, &network, run))?;
                    if run > 0 {
                        series.add("  of it: container made", phases.created);
                        series.add("  of it: network attached", phases.attached - phases.created);
                        series.add(
                            "  of it: started, first byte",
                            phases.first_byte - phases.attached,
                        );
                    }
                    phases.first_byte
                }
                1 => runtime.block_on(ours_alone(bench, &shim, run))?,
                other => peer(bench, peers[other - 2].0, &peers[other - 2].2, run)?,
            };
            if run > 0 {
                series.add(labels[which], time);
            }
            std::thread::sleep(PAUSE);
        }
    }
    println!("\nrequest to first byte, {runs} runs of each in turn; ratio to crun as Docker would run it");
    series.print(
        Unit::Milliseconds,
        peers.first().map(|(_, label, _)| label.as_str()),
    );
    println!("load average {}", measure::load_average());
    Ok(())
}

struct Phases {
    created: Duration,
    attached: Duration,
    first_byte: Duration,
}

async fn ours(bench: &Bench, shim: &Shim, network: &Network, run: usize) -> Result<Phases> {
    let spec = bench.spec(&format!("net{run}"));
    let job_dir = bench.dir.path().join("jobs").join(&spec.id);
    let began = Instant::now();
    let lease = network.allocate("bench")?;
    let made = shim.create(&job_dir, &spec).await?;
    let created = began.elapsed();
    network.attach(made.pid, &lease).await?;
    let attached = began.elapsed();
    let first_byte = first_byte(made, &job_dir, began).await?;
    network.detach(&lease).await?;
    Ok(Phases {
        created,
        attached,
        first_byte,
    })
}

async fn ours_alone(bench: &Bench, shim: &Shim, run: usize) -> Result<Duration> {
    let spec = bench.spec(&format!("alone{run}"));
    let job_dir = bench.dir.path().join("jobs").join(&spec.id);
    let began = Instant::now();
    let made = shim.create(&job_dir, &spec).await?;
    first_byte(made, &job_dir, began).await
}

/// Starts it and waits for its end, so that the next one has the machine for itself.
async fn first_byte(made: container::Created, job_dir: &Path, began: Instant) -> Result<Duration> {
    let attaching = Control::connect(job_dir).await?.attach(false, true, true);
    let (started, attached) = tokio::join!(made.start(), attaching);
    started?;
    let mut reader = attached?.reader;
    ensure!(
        matches!(reader.next().await?, Some(Event::Stdout(_))),
        "the container wrote nothing"
    );
    let first_byte = began.elapsed();
    while !matches!(reader.next().await?, Some(Event::Exit(_)) | None) {}
    Ok(first_byte)
}

fn peer(bench: &Bench, program: &str, bundle: &Path, run: usize) -> Result<Duration> {
    let began = Instant::now();
    let mut child = Command::new(program)
        .arg("--root")
        .arg(bench.dir.path().join(format!("{program}.state")))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("bench{}-{run}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut byte = [0];
    let read = std::io::Read::read(child.stdout.as_mut().expect("it is piped"), &mut byte)?;
    let first_byte = began.elapsed();
    let output = child.wait_with_output()?;
    ensure!(
        read == 1 && output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(first_byte)
}

impl Bench {
    fn spec(&self, id: &str) -> Spec {
        Spec {
            id: id.into(),
            hostname: "bench".into(),
            process: container::Process {
                args: vec!["/bin/echo".into(), "hello".into()],
                env: [("PATH".into(), "/bin".into())].into(),
                cwd: "/".into(),
                uid: 1000,
                gid: 1000,
                groups: vec![],
                terminal: None,
            },
            host_id_base: FIRST_ID,
            layers: vec![self.layer.clone()],
            temp_disk_bytes: 100 << 20,
            binds: vec![],
            files: vec![],
            stdin: false,
            limits: Limits {
                memory_bytes: Some(MEMORY_BYTES),
                cpu_milli: Some(1000),
                cpu_is_capped: false,
                processes_max: Some(PROCESSES_MAX),
                open_files_max: Some(OPEN_FILES_MAX),
            },
            cgroup: format!("{}/{id}", self.cgroup),
            extra_capabilities: vec![],
            seccomp: SeccompProfile::Default,
            readonly_root: false,
            log: None,
            wait_for_attach_ms: Some(10_000),
            stop_signal: 15,
        }
    }
}

/// The root file system of the peers, in the mount namespace that ends with this program.
fn mounted_root(bench: &Bench) -> Result<PathBuf> {
    let at = |name: &str| bench.dir.path().join(name);
    for name in ["layer", "upper", "root"] {
        fs::create_dir(at(name))?;
    }
    let mount = |arguments: &[&str], target: &Path| -> Result<()> {
        let output = Command::new("mount").args(arguments).arg(target).output()?;
        succeeded(&format!("mount {}", arguments.join(" ")), output).map(drop)
    };
    let layer = bench.layer.to_str().context("a path of plain characters")?;
    if mount(&["-t", "erofs", "-o", "ro", layer], &at("layer")).is_err() {
        mount(&["-t", "erofs", "-o", "ro,loop", layer], &at("layer"))?;
    }
    mount(&["-t", "tmpfs", "tmpfs"], &at("upper"))?;
    for name in ["upper/upper", "upper/work"] {
        fs::create_dir(at(name))?;
    }
    std::os::unix::fs::chown(at("upper/upper"), Some(FIRST_ID), Some(FIRST_ID))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("layer").display(),
        at("upper/upper").display(),
        at("upper/work").display()
    );
    mount(&["-t", "overlay", "-o", &options, "overlay"], &at("root"))?;
    Ok(at("root"))
}

/// What Docker would give a container, with a user namespace as ours have one.
fn config(root: &Path, cgroup: &str, calls: &str, architectures: &[&str]) -> Value {
    let capabilities: Vec<String> = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
    .map(|name| format!("CAP_{name}"))
    .into();
    let calls: Vec<&str> = calls.split_whitespace().collect();
    let namespaces = ["pid", "mount", "network", "uts", "ipc", "user"].map(|kind| json!({"type": kind}));
    let ids = json!([{"containerID": 0, "hostID": FIRST_ID, "size": container::IDS_PER_CONTAINER}]);
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 1000, "gid": 1000},
            "args": ["/bin/echo", "hello"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": OPEN_FILES_MAX, "soft": OPEN_FILES_MAX}],
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": false},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": cgroup,
            "resources": {
                "memory": {"limit": MEMORY_BYTES, "swap": MEMORY_BYTES},
                "cpu": {"shares": 1024},
                "pids": {"limit": PROCESSES_MAX},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": architectures,
                "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}],
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// The one that all containers were in, in every hierarchy.
fn remove_cgroups(name: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_cgroup(&hierarchy.path().join(name.trim_start_matches('/')));
    }
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

fn cluster(jobs: usize, runs: usize) -> Result<()> {
    let cluster = Cluster::start()?;
    let idle = || Process {
        name: "idle",
        args: vec!["sleep".into(), "infinity".into()],
        is_web: false,
    };
    cluster.app("many", &[idle()], 1)?;
    let mut series = Series::default();
    let count = format!("idle={jobs}");
    for _ in 0..3 {
        cluster.flynn(&["-a", "many", "scale", "idle=0"])?;
        cluster.wait("the jobs to be gone", || {
            Ok(cluster.contained().is_empty().then_some(()))
        })?;
        let label = format!("{jobs} jobs at once, scale to all up");
        series.time(&label, || cluster.flynn(&["-a", "many", "scale", &count]))?;
        let up = cluster.jobs("many", "up")?.len();
        ensure!(up == jobs, "{up} of {jobs} jobs are up");
    }
    cluster.flynn(&["-a", "many", "scale", "idle=1"])?;
    cluster.wait("the jobs to be gone", || {
        let down = cluster.jobs("many", "stopping")?.is_empty();
        Ok((down && cluster.shims().len() == 1).then_some(()))
    })?;
    for run in 0..=runs {
        let began = Instant::now();
        cluster.flynn(&["-a", "many", "run", "true"])?;
        if run > 0 {
            series.add("flynn run true", began.elapsed());
        }
        // Its cgroup and its mounts are taken down after the answer; that is not the next one's.
        let deadline = Instant::now() + PATIENCE;
        while cluster.shims().len() > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    println!("\nin a cluster, by the CLI");
    series.print(Unit::Seconds, None);
    println!("load average {}", measure::load_average());
    cluster.finish()
}
