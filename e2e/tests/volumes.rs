//! Volumes: what a job wrote is there for the next one, whatever happened in between.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Process, kill};
use serde_json::{Value, json};

/// Answers with the lines of its volume, and adds the path of each request but `/` as one.
const NOTEBOOK: &str = r#"
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/":
            with open("/data/notes", "a") as notes:
                notes.write(self.path + "\n")
                notes.flush()
                os.fsync(notes.fileno())
            os.fsync(os.open("/data", os.O_RDONLY))
        body = open("/data/notes", "rb").read() if os.path.exists("/data/notes") else b""
        body += f"uid {os.stat('/data').st_uid}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// A release whose web processes have a volume at /data.
fn release(cluster: &Cluster, app: &str, mark: &str) -> Result<String> {
    let id = cluster.release(app, &[Process::web(NOTEBOOK)], &[("MARK", mark)])?;
    let mut release = cluster.api("GET", &format!("/releases/{id}"), None)?;
    release["processes"]["web"]["data"] = json!(true);
    release.as_object_mut().context("no release")?.remove("id");
    let release = cluster.api("POST", "/releases", Some(&release))?;
    ensure!(
        release["processes"]["web"]["volumes"] == json!([{"path": "/data"}]),
        "{release}"
    );
    Ok(release["id"].as_str().unwrap_or_default().to_owned())
}

fn deploy(cluster: &Cluster, app: &str, mark: &str) -> Result<()> {
    let release = release(cluster, app, mark)?;
    let (status, error) = cluster.deploy(app, &release)?;
    ensure!(status == "complete", "{error}");
    Ok(())
}

fn volumes(cluster: &Cluster, app: &str) -> Result<Vec<Value>> {
    let list = cluster.api("GET", &format!("/apps/{app}/volumes"), None)?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

fn on_disk(cluster: &Cluster) -> Result<Vec<String>> {
    let directory = cluster.dir.path().join("state/volumes");
    let mut names = vec![];
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn page(cluster: &Cluster, expected: &str) -> Result<()> {
    let expected = format!("{expected}uid 1000\n");
    cluster.wait(&format!("the page to be {expected:?}"), || {
        let page = cluster.page("notes")?;
        ensure!(page == expected, "it is {page:?}");
        Ok(Some(()))
    })
}

#[test]
fn what_is_in_a_volume_outlives_everything_but_its_app() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "notes"])?;
    deploy(&cluster, "notes", "one")?;
    cluster.flynn(&["-a", "notes", "scale", "web=1"])?;
    cluster.request("notes.flynn.localhost", "/one")?;
    page(&cluster, "/one\n")?;
    let volume = cluster.wait("the volume to be made", || {
        Ok(volumes(&cluster, "notes")?
            .into_iter()
            .find(|volume| volume["state"] == "created"))
    })?;
    let id = volume["id"].as_str().context("no id")?.to_owned();
    ensure!(
        volume["path"] == "/data" && volume["type"] == "data" && volume["job_type"] == "web",
        "{volume}"
    );
    let job = cluster.jobs("notes", "up")?.remove(0);
    ensure!(
        job["volumes"] == json!([id]) && volume["job"] == job["uuid"],
        "{job} {volume}"
    );

    // A job that is killed, a crash, another release, none for a while.
    cluster.flynn(&["-a", "notes", "kill", job["id"].as_str().unwrap_or_default()])?;
    cluster.wait("another job", || {
        let up = cluster.jobs("notes", "up")?;
        Ok((up.len() == 1 && up[0]["id"] != job["id"]).then_some(()))
    })?;
    page(&cluster, "/one\n")?;
    cluster.request("notes.flynn.localhost", "/killed")?;
    page(&cluster, "/one\n/killed\n")?;
    let crashing = cluster.contained();
    crashing.iter().for_each(|pid| kill(*pid));
    page(&cluster, "/one\n/killed\n")?;
    for strategy in ["all-at-once", "one-by-one"] {
        cluster.api("POST", "/apps/notes", Some(&json!({"strategy": strategy})))?;
        deploy(&cluster, "notes", strategy)?;
        page(&cluster, "/one\n/killed\n")?;
    }
    cluster.flynn(&["-a", "notes", "scale", "web=0"])?;
    cluster.flynn(&["-a", "notes", "scale", "web=1"])?;
    page(&cluster, "/one\n/killed\n")?;
    ensure!(on_disk(&cluster)? == [id.clone()], "{:?}", on_disk(&cluster)?);

    // The daemon, and then the power.
    kill(cluster.pid("daemon")?);
    cluster.wait("the API", || cluster.api("GET", "/apps", None).map(Some))?;
    page(&cluster, "/one\n/killed\n")?;
    cluster.cut_power()?;
    cluster.boot()?;
    page(&cluster, "/one\n/killed\n")?;

    // A second job has a volume of its own.
    cluster.flynn(&["-a", "notes", "scale", "web=2"])?;
    ensure!(volumes(&cluster, "notes")?.len() == 2);
    cluster.flynn(&["-a", "notes", "scale", "web=0"])?;
    let path = format!("/apps/notes/volumes/{id}/decommission");
    let decommissioned = cluster.api("PUT", &path, Some(&json!({"id": id})))?;
    ensure!(
        decommissioned["decommissioned_at"].is_string(),
        "{decommissioned}"
    );
    cluster.flynn(&["-a", "notes", "scale", "web=1"])?;
    page(&cluster, "")?;
    let listed = volumes(&cluster, "notes")?;
    ensure!(listed.len() == 2, "{listed:?}");

    // What operators see; nothing that is of use is collected.
    let list = cluster.flynn_host(&["volume", "list"])?;
    ensure!(list.contains(&id) && list.contains("app_name=notes"), "{list}");
    let collected = cluster.flynn_host(&["volume", "gc"])?;
    ensure!(collected.trim() == format!("{id} deleted"), "{collected}");
    page(&cluster, "")?;
    let made = cluster.flynn_host(&["volume", "create", "host0"])?;
    let free = made.split_whitespace().nth(3).context("no id")?.to_owned();
    let kept = volumes(&cluster, "notes")?[0]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(cluster.flynn_host(&["volume", "delete", &kept]).is_err());
    cluster.flynn_host(&["volume", "delete", &free])?;

    cluster.flynn(&["-a", "notes", "delete", "-y"])?;
    cluster.wait("the volumes to be gone", || {
        let rows = cluster.api("GET", "/volumes", None)?;
        Ok((rows == json!([]) && on_disk(&cluster)?.is_empty()).then_some(()))
    })?;
    cluster.finish()
}

