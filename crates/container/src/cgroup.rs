//! The cgroup of one container, as seen from outside: who is in it, was it out of memory, away
//! with it. Making one for a container, and setting its limits, is libcontainer's part.
//!
//! The same path exists once per hierarchy: on cgroup v1 (also in "hybrid" set-ups, where a v2
//! hierarchy is mounted beside and not used) under each controller, on v2 once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may take to let go of a cgroup whose processes are dead.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Cgroup {
    is_unified: bool,
    /// One directory per hierarchy, with the controllers of that hierarchy.
    directories: Vec<(Vec<String>, PathBuf)>,
}

impl Cgroup {
    /// The cgroup `path` (from the root of each hierarchy). It need not exist.
    pub fn locate(path: &str) -> io::Result<Cgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let relative = path.trim_start_matches('/');
        let mut legacy = Vec::new();
        let mut unified = None;
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount_point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup") => {
                    let known = [
                        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
                    ];
                    let others = ["net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"];
                    let controllers: Vec<String> = right
                        .nth(1)
                        .unwrap_or_default()
                        .split(',')
                        .filter(|name| known.contains(name) || others.contains(name))
                        .map(str::to_owned)
                        .collect();
                    if !controllers.is_empty() {
                        legacy.push((controllers, Path::new(mount_point).join(relative)));
                    }
                }
                Some("cgroup2") => unified = Some(Path::new(mount_point).join(relative)),
                _ => {}
            }
        }
        if !legacy.is_empty() {
            return Ok(Cgroup {
                is_unified: false,
                directories: legacy,
            });
        }
        match unified {
            Some(directory) => Ok(Cgroup {
                is_unified: true,
                directories: vec![(Vec::new(), directory)],
            }),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup file system is mounted",
            )),
        }
    }

    pub fn is_unified(&self) -> bool {
        self.is_unified
    }

    /// Its directory in the hierarchy that has `controller`.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.directories
            .iter()
            .find(|(controllers, _)| self.is_unified || controllers.iter().any(|name| name == controller))
            .map(|(_, directory)| directory.as_path())
    }

    /// Its directory in each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(|(_, directory)| directory.as_path())
    }

    /// Makes it and what lacks above it, ready for processes and cgroups of its own, without limits.
    pub fn create(&self) -> io::Result<()> {
        for (controllers, directory) in &self.directories {
            let mut missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
            missing.reverse();
            for path in missing {
                if self.is_unified {
                    hand_down(path.parent().expect("it is below a mount point"))?;
                }
                fs::create_dir(path)?;
                if controllers.iter().any(|name| name == "cpuset") {
                    inherit_cpuset(path)?;
                }
            }
        }
        Ok(())
    }

    pub fn exists(&self) -> bool {
        self.directories.iter().any(|(_, directory)| directory.exists())
    }

    /// Moves the calling process in. Only for a process with one thread.
    pub fn join(&self) -> io::Result<()> {
        for (_, directory) in self
            .directories
            .iter()
            .filter(|(_, directory)| directory.exists())
        {
            fs::write(directory.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Every process in it and in cgroups below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for (_, directory) in &self.directories {
            collect_processes(directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// SIGKILL to everything in it.
    pub fn kill(&self) {
        for pid in self.processes() {
            // SAFETY: no memory is involved. Pid 0 would be our own group; the kernel shows
            // processes of other pid namespaces as 0, which a host's shim never meets.
            if pid > 0 {
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    /// Kills what is in it, and removes it with all below.
    pub fn destroy(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut pause = Duration::from_micros(200);
        for (_, directory) in &self.directories {
            while let Err(error) = remove_tree(directory) {
                if Instant::now() > deadline {
                    return Err(error);
                }
                // There is no event for "the last zombie has left": rmdir is the only test. Killing
                // again catches what was forked meanwhile.
                self.kill();
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// How many processes in it were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.is_unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.directory("memory")
            .and_then(|directory| fs::read_to_string(directory.join(file)).ok())
            .and_then(|text| {
                text.lines().find_map(|line| {
                    line.strip_prefix("oom_kill ")
                        .and_then(|count| count.parse().ok())
                })
            })
            .unwrap_or(0)
    }

    /// Memory in use now.
    pub fn memory_bytes(&self) -> Option<u64> {
        let file = if self.is_unified {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        fs::read_to_string(self.directory("memory")?.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// CPU time used so far.
    pub fn cpu_nanoseconds(&self) -> Option<u64> {
        if self.is_unified {
            let text = fs::read_to_string(self.directory("cpu")?.join("cpu.stat")).ok()?;
            let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            return Some(used.parse::<u64>().ok()? * 1000);
        }
        fs::read_to_string(self.directory("cpuacct")?.join("cpuacct.usage"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

/// Tells the kernel that processes are about to be moved between cgroups.
///
/// The first move after a quiet moment waits until every processor has taken note that there are moves (a
/// grace period of RCU: 11 ms on an idle machine); those that follow soon do not. Moving the calling
/// process to where it is begins that wait, so that it passes while a shim does other things. Blocks for
/// as long.
pub(crate) fn expect_moves() -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    // `4:pids:/path`, and `0::/path` for version 2, which is last.
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let controller = controllers.split(',').next().unwrap_or_default();
        if let Some(directory) = Cgroup::locate(path)?.directory(controller) {
            return fs::write(directory.join("cgroup.procs"), "0");
        }
    }
    Ok(())
}

/// On v2 a cgroup has the controllers that the one above hands down.
fn hand_down(parent: &Path) -> io::Result<()> {
    let available = fs::read_to_string(parent.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

/// On v1 a new cpuset has no processors, and then nothing can be moved in.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().expect("it is below a mount point");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fs::write(directory.join(file), fs::read(parent.join(file))?)?;
    }
    Ok(())
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) else {
        return;
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory) {
        collect_processes(&child, pids);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
