//! The README's own walk, with nothing set up: `script/up`, the examples pushed, `script/up` again on
//! a broken machine, `script/down`. In a network namespace of its own, with another prefix, state and
//! home, so that a machine that runs Flynn already is left alone.
//!
//! It builds what `script/up` builds, in cargo's profile `FLYNN_SETUP_PROFILE` (default: release).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use e2e::{NetNs, http, kill, processes, repo_root, succeeded};

struct Machine {
    dir: tempfile::TempDir,
    net: NetNs,
    name: String,
}

#[test]
fn a_fresh_machine_gets_a_cluster_keeps_it_and_gets_rid_of_it() -> Result<()> {
    let machine = Machine::new()?;

    let first = machine.up()?;
    ensure!(
        first.contains("The example answers at http://example.flynn.localhost/"),
        "{first}"
    );
    ensure!(
        machine
            .page("example")?
            .contains("Hello from the Node.js example")
    );
    let before = machine.what_runs()?;

    // Nothing to repair: nothing changes.
    let second = machine.up()?;
    ensure!(second.contains("Everything up-to-date"), "{second}");
    ensure!(second.contains("it is there already"), "{second}");
    let after = machine.what_runs()?;
    ensure!(before == after, "the second run changed {before} to {after}");

    // Broken in several ways at once; one run puts all of it right, and the app has stayed as it was.
    fs::remove_file(machine.path("prefix/bin/flynn"))?;
    fs::write(machine.path("prefix/lib/flynn/buildpacks/build"), "broken")?;
    fs::remove_file(machine.path("home/.flynnrc"))?;
    for pid in machine.platform() {
        kill(pid);
    }
    let third = machine.up()?;
    ensure!(third.contains("prefix/bin/flynn"), "{third}");
    ensure!(
        machine
            .page("example")?
            .contains("Hello from the Node.js example")
    );
    ensure!(
        machine.sh("flynn -a example ps")?.contains("web"),
        "the example's process is gone"
    );

    machine.walk("python", "Hello from the Python example")?;
    machine.walk("static", "Hello from the static example")?;
    machine.sh("cd apps/python && flynn scale web=3 && flynn env set GREETING=hello && flynn log -n 5")?;
    let said = machine.sh("cd apps/python && flynn run sh -c 'echo $GREETING'")?;
    ensure!(said.trim() == "hello", "`flynn run` said {said:?}");
    machine.sh("cd apps/python && flynn release rollback -y")?;
    let said = machine.sh("cd apps/python && flynn run sh -c 'echo $GREETING.'")?;
    ensure!(said.trim() == ".", "after the rollback `flynn run` said {said:?}");
    let list = machine.sh("flynn-host --config etc/host.toml list")?;
    ensure!(list.starts_with("ID"), "{list}");

    machine.down()?;
    let left = machine.leftovers()?;
    ensure!(left.is_empty(), "left behind: {}", left.join("\n"));
    Ok(())
}

