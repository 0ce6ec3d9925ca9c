//! The article's walk with Docker itself: a to-do list built from a Dockerfile, pushed, scaled to three, answering.
//!
//! The engine is Debian's, of this test alone: unpacked by `script/test`, with its data, its sockets and its `/etc` in the
//! test's directory and the cluster's network. It never starts a container, so it makes no cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, repo_root, succeeded};
use serde_json::json;

const IMAGE: &str = "images.flynn.localhost/todo";

struct Engine<'a> {
    cluster: &'a Cluster,
    programs: PathBuf,
    process: Child,
}

impl Engine<'_> {
    fn start(cluster: &Cluster) -> Result<Engine<'_>> {
        let programs = PathBuf::from(
            std::env::var_os("FLYNN_TEST_DOCKER")
                .context("FLYNN_TEST_DOCKER: see fetch_docker in script/lib/install.sh")?,
        );
        let dir = cluster.dir.path();
        for name in ["upper/docker/certs.d/images.flynn.localhost", "work"] {
            fs::create_dir_all(dir.join("etc").join(name))?;
        }
        let etc = dir.join("etc/upper");
        fs::write(etc.join("hosts"), "127.0.0.1 localhost images.flynn.localhost\n")?;
        fs::copy(
            dir.join("home/.flynn/ca-certs/default.pem"),
            etc.join("docker/certs.d/images.flynn.localhost/ca.crt"),
        )?;
        let script = r#"
            mount -t tmpfs tmpfs /run
            mount -t overlay -o lowerdir=/etc,upperdir="$DIR/etc/upper",workdir="$DIR/etc/work" overlay /etc
            exec dockerd --data-root "$DIR/docker" --exec-root "$DIR/docker-run" --pidfile "$DIR/docker.pid" \
                --host "unix://$DIR/docker.sock" --bridge none --iptables=false --ip-forward=false"#;
        let log = fs::File::create(dir.join("docker.log"))?;
        let mut command = cluster.inside(Path::new("unshare"));
        let process = with_programs(&mut command, &programs)
            .args(["--mount", "sh", "-ec", script])
            .env("DIR", dir)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        let engine = Engine {
            cluster,
            programs,
            process,
        };
        cluster
            .wait("the engine to answer", || engine.docker(&["version"]).map(Some))
            .with_context(|| fs::read_to_string(dir.join("docker.log")).unwrap_or_default())?;
        Ok(engine)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = self.cluster.inside(program);
        with_programs(&mut command, &self.programs).env(
            "DOCKER_HOST",
            format!("unix://{}", self.cluster.dir.path().join("docker.sock").display()),
        );
        command
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        let output = self.command(Path::new("docker")).args(args).output()?;
        succeeded(&format!("docker {}", args.join(" ")), output)
    }

    fn flynn(&self, args: &[&str]) -> Result<String> {
        let output = self.command(&e2e::program("flynn")).args(args).output()?;
        succeeded(&format!("flynn {}", args.join(" ")), output)
    }

    /// An image of what the cluster runs apps on, which has Python.
    fn import_base(&self) -> Result<()> {
        let images = PathBuf::from(std::env::var_os("FLYNN_TEST_IMAGES").context("FLYNN_TEST_IMAGES")?);
        let stack: serde_json::Value = serde_json::from_slice(&fs::read(images.join("images/stack.json"))?)?;
        let layer = stack["run"]["layers"][0]["id"].as_str().context("a layer")?;
        let script = r#"mount -t erofs -o loop,ro "$1" "$2" && tar -C "$2" -c . | docker import - base"#;
        let root = self.cluster.dir.path().join("base");
        fs::create_dir_all(&root)?;
        let output = self
            .command(Path::new("unshare"))
            .args(["--mount", "bash", "-eo", "pipefail", "-c", script, "bash"])
            .arg(images.join(format!("layers/{layer}.erofs")))
            .arg(root)
            .output()?;
        succeeded("docker import", output)?;
        Ok(())
    }
}

/// The engine ends what it started, and then itself.
impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        self.process.wait().ok();
    }
}

