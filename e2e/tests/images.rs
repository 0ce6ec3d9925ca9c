//! Images pushed by other people's tools through the cluster's router, released, run, and pulled back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, succeeded};
use serde_json::json;

/// What an image is made of in these tests.
struct Image {
    layout: PathBuf,
}

impl Image {
    /// busybox with a page that it serves as a user of its own, made by umoci in two layers.
    fn new(dir: &Path, page: &str) -> Result<Image> {
        let image = Image {
            layout: dir.join("layout"),
        };
        let root = dir.join("bundle/rootfs");
        image.umoci(&["init", "--layout", &image.path()])?;
        image.umoci(&["new", "--image", &image.tag()])?;
        image.change(dir, |_| {
            for name in ["bin", "etc", "srv/www", "tmp", "var/run"] {
                fs::create_dir_all(root.join(name))?;
            }
            fs::copy("/bin/busybox", root.join("bin/busybox")).context("install busybox-static")?;
            for name in ["sh", "httpd", "cat", "id", "ls", "sleep"] {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
            }
            fs::write(
                root.join("etc/passwd"),
                "root:x:0:0::/root:/bin/sh\nwww:x:101:102::/srv:/bin/sh\n",
            )?;
            fs::write(root.join("etc/group"), "root:x:0:\nwww:x:102:\nextra:x:55:www\n")?;
            fs::write(root.join("srv/www/old"), "old")?;
            fs::write(root.join("srv/www/hidden"), "hidden")?;
            Ok(())
        })?;
        image.change(dir, |_| {
            fs::remove_file(root.join("srv/www/hidden"))?;
            fs::write(root.join("srv/www/index.html"), page)?;
            Ok(())
        })?;
        image.umoci(&[
            "config",
            "--image",
            &image.tag(),
            "--config.user=www",
            "--config.workingdir=/srv/www",
            "--config.env=GREETING=from the image",
            "--config.exposedports=3000/tcp",
            "--config.entrypoint=/bin/httpd",
            "--config.cmd=-f",
            "--config.cmd=-p",
            "--config.cmd=3000",
            "--config.stopsignal=SIGINT",
        ])?;
        Ok(image)
    }

    fn path(&self) -> String {
        self.layout.display().to_string()
    }

    fn tag(&self) -> String {
        format!("{}:v1", self.path())
    }

    /// One more layer with what `edit` does to the unpacked image.
    fn change(&self, dir: &Path, edit: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let bundle = dir.join("bundle");
        let bundle_text = bundle.display().to_string();
        self.umoci(&["unpack", "--image", &self.tag(), &bundle_text])?;
        edit(&bundle.join("rootfs"))?;
        self.umoci(&["repack", "--image", &self.tag(), &bundle_text])?;
        Ok(fs::remove_dir_all(&bundle)?)
    }

    fn umoci(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("umoci")
            .args(args)
            .output()
            .context("install umoci")?;
        succeeded(&format!("umoci {}", args.join(" ")), output)
    }
}

/// Runs skopeo as somebody would who has the cluster's name in the DNS.
fn skopeo(cluster: &Cluster, args: &[&str]) -> Result<(bool, String)> {
    let dir = cluster.dir.path();
    let hosts = dir.join("hosts");
    fs::write(
        &hosts,
        "127.0.0.1 localhost images.flynn.localhost docker.flynn.localhost\n",
    )?;
    let authorities = dir.join("authorities");
    fs::create_dir_all(&authorities)?;
    fs::copy(
        dir.join("home/.flynn/ca-certs/default.pem"),
        authorities.join("ca.crt"),
    )?;
    let script = r#"mount --bind "$HOSTS" /etc/hosts && exec skopeo "$@""#;
    let output = cluster
        .inside(Path::new("unshare"))
        .args(["--mount", "sh", "-c", script, "skopeo"])
        .args(args)
        .env("HOSTS", &hosts)
        .env("XDG_RUNTIME_DIR", dir)
        .stdin(Stdio::null())
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.status.success(), said))
}

fn key(cluster: &Cluster) -> Result<String> {
    Ok(
        fs::read_to_string(cluster.dir.path().join("state/secrets/controller.key"))?
            .trim()
            .to_owned(),
    )
}

