//! The container as libcontainer wants it described: an OCI runtime configuration.
//!
//! Its "process" is pid 1 (see `init`), which is root inside; the app's own user, rights and
//! filter are `launch`'s business.

use std::path::Path;

use container::capability::{self, Capability};
use container::cgroup::Cgroup;
use container::{IDS_PER_CONTAINER as IDS, Limits, Spec};
use serde_json::{Value, json};

use crate::init;

/// Docker's list.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Docker's list, after libcontainer's habit of skipping what is not there.
const MASKED_DEVICES: [&str; 2] = [
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub fn configuration(spec: &Spec, root: &Path, cgroup: &Cgroup) -> Value {
    let own = init::OWN_CAPABILITIES.into_iter().chain(app_capabilities(spec));
    let mut capabilities: Vec<&str> = own.map(Capability::name).collect();
    capabilities.sort_unstable();
    capabilities.dedup();
    let ids = json!([{ "containerID": 0, "hostID": spec.host_id_base, "size": IDS }]);
    let masked: Vec<&str> = MASKED.into_iter().chain(MASKED_DEVICES).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": spec.readonly_root },
        "hostname": spec.hostname,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["flynn-init"],
            "env": [],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
                "inheritable": [], "ambient": []
            },
            "noNewPrivileges": true
        },
        "mounts": mounts(cgroup),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "namespaces": [
                { "type": "user" }, { "type": "pid" }, { "type": "mount" }, { "type": "network" },
                { "type": "uts" }, { "type": "ipc" }, { "type": "cgroup" }
            ],
            "cgroupsPath": spec.cgroup,
            "resources": resources(&spec.limits),
            // Without NET_RAW these are what lets an unprivileged ping work, and an app listen on port 80.
            "sysctl": {
                "net.ipv4.ping_group_range": format!("0 {}", IDS - 1),
                "net.ipv4.ip_unprivileged_port_start": "0"
            },
            "maskedPaths": masked,
            "readonlyPaths": READ_ONLY
        }
    })
}

pub fn app_capabilities(spec: &Spec) -> impl Iterator<Item = Capability> + '_ {
    capability::DEFAULT
        .into_iter()
        .chain(spec.extra_capabilities.iter().copied())
}

fn mounts(cgroup: &Cgroup) -> Value {
    let mount = |kind: &str, target: &str, options: &[&str]| json!({ "type": kind, "source": kind, "destination": target, "options": options });
    let bind = |source: &Path, target: &str| {
        json!({
            "type": "bind", "source": source, "destination": target,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"]
        })
    };
    let mut mounts = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "tmpfs",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    // The container's own limits, for runtimes that size themselves by them (Java, Node.js).
    if cgroup.is_unified() {
        mounts.extend(
            cgroup
                .directory("memory")
                .map(|directory| bind(directory, "/sys/fs/cgroup")),
        );
    } else {
        mounts.push(mount(
            "tmpfs",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
        ));
        for controller in ["memory", "cpu"] {
            let target = format!("/sys/fs/cgroup/{controller}");
            mounts.extend(
                cgroup
                    .directory(controller)
                    .map(|directory| bind(directory, &target)),
            );
        }
    }
    Value::Array(mounts)
}

fn resources(limits: &Limits) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = limits.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
        if has_swap_accounting() {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(milli) = limits.cpu_milli {
        // 1024 is the kernel's default weight, 2 the least it takes.
        let shares = (u64::from(milli) * 1024 / 1000).max(2);
        resources["cpu"] = json!({ "shares": shares });
        if limits.cpu_is_capped {
            // The kernel refuses less than a millisecond in a period.
            resources["cpu"]["quota"] = json!((i64::from(milli) * 100).max(1_000));
            resources["cpu"]["period"] = json!(100_000);
        }
    }
    if let Some(processes) = limits.processes_max {
        // Pid 1 is ours.
        resources["pids"] = json!({ "limit": i64::from(processes) + 1 });
    }
    resources
}

/// Off in some kernels, where setting the limit is an error.
fn has_swap_accounting() -> bool {
    let root = Cgroup::locate("/").ok();
    root.is_some_and(|root| {
        root.is_unified()
            || root
                .directory("memory")
                .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
    })
}
