//! The commands against the real controller, without hosts: what it keeps, answers and refuses.

use std::sync::Arc;

use api::{
    Controller as Client, Endpoint, Trust,
    logs::{LogSource, Message, Query},
    wire::{NewArtifact, NewRelease},
};
use daemon::{Keys, Principal, Shutdown};
use futures::{StreamExt, stream::BoxStream};
use serde_json::json;
use types::{AppId, Digest, Layer};

use crate::{bench::Bench, fake::KEY};

/// What stands for an image's layer; nothing mounts it here.
const LAYER: &[u8] = b"an erofs image";

fn digest_of_layer() -> Digest {
    // Of the bytes above: `printf 'an erofs image' | sha256sum`.
    "8b8b026e3099a13c3f5e659f0ff38006c225aaa0397a63517ba0d7c2bbc14120"
        .parse()
        .unwrap()
}

fn one_chunk(bytes: &'static [u8]) -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> {
    futures::stream::iter([Ok(bytes::Bytes::from_static(bytes))])
}

struct NoLogs;

#[async_trait::async_trait]
impl LogSource for NoLogs {
    async fn query(&self, _: AppId, _: Query) -> Result<BoxStream<'static, Message>, api::Error> {
        Ok(futures::stream::empty().boxed())
    }

    async fn forget(&self, _: AppId) -> Result<(), api::Error> {
        Ok(())
    }
}

struct Real {
    runtime: tokio::runtime::Runtime,
    url: String,
    _directory: tempfile::TempDir,
}

impl Real {
    fn start() -> Real {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("layers")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let url = runtime.block_on(async {
            let store = controller::Store::open(store::Options::single(directory.path()))
                .await
                .unwrap();
            let config = controller::Config {
                domain: "flynn.test".into(),
                http_port: 80,
                https_port: 443,
                keys: Keys::new([(KEY, Principal::User)]),
                internal_key: "internal".into(),
                ca_cert: String::new(),
                cert: String::new(),
                cert_key: String::new(),
                system_routes: vec![],
                logs: Arc::new(NoLogs),
                forget: vec![],
                discoverd: None,
                authority: daemon::secrets::Authority::new(directory.path()),
                archive: None,
                layers: directory.path().join("layers"),
                stack: None,
                objects: None,
                forward: None,
                peers: None,
                membership: None,
            };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(controller::Controller::new(store, config).run(listener, Shutdown::default()));
            url
        });
        Real {
            runtime,
            url,
            _directory: directory,
        }
    }

    fn client(&self) -> Client {
        Client::new(&Endpoint {
            url: self.url.clone(),
            key: KEY.into(),
            trust: Trust::System,
        })
        .unwrap()
    }

    /// With this as its only cluster.
    fn bench(&self) -> Bench {
        let bench = Bench::empty();
        bench.write_config(&format!(
            "[[cluster]]\nName = \"real\"\nKey = \"{KEY}\"\nControllerURL = \"{}\"\nGitURL = \"https://git.flynn.test\"\n",
            self.url
        ));
        bench
    }

    /// Gives an app a release with an image of one layer and a web process, as a push does.
    fn push(&self, app: &str) {
        self.runtime.block_on(async {
            let client = self.client();
            let layer = Layer::erofs(&digest_of_layer(), LAYER.len() as u64);
            client
                .put_layer(&digest_of_layer(), one_chunk(LAYER))
                .await
                .unwrap();
            let artifact: NewArtifact = serde_json::from_value(json!({
                "type": "flynn", "uri": format!("http://images.test/{app}.json"),
                "manifest": { "_type": types::ImageManifest::MEDIA_TYPE, "rootfs": [{ "layers": [layer] }] },
            }))
            .unwrap();
            let artifact = client.create_artifact(&artifact).await.unwrap();
            let release: NewRelease = serde_json::from_value(json!({
                "app_id": client.app(app).await.unwrap().id, "artifacts": [artifact.id],
                "env": { "FOO": "bar" }, "processes": { "web": { "args": ["/bin/web"] } },
            }))
            .unwrap();
            let release = client.create_release(&release).await.unwrap();
            client.deploy(app, release.id).await.unwrap();
        });
    }
}

