//! `git push`, from a user's checkout to an app that answers, with packages from the registries.
//!
//! What is tested here is the whole way; the builder's own tests have the finer points of git. Most
//! apps are scripted: a Python app without dependencies, whose build does what `bin/post_compile` says.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Cluster, http, kill, program, repo_root, server, succeeded};

/// An app's sources, with the app's git server as the remote that `flynn create` made.
struct Checkout<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
    app: String,
}

struct Pushed {
    succeeded: bool,
    text: String,
    took: Duration,
}

impl<'a> Checkout<'a> {
    fn new(cluster: &'a Cluster, app: &str, files: &[(&str, &str)]) -> Result<Checkout<'a>> {
        let dir = cluster.repository(app, files)?;
        let checkout = Checkout {
            cluster,
            dir,
            app: app.to_owned(),
        };
        checkout.flynn(&["create", app])?;
        Ok(checkout)
    }

    /// A copy of one of the examples that the repository shows to users.
    fn example(cluster: &'a Cluster, name: &str) -> Result<Checkout<'a>> {
        let copied = Checkout::new(cluster, name, &[])?;
        let from = repo_root().join("examples").join(name).join(".");
        succeeded(
            "cp",
            Command::new("cp").arg("-R").arg(from).arg(&copied.dir).output()?,
        )?;
        let _ = fs::remove_dir_all(copied.dir.join("node_modules"));
        cluster.commit(&copied.dir, "the example")?;
        Ok(copied)
    }

    /// An app whose build runs `build`, and whose web process answers with `text`.
    fn scripted(cluster: &'a Cluster, app: &str, text: &str, build: &str) -> Result<Checkout<'a>> {
        let build = format!("#!/bin/bash\n{build}\n");
        let files = [
            ("requirements.txt", ""),
            ("Procfile", "web: python3 -u server.py\n"),
            ("server.py", &server(text)),
            ("bin/post_compile", &build),
        ];
        Checkout::new(cluster, app, &files)
    }

    /// `flynn` in the checkout, so that it finds the app by the remote.
    fn flynn(&self, args: &[&str]) -> Result<String> {
        let mut command = self.cluster.inside(&program("flynn"));
        let output = command
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()?;
        succeeded(&format!("flynn {}", args.join(" ")), output)
    }

    fn change(&self, files: &[(&str, &str)]) -> Result<()> {
        for (path, text) in files {
            fs::write(self.dir.join(path), text)?;
        }
        self.cluster.commit(&self.dir, "change")
    }

    fn build_with(&self, script: &str) -> Result<()> {
        self.change(&[("bin/post_compile", &format!("#!/bin/bash\n{script}\n"))])
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        succeeded(
            &format!("git {}", args.join(" ")),
            self.cluster.git(&self.dir, args)?,
        )
    }

    fn push_as(&self, args: &[&str]) -> Result<Pushed> {
        let began = Instant::now();
        let output = self.cluster.git(&self.dir, &[&["push"], args].concat())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Pushed {
            succeeded: output.status.success(),
            text,
            took: began.elapsed(),
        })
    }

    fn push(&self) -> Result<Pushed> {
        self.push_as(&["flynn", "main"])
    }

    fn push_is_taken(&self, lines: &[&str]) -> Result<Pushed> {
        let pushed = self.push()?;
        ensure!(
            pushed.succeeded,
            "{}: the push was refused:\n{}",
            self.app,
            pushed.text
        );
        pushed.says(lines)?;
        Ok(pushed)
    }

    /// The push is refused with these lines, the ref stays, and the app answers as before.
    fn push_is_refused(&self, lines: &[&str]) -> Result<Pushed> {
        let before = (
            self.git(&["ls-remote", "flynn"])?,
            self.cluster.page(&self.app).ok(),
        );
        let pushed = self.push()?;
        ensure!(
            !pushed.succeeded,
            "{}: the push was taken:\n{}",
            self.app,
            pushed.text
        );
        pushed.says(lines)?;
        pushed.says(&["[remote rejected] main -> main (pre-receive hook declined)"])?;
        let after = (
            self.git(&["ls-remote", "flynn"])?,
            self.cluster.page(&self.app).ok(),
        );
        ensure!(
            before == after,
            "{}: a refused push changed {before:?} to {after:?}",
            self.app
        );
        Ok(pushed)
    }

    /// A push that goes on by itself, from the moment at which it said `line`.
    fn push_until(&self, line: &str) -> Result<Running> {
        let mut command = self.cluster.inside(Path::new("git"));
        command.args(["push", "flynn", "main"]).current_dir(&self.dir);
        let mut git = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let mut said = BufReader::new(git.stderr.take().context("it is piped")?);
        let mut text = String::new();
        while !text.contains(line) {
            if said.read_line(&mut text)? == 0 {
                bail!("the push ended before it said {line:?}:\n{text}");
            }
        }
        Ok(Running { git, said, text })
    }

    fn waits_for_page(&self, text: &str) -> Result<()> {
        self.cluster
            .wait(&format!("{} to answer {text:?}", self.app), || {
                Ok(self.cluster.page(&self.app)?.contains(text).then_some(()))
            })
    }
}

impl Pushed {
    /// These lines are there in this order.
    fn says(&self, lines: &[&str]) -> Result<()> {
        let mut rest = self.text.as_str();
        for line in lines {
            let Some(at) = rest.find(line) else {
                bail!("{line:?} is not where it should be in:\n{}", self.text);
            };
            rest = &rest[at + line.len()..];
        }
        Ok(())
    }

    /// The line in which the platform tells where the time went.
    fn print_time(&self, what: &str) {
        let phases = self
            .text
            .lines()
            .find(|line| line.contains("Took "))
            .unwrap_or_default();
        println!("{what}: {:.2} s; {}", self.took.as_secs_f64(), phases.trim());
    }
}

struct Running {
    git: Child,
    said: BufReader<std::process::ChildStderr>,
    text: String,
}

impl Running {
    /// Ctrl-C, which a terminal sends to git and its helpers.
    fn interrupt(mut self) -> Result<()> {
        let group = rustix::process::Pid::from_child(&self.git);
        rustix::process::kill_process_group(group, rustix::process::Signal::INT)?;
        self.git.wait()?;
        Ok(())
    }

    fn end(mut self) -> Result<(bool, String)> {
        self.said.read_to_string(&mut self.text)?;
        Ok((self.git.wait()?.success(), self.text))
    }
}

/// Below the directory of builds: that itself is a mount for as long as the daemon runs.
fn build_disks_in_use(cluster: &Cluster) -> Vec<String> {
    cluster
        .mounts_and_loops()
        .into_iter()
        .filter(|held| held.contains("/state/builds/"))
        .collect()
}

/// Nothing of any build is left: no job, no mount, no loop device.
fn no_build_is_left(cluster: &Cluster, app: &str) -> Result<()> {
    let began = Instant::now();
    cluster.wait("the build to be gone", || {
        let jobs = [
            cluster.jobs(app, "up")?,
            cluster.jobs(app, "starting")?,
            cluster.jobs(app, "stopping")?,
        ];
        let builds = jobs
            .concat()
            .iter()
            .filter(|job| job["type"] == "slugbuilder")
            .count();
        let held = build_disks_in_use(cluster);
        ensure!(builds == 0 && held.is_empty(), "{builds} builds, {held:?}");
        println!(
            "nothing is left of a build after {:.2} s",
            began.elapsed().as_secs_f64()
        );
        Ok(Some(()))
    })
}

#[test]
fn the_nodejs_example_goes_live_and_a_changed_line_in_seconds() -> Result<()> {
    let cluster = Cluster::start()?;
    let app = Checkout::example(&cluster, "nodejs")?;
    let pushed = app.push_is_taken(&[
        "-----> Building nodejs...",
        "-----> Node.js app detected",
        "-----> Discovering process types",
        "Procfile declares types -> web, worker",
        "-----> Creating release...",
        "=====> Application deployed",
        "=====> Scaling initial release to web=1",
        "=====> https://nodejs.flynn.localhost/",
    ])?;
    ensure!(
        cluster
            .page("nodejs")?
            .starts_with("Hello from the Node.js example")
    );
    pushed.print_time("nodejs, first push");
    let scale = app.flynn(&["scale"])?;
    ensure!(scale.contains("web=1") && scale.contains("worker=0"), "{scale}");

    let source = fs::read_to_string(app.dir.join("web.js"))?;
    app.change(&[("web.js", &source.replace("Hello from", "Greetings of"))])?;
    app.push_is_taken(&["=====> Application deployed"])?
        .print_time("nodejs, one line changed");
    ensure!(cluster.page("nodejs")?.starts_with("Greetings of"));

    app.flynn(&["scale", "worker=1"])?;
    cluster.wait("the worker's log", || {
        Ok(app
            .flynn(&["log", "-t", "worker"])?
            .contains("worker started")
            .then_some(()))
    })?;

    let package = fs::read_to_string(app.dir.join("package.json"))?;
    app.change(&[("package.json", &package.replacen('{', "{,", 1))])?;
    app.push_is_refused(&[
        "package.json",
        " !     Push rejected, failed to compile Node.js app.",
    ])?;
    let failing = package.replace("\"start\":", "\"build\": \"echo compiling; exit 3\", \"start\":");
    app.change(&[("package.json", &failing)])?;
    app.push_is_refused(&[
        "compiling",
        " !     Push rejected, failed to compile Node.js app.",
    ])?;
    cluster.finish()
}

#[test]
fn the_python_example_goes_live_with_its_configuration_and_its_release_command() -> Result<()> {
    let cluster = Cluster::start()?;
    let app = Checkout::example(&cluster, "python")?;
    app.flynn(&["env", "set", "MARK=set before"])?;
    let source = fs::read_to_string(app.dir.join("app.py"))?;
    let seen = source
        .replace("import platform", "import os, platform")
        .replace("Hello", "{os.environ['MARK']}: Hello");
    app.change(&[
        ("app.py", &seen),
        (
            "Procfile",
            "web: gunicorn --bind 0.0.0.0:$PORT app:app\nrelease: echo \"migrating, $MARK\"\n",
        ),
    ])?;
    fs::create_dir_all(app.dir.join("bin"))?;
    app.build_with("echo \"the build sees: $MARK\"")?;
    let pushed = app.push_is_taken(&[
        "-----> Python app detected",
        "the build sees: set before",
        "-----> Running release command...",
        "migrating, set before",
        "=====> Application deployed",
        "=====> Scaling initial release to web=1",
    ])?;
    let page = cluster.page("python")?;
    ensure!(
        page.starts_with("set before: Hello from the Python example"),
        "{page}"
    );
    pushed.print_time("python, first push");

    app.change(&[("app.py", &seen.replace("Hello", "Greetings"))])?;
    app.push_is_taken(&["unchanged", "=====> Application deployed"])?
        .print_time("python, one line changed");
    ensure!(cluster.page("python")?.contains("Greetings"));

    app.change(&[(
        "Procfile",
        "web: gunicorn --bind 0.0.0.0:$PORT app:app\nrelease: echo no database; exit 4\n",
    )])?;
    app.push_is_refused(&[
        "-----> Running release command...",
        "no database",
        "Release command failed: exited with status 4",
    ])?;
    cluster.finish()
}

#[test]
fn the_static_and_procfile_examples_go_live_and_deleted_apps_leave_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    let site = Checkout::example(&cluster, "static")?;
    site.push_is_taken(&[
        "-----> Static",
        "=====> Application deployed",
        "Scaling initial release to web=1",
    ])?
    .print_time("static, first push");
    ensure!(cluster.page("static")?.contains("Hello from the static example"));
    let style = cluster.request("static.flynn.localhost", "/style.css")?;
    ensure!(
        style.status == 200 && style.head.contains("text/css"),
        "{}",
        style.head
    );
    let source = fs::read_to_string(site.dir.join("public/index.html"))?;
    site.change(&[("public/index.html", &source.replace("Hello", "Greetings"))])?;
    site.push_is_taken(&["=====> Application deployed"])?
        .print_time("static, one line changed");
    ensure!(cluster.page("static")?.contains("Greetings"));

    let plain = Checkout::example(&cluster, "procfile")?;
    plain
        .push_is_taken(&["Procfile declares types -> web", "=====> Application deployed"])?
        .print_time("procfile, first push");
    ensure!(
        cluster
            .page("procfile")?
            .contains("Hello from the Procfile example")
    );

    for app in ["static", "procfile"] {
        let id = cluster.api("GET", &format!("/apps/{app}"), None)?["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(!id.is_empty());
        cluster.flynn(&["-a", app, "delete", "-y"])?;
        cluster.wait("everything of the app to be gone", || {
            let found = Command::new("find")
                .arg(cluster.dir.path().join("state"))
                .args(["-name", &format!("*{id}*")])
                .output()?;
            ensure!(
                found.stdout.is_empty(),
                "{}",
                String::from_utf8_lossy(&found.stdout)
            );
            Ok(Some(()))
        })?;
    }
    let refused = plain.push()?;
    ensure!(
        !refused.succeeded && refused.text.contains("There is no app \"procfile\""),
        "{}",
        refused.text
    );
    cluster.finish()
}

#[test]
fn a_release_that_does_not_serve_refuses_the_push_with_its_last_words() -> Result<()> {
    let cluster = Cluster::start()?;
    let app = Checkout::new(
        &cluster,
        "shop",
        &[("Procfile", "web: echo no such table; exit 3\n")],
    )?;
    // The first one has nothing to fall back to.
    app.push_is_refused(&[
        "=====> Scaling initial release to web=1",
        "no such table",
        "status 3",
    ])?;
    app.change(&[
        ("Procfile", "web: python3 -u server.py\n"),
        ("server.py", &server("good")),
    ])?;
    app.push_is_taken(&[
        "=====> Application deployed",
        "=====> Scaling initial release to web=1",
    ])?;
    app.waits_for_page("good")?;

    app.change(&[("Procfile", "web: echo no database; exit 3\n")])?;
    app.push_is_refused(&[
        "no database",
        " !     Deploy failed:",
        "status 3",
        "keeps running",
    ])?;
    cluster.api(
        "POST",
        "/apps/shop",
        Some(&serde_json::json!({"deploy_timeout": 3})),
    )?;
    app.change(&[("Procfile", "web: echo thinking; sleep 600\n")])?;
    app.push_is_refused(&["thinking", " !     Deploy failed:", "8080", "keeps running"])?;
    app.change(&[
        ("Procfile", "web: python3 -u server.py\n"),
        ("server.py", &server("better")),
    ])?;
    app.push_is_taken(&["=====> Application deployed"])?;
    app.waits_for_page("better")?;
    cluster.finish()
}

#[test]
fn branches_forced_empty_and_foreign_pushes_behave() -> Result<()> {
    let cluster = Cluster::start()?;
    let files = [
        ("Procfile", "web: python3 -u server.py\n"),
        ("server.py", &server("one")),
    ];
    let app = Checkout::new(&cluster, "shop", &files)?;

    app.git(&["branch", "fix"])?;
    let other = app.push_as(&["flynn", "fix"])?;
    ensure!(!other.succeeded);
    other.says(&[
        "Only pushes to main or master are deployed.",
        "git push flynn fix:main",
    ])?;
    app.push_is_taken(&["=====> Application deployed"])?;
    let again = app.push()?;
    ensure!(
        again.succeeded && again.text.contains("Everything up-to-date"),
        "{}",
        again.text
    );
    cluster.commit(&app.dir, "nothing changes")?;
    app.push_is_taken(&["=====> Application deployed"])?
        .print_time("procfile, empty commit");

    fs::write(app.dir.join("server.py"), server("rewritten"))?;
    app.git(&["commit", "-qa", "--amend", "-m", "rewritten"])?;
    let plain = app.push()?;
    ensure!(
        !plain.succeeded && plain.text.contains("rejected"),
        "{}",
        plain.text
    );
    let forced = app.push_as(&["--force", "flynn", "main"])?;
    ensure!(forced.succeeded, "{}", forced.text);
    app.waits_for_page("rewritten")?;

    let stranger = app.push_as(&[
        "https://user:wrong@git.flynn.localhost/shop.git",
        "main:main",
        "--force",
    ])?;
    ensure!(
        !stranger.succeeded && stranger.text.contains("Authentication failed"),
        "{}",
        stranger.text
    );
    let nowhere = app.push_as(&["https://git.flynn.localhost/nosuch.git", "main"])?;
    ensure!(!nowhere.succeeded, "{}", nowhere.text);
    nowhere.says(&["There is no app \"nosuch\"", "flynn create nosuch"])?;
    cluster.finish()
}

#[test]
fn a_build_belongs_to_its_pusher_and_to_its_daemon() -> Result<()> {
    let cluster = Cluster::start()?;
    let app = Checkout::scripted(&cluster, "shop", "one", "echo ready to wait; sleep 300")?;
    let first = app.push_until("ready to wait")?;
    let second = app.push()?;
    ensure!(!second.succeeded, "{}", second.text);
    second.says(&["Another push to shop is being built", "Wait for it"])?;
    first.interrupt()?;
    no_build_is_left(&cluster, "shop")?;

    let cut_off = app.push_until("ready to wait")?;
    let daemon = cluster.pid("daemon")?;
    kill(daemon);
    let (succeeded, text) = cut_off.end()?;
    ensure!(!succeeded, "the daemon died and the push says: {text}");
    cluster.wait("another daemon", || {
        Ok((cluster.pid("daemon")? != daemon && cluster.jobs("shop", "up").is_ok()).then_some(()))
    })?;
    no_build_is_left(&cluster, "shop")?;
    app.build_with("echo quick")?;
    app.push_is_taken(&["quick", "=====> Application deployed"])?
        .print_time("scripted, after the daemon's death");
    app.waits_for_page("one")?;
    no_build_is_left(&cluster, "shop")?;
    cluster.finish()
}

#[test]
fn what_a_build_eats_hurts_nobody_and_it_says_what_it_ran_out_of() -> Result<()> {
    let cluster = Cluster::start()?;
    let neighbour = Checkout::scripted(&cluster, "neighbour", "fine", "true")?;
    neighbour.push_is_taken(&["=====> Application deployed"])?;
    let app = Checkout::scripted(&cluster, "hog", "one", "echo modest")?;
    app.push_is_taken(&["modest", "=====> Application deployed"])?;

    let hogs = [
        (
            "python3 -c \"x = 'x' * (4 << 30)\"",
            " !     Build ran out of memory (limit 1 GB)",
        ),
        (
            "head -c 3G /dev/zero > big",
            " !     Build ran out of disk space (limit 1 GB)",
        ),
        (
            "python3 -c \"import subprocess; [subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3) for _ in range(5000)]\"",
            " !     Build ran out of processes",
        ),
    ];
    let quiet = latencies(&cluster, || {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    println!("neighbour alone: median {:?}, p99 {:?}", quiet.median, quiet.p99);
    for (script, reason) in hogs {
        app.build_with(script)?;
        let mut pushed = None;
        let beside = latencies(&cluster, || {
            pushed = Some(app.push_is_refused(&["failed to compile", reason])?);
            Ok(())
        })?;
        let took = pushed.context("it was pushed")?.took;
        println!(
            "neighbour beside {reason:?} ({took:?}): median {:?}, p99 {:?}",
            beside.median, beside.p99
        );
        ensure!(
            beside.p99 < Duration::from_secs(2),
            "the neighbour answers in {:?}",
            beside.p99
        );
    }
    app.build_with("echo modest again")?;
    app.push_is_taken(&["modest again", "=====> Application deployed"])?;
    no_build_is_left(&cluster, "hog")?;
    cluster.finish()
}

struct Latencies {
    median: Duration,
    p99: Duration,
}

/// How long the app `neighbour` takes to answer while something else happens; each answer is right.
fn latencies(cluster: &Cluster, deed: impl FnOnce() -> Result<()>) -> Result<Latencies> {
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let mut taken = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let visitor = scope.spawn(|| -> Result<Vec<Duration>> {
            cluster.net.enter()?;
            let mut taken = vec![];
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                let began = Instant::now();
                let answer = http::get("127.0.0.1:80", "neighbour.flynn.localhost", "/")?;
                ensure!(
                    answer.status == 200 && answer.text().starts_with("fine"),
                    "{}",
                    answer.text()
                );
                taken.push(began.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(taken)
        });
        let done = deed();
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        let taken = visitor.join().expect("a visitor does not panic");
        done?;
        taken
    })?;
    taken.sort();
    ensure!(taken.len() >= 10, "only {} requests", taken.len());
    Ok(Latencies {
        median: taken[taken.len() / 2],
        p99: taken[taken.len() * 99 / 100],
    })
}

#[test]
fn submodules_come_along_or_the_push_says_why_not() -> Result<()> {
    let cluster = Cluster::start()?;
    let library = cluster.repository("library", &[("text.txt", "from the submodule")])?;
    let address = serve_git(
        &cluster.net.outside(),
        library.parent().context("it has a parent")?,
    )?;
    let app = Checkout::new(&cluster, "shop", &[("Procfile", "web: python3 -u server.py\n")])?;
    app.git(&[
        "submodule",
        "--quiet",
        "add",
        &format!("git://{address}/library"),
        "library",
    ])?;
    let text = "__SUBMODULE__";
    let reading = server(text).replace(&format!("{text:?}"), "open('library/text.txt').read()");
    app.change(&[("server.py", &reading)])?;
    app.push_is_taken(&[
        "-----> Fetching submodules",
        "library at ",
        "=====> Application deployed",
    ])?;
    app.waits_for_page("from the submodule")?;

    app.git(&[
        "config",
        "-f",
        ".gitmodules",
        "submodule.library.url",
        "file:///etc",
    ])?;
    cluster.commit(&app.dir, "out of the cage")?;
    app.push_is_refused(&["The submodule library has the address file:///etc, which cannot be fetched."])?;
    app.git(&[
        "config",
        "-f",
        ".gitmodules",
        "submodule.library.url",
        &format!("git://{address}/nosuch"),
    ])?;
    cluster.commit(&app.dir, "to nowhere")?;
    app.push_is_refused(&["The submodule library could not be fetched from git://"])?;
    cluster.finish()
}

/// Serves the repositories of a directory by git's own protocol until the test's process ends.
fn serve_git(address: &str, directory: &Path) -> Result<String> {
    let listener = TcpListener::bind((address, 0))?;
    let bound = listener.local_addr()?.to_string();
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let Ok(copy) = connection.try_clone() else {
                continue;
            };
            let mut git = Command::new("git");
            git.args(["daemon", "--inetd", "--export-all"])
                .arg(format!("--base-path={}", directory.display()));
            git.stdin(std::os::fd::OwnedFd::from(copy))
                .stdout(std::os::fd::OwnedFd::from(connection));
            let _ = git.stderr(Stdio::null()).status();
        }
    });
    Ok(bound)
}