fn push(cluster: &Cluster, image: &Image, target: &str) -> Result<(bool, String)> {
    let certificates = cluster.dir.path().join("authorities");
    skopeo(
        cluster,
        &[
            "copy",
            "--dest-cert-dir",
            &certificates.display().to_string(),
            "--dest-creds",
            &format!("any:{}", key(cluster)?),
            &format!("oci:{}", image.tag()),
            &format!("docker://{target}"),
        ],
    )
}

/// What the registry has of blobs.
fn stored_bytes(cluster: &Cluster) -> Result<u64> {
    let blobs = cluster.dir.path().join("state/registry/blobs");
    let output = Command::new("find")
        .arg(blobs)
        .args(["-type", "f", "-printf", "%s\n"])
        .output()?;
    let text = succeeded("find", output)?;
    Ok(text.lines().filter_map(|line| line.parse::<u64>().ok()).sum())
}

/// Waits until the app answers with this; the router hears of a change a moment after its maker.
fn answers(cluster: &Cluster, app: &str, page: &str) -> Result<()> {
    cluster.wait(&format!("{app} to answer {page:?}"), || {
        Ok((cluster.page(app)? == page).then_some(()))
    })
}

#[test]
fn an_image_that_is_pushed_is_released_scaled_and_answers() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "todo"])?;
    let image = Image::new(cluster.dir.path(), "todo, first version\n")?;

    let (is_ok, said) = push(&cluster, &image, "images.flynn.localhost/nobody:latest")?;
    ensure!(!is_ok && said.contains("there is no app"), "{said}");

    let (is_ok, said) = push(&cluster, &image, "images.flynn.localhost/todo:v1")?;
    ensure!(is_ok, "{said}\n{}", cluster.host_log());
    cluster.flynn(&["-a", "todo", "scale", "web=1"])?;
    answers(&cluster, "todo", "todo, first version\n")?;

    // As the image says: its user with all groups, its directory, its environment.
    let said = cluster.flynn(&[
        "-a",
        "todo",
        "run",
        "sh",
        "-c",
        "id; pwd; echo $GREETING $HOME; ls",
    ])?;
    ensure!(
        said.contains("uid=101(www) gid=102(www) groups=55(extra),102(www)"),
        "{said}"
    );
    ensure!(
        said.contains("/srv/www\nfrom the image /srv\nindex.html\nold"),
        "{said}"
    );
    cluster.flynn(&["-a", "todo", "scale", "web=3"])?;
    ensure!(cluster.jobs("todo", "up")?.len() == 3);

    // Pulled back it is what it was.
    let digest = skopeo(
        &cluster,
        &[
            "inspect",
            "--format",
            "{{.Digest}}",
            &format!("oci:{}", image.tag()),
        ],
    )?
    .1;
    let certificates = cluster.dir.path().join("authorities").display().to_string();
    let credentials = format!("any:{}", key(&cluster)?);
    let name = format!("docker://docker.flynn.localhost/todo@{}", digest.trim());
    let back = cluster.dir.path().join("back").display().to_string();
    let (is_ok, said) = skopeo(
        &cluster,
        &[
            "copy",
            "--src-cert-dir",
            &certificates,
            "--src-creds",
            &credentials,
            &name,
            &format!("oci:{back}:v1"),
        ],
    )?;
    ensure!(is_ok, "{said}");
    let again = skopeo(
        &cluster,
        &["inspect", "--format", "{{.Digest}}", &format!("oci:{back}:v1")],
    )?
    .1;
    ensure!(digest == again, "{digest} {again}");

    // A second version is a release that waits, until the app is one that deploys what is pushed.
    let root = cluster.dir.path().join("bundle/rootfs");
    let write = |text: &'static str| {
        let page = root.join("srv/www/index.html");
        move |_: &Path| Ok(fs::write(page, text)?)
    };
    image.change(cluster.dir.path(), write("second\n"))?;
    let (is_ok, said) = push(&cluster, &image, "images.flynn.localhost/todo:latest")?;
    ensure!(is_ok, "{said}");
    ensure!(cluster.page("todo")? == "todo, first version\n");
    cluster.flynn(&["-a", "todo", "meta", "set", "docker-push-deploy=true"])?;
    image.change(cluster.dir.path(), write("third\n"))?;
    let (began, before) = (std::time::Instant::now(), stored_bytes(&cluster)?);
    let (is_ok, said) = push(&cluster, &image, "images.flynn.localhost/todo:latest")?;
    ensure!(is_ok, "{said}");
    answers(&cluster, "todo", "third\n")?;
    let moved = stored_bytes(&cluster)? - before;
    println!(
        "one small layer changed: {moved} bytes moved, live after {} ms",
        began.elapsed().as_millis()
    );
    ensure!(moved < 10_000, "{moved} bytes were moved for a page");
    cluster.wait("the three jobs of the release before are gone", || {
        Ok((cluster.jobs("todo", "up")?.len() == 3).then_some(()))
    })?;
    Ok(())
}

