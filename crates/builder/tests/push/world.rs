//! A builder with a real git in front, and a controller and a cage that are only pretended behind.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{Endpoint, Trust, wire};
use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::{Path as At, State},
    http::StatusCode,
    routing::{delete, get, post, put},
};
use builder::{Cage, CageError, Config};
use daemon::{Keys, Principal, Shutdown, StateDir};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, sync::watch};
use types::{AppId, Exit, Uuid};

pub const KEY: &str = "0123456789abcdef";

/// Says what it does and makes a layer named by what it was asked for.
const PACKAGE_LAYER: &str = r#"#!/bin/sh
set -e
[ "$1" = --base ]
base=$2 layers=$3
shift 3
echo "adding $*"
digest=$(echo "$base $*" | sha256sum | cut -d' ' -f1)
mkdir -p "$layers"
echo "$*" > "$layers/$digest.erofs"
echo "$digest"
"#;

/// What the pretended controller has been told.
#[derive(Default)]
pub struct Told {
    pub artifacts: Vec<Value>,
    pub releases: Vec<Value>,
    pub deployed: Vec<String>,
    pub current: Option<String>,
    pub formations: Vec<Value>,
    pub scaled: u32,
    pub deployment_fails: bool,
    pub web_fails: bool,
}

#[derive(Clone)]
pub struct Fake {
    pub app: AppId,
    pub told: Arc<Mutex<Told>>,
}

fn app_json(fake: &Fake, name: &str) -> Value {
    json!({"id": if name == "other" { other_id() } else { fake.app }, "name": name, "meta": {}, "strategy": "all-at-once",
        "release": null, "deploy_timeout": 5, "created_at": "2020-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z"})
}

fn other_id() -> AppId {
    AppId(Uuid::from_bytes([9; 16]))
}

fn deployment(fake: &Fake, release: &str, status: &str) -> Value {
    json!({"id": Uuid::nil(), "app": fake.app, "new_release": release, "old_release": Uuid::nil(), "strategy": "all-at-once",
        "status": status, "processes": {"web": 1}, "deploy_timeout": 5, "created_at": "2020-01-01T00:00:00Z",
        "error": if status == "failed" { "web job exited with status 1 (3 times)" } else { "" }})
}

