//! How long a container takes to start: `start_time <flynn-shim> <root directory or erofs file> [runs]`,
//! both paths absolute.
//!
//! Prints medians (and the least) in milliseconds: until the container exists, until its first
//! output byte counted from the request, and from there until its end is on record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use container::cgroup::Cgroup;
use container::{Control, Event, Limits, Process, SeccompProfile, Shim, Spec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let (shim, layer) = (
        arguments.get(1).context("which shim?")?,
        arguments.get(2).context("which layer?")?,
    );
    let runs: usize = arguments.get(3).map_or(Ok(50), |runs| runs.parse())?;
    let directory = std::env::temp_dir().join(format!("start-time-{}", std::process::id()));
    let shim = Shim::new(shim);
    let mut columns: [Vec<Duration>; 3] = Default::default();
    for run in 0..runs {
        let spec = spec(run, layer.into());
        let job_dir = directory.join(&spec.id);
        let begun = Instant::now();
        let created = shim.create(&job_dir, &spec).await?;
        let made = begun.elapsed();
        let attaching = Control::connect(&job_dir).await?.attach(false, true, true);
        let (started, attached) = tokio::join!(created.start(), attaching);
        started?;
        let mut attached = attached?;
        let Some(Event::Stdout(_)) = attached.reader.next().await? else {
            anyhow::bail!("no output")
        };
        let first_byte = begun.elapsed();
        while !matches!(attached.reader.next().await?, Some(Event::Exit(_)) | None) {}
        for (column, value) in columns
            .iter_mut()
            .zip([made, first_byte, begun.elapsed() - first_byte])
        {
            column.push(value);
        }
    }
    for (name, column) in ["created", "first byte", "then ended"].iter().zip(&mut columns) {
        column.sort();
        let milliseconds = |value: Duration| value.as_secs_f64() * 1000.0;
        println!(
            "{name:>12}  median {:6.2}  least {:6.2}",
            milliseconds(column[runs / 2]),
            milliseconds(column[0])
        );
    }
    Cgroup::locate(&cgroup())?.destroy()?;
    Ok(std::fs::remove_dir_all(directory)?)
}

fn cgroup() -> String {
    format!("/start-time-{}", std::process::id())
}

fn spec(run: usize, layer: PathBuf) -> Spec {
    Spec {
        id: format!("start{run}"),
        hostname: "start".into(),
        process: Process {
            args: vec!["/bin/echo".into(), "hello".into()],
            env: BTreeMap::from([("PATH".into(), "/bin".into())]),
            cwd: "/".into(),
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
            terminal: None,
        },
        host_id_base: 1_000_000,
        layers: vec![layer],
        temp_disk_bytes: 100 << 20,
        binds: Vec::new(),
        files: Vec::new(),
        stdin: false,
        limits: Limits {
            memory_bytes: Some(256 << 20),
            cpu_milli: Some(1000),
            cpu_is_capped: false,
            processes_max: Some(128),
            open_files_max: Some(10_000),
        },
        cgroup: format!("{}/{run}", cgroup()),
        extra_capabilities: Vec::new(),
        seccomp: SeccompProfile::Default,
        readonly_root: false,
        log: None,
        wait_for_attach_ms: Some(10_000),
        stop_signal: 15,
    }
}
