//! How long it takes until a change is live, and until what broke is back. `script/bench-deploy` builds
//! what this needs and calls it with the number of rounds.
//!
//! Everything goes the way a person goes, through `git push` and the CLI, and ends when a request through
//! the router gets the new answer. What a buildpack's package manager takes is told apart: it is the time
//! between the push's lines that begin and end its work.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    Cluster, PATIENCE, Process, kill,
    measure::{self, Series, Unit},
    repo_root, server,
};

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(5), |rounds| rounds.parse())?;
    println!("{}", measure::machine());
    let mut cluster = Cluster::start()?;
    let mut series = Series::default();
    pushes(&cluster, &mut series, rounds)?;
    changes(&cluster, &mut series, rounds)?;
    power_cuts(&mut cluster, &mut series, rounds)?;
    println!("\nuntil live, {rounds} rounds");
    series.print(Unit::Seconds, None);
    println!("load average {}", measure::load_average());
    cluster.finish()
}

/// An example of the repository, and a line of it that shows in the answer.
struct Example {
    name: &'static str,
    file: &'static str,
    line: &'static str,
}

const EXAMPLES: [Example; 3] = [
    Example {
        name: "static",
        file: "public/index.html",
        line: "</body>",
    },
    Example {
        name: "nodejs",
        file: "web.js",
        line: "Hello from ",
    },
    Example {
        name: "python",
        file: "app.py",
        line: "Hello from ",
    },
];

fn pushes(cluster: &Cluster, series: &mut Series, rounds: usize) -> Result<()> {
    for example in &EXAMPLES {
        let dir = cluster.dir.path().join("repos").join(example.name);
        copy_tree(&repo_root().join("examples").join(example.name), &dir)?;
        let original = fs::read_to_string(dir.join(example.file))?;
        ensure!(
            original.contains(example.line),
            "{} has no {:?}",
            example.file,
            example.line
        );
        e2e::succeeded("git init", cluster.git(&dir, &["init", "-q"])?)?;
        cluster.commit(&dir, "first")?;
        for round in 0..rounds {
            // Each in an app of its own: nothing of the others' caches is there.
            let app = format!("{}{round}", example.name);
            cluster.flynn(&["create", "-r", "", &app])?;
            let mark = change(&dir, example, &original, &format!("cold{round}"))?;
            cluster.commit(&dir, "cold")?;
            let push = push(cluster, &dir, &app, &mark)?;
            push.add(series, &format!("push {}, first", example.name));
            let mark = change(&dir, example, &original, &format!("warm{round}"))?;
            cluster.commit(&dir, "one line")?;
            let push = self::push(cluster, &dir, &app, &mark)?;
            push.add(series, &format!("push {}, one line changed", example.name));
            if round == 0 {
                println!("\n{} with one line changed:\n{}", example.name, push.transcript());
            }
            cluster.flynn(&["-a", &app, "delete", "-y"])?;
        }
    }
    Ok(())
}

fn change(dir: &Path, example: &Example, original: &str, mark: &str) -> Result<String> {
    let line = if example.line.starts_with('<') {
        format!("{mark}{}", example.line)
    } else {
        format!("{mark} {}", example.line)
    };
    fs::write(dir.join(example.file), original.replace(example.line, &line))?;
    Ok(mark.to_owned())
}

/// One push: when each line came, and when the change was live.
struct Push {
    lines: Vec<(Duration, String)>,
    live: Duration,
}

fn push(cluster: &Cluster, dir: &Path, app: &str, mark: &str) -> Result<Push> {
    let began = Instant::now();
    let mut child = cluster
        .inside(Path::new("git"))
        .args([
            "push",
            "--force",
            &format!("https://git.flynn.localhost/{app}.git"),
            "HEAD:refs/heads/main",
        ])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = BufReader::new(child.stderr.take().context("it is piped")?);
    let mut lines = vec![];
    for line in stderr.lines() {
        lines.push((began.elapsed(), line?));
    }
    let status = child.wait()?;
    let mut push = Push {
        lines,
        live: Duration::ZERO,
    };
    ensure!(status.success(), "the push failed:\n{}", push.transcript());
    // What git says is live has to be: no waiting here.
    let page = cluster.page(app)?;
    ensure!(page.contains(mark), "{app} answers without {mark:?}: {page}");
    push.live = began.elapsed();
    Ok(push)
}