fn controller(fake: Fake) -> Router {
    type Shared = State<Fake>;
    Router::new()
        .route(
            "/apps/{app}",
            get(async |State(fake): Shared, At(name): At<String>| match name.as_str() {
                "shop" | "other" => Ok(Json(app_json(&fake, &name))),
                _ => Err(StatusCode::NOT_FOUND),
            }),
        )
        .route(
            "/apps/{app}/release",
            get(async |State(fake): Shared| {
                let told = fake.told.lock().unwrap();
                let current = told.current.as_ref();
                let found = current.and_then(|id| told.releases.iter().find(|release| release["id"] == *id.as_str()));
                found.cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
            }),
        )
        .route(
            "/artifacts",
            post(async |State(fake): Shared, Json(mut new): Json<Value>| {
                new["id"] = json!(Uuid::new_v4());
                new["created_at"] = json!("2020-01-01T00:00:00Z");
                fake.told.lock().unwrap().artifacts.push(new.clone());
                Json(new)
            }),
        )
        .route(
            "/releases",
            post(async |State(fake): Shared, Json(mut new): Json<Value>| {
                new["id"] = json!(Uuid::new_v4());
                new["created_at"] = json!("2020-01-01T00:00:00Z");
                fake.told.lock().unwrap().releases.push(new.clone());
                Json(new)
            }),
        )
        .route("/apps/{app}/releases/{release}", delete(async || ()))
        .route(
            "/apps/{app}/deploy",
            post(async |State(fake): Shared, Json(release): Json<Value>| {
                let id = release["id"].as_str().unwrap().to_owned();
                let mut told = fake.told.lock().unwrap();
                told.deployed.push(id.clone());
                if told.deployment_fails {
                    return Json(deployment(&fake, &id, "running"));
                }
                told.current = Some(id.clone());
                Json(deployment(&fake, &id, "complete"))
            }),
        )
        .route(
            "/deployments/{id}",
            get(async |State(fake): Shared| {
                let release = fake.told.lock().unwrap().deployed.last().cloned().unwrap();
                Json(deployment(&fake, &release, "failed"))
            }),
        )
        .route("/apps/{app}/deployments", get(async || Json(json!([]))))
        .route("/apps/{app}/formations", get(async |State(fake): Shared| Json(json!(fake.told.lock().unwrap().formations))))
        .route(
            "/apps/{app}/formations/{release}",
            delete(async |State(fake): Shared| fake.told.lock().unwrap().formations.clear()),
        )
        .route(
            "/apps/{app}/scale/{release}",
            put(async |State(fake): Shared, At((_, release)): At<(String, String)>| {
                let mut told = fake.told.lock().unwrap();
                told.scaled += 1;
                let at = "2020-01-01T00:00:00Z";
                told.formations.push(json!({"app": fake.app, "release": release, "processes": {"web": 1},
                    "created_at": at, "updated_at": at}));
                Json(json!({"id": Uuid::new_v4(), "app": fake.app, "release": release, "state": "pending",
                    "created_at": at, "updated_at": at}))
            }),
        )
        .route(
            "/apps/{app}/jobs",
            get(async |State(fake): Shared| {
                let told = fake.told.lock().unwrap();
                let at = "2020-01-01T00:00:00Z";
                Json(json!([{"uuid": Uuid::nil(), "id": "host0-x", "release": told.deployed.last(), "type": "web",
                    "state": if told.web_fails { "down" } else { "up" }, "exit": {"code": 1},
                    "created_at": at, "updated_at": at}]))
            }),
        )
        .route(
            "/apps/{app}/log",
            get(async || {
                let message = json!({"event": "message", "data": {"msg": "Error: no such module", "timestamp": "2020-01-01T00:00:00Z"}});
                format!("data: {message}\n\ndata: {{\"event\":\"eof\"}}\n\n")
            }),
        )
        .route(
            "/apps/{app}/routes",
            get(async |State(fake): Shared| {
                let at = "2020-01-01T00:00:00Z";
                Json(json!([{"type": "http", "id": Uuid::nil(), "parent_ref": format!("controller/apps/{}", fake.app),
                    "service": "shop-web", "domain": "shop.test", "created_at": at, "updated_at": at}]))
            }),
        )
        .route("/internal/apps", get(async |State(fake): Shared| Json(json!([fake.app, other_id()]))))
        .with_state(fake)
}

/// Does what the source's file `behave` says instead of building it.
pub struct FakeCage {
    /// How many run, and whether the ones that wait may go on.
    pub running: watch::Sender<usize>,
    pub may_end: watch::Sender<bool>,
    pub stopped: watch::Sender<usize>,
}

