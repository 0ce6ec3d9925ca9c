//! One host of a lab: switched on, switched off, and what is seen of it from outside.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use container::cgroup::Cgroup;
use daemon::files;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    clock::Offset,
    disk,
    inside::{BOOTED_FILE, Inside},
    layout::{Lab, Slow, host_name},
    network,
};
use crate::config::Config;

/// The namespaces take milliseconds; a machine that is busy with other things takes longer.
const BOOT_TIMEOUT: Duration = Duration::from_secs(20);
/// The router lets requests finish for 30 s, and apps have ten after that.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long killed processes may take to be gone.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes what a host has before its first start: its configuration, and the images that apps run on.
pub fn prepare(
    lab: &Lab,
    host: u8,
    config: &Config,
    images: Option<&Path>,
    join: Option<&str>,
) -> Result<()> {
    let directory = lab.host_directory(host);
    if let Some(size_bytes) = lab.disk_bytes {
        disk::make(lab, host, size_bytes)?;
    }
    let (state, etc) = (directory.join("state"), directory.join("etc"));
    for path in [&state.join("layers"), &state.join("images"), &etc] {
        files::create_private_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let mut text = format!(
        "# Written by `flynn-host lab`.\ndomain = {:?}\nhost = {:?}\nhttp = [\"0.0.0.0:{}\"]\n\
         https = [\"0.0.0.0:{}\"]\nshim = {:?}\nbuildpacks = {:?}\npackage_layer = {:?}\nca_bundle = {:?}\n",
        lab.domain,
        host_name(host),
        lab.http_port,
        lab.https_port,
        config.shim,
        config.buildpacks,
        config.package_layer,
        config.ca_bundle,
    );
    if let Some(floating) = lab.floating() {
        text.push_str(&format!("floating = [{floating:?}]\n"));
    }
    fs::write(etc.join("host.toml"), text)?;
    if let Some(join) = join {
        files::write_atomic(&etc.join(super::inside::JOIN_FILE), join.as_bytes(), 0o600)?;
    }
    match images {
        Some(images) => share_images(images, &state),
        None => Ok(()),
    }
}

/// Layers never change, so hosts may share their files. A disk of its own gets copies of those that images need.
fn share_images(from: &Path, state: &Path) -> Result<()> {
    let mut described = String::new();
    for entry in fs::read_dir(from.join("images")).context("cannot read the images' descriptions")? {
        let path = entry?.path();
        described.push_str(&fs::read_to_string(&path)?);
        fs::copy(
            &path,
            state.join("images").join(path.file_name().unwrap_or_default()),
        )?;
    }
    let layers = from.join("layers");
    for entry in fs::read_dir(&layers).with_context(|| format!("cannot read {}", layers.display()))? {
        let path = entry?.path();
        let target = state.join("layers").join(path.file_name().unwrap_or_default());
        let digest = path.file_stem().unwrap_or_default().to_string_lossy();
        if fs::hard_link(&path, &target).is_err() && described.contains(&*digest) {
            fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// Switches a host on. It runs when this returns, and is about to start the platform.
pub fn start(lab: &Lab, host: u8, config: &Config) -> Result<()> {
    if first_process(lab, host)?.is_some() {
        bail!("{} is on already", host_name(host));
    }
    clean(lab, host)?;
    network::connect(lab, host)?;
    disk::mount(lab, host)?;
    Cgroup::locate(&lab.cgroup(host))?
        .create()
        .context("cannot make the host's cgroup")?;
    let directory = lab.host_directory(host);
    let booted = directory.join("etc").join(BOOTED_FILE);
    let _ = fs::remove_file(&booted);
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let parent_of = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let inside = Inside {
        program: lab.programs.join("flynn-host"),
        hostname: host_name(host),
        cgroup: lab.cgroup(host),
        clock: lab.clocks.get(&host).copied().unwrap_or(Offset(0)),
        state: directory.join("state"),
        etc: directory.join("etc"),
        keep: vec![
            parent_of(&program),
            lab.programs.clone(),
            parent_of(&config.shim),
            config.buildpacks.clone(),
            config.package_layer.clone(),
        ],
    };
    let console = fs::File::options()
        .create(true)
        .append(true)
        .open(lab.console(host))?;
    let namespace = format!("--net=/run/netns/{}", lab.host_namespace(host));
    let unshared = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"];
    let mut child = Command::new("setsid")
        .args(["nsenter", &namespace, "unshare"])
        .args(unshared)
        .arg(&program)
        .args(["lab-init", &serde_json::to_string(&inside)?])
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        // Whose configuration the programs inside read is said by where they are.
        .env_remove("FLYNN_HOST_CONFIG")
        .spawn()
        .context("cannot run setsid")?;
    wait_until(BOOT_TIMEOUT, || {
        if let Some(status) = child.try_wait()? {
            bail!(
                "{} does not start ({status}):\n{}",
                host_name(host),
                last_lines(lab, host)
            );
        }
        Ok(booted.exists())
    })
    .with_context(|| format!("{} does not start:\n{}", host_name(host), last_lines(lab, host)))?;
    forget(child);
    match lab.slow.get(&host) {
        Some(slow) => make_slow(lab, host, *slow),
        None => Ok(()),
    }
}

/// Makes the line and the disk of a host that is on worse.
pub fn make_slow(lab: &Lab, host: u8, slow: Slow) -> Result<()> {
    network::make_slow(lab, host, slow)?;
    disk::set_writes_per_second(lab, host, slow.disk_writes)
}

/// The host goes on without us. Where we stay, somebody has to take note of its end.
fn forget(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// Cuts a host's power: its line goes dead, then everything in it is killed at once.
pub fn kill(lab: &Lab, host: u8) -> Result<()> {
    let pid = first_process(lab, host)?.with_context(|| format!("{} is off already", host_name(host)))?;
    network::unplug(lab, host)?;
    kill_process(pid, Signal::KILL).context("cannot kill the host's first process")?;
    clean(lab, host)
}

/// Shuts a host down as an operator would.
pub fn shut_down(lab: &Lab, host: u8) -> Result<()> {
    let pid = first_process(lab, host)?.with_context(|| format!("{} is off already", host_name(host)))?;
    // It does not hear us while it starts something.
    let mut asked: Option<Instant> = None;
    wait_until(SHUTDOWN_TIMEOUT, || {
        if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            asked = Some(Instant::now());
            let _ = kill_process(pid, Signal::TERM);
        }
        Ok(first_process(lab, host)?.is_none())
    })
    .with_context(|| format!("{} does not end", host_name(host)))?;
    clean(lab, host)
}

/// Removes what a host that is off has left on the machine. Its files stay.
pub fn clean(lab: &Lab, host: u8) -> Result<()> {
    let cgroup = Cgroup::locate(&lab.cgroup(host))?;
    wait_until(DEATH_TIMEOUT, || {
        cgroup.kill();
        Ok(cgroup.processes().is_empty())
    })
    .context("the host's processes do not end")?;
    cgroup.destroy().context("cannot remove the host's cgroup")?;
    network::disconnect(lab, host)
}

/// The process whose end is the host's, in the machine's numbers.
pub fn first_process(lab: &Lab, host: u8) -> Result<Option<Pid>> {
    let first = Cgroup::locate(&lab.cgroup(host))?
        .processes()
        .into_iter()
        .find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // Its number for the machine, and its number in the host; those of containers have a third.
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| {
                let numbers: Vec<&str> = numbers.split_whitespace().collect();
                numbers.len() == 2 && numbers[1] == "1"
            })
        });
    Ok(first.and_then(Pid::from_raw))
}

/// A command that will run in a host, in all of its namespaces.
pub fn command(lab: &Lab, host: u8) -> Result<Command> {
    let pid = first_process(lab, host)?
        .with_context(|| format!("{0} is off\nhint: `flynn-host lab start {0}`", host_name(host)))?;
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={}", pid.as_raw_nonzero()))
        .args([
            "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd=/",
        ])
        .env("HOME", "/etc/flynn/home")
        .env_remove("FLYNN_HOST_CONFIG")
        .env_remove("FLYNNRC")
        // What git trusts is said in the home that `flynn` wrote.
        .env_remove("GIT_SSL_CAINFO")
        .env_remove("FLYNN_APP");
    // `flynn` and `flynn-host` are found by name.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", lab.programs.display()));
    Ok(command)
}

/// Moves the calling process, which must have one thread, to the host's cgroup: what it starts ends with the host,
/// and counts for it.
pub fn enter_cgroup(lab: &Lab, host: u8) -> Result<()> {
    let init = format!("{}/init", lab.cgroup(host));
    Cgroup::locate(&init)?
        .join()
        .context("cannot enter the host's cgroup")
}

pub fn last_lines(lab: &Lab, host: u8) -> String {
    let text = fs::read_to_string(lab.console(host)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

pub fn wait_until(at_most: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        if began.elapsed() > at_most {
            bail!("waited {} s", at_most.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
