//! The cluster's bucket: what it keeps outlives every disk of the cluster, and nothing waits for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use api::objects::{Collection, ObjectError, Objects, Source};
use bucket::Bucket;
use e2e::{Cluster, PATIENCE, kill, server, succeeded};
use futures::TryStreamExt;
use serde_json::{Value, json};
use types::Settings;

const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Somebody else's object store, which checks signatures.
struct ObjectStore {
    dir: PathBuf,
    endpoint: String,
    process: Child,
}

impl ObjectStore {
    /// With one bucket, `hosts`; on the port of an earlier one where that is given. `inside` makes the command.
    fn start(dir: &Path, port: &str, inside: impl FnOnce(&Path) -> Command) -> Result<ObjectStore> {
        let program = std::env::var_os("FLYNN_TEST_OBJECT_STORE")
            .context("FLYNN_TEST_OBJECT_STORE: see fetch_object_store in script/lib/install.sh")?;
        fs::create_dir_all(dir.join("objects/hosts"))?;
        let log = dir.join("objects.log");
        let process = inside(Path::new(&program))
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                port,
                "--access-key",
                KEY_ID,
                "--secret-key",
                SECRET,
            ])
            .arg(dir.join("objects"))
            .env("RUST_LOG", "s3s_fs=info")
            .stdout(fs::File::create(&log)?)
            .stderr(Stdio::inherit())
            .stdin(Stdio::null())
            .spawn()?;
        let mut store = ObjectStore {
            dir: dir.join("objects"),
            endpoint: String::new(),
            process,
        };
        let began = std::time::Instant::now();
        while store.endpoint.is_empty() {
            let said = fs::read_to_string(&log)?;
            ensure!(
                began.elapsed() < PATIENCE,
                "the object store does not start: {said}"
            );
            if let Some((_, after)) = said.split_once("http://") {
                let end = after.find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
                store.endpoint = end
                    .map(|end| format!("http://{}", &after[..end]))
                    .unwrap_or_default();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(store)
    }

    fn port(&self) -> &str {
        self.endpoint.rsplit(':').next().expect("it has a port")
    }

    fn stop(&mut self) {
        kill(self.process.id() as i32);
        let _ = self.process.wait();
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wish(store: &ObjectStore) -> types::Bucket {
    types::Bucket {
        endpoint: store.endpoint.clone(),
        name: "hosts".into(),
        prefix: "a/b".into(),
        region: "us-east-1".into(),
        access_key_id: KEY_ID.into(),
        secret_access_key: SECRET.into(),
        path_style: true,
    }
}

fn client(settings: &Arc<Mutex<Settings>>, cluster: &str) -> Bucket {
    let settings = settings.clone();
    let read = move || Arc::new(settings.lock().expect("no panic while held").clone());
    let clock = || types::Timestamp::EPOCH;
    Bucket::new(Box::new(read), cluster.into(), clock).with_part_bytes(5 << 20)
}

async fn bytes_of(objects: &dyn Objects, key: &str) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = objects.get(key).await? else {
        return Ok(None);
    };
    let bytes: Vec<_> = bytes.try_collect().await?;
    Ok(Some(bytes.concat()))
}

#[tokio::test]
async fn objects_are_kept_given_back_and_collected() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = ObjectStore::start(dir.path(), "0", |program| Command::new(program))?;
    let settings = Arc::new(Mutex::new(Settings::default()));
    let bucket = client(&settings, "this");
    ensure!(!bucket.is_on() && bucket.status().is_none());
    let wish = wish(&store);
    bucket.check(&wish).await?;
    settings.lock().expect("no panic while held").bucket = Some(wish.clone());
    ensure!(bucket.is_on());

    ensure!(!bucket.has("layers/x").await?);
    ensure!(bytes_of(&bucket, "layers/x").await?.is_none());
    bucket.keep("layers/x", Source::Bytes("small".into())).await?;
    // Of several parts, the last of them short.
    let large: Vec<u8> = (0..12_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let file = dir.path().join("large");
    fs::write(&file, &large[..11 << 20])?;
    bucket.keep("images/a/b/large", Source::File(&file)).await?;
    let other = client(&settings, "this");
    ensure!(bytes_of(&other, "layers/x").await?.as_deref() == Some(&b"small"[..]));
    ensure!(bytes_of(&other, "images/a/b/large").await?.as_deref() == Some(&large[..11 << 20]));
    ensure!(store.dir.join("hosts/a/b/layers/x").exists());

    let mut collection = Collection::new();
    let is_needed = |key: &str| key == "layers/x";
    let prefixes = ["layers/", "images/"];
    ensure!(
        collection
            .round(&bucket, &prefixes, is_needed, Duration::from_secs(3600))
            .await?
            == 0
    );
    ensure!(
        collection
            .round(&bucket, &prefixes, is_needed, Duration::ZERO)
            .await?
            == 0
    );
    ensure!(
        collection
            .round(&bucket, &prefixes, is_needed, Duration::ZERO)
            .await?
            == 1
    );
    ensure!(!bucket.has("images/a/b/large").await? && bucket.has("layers/x").await?);

    // What is wrong is told as what it is.
    let told = async |change: fn(&mut types::Bucket), cluster: &str| {
        let mut wrong = wish.clone();
        change(&mut wrong);
        match client(&settings, cluster).check(&wrong).await {
            Ok(()) => "works".to_owned(),
            Err(ObjectError { message, .. }) => message,
        }
    };
    let refusals = [
        told(|_| {}, "this").await,
        told(|_| {}, "other").await,
        told(|wrong| wrong.prefix = "c".into(), "other").await,
        told(|wrong| wrong.name = "missing".into(), "this").await,
        told(|wrong| wrong.secret_access_key = "guessed".into(), "this").await,
    ];
    let expected = [
        "works",
        "this bucket is used by another cluster",
        "works",
        "the object store has no bucket of this name",
        "the object store does not accept the signature",
    ];
    ensure!(refusals == expected, "{refusals:?}");
    Ok(())
}

/// What this host has still to bring, by kind; and what is wrong.
fn status(cluster: &Cluster) -> Result<Value> {
    let text = cluster.flynn_host(&["bucket", "--json"])?;
    let status: Value = serde_json::from_str(&text)?;
    Ok(status["host0"].clone())
}

fn files_in(dir: &Path) -> usize {
    let found = Command::new("find").arg(dir).args(["-type", "f"]).output();
    found.map_or(0, |found| found.stdout.split(|byte| *byte == b'\n').count() - 1)
}

/// At least so many of each kind, and nothing that waits. What waits is what was counted last, so the least
/// must be more than there was before.
fn wait_until_all_is_there(cluster: &Cluster, objects: &Path, kinds: &[(&str, usize)]) -> Result<()> {
    cluster.wait("everything to be in the bucket", || {
        let status = status(cluster)?;
        let is_there = |(kind, count): &(&str, usize)| files_in(&objects.join(kind)) >= *count;
        let waiting = json!({"images": 0, "layers": 0, "repositories": 0});
        Ok(
            (status["waiting"] == waiting && status["error"].is_null() && kinds.iter().all(is_there))
                .then_some(()),
        )
    })
}

fn curl(cluster: &Cluster, args: &[&str], path: &str) -> Result<String> {
    let key = fs::read_to_string(cluster.dir.path().join("state/secrets/controller.key"))?;
    let mut command = cluster.inside(Path::new("curl"));
    let command = command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--user"]);
    let command = command.arg(format!("any:{}", key.trim())).args(args);
    let output = command
        .arg(format!("http://images.flynn.localhost{path}"))
        .output()?;
    succeeded(&format!("curl {path}"), output)
}

/// Something that is no image, kept in the app's own corner of the registry.
fn put_artifact(cluster: &Cluster) -> Result<String> {
    let file = cluster.dir.path().join("blob");
    fs::write(&file, "kept in the registry")?;
    let sum = succeeded("sha256sum", Command::new("sha256sum").arg(&file).output()?)?;
    let digest = format!("sha256:{}", sum.split_whitespace().next().context("a digest")?);
    let data = format!("@{}", file.display());
    let kind = "Content-Type: application/octet-stream";
    let path = format!("/v2/shop/notes/blobs/uploads/?digest={digest}");
    curl(cluster, &["--data-binary", &data, "--header", kind], &path)?;
    let blob = json!({"mediaType": "text/plain", "digest": digest, "size": 20});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "text/plain",
        "config": blob, "layers": [blob],
    });
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let args = [
        "--request",
        "PUT",
        "--data-binary",
        &manifest.to_string(),
        "--header",
        kind,
    ];
    curl(cluster, &args, "/v2/shop/notes/manifests/v1")?;
    Ok(format!("/v2/shop/notes/blobs/{digest}"))
}