impl Push {
    fn add(&self, series: &mut Series, name: &str) {
        series.add(name, self.live);
        series.add(
            &format!("{name}: beyond the package manager"),
            self.live - self.package_manager(),
        );
    }

    /// From the line that says dependencies are being installed to the next heading.
    fn package_manager(&self) -> Duration {
        let mut total = Duration::ZERO;
        let mut began = None;
        for (at, line) in &self.lines {
            let is_heading = line.contains("----->");
            if is_heading && let Some(since) = began.take() {
                total += *at - since;
            }
            if is_heading && line.contains("Installing") {
                began = Some(*at);
            }
        }
        total
    }

    fn transcript(&self) -> String {
        let lines = self
            .lines
            .iter()
            .map(|(at, line)| format!("{:7.2} {line}", at.as_secs_f64()));
        let mut lines: Vec<String> = lines.collect();
        lines.push(format!("{:7.2} answers", self.live.as_secs_f64()));
        lines.join("\n")
    }
}

fn changes(cluster: &Cluster, series: &mut Series, rounds: usize) -> Result<()> {
    cluster.app("shop", &[Process::web(&server("shop"))], 1)?;
    let shop =
        |arguments: &[&str]| -> Result<String> { cluster.flynn(&[&["-a", "shop"], arguments].concat()) };
    for round in 0..rounds {
        let mark = format!("round{round}");
        series.time("env set, one job", || {
            shop(&["env", "set", &format!("MARK={mark}")])?;
            let page = cluster.page("shop")?;
            ensure!(page.contains(&mark), "{page}");
            Ok(())
        })?;
        settle(cluster)?;
        series.time("scale 1 to 5", || shop(&["scale", "web=5"]))?;
        settle(cluster)?;
        shop(&["scale", "web=3"])?;
        settle(cluster)?;
        series.time("env set, three jobs", || shop(&["env", "set", "MARK=three"]))?;
        settle(cluster)?;
        series.time("rollback, three jobs", || {
            shop(&["release", "rollback", "-y"])?;
            let page = cluster.page("shop")?;
            ensure!(page.contains(&mark), "{page}");
            Ok(())
        })?;
        settle(cluster)?;
        shop(&["scale", "web=1"])?;
        settle(cluster)?;
        series.time("the only job killed, until it answers again", || {
            let before = cluster.page("shop")?;
            for pid in app_processes(cluster) {
                kill(pid);
            }
            until_answer(cluster, |page| page != before)
        })?;
        settle(cluster)?;
    }
    Ok(())
}

/// Old jobs have to be gone before the next measurement, or it shares the machine with their end.
fn settle(cluster: &Cluster) -> Result<()> {
    cluster.wait("the jobs to settle", || {
        let is_settled = ["stopping", "starting", "pending"]
            .iter()
            .map(|state| cluster.jobs("shop", state))
            .collect::<Result<Vec<_>>>()?
            .iter()
            .all(Vec::is_empty);
        Ok((is_settled && cluster.shims().len() == cluster.jobs("shop", "up")?.len()).then_some(()))
    })
}

/// Processes of containers other than their first, which is the platform's.
fn app_processes(cluster: &Cluster) -> Vec<i32> {
    let is_ours = |pid: &i32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.ends_with("flynn-shim")
    };
    cluster
        .contained()
        .into_iter()
        .filter(|pid| !is_ours(pid))
        .collect()
}

/// Asks until the page is as wanted; refused and failed requests count as not yet.
fn until_answer(cluster: &Cluster, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(page) = cluster.page("shop")
            && is_wanted(&page)
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!(
        "no answer within {} s\n{}",
        PATIENCE.as_secs(),
        cluster.host_log()
    )
}

fn power_cuts(cluster: &mut Cluster, series: &mut Series, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        let before = cluster.page("shop")?;
        cluster.cut_power()?;
        let began = Instant::now();
        cluster.boot()?;
        series.add("power cut, start to API answers", began.elapsed());
        until_answer(cluster, |page| page != before)?;
        series.add("power cut, start to app answers", began.elapsed());
        settle(cluster)?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &PathBuf) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
