//! A cluster in one file: made, its machine wiped, and brought back by one command.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{Cluster, Process, http, server};
use serde_json::json;

/// Answers with what its volume holds, and adds the path of each request to it.
const NOTEBOOK: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/":
            with open("/data/notes", "a") as notes:
                notes.write(self.path + "\n")
                notes.flush()
                os.fsync(notes.fileno())
        body = open("/data/notes").read().encode() if os.path.exists("/data/notes") else b"empty"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn a_wiped_machine_gets_its_cluster_back_from_one_file() -> Result<()> {
    let mut cluster = Cluster::start()?;
    // One app by git push, with another release's environment and a route with a certificate of its own.
    let site = cluster.repository("site", &[("index.html", "first page\n")])?;
    cluster.flynn(&["create", "-r", "", "site"])?;
    let (is_pushed, said) = cluster.push(&site, "site")?;
    ensure!(is_pushed, "{said}");
    cluster.flynn(&["-a", "site", "env", "set", "GREETING=hello"])?;
    let own = rcgen::generate_simple_self_signed(vec!["www.example.com".to_owned()])?;
    fs::write(cluster.dir.path().join("cert.pem"), own.cert.pem())?;
    fs::write(
        cluster.dir.path().join("key.pem"),
        own.signing_key.serialize_pem(),
    )?;
    cluster.flynn(&[
        "-a",
        "site",
        "route",
        "add",
        "http",
        "-c",
        "cert.pem",
        "-k",
        "key.pem",
        "www.example.com",
    ])?;
    // One with a volume, scaled; one that is scaled to nothing.
    cluster.flynn(&["create", "-r", "", "notebook"])?;
    let id = cluster.release("notebook", &[Process::web(NOTEBOOK)], &[])?;
    let mut release = cluster.api("GET", &format!("/releases/{id}"), None)?;
    release["processes"]["web"]["volumes"] = json!([{"path": "/data"}]);
    release.as_object_mut().expect("a release").remove("id");
    let release = cluster.api("POST", "/releases", Some(&release))?;
    let id = release["id"].as_str().unwrap_or_default().to_owned();
    let (status, error) = cluster.deploy("notebook", &id)?;
    ensure!(status == "complete", "{error}");
    cluster.flynn(&["-a", "notebook", "scale", "web=1"])?;
    for note in ["/one", "/two"] {
        let answer = cluster.request("notebook.flynn.localhost", note)?;
        let log = cluster.flynn(&["-a", "notebook", "log"])?;
        ensure!(answer.status == 200, "{note}: {}\n{log}", answer.status);
    }
    ensure!(cluster.page("notebook")? == "/one\n/two\n");
    cluster.app("idle", &[Process::web(&server("idle"))], 0)?;

    let before = told(&cluster)?;
    let file = cluster.dir.path().join("backup.tar");
    let name = file.to_string_lossy().into_owned();
    cluster.flynn(&["cluster", "backup", "--file", &name])?;
    let last = cluster.wait("the backup's end to be recorded", || {
        let key = fs::read_to_string(cluster.dir.path().join("state/secrets/controller.key"))?;
        let answer = cluster
            .net
            .within(|| http::call("127.0.0.1:1112", "GET", "/backup", key.trim(), None))?;
        let last: serde_json::Value = serde_json::from_slice(&answer.body)?;
        Ok((last["status"] == "complete").then_some(last))
    })?;
    ensure!(last["size"] == fs::metadata(&file)?.len(), "{last}");

    // Not over a cluster that is there.
    let refused = cluster
        .flynn_host(&["restore", &name])
        .expect_err("there is a cluster")
        .to_string();
    ensure!(refused.contains("there is a cluster in"), "{refused}");

    cluster.cut_power()?;
    cluster.flynn_host(&["teardown", "--remove-state"])?;
    // Half a file brings nothing back, and leaves nothing.
    let half = cluster.dir.path().join("half.tar");
    let length = fs::copy(&file, &half)?;
    fs::File::options().write(true).open(&half)?.set_len(length / 2)?;
    let refused = cluster
        .flynn_host(&["restore", &half.to_string_lossy()])
        .expect_err("it is half a file");
    ensure!(refused.to_string().contains("hint:"), "{refused}");
    fs::remove_file(&half)?;

    let said = cluster.flynn_host(&["restore", &name])?;
    ensure!(said.contains("Restored 3 apps"), "{said}");
    cluster.boot()?;
    cluster.wait("the apps to answer as before", || {
        let site = cluster.page("site")?.contains("first page");
        Ok((site && cluster.page("notebook")? == "/one\n/two\n").then_some(()))
    })?;
    let after = told(&cluster)?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    // Keys and the authority are the old ones, so that clients go on; and so does git.
    fs::write(site.join("index.html"), "second page\n")?;
    cluster.commit(&site, "second")?;
    let (is_pushed, said) = cluster.push(&site, "site")?;
    ensure!(is_pushed, "{said}");
    ensure!(cluster.page("site")?.contains("second page"));
    cluster.finish()
}

/// Everything that a user would miss.
fn told(cluster: &Cluster) -> Result<String> {
    let mut told = String::new();
    for path in [
        "/apps",
        "/releases",
        "/artifacts",
        "/routes",
        "/apps/site/formations",
        "/apps/notebook/formations",
    ] {
        told += &format!("{path}: {}\n", cluster.api("GET", path, None)?);
    }
    for volume in cluster
        .api("GET", "/volumes", None)?
        .as_array()
        .into_iter()
        .flatten()
    {
        told += &format!(
            "volume {} of {} at {}\n",
            volume["id"], volume["app"], volume["path"]
        );
    }
    Ok(told)
}