/// What is printed without times, and with ids counted in the order in which they appear.
fn stable(text: &str) -> String {
    let line = |line: &str| match (line.split_once(" ==> "), line.starts_with("scale completed in ")) {
        (Some((_, what)), _) => format!("CLOCK ==> {what}\n"),
        (None, true) => "scale completed in TIME\n".into(),
        (None, false) => format!("{line}\n"),
    };
    let text: String = text.lines().map(line).collect();
    let mut seen: Vec<String> = vec![];
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        match rest.get(..36).filter(|head| head.parse::<AppId>().is_ok()) {
            Some(id) => {
                let position = seen.iter().position(|known| known == id).unwrap_or_else(|| {
                    seen.push(id.to_owned());
                    seen.len() - 1
                });
                out.push_str(&format!("ID{}", position + 1));
                rest = &rest[36..];
            }
            None => {
                let first = rest.chars().next().unwrap();
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

#[test]
fn the_real_controller_understands_and_is_understood() {
    let real = Real::start();
    let bench = real.bench();
    let mut text = bench.transcript(&["create -r '' shop", "create -r '' shop", "create -r '' Bad_Name"]);
    text.push_str(&bench.transcript(&[
        "-a shop scale",
        "-a shop env set EARLY=1",
        "-a shop env",
        "-a nosuch ps",
    ]));
    real.push("shop");
    text.push_str(&bench.transcript(&[
        "-a shop env set BAZ=qux",
        "-a shop env unset FOO",
        "-a shop env",
        "-a shop limit set web memory=512MB",
        "-a shop limit",
        "-a shop scale bogus=1",
        "-a shop scale --timeout 1 web=1",
        "-a shop scale",
        "-a shop kill 00000000-0000-4000-8000-000000000009",
        "-a shop route add http www.example.com",
        "-a shop route add http www.example.com",
        "-a shop route add http -c missing.pem -k missing.pem tls.example.com",
        "-a shop route",
        "-a shop meta set team=a",
        "-a shop deployment batch-size 2",
        "-a shop meta",
        "-a shop deployment timeout",
        "-a shop log",
        "-a shop scale --timeout 5 web=0",
        "-a shop release rollback -y",
        "-a shop delete -y",
        "apps",
    ]));
    insta::assert_snapshot!(stable(&text));
}

#[test]
fn layers_are_kept_by_digest_and_an_app_moves_between_clusters() {
    let (from, to) = (Real::start(), Real::start());
    let (here, there) = (from.bench(), to.bench());
    let mut text = here.transcript(&["create -r '' shop"]);
    from.push("shop");
    text.push_str(&here.transcript(&[
        "-a shop env set A=1",
        "-a shop route add http www.example.com",
        "-a shop route add http www.example.com/api/",
        "-a shop export -f shop.tar",
    ]));
    let file = here.directory.join("shop.tar");
    let file = file.to_str().unwrap();
    text.push_str(&there.transcript(&[
        &format!("import --routes -f {file} -n moved"),
        &format!("import -f {file} -n moved"),
        "-a moved env",
        "-a moved route",
        "-a moved release",
    ]));
    insta::assert_snapshot!(stable(&text.replace(file, "shop.tar")));
    to.runtime.block_on(async {
        let client = to.client();
        let found = client.find_layer(&digest_of_layer()).await.unwrap().unwrap();
        assert_eq!(found.length, LAYER.len() as u64);
        let error = client
            .put_layer(&digest_of_layer(), one_chunk(b"something else"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is not that of the bytes"), "{error}");
        let other: Digest = "0".repeat(64).parse().unwrap();
        assert!(client.find_layer(&other).await.unwrap().is_none());
    });
    let names = std::fs::read_dir(to._directory.path().join("layers")).unwrap();
    assert_eq!(names.count(), 1, "half a layer was left");
}

#[test]
fn the_real_controller_serves_those_who_operate_it() {
    let real = Real::start();
    let bench = real.bench();
    let mut text = bench.transcript(&["create -r '' shop", "why shop"]);
    real.push("shop");
    text.push_str(&bench.transcript(&[
        "-a shop scale -n web=1",
        "why shop",
        "-a shop scale --dry-run web=2",
        "-a shop env set --dry-run A=1",
        "-a shop route add http --dry-run www.example.com",
        "-a shop route add http --dry-run http://www.example.com",
        "-a shop route add tcp --dry-run -p 443",
        "-a shop scale",
        "-a shop route",
        "provider add tiles http://127.0.0.1:1/resources",
        "provider",
        "provider add tiles http://127.0.0.1:1/resources",
        "-a shop resource",
        "cluster log-sink add syslog syslog://127.0.0.1:5140/ {{.ID}}",
        "cluster log-sink",
        "cluster log-sink add syslog nonsense",
        "-a shop run --profiles kvm -- true",
        "-a shop run --mounts-from nosuch -- true",
    ]));
    insta::assert_snapshot!(stable(&text));
}
