//! `flynn-host lab` for tests: several hosts, each in namespaces of its own, on a network that can be cut.
//!
//! It is the same program that users convince themselves with; nothing here does what they could not. Everything
//! of it is gone afterwards, whether the test passed or not.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Process, http, program, repo_root, succeeded};

/// Labs of one process.
static LABS: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub name: String,
    pub hosts: usize,
    addresses: Vec<String>,
    key: String,
    /// The host that answered for the API last.
    answered: AtomicUsize,
    is_gone: bool,
}

impl Lab {
    /// One cluster of so many hosts, which all serve.
    pub fn up(hosts: usize) -> Result<Lab> {
        Lab::make(hosts, &[])
    }

    /// The same with an address that one living host has at a time.
    pub fn floating(hosts: usize) -> Result<Lab> {
        Lab::make(hosts, &["--floating"])
    }

    /// So many clusters of one host each.
    pub fn apart(hosts: usize) -> Result<Lab> {
        Lab::make(hosts, &["--apart"])
    }

    /// One cluster of one host, with a disk of 2 GiB.
    pub fn with_a_disk() -> Result<Lab> {
        Lab::make(1, &["--apart", "--disk", "2G"])
    }

    /// One cluster of so many hosts, each with a disk of 2 GiB.
    pub fn with_disks(hosts: usize) -> Result<Lab> {
        Lab::make(hosts, &["--disk", "2G"])
    }

    fn make(hosts: usize, how: &[&str]) -> Result<Lab> {
        let dir = tempfile::Builder::new().prefix("flynn-lab-").tempdir()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{:x}{number}", std::process::id() % 0x10_0000);
        let repo = repo_root();
        let config = format!(
            "shim = {:?}\nbuildpacks = {:?}\npackage_layer = {:?}\n",
            program("flynn-shim"),
            repo.join("buildpacks"),
            repo.join("script/package-layer"),
        );
        fs::write(dir.path().join("machine.toml"), config)?;
        let mut lab = Lab {
            dir,
            name,
            hosts,
            addresses: vec![],
            key: String::new(),
            answered: AtomicUsize::new(1),
            is_gone: false,
        };
        let images =
            std::env::var("FLYNN_TEST_IMAGES").context("FLYNN_TEST_IMAGES is not set; run script/test")?;
        let count = hosts.to_string();
        // Another build than the one beside this test, where one is to be tried.
        let programs = std::env::var("FLYNN_TEST_PROGRAMS").ok();
        let programs: Vec<&str> = programs
            .iter()
            .flat_map(|programs| ["--programs", programs])
            .collect();
        let up = ["up", "--hosts", &count, "--images", &images];
        lab.lab(&[&up, how, &programs].concat())?;
        let description: Value = serde_json::from_slice(&fs::read(lab.directory().join("lab.json"))?)?;
        let number = description["number"].as_u64().context("the lab has no number")?;
        lab.addresses = (1..=hosts)
            .map(|host| format!("10.87.{number}.{}", 10 + host))
            .collect();
        let key = lab.directory().join("host1/state/secrets/controller.key");
        lab.key = fs::read_to_string(key)?.trim().to_owned();
        Ok(lab)
    }