#[async_trait]
impl Cage for FakeCage {
    async fn run(
        &self,
        _: AppId,
        job: wire::NewJob,
        each: &(dyn Fn(Vec<u8>) + Send + Sync),
        stop: &Shutdown,
    ) -> Result<Exit, CageError> {
        let say = |text: &str| each(text.as_bytes().to_vec());
        if job.process_type == "release" {
            say("migrating");
            return Ok(Exit::Code(1));
        }
        let place = |target: &str| {
            let mount = job.mounts.iter().find(|mount| mount.target == target).unwrap();
            PathBuf::from(&mount.location)
        };
        let (work, build) = (place("/tmp"), place("/tmp").join("build"));
        std::fs::create_dir(&build).unwrap();
        let unpacked = Command::new("tar")
            .arg("-xf")
            .arg(work.join(".source.tar"))
            .arg("-C")
            .arg(&build)
            .status();
        assert!(unpacked.await.unwrap().success());
        self.running.send_modify(|count| *count += 1);
        say(&format!("-----> Building {}...", job.env["APP_NAME"]));
        let behave = std::fs::read_to_string(build.join("behave")).unwrap_or_default();
        match behave.trim() {
            "wait" => {
                let mut may_end = self.may_end.subscribe();
                tokio::select! {
                    _ = may_end.wait_for(|may| *may) => {}
                    _ = stop.cancelled() => {
                        self.stopped.send_modify(|count| *count += 1);
                        return Err(CageError::Stopped);
                    }
                }
            }
            "fail" => {
                say(" !     Push rejected, failed to compile Test app.");
                return Ok(Exit::Code(1));
            }
            "memory" => {
                say("flynn: killed: out of memory");
                return Ok(Exit::OutOfMemory);
            }
            // Asks for a package the first time it is run.
            "needs ruby" | "needs nmap" if !place("/cache").join("asked").exists() => {
                std::fs::write(place("/cache").join("asked"), "").unwrap();
                std::fs::create_dir(work.join("out.meta")).unwrap();
                let package = behave.trim().strip_prefix("needs ").unwrap();
                let needs = json!({"build": [package, "ruby"], "run": [package]});
                std::fs::write(work.join("out.meta/needs.json"), needs.to_string()).unwrap();
                return Ok(Exit::Code(75));
            }
            "disk" | "hoard" => {
                let place = if behave == "disk" { work } else { place("/cache") };
                let hog = std::fs::File::create(place.join("hog")).unwrap();
                let chunk = vec![1u8; 1 << 20];
                while std::io::Write::write_all(&mut &hog, &chunk).is_ok() {}
                return Ok(Exit::Code(1));
            }
            _ => {}
        }
        if let Some(list) = job.env.get("SUBMODULES") {
            let text = std::fs::read_to_string(work.join(list.strip_prefix("/tmp/").unwrap())).unwrap();
            text.lines().for_each(|line| say(&format!("submodule {line}")));
        }
        if let Ok(env) = std::fs::read_dir(place("/env")) {
            env.flatten()
                .for_each(|file| say(&format!("env {}", file.file_name().display())));
        }
        let procfile = std::fs::read_to_string(build.join("Procfile")).unwrap_or_default();
        let types: BTreeMap<_, _> = procfile
            .lines()
            .filter_map(|line| line.split_once(": "))
            .collect();
        std::fs::create_dir(work.join("out")).unwrap();
        std::fs::rename(&build, work.join("out/app")).unwrap();
        std::fs::create_dir(work.join("out.meta")).unwrap();
        let packages: &[&str] = if behave.starts_with("needs") {
            &["ruby"]
        } else {
            &[]
        };
        let result = json!({"buildpack": "Test", "process_types": types, "config_vars": {"SUGGESTED": "1"},
            "packages": packages});
        std::fs::write(work.join("out.meta/release.json"), result.to_string()).unwrap();
        Ok(Exit::Code(0))
    }
}

