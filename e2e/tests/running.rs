//! Apps that run: scaled, routed, logged, entered, healed, deleted.

use std::{process::Stdio, sync::atomic::Ordering, time::Duration};

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, http, kill, server};

#[test]
fn an_app_is_routed_logged_scaled_and_deleted_without_a_trace() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 2)?;
    ensure!(cluster.page("shop")?.starts_with("hello"));
    cluster.wait("the log", || {
        Ok(cluster
            .flynn(&["-a", "shop", "log", "-r"])?
            .contains("ready")
            .then_some(()))
    })?;
    cluster.wait("the access log", || {
        let log = cluster.flynn(&["-a", "shop", "log", "-t", "router"])?;
        Ok((log.contains("method=GET") && log.contains("status=200")).then_some(()))
    })?;

    // Both jobs answer in turn.
    let mut jobs = std::collections::BTreeSet::new();
    cluster.wait("both jobs to answer", || {
        jobs.insert(cluster.page("shop")?);
        Ok((jobs.len() == 2).then_some(()))
    })?;

    cluster.flynn(&["-a", "shop", "scale", "web=0"])?;
    let answer = cluster.request("shop.flynn.localhost", "/")?;
    ensure!(
        answer.status == 503,
        "nothing runs, and the router says {}",
        answer.status
    );
    let answer = cluster.request("nosuch.flynn.localhost", "/")?;
    ensure!(
        answer.status == 404,
        "no such app, and the router says {}",
        answer.status
    );

    cluster.flynn(&["-a", "shop", "scale", "web=1"])?;
    let id = cluster.api("GET", "/apps/shop", None)?["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    cluster.flynn(&["-a", "shop", "delete", "-y"])?;
    for kept in ["logs", "repos", "builds"] {
        let directory = cluster.dir.path().join("state").join(kept);
        for entry in std::fs::read_dir(directory)?.flatten() {
            ensure!(
                !entry.file_name().to_string_lossy().contains(&id),
                "{:?} is left",
                entry.path()
            );
        }
    }
    ensure!(cluster.contained().is_empty(), "processes of the app are left");
    ensure!(cluster.request("shop.flynn.localhost", "/")?.status == 404);
    cluster.finish()
}

#[test]
fn a_deploy_under_load_fails_no_request() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("one"))], 2)?;
    for strategy in ["all-at-once", "one-by-one", "in-batches"] {
        cluster.api(
            "POST",
            "/apps/shop",
            Some(&serde_json::json!({"strategy": strategy})),
        )?;
        let load = http::Load::default();
        std::thread::scope(|scope| -> Result<()> {
            for user in 0..6 {
                let (load, net) = (&load, &cluster.net);
                let path = if user < 4 { "/" } else { "/slow/150" };
                scope.spawn(move || {
                    net.enter().expect("the namespace is there");
                    load.user("shop.flynn.localhost", path);
                });
            }
            let deployed = (|| {
                for text in ["two", "three"] {
                    let release = cluster.release("shop", &[Process::web(&server(text))], &[])?;
                    let (status, error) = cluster.deploy("shop", &release)?;
                    ensure!(status == "complete", "{error}");
                    // What was replaced has to be gone before the load ends, or its end is not seen.
                    cluster.wait("the old jobs to end", || {
                        Ok(cluster.jobs("shop", "stopping")?.is_empty().then_some(()))
                    })?;
                }
                Ok(())
            })();
            load.stop.store(true, Ordering::Relaxed);
            deployed
        })?;
        let failures = load.failures();
        let requests = load.requests.load(Ordering::Relaxed);
        ensure!(
            failures.is_empty(),
            "{strategy}: {} of {requests} requests failed: {:?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        ensure!(requests > 50, "{strategy}: only {requests} requests were made");
        println!("{strategy}: {requests} requests, none failed");
    }
    cluster.finish()
}