#[test]
fn a_cluster_that_lost_every_disk_has_all_of_it_back() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let dir = cluster.dir.path().to_owned();
    let mut store = ObjectStore::start(&dir, "0", |program| cluster.inside(program))?;
    let objects = store.dir.join("hosts/mine");
    ensure!(cluster.flynn_host(&["bucket"])?.contains("no bucket"));
    let secret = dir.join("secret");
    fs::write(&secret, "wrong\n")?;
    let endpoint = store.endpoint.clone();
    let secret_file = secret.display().to_string();
    let set = [
        "bucket",
        "set",
        "s3://hosts/mine",
        "--endpoint",
        &endpoint,
        "--access-key-id",
        KEY_ID,
        "--secret-file",
        &secret_file,
    ];
    let refused = format!(
        "{:#}",
        cluster
            .flynn_host(&set)
            .err()
            .context("a wrong secret is taken")?
    );
    ensure!(refused.contains("hint: check the secret access key"), "{refused}");
    fs::write(&secret, format!("{SECRET}\n"))?;
    cluster.flynn_host(&set)?;
    let shown = format!(
        "{}{}",
        cluster.flynn_host(&["bucket"])?,
        cluster.flynn_host(&["bucket", "--json"])?
    );
    ensure!(shown.contains("works") && !shown.contains(SECRET), "{shown}");

    let files = [
        ("requirements.txt", ""),
        ("Procfile", "web: python3 -u server.py\n"),
        ("server.py", &*server("one")),
    ];
    let checkout = cluster.repository("shop", &files)?;
    cluster.flynn(&["create", "-r", "", "shop"])?;
    let (is_pushed, said) = cluster.push(&checkout, "shop")?;
    ensure!(is_pushed, "{said}");
    let blob = put_artifact(&cluster)?;
    wait_until_all_is_there(
        &cluster,
        &objects,
        &[("layers", 2), ("git", 2), ("images", 1), ("blobs", 2)],
    )?;

    // Away, it is missed by nobody.
    let before = ["layers", "git"].map(|kind| files_in(&objects.join(kind)));
    store.stop();
    fs::write(checkout.join("server.py"), server("two"))?;
    cluster.commit(&checkout, "two")?;
    let (is_pushed, said) = cluster.push(&checkout, "shop")?;
    ensure!(is_pushed, "{said}");
    cluster.wait("the second version", || {
        Ok(cluster.page("shop")?.starts_with("two ").then_some(()))
    })?;
    cluster.wait("the status to say so", || {
        Ok(cluster
            .flynn_host(&["status"])?
            .contains("cannot be reached")
            .then_some(()))
    })?;
    let port = store.port().to_owned();
    store = ObjectStore::start(&dir, &port, |program| cluster.inside(program))?;
    wait_until_all_is_there(
        &cluster,
        &objects,
        &[("layers", before[0] + 1), ("git", before[1] + 2)],
    )?;

    // Every disk is lost but for the cluster's state.
    cluster.cut_power()?;
    for name in ["layers", "repos", "registry"] {
        fs::remove_dir_all(dir.join("state").join(name))?;
    }
    cluster.boot()?;
    cluster.wait("the app to be back", || {
        Ok(cluster.page("shop")?.starts_with("two ").then_some(()))
    })?;
    let head = succeeded("git rev-parse", cluster.git(&checkout, &["rev-parse", "HEAD"])?)?;
    let remote = [
        "ls-remote",
        "https://git.flynn.localhost/shop.git",
        "refs/heads/main",
    ];
    let remote = succeeded("git ls-remote", cluster.git(&dir, &remote)?)?;
    ensure!(remote.starts_with(head.trim()), "{remote} instead of {head}");
    let text = cluster.wait("the registry to be back", || curl(&cluster, &[], &blob).map(Some))?;
    ensure!(text == "kept in the registry", "{text}");

    cluster.flynn_host(&["bucket", "remove"])?;
    ensure!(cluster.flynn_host(&["bucket"])?.contains("no bucket"));
    drop(store);
    cluster.finish()
}
