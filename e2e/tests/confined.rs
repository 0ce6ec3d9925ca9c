//! Apps that misbehave: they hurt nobody, and their owner is told.

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, server};

fn run(cluster: &Cluster, script: &str) -> Result<(Option<i32>, String)> {
    let output = cluster.try_flynn(&["-a", "shop", "run", "--", "bash", "-c", script])?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

fn shop() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    Ok(cluster)
}

#[test]
fn what_eats_memory_disk_or_processes_hurts_only_itself() -> Result<()> {
    let cluster = shop()?;
    let hog = [
        "-a",
        "shop",
        "run",
        "--limits",
        "memory=64MB",
        "--",
        "python3",
        "-c",
        "x = 'x' * (256 << 20)",
    ];
    let output = cluster.try_flynn(&hog)?;
    ensure!(
        output.status.code() == Some(137),
        "the memory hog ended with {output:?}"
    );
    cluster.wait("the job to be known as out of memory", || {
        let down = cluster.jobs("shop", "down")?;
        Ok(down
            .iter()
            .any(|job| job["exit"] == "out_of_memory")
            .then_some(()))
    })?;

    let (code, text) = run(
        &cluster,
        "head -c 300M /dev/zero > /tmp/big; echo code $?; df /tmp | tail -1",
    )?;
    ensure!(code == Some(0) && text.contains("No space left"), "{text}");

    let (_, text) = run(&cluster, "for i in $(seq 3000); do sleep 60 & done; wait")?;
    ensure!(text.contains("Resource temporarily unavailable"), "{text}");

    ensure!(
        cluster.page("shop")?.starts_with("hello"),
        "the app next to them suffers"
    );
    cluster.finish()
}

#[test]
fn nothing_of_the_host_or_of_other_apps_can_be_reached() -> Result<()> {
    let cluster = shop()?;
    cluster.flynn(&["create", "-r", "", "other"])?;
    let release = cluster.release("other", &[Process::web(&server("private"))], &[])?;
    cluster.deploy("other", &release)?;
    cluster.flynn(&["-a", "other", "scale", "web=1"])?;
    let jobs = cluster.api("GET", "/internal/services", None);
    ensure!(jobs.is_err(), "internal paths answer to a user's key");

    // Processes and files.
    let (_, text) = run(
        &cluster,
        "ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline | tr '\\0' ' '",
    )?;
    let count: u32 = text.lines().next().unwrap_or_default().trim().parse()?;
    ensure!(count < 10, "it sees {count} processes");
    let state = cluster.dir.path().join("state");
    let (code, _) = run(&cluster, &format!("ls {}", state.display()))?;
    ensure!(code != Some(0), "the state directory is visible");

    // Devices, mounts, namespaces, the kernel's own files.
    for refused in [
        "mount -t tmpfs none /mnt",
        "mknod /tmp/sda b 8 0",
        "unshare -m true",
        "unshare -U true",
        "cat /proc/kcore",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "cat /sys/firmware/dmi/tables/DMI",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "python3 -c 'import ctypes,sys; sys.exit(0 if ctypes.CDLL(None).syscall(321, 0, 0, 0) >= 0 else 1)'",
        "dmesg",
        "hostname other",
        "su -c true",
    ] {
        let (code, text) = run(&cluster, refused)?;
        ensure!(code != Some(0), "`{refused}` was not refused: {text}");
    }

    // The host's services and other apps over the network.
    let connect = |address: &str, port: u16| format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}'");
    for port in [1112, 1113, 1114] {
        let (code, _) = run(&cluster, &connect("100.100.0.1", port))?;
        ensure!(code != Some(0), "port {port} of the host answers");
    }
    let resolved = run(&cluster, "getent hosts other-web.discoverd")?.1;
    let address = resolved.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(
        address.starts_with("100.100."),
        "other-web.discoverd is {resolved:?}"
    );
    let (code, _) = run(&cluster, &connect(&address, 8080))?;
    ensure!(code != Some(0), "another app's job answers at its own address");

    // What is meant to be reached is.
    let own = run(&cluster, "curl -s http://shop-web.discoverd:8080/")?.1;
    ensure!(own.starts_with("hello"), "{own}");
    // By its host header: programs take names below localhost for themselves, whatever DNS says.
    let routed = run(
        &cluster,
        "curl -s -H Host:other.flynn.localhost http://100.100.0.1/",
    )?
    .1;
    ensure!(routed.starts_with("private"), "{routed}");

    // Root inside is nobody outside.
    let job = cluster.contained()[0];
    let status = std::fs::read_to_string(format!("/proc/{job}/status"))?;
    let uid = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap_or_default();
    ensure!(
        !uid.split_whitespace().any(|word| word == "0"),
        "a container's process is root: {uid}"
    );
    cluster.finish()
}