impl Machine {
    fn new() -> Result<Machine> {
        let name = format!("fe{}", std::process::id());
        let machine = Machine {
            net: NetNs::new(&name)?,
            dir: tempfile::Builder::new().prefix("flynn-setup-").tempdir()?,
            name,
        };
        for directory in ["home", "etc", "apps"] {
            fs::create_dir(machine.path(directory))?;
        }
        // A cgroup of its own: what an operator has set in the file stays.
        fs::write(
            machine.path("etc/host.toml"),
            format!("cgroup = \"flynn-{}\"\n", machine.name),
        )?;
        Ok(machine)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// A program in this machine's network, with its home and its programs.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.net.path().display()))
            .arg(program);
        let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
        // cargo and rustup are where they were.
        for (variable, directory) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, Path::new(&home).join(directory));
            }
        }
        // What cargo tells its tests would make it build anew for a change of surroundings.
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&variable);
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.path("prefix/bin").display()))
            .env("HOME", self.path("home"))
            .env("GIT_CONFIG_GLOBAL", self.path("home/.gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env_remove("GIT_SSL_CAINFO")
            .env_remove("FLYNN_APP")
            .env_remove("FLYNNRC")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs script/up or script/down with this machine's places.
    fn script(&self, name: &str, options: &[&str]) -> Result<String> {
        // The platform lives on after the script and keeps its output open: a file, not a pipe.
        let said = self.path(&format!("{name}.said"));
        let file = fs::File::create(&said)?;
        let status = self
            .command(&repo_root().join("script").join(name))
            .args(options)
            .args(["--prefix".into(), self.path("prefix")])
            .args(["--state".into(), self.path("state")])
            .args(["--config".into(), self.path("etc/host.toml")])
            .args(["--log".into(), self.path("host.log")])
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()?;
        let text = fs::read_to_string(&said)?;
        println!("{text}");
        ensure!(
            status.success(),
            "script/{name} failed ({status}):\n{text}\n{}",
            fs::read_to_string(self.path("host.log")).unwrap_or_default()
        );
        Ok(text)
    }

    fn up(&self) -> Result<String> {
        let profile = std::env::var("FLYNN_SETUP_PROFILE").unwrap_or_else(|_| "release".into());
        self.script("up", &["--profile", &profile])
    }

    fn down(&self) -> Result<String> {
        self.script("down", &["--yes", "--keep-cache"])
    }

    fn sh(&self, script: &str) -> Result<String> {
        let output = self.command(Path::new("bash")).args(["-euc", script]).output()?;
        succeeded(script, output)
    }

    /// An example, from a checkout of its own to its page, as the README says.
    fn walk(&self, example: &str, greeting: &str) -> Result<()> {
        let source = repo_root().join("examples").join(example);
        let told = self.sh(&format!(
            "cp -R {source} apps/{example} && cd apps/{example} && git init -q -b main . && git add -A &&
             git -c user.name=Test -c user.email=test@example.com commit -q -m first &&
             flynn create my-{example} && git push flynn main 2>&1",
            source = source.display()
        ))?;
        ensure!(
            told.contains(&format!("https://my-{example}.flynn.localhost/")),
            "the push said:\n{told}"
        );
        let page = self.page(&format!("my-{example}"))?;
        ensure!(page.contains(greeting), "{example} answers {page}");
        Ok(())
    }

    fn page(&self, app: &str) -> Result<String> {
        let host = format!("{app}.flynn.localhost");
        let answer = self.net.within(|| http::get("127.0.0.1:80", &host, "/"))?;
        ensure!(answer.status == 200, "{app} answers {}", answer.status);
        Ok(answer.text())
    }

    /// Everything that a run of script/up with nothing to repair must leave as it is.
    fn what_runs(&self) -> Result<String> {
        let mut told = String::new();
        for part in ["supervisor", "daemon", "router"] {
            let pid = self.path(&format!("state/run/{part}.pid"));
            told += &fs::read_to_string(pid).with_context(|| format!("no {part} runs"))?;
        }
        // Not the columns that say how long ago.
        for list in ["ps", "release"] {
            told += &self.sh(&format!("flynn -a example {list} | awk '{{print $1}}'"))?;
        }
        Ok(told)
    }

    /// Pids of the supervisor, daemon and router.
    fn platform(&self) -> Vec<i32> {
        let config = self.path("etc/host.toml").to_string_lossy().into_owned();
        processes(|command| {
            command
                .first()
                .is_some_and(|program| program.ends_with("flynn-host"))
                && command.contains(&config)
        })
    }

    /// What is left of a cluster that was removed.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = vec![];
        let dir = self.dir.path().to_string_lossy().into_owned();
        for pid in processes(|command| command.iter().any(|word| word.contains(&dir))) {
            left.push(format!("process {pid}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if backing.contains(&dir) {
                left.push(format!("loop device of {backing}"));
            }
        }
        let cgroup = format!("flynn-{}", self.name);
        for controller in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            if controller.path().join(&cgroup).exists() {
                left.push(format!("cgroup {}", controller.path().join(&cgroup).display()));
            }
        }
        if Path::new("/sys/fs/cgroup").join(&cgroup).exists() {
            left.push(format!("cgroup {cgroup}"));
        }
        for (what, command) in [("nft", "nft list tables"), ("link", "ip -o link show")] {
            let said = self.sh(command)?;
            left.extend(
                said.lines()
                    .filter(|line| line.contains("flynn"))
                    .map(|line| format!("{what} {line}")),
            );
        }
        for place in [
            "state",
            "host.log",
            "etc/host.toml",
            "prefix/bin/flynn",
            "prefix/bin/flynn-host",
            "prefix/lib/flynn",
        ] {
            if self.path(place).exists() {
                left.push(place.to_owned());
            }
        }
        for place in ["home/.flynnrc", "home/.gitconfig"] {
            let text = fs::read_to_string(self.path(place)).unwrap_or_default();
            if text.contains("flynn.localhost") {
                left.push(format!("{place} says {text}"));
            }
        }
        Ok(left)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After a failure something may still run.
        let runs = self.path("state").exists() && self.path("prefix/bin/flynn-host").exists();
        if runs && let Err(error) = self.down() {
            eprintln!("--- cannot take the cluster down: {error:#}");
        }
        for pid in self.platform() {
            kill(pid);
        }
    }
}
