//! `flynn-host collect-debug-info`: what is needed is in it, and nothing that nobody else may see.

use std::{os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, succeeded};

const PASSWORD: &str = "correct-horse-battery";

#[test]
fn debug_information_is_collected_without_secrets() -> Result<()> {
    let cluster = Cluster::start()?;
    // An app that tells its secret, and somebody else's.
    cluster.flynn(&["create", "-r", "", "shop"])?;
    let script = "echo \"secret $API_TOKEN\"; echo connecting to postgres://shop:hunter2-hunter2@db/shop; exec sleep 1000";
    let env = [("API_TOKEN", PASSWORD), ("COLOUR", "blue")];
    let release = cluster.release("shop", &[Process::worker(script)], &env)?;
    cluster.deploy("shop", &release)?;
    cluster.flynn(&["-a", "shop", "scale", "-n", "worker=1"])?;
    cluster.wait("the app to have said it", || {
        let log = cluster.api_text("/apps/shop/log")?;
        Ok(log.contains("connecting to").then_some(()))
    })?;

    let path = cluster.dir.path().join("debug.tar.gz");
    let shown = path.display().to_string();
    let said = cluster.flynn_host(&["collect-debug-info", "--filename", &shown])?;
    ensure!(said.contains(&shown), "{said}");
    let mode = std::fs::metadata(&path)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let tar = |options: &[&str]| -> Result<String> {
        succeeded(
            "tar",
            Command::new("tar")
                .args(options)
                .arg("--file")
                .arg(&path)
                .output()?,
        )
    };
    let names = tar(&["--list", "--gzip"])?;
    for name in [
        "about.txt",
        "config/host.toml",
        "cluster/status.txt",
        "host/jobs.json",
        "machine/nftables.txt",
        "machine/cgroup.txt",
        "machine/proc-self-mountinfo.txt",
        "files/layers.txt",
        "logs/apps/",
    ] {
        ensure!(names.contains(name), "{name} is not among\n{names}");
    }
    let all = tar(&["--extract", "--gzip", "--to-stdout"])?;
    for part in [
        "host0 leads",
        "domain = \"flynn.localhost\"",
        "API_TOKEN",
        "postgres://shop:[removed]@db",
    ] {
        ensure!(all.contains(part), "there is no {part:?}");
    }
    for secret in [PASSWORD, "hunter2-hunter2"] {
        ensure!(!all.contains(secret), "{secret} is in it");
    }
    for entry in std::fs::read_dir(cluster.dir.path().join("state/secrets"))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let is_public = path.extension().is_none_or(|extension| extension != "key");
        for line in text
            .lines()
            .filter(|line| line.len() >= 8 && !line.starts_with("-----"))
        {
            ensure!(is_public || !all.contains(line), "{} is in it", path.display());
        }
    }
    cluster.finish()
}
