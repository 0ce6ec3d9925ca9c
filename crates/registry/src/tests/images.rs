//! Pushes that become releases, and those that must not.

use http::Method;
use serde_json::{Value, json};

use super::world::{Answer, World};
use crate::{
    manifest::{OCI_INDEX, OCI_MANIFEST},
    name::BlobDigest,
    release::architecture,
};

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

struct Made {
    config: Value,
    layers: Vec<Vec<u8>>,
}

impl Made {
    fn new(config: Value) -> Made {
        let layers = [
            layer(&[(
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n",
            )]),
            layer(&[("srv/index.html", "hello")]),
        ];
        let diff_ids: Vec<_> = layers.iter().map(|layer| BlobDigest::of(layer)).collect();
        Made {
            config: json!({
                "architecture": architecture(), "os": "linux", "config": config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
            layers: layers.iter().map(|layer| gzip(layer)).collect(),
        }
    }

    async fn manifest(&self, world: &World, name: &str) -> Value {
        let config = self.config.to_string();
        let digest = world.push_blob(name, config.as_bytes()).await;
        let mut layers = vec![];
        for layer in &self.layers {
            let digest = world.push_blob(name, layer).await;
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": layer.len(),
            }));
        }
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()},
        })
    }

    async fn push(&self, world: &World, reference: &str) -> Answer {
        let manifest = self.manifest(world, "shop").await;
        world.push_manifest("shop", reference, &manifest).await.0
    }
}

fn web() -> Value {
    json!({"Entrypoint": ["/serve"], "User": "web", "WorkingDir": "/srv", "ExposedPorts": {"3000/tcp": {}}})
}