/// One request of curl's through the router: status and headers.
fn curl(cluster: &Cluster, args: &[&str], path: &str) -> Result<(String, String)> {
    let url = format!("http://images.flynn.localhost{path}");
    let output = cluster
        .inside(Path::new("curl"))
        .args(["--silent", "--show-error", "--include", "--max-time", "120"])
        .args(["--user", &format!("any:{}", key(cluster)?)])
        .args(args)
        .arg(&url)
        .output()?;
    let text = succeeded(&format!("curl {}", args.join(" ")), output)?;
    // What was only an announcement (100 Continue) is passed over.
    let text = text
        .split("\r\n\r\n")
        .find(|part| !part.contains(" 100 "))
        .unwrap_or_default();
    let status = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
    Ok((status, text.to_ascii_lowercase()))
}

fn header(text: &str, name: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_default().trim().to_owned()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Puts a small blob into the app's repository: its digest and length.
fn put_blob(cluster: &Cluster, text: &str) -> Result<(String, usize)> {
    let file = cluster.dir.path().join("blob");
    fs::write(&file, text)?;
    let sum = succeeded("sha256sum", Command::new("sha256sum").arg(&file).output()?)?;
    let digest = format!("sha256:{}", sum.split_whitespace().next().context("a digest")?);
    let data = format!("@{}", file.display());
    let (status, answer) = curl(
        cluster,
        &[
            "--data-binary",
            &data,
            "--header",
            "Content-Type: application/octet-stream",
        ],
        &format!("/v2/shop/blobs/uploads/?digest={digest}"),
    )?;
    ensure!(status == "201", "{answer}");
    Ok((digest, text.len()))
}

fn put_manifest(cluster: &Cluster, text: &str) -> Result<()> {
    let content_type = format!("Content-Type: {MANIFEST}");
    let (status, answer) = curl(
        cluster,
        &[
            "--request",
            "PUT",
            "--data-binary",
            text,
            "--header",
            &content_type,
        ],
        "/v2/shop/manifests/v1",
    )?;
    ensure!(status == "201", "{answer}");
    Ok(())
}

#[test]
fn a_large_layer_survives_a_killed_daemon_and_takes_little_memory() -> Result<()> {
    const HALF_BYTES: usize = 1 << 30;
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "shop"])?;
    let dir = cluster.dir.path();
    // Random, so that nothing can be saved; in two files, so that the second half can be sent later.
    let make = r#"
        head -c $((2 * $1)) /dev/urandom >big; tar -cf - big | split -b $1 - part.; rm big
        cat part.a? | sha256sum | cut -d' ' -f1; cat part.a? | wc -c"#;
    let output = Command::new("bash")
        .args(["-ec", make, "-", &HALF_BYTES.to_string()])
        .current_dir(dir)
        .output()?;
    let made = succeeded("making a layer", output)?;
    let (digest, length) = made.trim().split_once('\n').context("two lines")?;
    let length: usize = length.parse()?;

    let (status, begun) = curl(&cluster, &["--request", "POST"], "/v2/shop/blobs/uploads/")?;
    ensure!(status == "202", "{begun}");
    let place = header(&begun, "location");
    let send = |file: &str, range: &str| {
        let file = dir.join(file).display().to_string();
        let range = format!("Content-Range: {range}");
        curl(
            &cluster,
            &[
                "--request",
                "PATCH",
                "--upload-file",
                &file,
                "--header",
                &range,
                "--header",
                "Content-Type: application/octet-stream",
            ],
            &place,
        )
    };
    let (status, answer) = send("part.aa", &format!("0-{}", HALF_BYTES - 1))?;
    ensure!(status == "202", "{answer}");
    e2e::kill(cluster.pid("daemon")?);
    let answer = cluster.wait("the upload to be found again", || {
        let (status, answer) = curl(&cluster, &[], &place)?;
        Ok((status == "204").then_some(answer))
    })?;
    ensure!(
        header(&answer, "range") == format!("0-{}", HALF_BYTES - 1),
        "{answer}"
    );
    // The rest is a gigabyte and what a tar archive adds.
    let rest = "cat part.ab part.ac >rest && rm part.a?";
    let output = Command::new("bash")
        .args(["-ec", rest])
        .current_dir(dir)
        .output()?;
    succeeded("the rest", output)?;
    let (status, answer) = send("rest", &format!("{HALF_BYTES}-{}", length - 1))?;
    ensure!(status == "202", "{answer}\n{}", cluster.host_log());
    let (status, answer) = curl(
        &cluster,
        &["--request", "PUT"],
        &format!("{place}?digest=sha256:{digest}"),
    )?;
    ensure!(status == "201", "{answer}\n{}", cluster.host_log());
    let (status, answer) = curl(&cluster, &["--head"], &format!("/v2/shop/blobs/sha256:{digest}"))?;
    ensure!(
        status == "200" && header(&answer, "content-length") == length.to_string(),
        "{answer}"
    );

    // It is the only layer of an image, which is made runnable.
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/big"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let config = put_blob(&cluster, &config.to_string())?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{digest}"), "size": length,
        }],
    });
    put_manifest(&cluster, &manifest.to_string())?;
    cluster.wait("the release", || {
        let releases = cluster.api("GET", "/apps/shop/releases", None)?;
        Ok((releases.as_array().is_some_and(|list| !list.is_empty())).then_some(()))
    })?;

    let text = fs::read_to_string(format!("/proc/{}/status", cluster.pid("daemon")?))?;
    let peak_kb: usize = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("no VmHWM")?;
    ensure!(peak_kb < 128 << 10, "the daemon took {peak_kb} kB");
    Ok(())
}