fn with_programs<'a>(command: &'a mut Command, programs: &Path) -> &'a mut Command {
    let usr = programs.join("usr");
    let path = format!(
        "{0}/bin:{0}/sbin:{1}",
        usr.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    command
        .env("PATH", path)
        .env("LD_LIBRARY_PATH", programs.join("libraries"))
}

/// The list as somebody sees it who asks once more.
fn page(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let output = cluster
        .inside(Path::new("curl"))
        .args(["-sSf", "-H", "Host: todo.flynn.localhost", "http://127.0.0.1/"])
        .args(arguments)
        .output()?;
    succeeded("curl", output)
}

#[test]
fn a_todo_app_of_a_dockerfile_is_pushed_with_docker_and_scaled() -> Result<()> {
    let cluster = Cluster::start()?;
    let engine = Engine::start(&cluster)?;
    engine.import_base()?;
    let context = repo_root().join("examples/todo");
    let context = context.to_str().context("a path")?;

    cluster.flynn(&["create", "-r", "", "todo"])?;
    engine.docker(&["build", "--build-arg", "BASE=base", "-t", IMAGE, context])?;
    engine.flynn(&["docker", "login"])?;
    let said = engine.docker(&["push", IMAGE])?;
    let digest = said.split_whitespace().find(|word| word.starts_with("sha256:"));
    let digest = digest.context("a digest")?.to_owned();
    let store = format!("{context}/store.json");
    cluster.flynn(&["-a", "todo", "release", "update", &store])?;
    cluster.flynn(&["-a", "todo", "scale", "store=1", "web=3"])?;
    ensure!(cluster.jobs("todo", "up")?.len() == 4);
    cluster.wait("the list", || {
        Ok(page(&cluster, &[])?.contains("To do").then_some(()))
    })?;
    page(&cluster, &["--data", "text=Bread"])?;
    page(&cluster, &["--data-urlencode", "text=Milk & honey"])?;
    for _ in 0..6 {
        let seen = page(&cluster, &[])?;
        ensure!(seen.contains("<li>Bread</li><li>Milk &amp; honey</li>"), "{seen}");
    }

    // What comes back is what went, by its digest.
    let id = engine.docker(&["inspect", "--format", "{{.Id}}", IMAGE])?;
    engine.docker(&["rmi", IMAGE])?;
    let pinned = format!("{IMAGE}@{digest}");
    engine.docker(&["pull", &pinned])?;
    ensure!(engine.docker(&["inspect", "--format", "{{.Id}}", &pinned])? == id);

    // An image whose own health check fails takes nothing over.
    cluster.flynn(&["-a", "todo", "meta", "set", "docker-push-deploy=true"])?;
    cluster.flynn(&["-a", "todo", "deployment", "timeout", "3"])?;
    let sick = cluster.dir.path().join("sick");
    fs::create_dir(&sick)?;
    let dockerfile =
        format!("FROM {pinned}\nHEALTHCHECK --interval=1s --retries=1 CMD echo feeling ill; exit 3\n");
    fs::write(sick.join("Dockerfile"), dockerfile)?;
    engine.docker(&["build", "-t", IMAGE, sick.to_str().context("a path")?])?;
    // The answer waits for a while for what becomes of it, so the push itself may say so, too.
    engine.docker(&["push", IMAGE])?;
    let deployment = cluster.wait("the deployment to fail", || {
        let list = cluster.api("GET", "/apps/todo/deployments", None)?;
        let found = list
            .as_array()
            .context("a list")?
            .iter()
            .find(|one| one["status"] == json!("failed"));
        Ok(found.cloned())
    })?;
    println!("{deployment}");
    let log = cluster.flynn(&["-a", "todo", "deployment"])?;
    ensure!(log.contains("failed"), "{log}");
    ensure!(page(&cluster, &[])?.contains("Bread"));
    ensure!(cluster.jobs("todo", "up")?.len() == 4);

    // With no push at all: what the engine has, sent by the client.
    cluster.flynn(&["create", "-r", "", "again"])?;
    engine.flynn(&["-a", "again", "docker", "push", &pinned])?;
    drop(engine);
    cluster.finish()
}