#[tokio::test]
async fn a_tagged_image_becomes_the_release_of_an_app_that_has_none() {
    let world = World::new().await;
    let answer = Made::new(web()).push(&world, "v1").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let releases = world.told.releases.lock().unwrap().clone();
    let [release] = &releases[..] else {
        panic!("{releases:?}")
    };
    assert_eq!(answer.header("flynn-release"), release["id"].as_str().unwrap());
    assert_eq!(
        world.told.current.lock().unwrap().as_ref().unwrap()["id"],
        release["id"]
    );
    assert_eq!(
        (&release["meta"]["docker.tag"], &release["meta"]["docker-receive"]),
        (&json!("v1"), &json!("true"))
    );
    let web = &release["processes"]["web"];
    assert_eq!(
        (&web["service"], &web["ports"][0]["port"]),
        (&json!("shop-web"), &json!(3000))
    );
    assert_eq!(web.get("args"), None);
    let artifact = world.told.artifacts.lock().unwrap()[0].clone();
    let entrypoint = &artifact["manifest"]["entrypoints"]["_default"];
    assert_eq!(
        (&entrypoint["uid"], &entrypoint["gid"], &entrypoint["cwd"]),
        (&json!(101), &json!(102), &json!("/srv"))
    );
    assert_eq!(
        (&entrypoint["args"], &entrypoint["env"]["HOME"]),
        (&json!(["/serve"]), &json!("/srv"))
    );
    let layers = artifact["manifest"]["rootfs"][0]["layers"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let file = world
            .dir
            .path()
            .join(format!("layers/{}.erofs", layer["id"].as_str().unwrap()));
        assert_eq!(file.metadata().unwrap().len(), layer["length"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn a_further_image_waits_unless_the_app_deploys_what_is_pushed() {
    let world = World::new().await;
    let mut made = Made::new(web());
    made.push(&world, "v1").await;
    // Again the same: nothing is new.
    assert_eq!(made.push(&world, "v1").await.status, 201);
    assert_eq!(world.told.releases.lock().unwrap().len(), 1);
    let first = world.told.current.lock().unwrap().clone().unwrap();
    made.config["config"]["Env"] = json!(["A=1"]);
    made.push(&world, "v2").await;
    assert_eq!(world.told.releases.lock().unwrap().len(), 2);
    assert_eq!(world.told.current.lock().unwrap().as_ref(), Some(&first));
    assert!(world.told.deployed.lock().unwrap().is_empty());
    world.told.add("shop", json!({"docker-push-deploy": "true"}));
    made.config["config"]["Env"] = json!(["A=2"]);
    made.push(&world, "v3").await;
    let newest = world.told.releases.lock().unwrap()[2]["id"].clone();
    assert_eq!(*world.told.deployed.lock().unwrap(), [newest]);
    // Layers that did not change were converted once.
    assert_eq!(world.files("layers").len(), 2);
}

#[tokio::test]
async fn what_an_owner_set_stays_and_a_client_may_name_the_process() {
    let world = World::new().await;
    let manifest = Made::new(web()).manifest(&world, "shop").await;
    let path = "/v2/shop/manifests/latest?process=app&deploy=client";
    let answer = world.send(Method::PUT, path, &[], manifest.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let mut release = world.told.releases.lock().unwrap()[0].clone();
    assert_eq!(release["processes"]["app"]["service"], "shop-web");
    assert!(world.told.current.lock().unwrap().is_none());
    release["env"] = json!({"SET": "by the owner"});
    release["processes"]["app"]["resources"] = json!({"memory": {"limit": 1234}});
    release["processes"]["worker"] = json!({"args": ["/work"]});
    *world.told.current.lock().unwrap() = Some(release);
    let mut made = Made::new(web());
    made.config["config"]["ExposedPorts"] = json!({"80/tcp": {}});
    made.push(&world, "v2").await;
    let release = world.told.releases.lock().unwrap()[1].clone();
    assert_eq!(release["env"]["SET"], "by the owner");
    let app = &release["processes"]["app"];
    assert_eq!(
        (&app["resources"]["memory"]["limit"], &app["ports"][0]["port"]),
        (&json!(1234), &json!(80))
    );
    assert_eq!(release["processes"]["worker"]["args"], json!(["/work"]));
    assert_eq!(release["processes"].get("web"), None);
}

#[tokio::test]
async fn of_an_index_the_image_of_this_machine_is_taken() {
    let world = World::new().await;
    let (one, mut other) = (Made::new(web()), Made::new(web()));
    other.config["architecture"] = json!("s390x");
    let mut manifests = vec![];
    for (made, platform) in [(&other, "s390x"), (&one, architecture())] {
        let manifest = made.manifest(&world, "shop").await;
        let digest = BlobDigest::of(manifest.to_string().as_bytes());
        let (answer, _) = world.push_manifest("shop", &digest.to_string(), &manifest).await;
        assert_eq!(
            (answer.status, answer.header("flynn-release")),
            (201, ""),
            "{}",
            answer.text()
        );
        manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.to_string().len(),
            "platform": {"os": "linux", "architecture": platform},
        }));
    }
    let index =
        |manifests: &[Value]| json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let told = world
        .push_manifest("shop", "v1", &index(&manifests[..1]))
        .await
        .0
        .refused(400, "MANIFEST_INVALID");
    assert!(told.contains("among linux/s390x"), "{told}");
    let (answer, _) = world.push_manifest("shop", "v1", &index(&manifests)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(
        world.told.releases.lock().unwrap()[0]["meta"]["docker.digest"],
        manifests[1]["digest"]
    );
}

#[tokio::test]
async fn what_cannot_run_is_refused_in_words_and_leaves_nothing() {
    let world = World::new().await;
    let check = async |change: fn(&mut Made), expected: &str| {
        let mut made = Made::new(web());
        change(&mut made);
        let told = made.push(&world, "v1").await.refused(400, "MANIFEST_INVALID");
        assert!(told.contains(expected), "{told}");
        world
            .get("/v2/shop/manifests/v1")
            .await
            .refused(404, "MANIFEST_UNKNOWN");
    };
    check(
        |made| made.config["architecture"] = json!("arm64v9"),
        "--platform linux/",
    )
    .await;
    check(|made| made.config["os"] = json!("windows"), "windows/").await;
    check(
        |made| made.config["config"]["User"] = json!("nobody"),
        "not in its /etc/passwd",
    )
    .await;
    check(|made| made.config["config"] = json!({}), "nothing to run").await;
    check(|made| made.config = json!([1]), "configuration is not valid").await;
    check(
        |made| made.layers.truncate(1),
        "has 1 layers, and its configuration names 2",
    )
    .await;
    check(
        |made| made.layers.swap(0, 1),
        "is not the one that the configuration names",
    )
    .await;
    check(
        |made| made.layers[1] = b"\x1f\x8bnot gzip at all".to_vec(),
        "is refused: its archive",
    )
    .await;
    check(
        |made| made.layers[1] = gzip(&layer(&[("x", &"0".repeat(3 << 20))]))[..2000].to_vec(),
        "cannot be read",
    )
    .await;
    assert!(world.told.releases.lock().unwrap().is_empty());
    let drafts = world
        .files("layers")
        .into_iter()
        .filter(|path| path.extension().is_none_or(|kind| kind != "erofs"));
    assert_eq!(drafts.count(), 0);
}

#[tokio::test]
async fn other_repositories_of_an_app_make_no_releases() {
    let world = World::new().await;
    let manifest = Made::new(web()).manifest(&world, "shop/base").await;
    let (answer, _) = world.push_manifest("shop/base", "v1", &manifest).await;
    assert_eq!((answer.status, answer.header("flynn-release")), (201, ""));
    assert!(world.told.releases.lock().unwrap().is_empty());
    let listed = world.get("/images").await.json();
    assert_eq!(listed["apps"][0]["images"][0]["repository"], "shop/base");
    assert!(listed["apps"][0]["bytes"].as_u64() > Some(100) && listed["bytes"] == listed["apps"][0]["bytes"]);
}