#[test]
fn a_one_off_job_has_room_that_goes_with_it_and_borrows_what_nobody_has() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "notes"])?;
    deploy(&cluster, "notes", "one")?;
    cluster.flynn(&["-a", "notes", "scale", "web=1"])?;
    cluster.request("notes.flynn.localhost", "/one")?;
    page(&cluster, "/one\n")?;
    cluster.flynn(&["-a", "notes", "scale", "web=0"])?;
    let release = cluster.api("GET", "/apps/notes/release", None)?["id"].clone();
    let run = |more: Value| -> Result<Value> {
        let mut job = json!({"release": release, "args": ["bash", "-c", "ls /data; echo x > /data/new"]});
        job.as_object_mut()
            .context("an object")?
            .extend(more.as_object().cloned().unwrap_or_default());
        let job = cluster.api("POST", "/apps/notes/jobs", Some(&job))?;
        let path = format!("/apps/notes/jobs/{}", job["uuid"].as_str().unwrap_or_default());
        cluster.wait("the job to end", || {
            let job = cluster.api("GET", &path, None)?;
            Ok((job["state"] == "down").then_some(job))
        })
    };
    let job = run(json!({"data": true}))?;
    ensure!(job["exit_status"] == 0, "{job}");
    cluster.wait("its volume to be gone", || {
        Ok((on_disk(&cluster)?.len() == 1).then_some(()))
    })?;
    let job = run(json!({"mounts_from": "web"}))?;
    ensure!(job["exit_status"] == 0, "{job}");
    let volume = volumes(&cluster, "notes")?.remove(0);
    ensure!(job["volumes"] == json!([volume["id"]]), "{job} {volume}");
    let data = cluster.dir.path().join(format!(
        "state/volumes/{}/data",
        volume["id"].as_str().unwrap_or_default()
    ));
    ensure!(fs::read_to_string(data.join("new"))? == "x\n");
    ensure!(fs::read_to_string(data.join("notes"))? == "/one\n");
    cluster.finish()
}