    fn directory(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("flynn-host"));
        command
            .arg("--config")
            .arg(self.dir.path().join("machine.toml"))
            .args(["lab", "--name", &self.name, "--dir"])
            .arg(self.dir.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// `flynn-host lab …`: what it prints.
    pub fn lab(&self, args: &[&str]) -> Result<String> {
        succeeded(
            &format!("flynn-host lab {}", args.join(" ")),
            self.command(args).output()?,
        )
    }

    /// Where a host is reached; the first is 1.
    pub fn address(&self, host: usize) -> &str {
        &self.addresses[host - 1]
    }

    /// The address that one host has at a time, where the lab has one.
    pub fn floating_address(&self) -> String {
        let (network, _) = self.address(1).rsplit_once('.').expect("it is an IPv4 address");
        format!("{network}.200")
    }

    /// Adds a line to the configuration of all hosts, and has their daemons read it.
    pub fn configure(&self, line: &str) -> Result<()> {
        for host in 1..=self.hosts {
            let path = self.directory().join(format!("host{host}/etc/host.toml"));
            let text = fs::read_to_string(&path)?;
            fs::write(&path, text + line)?;
            self.exec(
                host,
                &["sh", "-c", "kill -TERM $(cat /var/lib/flynn/run/daemon.pid)"],
            )?;
        }
        Ok(())
    }

    /// Runs a command in a host.
    pub fn try_exec(&self, host: usize, words: &[&str]) -> Result<Output> {
        let host = format!("host{host}");
        let args: Vec<&str> = ["exec", &host, "--"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        Ok(self.command(&args).output()?)
    }

    pub fn exec(&self, host: usize, words: &[&str]) -> Result<String> {
        succeeded(
            &format!("{} in host{host}", words.join(" ")),
            self.try_exec(host, words)?,
        )
    }

    /// `flynn …` in a host that is on.
    pub fn flynn(&self, host: usize, args: &[&str]) -> Result<String> {
        let words: Vec<&str> = ["flynn"].into_iter().chain(args.iter().copied()).collect();
        self.exec(host, &words)
    }

    /// A request to the controller by this host's router.
    pub fn api_at(&self, host: usize, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let address = format!("{}:80", self.address(host));
        let answer = http::call_named(
            &address,
            "controller.flynn.localhost",
            method,
            path,
            &self.key,
            body,
        )?;
        ensure!(
            answer.status == 200,
            "{method} {path} at host{host} answers {}: {}",
            answer.status,
            answer.text()
        );
        match answer.body.is_empty() {
            true => Ok(Value::Null),
            false => Ok(serde_json::from_slice(&answer.body)?),
        }
    }

    /// The same by the first host that answers, as somebody with all addresses would do, who stays with the one that
    /// answered last.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut last = None;
        let first = self.answered.load(Ordering::Relaxed);
        for host in (first..=self.hosts).chain(1..first) {
            match self.api_at(host, method, path, body) {
                Ok(answer) => {
                    self.answered.store(host, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a lab has a host"))
    }

    /// One request for an app's page by a host's router.
    pub fn page(&self, host: usize, app: &str) -> Result<http::Answer> {
        http::get(
            &format!("{}:80", self.address(host)),
            &format!("{app}.flynn.localhost"),
            "/",
        )
    }

    /// The host that leads, as a host sees it.
    pub fn leader(&self, host: usize) -> Result<usize> {
        let list = self.exec(host, &["flynn-host", "list"])?;
        let row = list.lines().find(|row| row.contains("(leader)"));
        let row = row.with_context(|| format!("nobody leads:\n{list}"))?;
        let name = row.split_whitespace().next().unwrap_or_default();
        let number = name.strip_prefix("host").and_then(|number| number.parse().ok());
        number.with_context(|| format!("{name} is no host of a lab"))
    }

    /// An app that runs `count` of one process, of the images that every host has.
    pub fn app(&self, app: &str, process: &Process, count: u32) -> Result<()> {
        let stack = fs::read(self.directory().join("host1/state/images/stack.json"))?;
        let stack: Value = serde_json::from_slice(&stack)?;
        let created = self.api("POST", "/apps", Some(&json!({"name": app})))?;
        let manifest = json!({
            "_type": "application/vnd.flynn.image.manifest.v1+json",
            "entrypoints": {"_default": {
                "args": ["/bin/bash"], "uid": 1000, "gid": 1000, "cwd": "/app",
                "env": {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/app"},
            }},
            "rootfs": [{"layers": stack["run"]["layers"]}],
        });
        let artifact = json!({"type": "flynn", "uri": "flynn://test/run", "manifest": manifest});
        let artifact = self.api("POST", "/artifacts", Some(&artifact))?;
        let mut entry = json!({"args": process.args});
        if process.is_web {
            let check = json!({"type": "tcp"});
            let service = json!({"name": format!("{app}-web"), "create": true, "check": check});
            entry["ports"] = json!([{"port": 8080, "proto": "tcp", "service": service}]);
        }
        let release = json!({
            "app_id": created["id"], "artifacts": [artifact["id"]], "processes": {process.name: entry},
        });
        let release = self.api("POST", "/releases", Some(&release))?;
        let deployment = self.api(
            "POST",
            &format!("/apps/{app}/deploy"),
            Some(&json!({"id": release["id"]})),
        )?;
        let path = format!("/deployments/{}", deployment["id"].as_str().unwrap_or_default());
        let status = self.wait("the deployment to end", || {
            let row = self.api("GET", &path, None)?;
            let status = row["status"].as_str().unwrap_or_default().to_owned();
            Ok(matches!(&*status, "complete" | "failed").then_some((status, row["error"].to_string())))
        })?;
        ensure!(status.0 == "complete", "the deployment failed: {}", status.1);
        self.scale(app, &release["id"], process.name, count)?;
        self.wait_up(app, count as usize)?;
        match process.is_web {
            true => self.wait_reached(app, count as usize),
            false => Ok(()),
        }
    }

    /// Until every host's router has had an answer from each of an app's jobs, which say who they are.
    fn wait_reached(&self, app: &str, count: usize) -> Result<()> {
        for host in 1..=self.hosts {
            self.wait(&format!("host{host} to reach all jobs of {app}"), || {
                let mut found = BTreeSet::new();
                for _ in 0..4 * count {
                    let answer = self.page(host, app)?;
                    ensure!(answer.status == 200, "host{host} answers {}", answer.status);
                    found.insert(answer.text());
                }
                Ok((found.len() == count).then_some(()))
            })?;
        }
        Ok(())
    }

    pub fn scale(&self, app: &str, release: &Value, process_type: &str, count: u32) -> Result<()> {
        let path = format!("/apps/{app}/scale/{}", release.as_str().unwrap_or_default());
        self.api(
            "PUT",
            &path,
            Some(&json!({"new_processes": {process_type: count}})),
        )?;
        Ok(())
    }

    /// Hosts that an app's jobs in this state are on.
    pub fn jobs(&self, app: &str, state: &str) -> Result<Vec<String>> {
        let jobs = self.api("GET", &format!("/apps/{app}/jobs"), None)?;
        let jobs = jobs.as_array().into_iter().flatten();
        let hosts = jobs
            .filter(|job| job["state"] == state)
            .map(|job| &job["host_id"]);
        Ok(hosts
            .map(|host| host.as_str().unwrap_or_default().to_owned())
            .collect())
    }

    pub fn wait_up(&self, app: &str, count: usize) -> Result<()> {
        self.wait(&format!("{count} jobs of {app} to be up"), || {
            Ok((self.jobs(app, "up")?.len() == count).then_some(()))
        })
    }

    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        self.wait_within(crate::PATIENCE, what, look)
    }

    /// For what the platform itself takes its time for.
    pub fn wait_within<T>(
        &self,
        patience: std::time::Duration,
        what: &str,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        crate::wait(what, patience, || self.logs(), look)
    }

    /// The end of what each host said.
    pub fn logs(&self) -> String {
        let one = |host: usize| {
            let log = fs::read_to_string(self.directory().join(format!("host{host}/console.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!(
                "--- host{host}\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            )
        };
        (1..=self.hosts).map(one).collect::<Vec<_>>().join("\n")
    }

    /// Ends the lab and checks that nothing of it is left on the machine.
    pub fn finish(mut self) -> Result<()> {
        self.end()?;
        let left = self.leftovers();
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.is_gone, true) {
            self.lab(&["down"])?;
        }
        Ok(())
    }

    /// What has the lab's name.
    pub fn leftovers(&self) -> Vec<String> {
        let mine = format!("flab-{}", self.name);
        let mut directories = vec![
            PathBuf::from("/run/netns"),
            "/sys/class/net".into(),
            "/sys/fs/cgroup".into(),
        ];
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        directories.extend(hierarchies.map(|entry| entry.path()).filter(|path| path.is_dir()));
        let mut left = vec![];
        for directory in directories {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&mine) {
                    left.push(entry.path().display().to_string());
                }
            }
        }
        let processes = crate::processes(|words| {
            let is_init = words.iter().any(|word| word == "lab-init");
            is_init && words.iter().any(|word| word.contains(&mine))
        });
        left.extend(processes.iter().map(|pid| format!("process {pid}")));
        if self.directory().exists() {
            left.push(self.directory().display().to_string());
        }
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.end() {
            eprintln!("--- cannot end the lab: {error:#}");
        }
    }
}