pub struct World {
    dir: tempfile::TempDir,
    pub state: StateDir,
    pub fake: Fake,
    pub cage: Arc<FakeCage>,
    pub port: u16,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl World {
    pub async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        std::fs::create_dir_all(state.root().join("images")).unwrap();
        std::fs::create_dir_all(dir.path().join("packs/ruby/bin")).unwrap();
        std::fs::write(dir.path().join("packs/ruby/bin/packages"), "# compiled\nruby\n").unwrap();
        let package_layer = dir.path().join("package-layer");
        std::fs::write(&package_layer, PACKAGE_LAYER).unwrap();
        std::fs::set_permissions(
            &package_layer,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let layer = json!({"id": "ab".repeat(32), "length": 1, "hashes": {}});
        let stack =
            json!({"run": {"layers": [layer]}, "build": {"layers": [layer, layer]}, "recipe": "recipe"});
        std::fs::write(state.stack(), stack.to_string()).unwrap();
        let fake = Fake {
            app: AppId(Uuid::new_v4()),
            told: Arc::default(),
        };
        let cage = Arc::new(FakeCage {
            running: watch::Sender::new(0),
            may_end: watch::Sender::new(false),
            stopped: watch::Sender::new(0),
        });
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", api.local_addr().unwrap());
        let shutdown = Shutdown::new();
        tokio::spawn(daemon::server::serve(
            api,
            controller(fake.clone()),
            shutdown.clone(),
        ));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Config {
            host: "host0".parse().unwrap(),
            state: state.clone(),
            controller: Endpoint {
                url,
                key: "internal".into(),
                trust: Trust::System,
            },
            keys: Keys::new([(KEY, Principal::User)]),
            registry_url: "http://127.0.0.1:1".into(),
            registry_host: "images.flynn.test".into(),
            buildpacks: dir.path().join("packs"),
            package_layer,
            hook: env!("CARGO_BIN_EXE_builder-git-hook").into(),
            at_once: 1,
            memory_bytes: 2 << 30,
            disk_bytes: 64 << 20,
            timeout: Duration::from_secs(60),
            http_port: 80,
            https_port: 443,
            forward: None,
            objects: None,
        };
        let served = tokio::spawn(builder::run_with(
            config,
            cage.clone(),
            listener,
            shutdown.clone(),
        ));
        World {
            dir,
            state,
            fake,
            cage,
            port,
            shutdown,
            served,
        }
    }

    /// A checkout called `name`.
    pub fn checkout(&self, name: &str) -> Checkout {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::create_dir_all(self.dir.path().join("home")).unwrap();
        Checkout {
            path,
            home: self.dir.path().join("home"),
        }
    }

    pub fn url(&self, app: &str) -> String {
        format!("http://user:{KEY}@127.0.0.1:{}/{app}.git", self.port)
    }

    pub fn told<T>(&self, read: impl FnOnce(&mut Told) -> T) -> T {
        read(&mut self.fake.told.lock().unwrap())
    }

    /// Stops the builder and looks for what it left behind.
    pub async fn end(mut self) {
        self.shutdown.cancel();
        (&mut self.served).await.unwrap().unwrap();
        let builds = self.state.builds().canonicalize().unwrap().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&builds), "something is still mounted");
    }
}

impl Drop for World {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        let builds = self.state.builds();
        let quiet =
            |command: &mut std::process::Command| command.stderr(std::process::Stdio::null()).status();
        let _ = quiet(std::process::Command::new("umount").arg("-lR").arg(builds));
    }
}

pub struct Checkout {
    pub path: PathBuf,
    home: PathBuf,
}

impl Checkout {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args([
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@b",
                "-c",
                "protocol.file.allow=always",
            ])
            .args(arguments)
            .current_dir(&self.path)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .kill_on_drop(true);
        command
    }

    pub async fn git(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Must succeed; what it printed.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.git(arguments).await;
        let text = said(&output);
        assert!(output.status.success(), "git {arguments:?}: {text}");
        text
    }

    /// Must fail; what it printed.
    pub async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.git(arguments).await;
        let text = said(&output);
        assert!(!output.status.success(), "git {arguments:?}: {text}");
        text
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path.join(name), text).unwrap();
    }

    /// A repository with one commit of these files on `main`.
    pub async fn init(&self, files: &[(&str, &str)]) {
        self.ok(&["init", "-q", "-b", "main"]).await;
        self.commit(files).await;
    }

    pub async fn commit(&self, files: &[(&str, &str)]) {
        files.iter().for_each(|(name, text)| self.write(name, text));
        self.ok(&["add", "-A"]).await;
        self.ok(&["commit", "-q", "--allow-empty", "-m", "change"]).await;
    }
}

fn said(output: &Output) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // git ends what comes from the other side with spaces or a colour code.
    text.lines()
        .map(|line| format!("{}\n", line.trim_end_matches("\u{1b}[K").trim_end()))
        .collect()
}

pub fn refs(state: &StateDir, app: AppId) -> String {
    let repo = state.repos().join(format!("{app}.git"));
    let output = std::process::Command::new("git")
        .arg("--git-dir")
        .arg(repo)
        .arg("for-each-ref")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

pub fn exists_below(directory: &Path, prefix: &str) -> bool {
    std::fs::read_dir(directory)
        .unwrap()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
}