#[test]
fn a_release_that_does_not_come_up_is_rolled_back_with_the_reason() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("good"))], 1)?;
    let before = cluster.api("GET", "/apps/shop/release", None)?["id"].clone();

    let crashing = cluster.release(
        "shop",
        &[Process::web("print('no database'); raise SystemExit(3)")],
        &[],
    )?;
    let (status, error) = cluster.deploy("shop", &crashing)?;
    ensure!(status == "failed", "the crashing release is {status}");
    ensure!(
        error.contains("status 3") && error.contains("no database"),
        "{error}"
    );
    ensure!(cluster.page("shop")?.starts_with("good"));

    cluster.api(
        "POST",
        "/apps/shop",
        Some(&serde_json::json!({"deploy_timeout": 3})),
    )?;
    let silent = cluster.release(
        "shop",
        &[Process::web("print('thinking'); import time; time.sleep(600)")],
        &[],
    )?;
    let (status, error) = cluster.deploy("shop", &silent)?;
    ensure!(status == "failed", "the silent release is {status}");
    ensure!(error.contains("8080") && error.contains("thinking"), "{error}");
    ensure!(cluster.page("shop")?.starts_with("good"));
    ensure!(cluster.api("GET", "/apps/shop/release", None)?["id"] == before);
    cluster.wait("only the good job to be left", || {
        Ok(
            (cluster.jobs("shop", "up")?.len() == 1 && cluster.jobs("shop", "stopping")?.is_empty())
                .then_some(()),
        )
    })?;
    cluster.finish()
}

#[test]
fn a_rollback_brings_an_earlier_release_back() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("one"))], 1)?;
    let first = cluster.api("GET", "/apps/shop/release", None)?["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    cluster.flynn(&["-a", "shop", "env", "set", "MARK=changed"])?;
    ensure!(cluster.page("shop")?.contains("changed"));
    cluster.flynn(&["-a", "shop", "release", "rollback", "-y"])?;
    ensure!(!cluster.page("shop")?.contains("changed"));
    ensure!(cluster.api("GET", "/apps/shop/release", None)?["id"] == first.as_str());
    cluster.finish()
}

#[test]
fn a_job_told_to_stop_finishes_its_requests() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("slow"))], 1)?;
    std::thread::scope(|scope| -> Result<()> {
        let net = &cluster.net;
        let slow = scope.spawn(move || {
            net.enter().expect("the namespace is there");
            http::get("127.0.0.1:80", "shop.flynn.localhost", "/slow/3000")
        });
        std::thread::sleep(Duration::from_millis(500));
        cluster.flynn(&["-a", "shop", "scale", "-n", "web=0"])?;
        cluster.wait("the job to be stopping", || {
            Ok((!cluster.jobs("shop", "stopping")?.is_empty()).then_some(()))
        })?;
        ensure!(
            cluster.request("shop.flynn.localhost", "/")?.status == 503,
            "it still takes new requests"
        );
        let answer = slow.join().expect("a request does not panic")?;
        ensure!(
            answer.status == 200,
            "the request in flight was answered {}",
            answer.status
        );
        Ok(())
    })?;
    cluster.finish()
}

