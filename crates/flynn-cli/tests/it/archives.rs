//! An app written to a file and made anew from it.

use serde_json::json;

use crate::{bench::Bench, fake::Fake};

const LAYER: &str = "a5e66470b2812e91798db36eb103c1f1e135bbe167e4b2ad5ba425b8db98ee8d";

/// An app with an image of one layer, scaled, with a route that was added to it.
fn cluster_with_shop() -> Fake {
    let fake = Fake::start();
    fake.deployed_app("shop");
    let mut state = fake.state();
    let artifact = state.releases[0].artifacts[0];
    let now = state.now();
    let layer = json!({ "id": LAYER, "type": types::Layer::EROFS, "length": 700_000 });
    state.artifacts.push(json!({
        "id": artifact, "type": "flynn", "uri": "flynn://slug/x", "created_at": now,
        "manifest": { "_type": types::ImageManifest::MEDIA_TYPE, "rootfs": [{ "layers": [layer] }] },
    }));
    state.layers.insert(LAYER.into(), vec![9; 700_000]);
    drop(state);
    fake
}

#[test]
fn an_exported_app_is_imported_on_another_cluster() {
    let (from, to) = (cluster_with_shop(), Fake::start());
    let (here, there) = (Bench::of(&from), Bench::of(&to));
    let mut text = here.transcript(&[
        "-a shop scale -n web=2",
        "-a shop route add http www.example.com",
        "-a shop route add http www.example.com/api/",
        "-a shop export -f shop.tar",
        "-a nosuch export -f nosuch.tar",
    ]);
    let file = here.directory.join("shop.tar");
    let names = std::process::Command::new("tar")
        .arg("tf")
        .arg(&file)
        .output()
        .unwrap();
    text.push_str(&String::from_utf8_lossy(&names.stdout));
    let file = file.to_str().unwrap();
    text.push_str(&there.transcript(&[
        &format!("import --routes --file {file}"),
        &format!("import -f {file}"),
        &format!("import -q -n other -f {file}"),
        "apps",
        "-a shop env",
        "-a shop scale",
        "-a shop route",
        "-a other route",
    ]));
    insta::assert_snapshot!(text.replace(file, "shop.tar"));
    assert_eq!(to.state().layers[LAYER], vec![9; 700_000]);
    assert_eq!(std::fs::read_dir(&here.directory).unwrap().count(), 1);
}

#[test]
fn what_is_no_archive_makes_no_app() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    std::fs::write(bench.directory.join("text.tar"), "hello".repeat(1000)).unwrap();
    insta::assert_snapshot!(bench.transcript(&["import -f text.tar", "import -f missing.tar", "apps"]));
}

#[test]
fn of_an_archive_of_the_original_all_but_the_image_is_taken() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    let id = |number: u8| format!("00000000-0000-4000-8000-0000000001{number:02}");
    let now = "2021-02-18T00:00:00Z";
    let layer = json!({ "id": "0123", "type": "application/vnd.flynn.image.squashfs.v1", "length": 5 });
    let parts = [
        (
            "app.json",
            json!({ "id": id(1), "name": "old", "meta": { "a": "b" }, "strategy": "all-at-once",
            "release": id(2), "deploy_timeout": 60, "created_at": now, "updated_at": now })
            .to_string(),
        ),
        ("routes.json", "null".into()),
        (
            "release.json",
            json!({ "id": id(2), "app_id": id(1), "artifacts": [id(3)], "env": { "X": "1" },
            "processes": { "web": { "args": ["start", "web"], "service": "old-web" } }, "created_at": now })
            .to_string(),
        ),
        (
            "artifacts.json",
            json!([{ "id": id(3), "type": "flynn", "uri": "http://blobstore.discoverd/x.json",
            "manifest": { "rootfs": [{ "layers": [layer] }] }, "created_at": now }])
            .to_string(),
        ),
        ("0123.layer", "hsqs.".into()),
        (
            "formation.json",
            json!({ "app": id(1), "release": id(2), "processes": { "web": 1 }, "created_at": now,
            "updated_at": now })
            .to_string(),
        ),
        ("postgres.dump", "PGDMP".into()),
    ];
    for (name, text) in &parts {
        std::fs::write(bench.directory.join(name), text).unwrap();
    }
    let names = parts.iter().map(|(name, _)| name);
    let mut tar = bench.command("tar");
    assert!(
        tar.arg("cf")
            .arg("old.tar")
            .args(names)
            .status()
            .unwrap()
            .success()
    );
    insta::assert_snapshot!(bench.transcript(&[
        "import -f old.tar",
        "apps",
        "import -f old.tar --skip-databases -j 4 -n new",
        "-a new env",
        "-a new meta",
        "-a new scale",
    ]));
}