#[test]
fn an_image_comes_from_a_file_or_another_registry_without_any_engine() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "shop"])?;
    let image = Image::new(cluster.dir.path(), "from a file\n")?;
    let output = cluster.try_flynn(&["-a", "shop", "docker", "push", &image.path()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}\n{}", cluster.host_log());
    ensure!(
        said.contains("uploading layer") && said.contains("scale it with 'flynn scale app=N'"),
        "{said}"
    );
    cluster.flynn(&["-a", "shop", "scale", "app=1"])?;
    answers(&cluster, "shop", "from a file\n")?;

    // What `docker save` writes.
    let root = cluster.dir.path().join("bundle/rootfs");
    image.change(cluster.dir.path(), |_| {
        Ok(fs::write(root.join("srv/www/index.html"), "from an archive\n")?)
    })?;
    let archive = cluster.dir.path().join("saved.tar").display().to_string();
    let source = format!("oci:{}", image.tag());
    let (is_ok, said) = skopeo(
        &cluster,
        &["copy", &source, &format!("docker-archive:{archive}:shop:v2")],
    )?;
    ensure!(is_ok, "{said}");
    cluster.flynn(&["-a", "shop", "docker", "push", &archive])?;
    answers(&cluster, "shop", "from an archive\n")?;
    let listed = cluster.flynn(&["-a", "shop", "image"])?;
    ensure!(
        listed.contains("shop:latest") && listed.contains("on disk"),
        "{listed}"
    );

    // Another registry: Debian's, without TLS, on this machine.
    let config = cluster.dir.path().join("registry.yml");
    let storage = cluster.dir.path().join("other");
    fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:5000\"}}\n",
            storage.display()
        ),
    )?;
    let mut other = cluster
        .inside(Path::new("docker-registry"))
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("install docker-registry")?;
    let pulled = (|| {
        cluster.wait("the other registry to take the image", || {
            let target = "docker://127.0.0.1:5000/team/shop:v3";
            let (is_ok, said) = skopeo(&cluster, &["copy", "--dest-tls-verify=false", &source, target])?;
            ensure!(is_ok, "{said}");
            Ok(Some(()))
        })?;
        cluster.flynn(&[
            "create",
            "-r",
            "",
            "--image",
            "127.0.0.1:5000/team/shop:v3",
            "copy",
        ])?;
        cluster.flynn(&["-a", "copy", "scale", "web=1"])?;
        answers(&cluster, "copy", "from an archive\n")?;
        let output = cluster.try_flynn(&["-a", "copy", "image", "pull", "127.0.0.1:5000/team/none"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("there is no such image"),
            "{said}"
        );
        Ok(())
    })();
    other.kill()?;
    other.wait()?;
    pulled
}