#[test]
fn one_off_jobs_give_their_output_and_status_and_take_input() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    let output = cluster.try_flynn(&[
        "-a",
        "shop",
        "run",
        "--",
        "bash",
        "-c",
        "echo out; echo err >&2; exit 7",
    ])?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(
        output.stdout == b"out\n" && output.stderr == b"err\n",
        "{output:?}"
    );

    let mut child = cluster
        .inside(&e2e::program("flynn"))
        .args(["-a", "shop", "run", "--", "sort"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(child.stdin.as_mut().expect("it is piped"), b"b\na\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.stdout == b"a\nb\n", "{output:?}");

    let jobs = cluster.jobs("shop", "up")?;
    let web = jobs
        .iter()
        .find(|job| job["type"] == "web")
        .and_then(|job| job["id"].as_str());
    let job = web.unwrap_or_default().to_owned();
    let inside = cluster.flynn(&[
        "-a",
        "shop",
        "exec",
        &job,
        "--",
        "bash",
        "-c",
        "echo $FLYNN_JOB_ID",
    ])?;
    ensure!(inside.trim() == job, "{inside}");

    let missing = cluster.try_flynn(&["-a", "shop", "run", "--", "no-such-command"])?;
    ensure!(missing.status.code().is_some_and(|code| code != 0), "{missing:?}");
    cluster.finish()
}

#[test]
fn whatever_is_killed_comes_back() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 2)?;
    let up = |cluster: &Cluster| -> Result<Vec<String>> {
        let jobs = cluster.jobs("shop", "up")?;
        Ok(jobs
            .iter()
            .map(|job| job["id"].as_str().unwrap_or_default().to_owned())
            .collect())
    };
    let mut before = up(&cluster)?;
    before.sort();

    // The daemon: nobody notices but those who talk to it.
    let load = http::Load::default();
    std::thread::scope(|scope| -> Result<()> {
        let (load, net) = (&load, &cluster.net);
        scope.spawn(move || {
            net.enter().expect("the namespace is there");
            load.user("shop.flynn.localhost", "/");
        });
        let daemon = cluster.pid("daemon")?;
        kill(daemon);
        let back = cluster.wait("another daemon", || {
            Ok((cluster.pid("daemon")? != daemon && cluster.jobs("shop", "up").is_ok()).then_some(()))
        });
        load.stop.store(true, Ordering::Relaxed);
        back
    })?;
    ensure!(
        load.failures().is_empty(),
        "without the daemon: {:?}",
        load.failures()
    );
    let mut after = up(&cluster)?;
    after.sort();
    ensure!(
        before == after,
        "jobs did not outlive the daemon: {before:?}, {after:?}"
    );

    // The router.
    let router = cluster.pid("router")?;
    kill(router);
    cluster.wait("another router", || {
        Ok((cluster.page("shop").is_ok()).then_some(()))
    })?;

    // A shim: its container goes along, and the job is replaced.
    kill(cluster.shims()[0]);
    cluster.wait("the job to be replaced", || {
        let now = up(&cluster)?;
        Ok((now.len() == 2 && now.iter().filter(|job| before.contains(job)).count() == 1).then_some(()))
    })?;

    // PID 1 of a container, as root of the host sees it.
    let before = up(&cluster)?;
    kill(cluster.contained()[0]);
    cluster.wait("the job to be replaced", || {
        let now = up(&cluster)?;
        Ok((now.len() == 2 && now.iter().filter(|job| before.contains(job)).count() == 1).then_some(()))
    })?;
    ensure!(cluster.page("shop")?.starts_with("hello"));
    cluster.finish()
}

#[test]
fn a_power_cut_loses_nothing_and_needs_nobody() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 2)?;
    let rounds: u32 = std::env::var("FLYNN_POWER_CUTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20);
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let mark = format!("MARK=round-{round}");
        cluster.flynn(&["-a", "shop", "env", "set", &mark])?;
        cluster.cut_power()?;
        let began = std::time::Instant::now();
        cluster.boot()?;
        cluster.wait("the app to answer with what was set last", || {
            Ok(cluster
                .page("shop")?
                .contains(&format!("round-{round} "))
                .then_some(()))
        })?;
        longest = longest.max(began.elapsed());
        cluster.wait("both jobs", || {
            Ok((cluster.jobs("shop", "up")?.len() == 2).then_some(()))
        })?;
    }
    println!("{rounds} power cuts, the longest until the app answered: {longest:?}");
    ensure!(
        longest < Duration::from_secs(10),
        "it took {longest:?} to serve again"
    );
    cluster.finish()
}

#[test]
fn a_job_reads_the_registry_with_the_key_of_its_app() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.app("shop", &[Process::web(&server("hello"))], 1)?;
    cluster.app("other", &[Process::web(&server("other"))], 1)?;
    let ask = |service: &str| {
        let script = format!(
            r#"
import json, os, base64, urllib.error, urllib.parse, urllib.request
url = urllib.parse.urlsplit(os.environ["DISCOVERD"])
where = f"http://{{url.hostname}}:{{url.port}}/services/{service}/instances"
key = base64.b64encode(f"{{url.username}}:{{url.password}}".encode()).decode()
request = urllib.request.Request(where, headers={{"Authorization": "Basic " + key}})
try:
    print(len(json.load(urllib.request.urlopen(request, timeout=10))))
except urllib.error.HTTPError as error:
    print(error.code)
"#
        );
        let said = cluster.flynn(&["-a", "shop", "run", "python3", "-c", &script])?;
        Ok::<_, anyhow::Error>(said.trim().to_owned())
    };
    let said = ask("shop-web")?;
    ensure!(said == "1", "its own service has instances: {said}");
    let said = ask("other-web")?;
    ensure!(said == "403", "another app's service answers {said}");
    cluster.finish()
}