/// In the form that `pack` gives them: a label with the process types, a launcher that is called by their names.
#[test]
fn an_image_of_cloud_native_buildpacks_has_its_process_types() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "shop"])?;
    let image = Image::new(cluster.dir.path(), "of buildpacks\n")?;
    let cnb = cluster.dir.path().join("bundle/rootfs/cnb");
    image.change(cluster.dir.path(), |_| {
        for name in ["lifecycle", "process"] {
            fs::create_dir_all(cnb.join(name))?;
        }
        let launcher = "#!/bin/sh\n\
            case $0 in\n\
            */web) exec httpd -f -p \"$PORT\" -h /srv/www ;;\n\
            */worker) echo working; exec sleep 600 ;;\n\
            *) exec \"$@\" ;;\n\
            esac\n";
        let path = cnb.join("lifecycle/launcher");
        fs::write(&path, launcher)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for name in ["web", "worker"] {
            std::os::unix::fs::symlink("/cnb/lifecycle/launcher", cnb.join("process").join(name))?;
        }
        Ok(())
    })?;
    let label = json!({"processes": [
        {"type": "web", "command": ["httpd"], "direct": true, "buildpackID": "shop/httpd"},
        {"type": "worker", "command": ["sleep"], "args": ["600"], "direct": true, "buildpackID": "shop/httpd"},
    ]});
    image.umoci(&[
        "config",
        "--image",
        &image.tag(),
        "--clear=config.cmd",
        "--config.entrypoint=/cnb/process/web",
        &format!("--config.label=io.buildpacks.build.metadata={label}"),
    ])?;
    let (is_ok, said) = push(&cluster, &image, "images.flynn.localhost/shop:latest")?;
    ensure!(is_ok, "{said}");
    cluster.flynn(&["-a", "shop", "scale", "web=1", "worker=1"])?;
    answers(&cluster, "shop", "of buildpacks\n")?;
    cluster.wait("the worker's line", || {
        Ok(cluster
            .flynn(&["-a", "shop", "log"])?
            .contains("working")
            .then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_repository_with_a_dockerfile_is_built_on_the_cluster() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.flynn(&["create", "-r", "", "todo"])?;
    cluster.flynn(&["-a", "todo", "env", "set", "TOKEN=very-secret"])?;
    cluster.flynn(&["-a", "todo", "meta", "set", "docker-build-args=VERSION=7"])?;
    let dockerfile = "\
        FROM scratch AS tools\n\
        COPY busybox /bin/busybox\n\
        RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
        FROM tools AS made\n\
        ARG VERSION\n\
        RUN --mount=type=secret,id=TOKEN mkdir -p /www && test -s /run/secrets/TOKEN && echo \"todo $VERSION\" >/www/index.html\n\
        FROM tools\n\
        COPY --from=made /www /www\n\
        COPY . /context\n\
        EXPOSE 4000\n\
        CMD [\"httpd\", \"-f\", \"-p\", \"4000\", \"-h\", \"/www\"]\n";
    let files = [
        ("Dockerfile", dockerfile),
        (".dockerignore", "ignored\n"),
        ("ignored", "x"),
        ("kept", "x"),
    ];
    let dir = cluster.repository("todo", &files)?;
    fs::copy("/bin/busybox", dir.join("busybox")).context("install busybox-static")?;
    cluster.commit(&dir, "busybox")?;
    let (is_ok, said) = cluster.push(&dir, "todo")?;
    ensure!(is_ok, "{said}\n{}", cluster.host_log());
    answers(&cluster, "todo", "todo 7\n")?;
    cluster.flynn(&["-a", "todo", "scale", "web=3"])?;
    ensure!(cluster.jobs("todo", "up")?.len() == 3);
    let seen = cluster
        .flynn(&["-a", "todo", "run", "ls", "/context", "/run/secrets"])
        .unwrap_or_default();
    ensure!(!seen.contains("ignored") && !seen.contains("TOKEN"), "{seen}");
    // One line changed: the layers before it are there already.
    fs::write(dir.join("kept"), "y")?;
    cluster.commit(&dir, "second")?;
    let (is_ok, said) = cluster.push(&dir, "todo")?;
    ensure!(is_ok && said.contains("ache"), "{said}");
    Ok(())
}
