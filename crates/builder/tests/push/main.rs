//! Pushes by a real git against a real server. Needs root, for the disks that builds happen on.

mod world;

use std::time::Duration;

use world::{World, exists_below, refs};

const APP: &[(&str, &str)] = &[
    ("Procfile", "web: ./server\nworker: ./work\n"),
    ("server", "one\n"),
];

fn check_lines(text: &str, expected: &[&str]) {
    let mut rest = text;
    for line in expected {
        match rest.find(line) {
            Some(at) => rest = &rest[at + line.len()..],
            None => panic!("{line:?} is not where it should be in:\n{text}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_becomes_a_release_and_a_second_one_keeps_what_was_set() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout.init(APP).await;
    let text = checkout.ok(&["push", &world.url("shop"), "main"]).await;
    check_lines(
        &text,
        &[
            "remote: -----> Building shop...",
            "remote: -----> Creating release...",
            "remote: =====> Application deployed",
            "remote: =====> Scaling initial release to web=1",
            "remote: =====> https://shop.test/",
            "remote:        Took",
            "main -> main",
        ],
    );
    world.told(|told| {
        let release = &told.releases[0];
        assert_eq!(release["processes"]["web"]["service"], "shop-web");
        assert_eq!(release["env"]["SUGGESTED"], "1");
        assert_eq!(release["meta"]["git.branch"], "main");
        assert_eq!((told.deployed.len(), told.scaled), (1, 1));
        let slug = told
            .artifacts
            .iter()
            .find(|artifact| artifact["uri"].as_str().unwrap().contains("/slug/"))
            .unwrap();
        let digest = slug["manifest"]["rootfs"][0]["layers"][0]["id"].as_str().unwrap();
        assert!(world.state.layers().join(format!("{digest}.erofs")).exists());
        told.releases[0]["env"]["MINE"] = "1".into();
    });
    assert!(
        checkout
            .ok(&["push", &world.url("shop"), "main"])
            .await
            .contains("Everything up-to-date")
    );
    checkout.commit(&[("server", "two\n")]).await;
    let text = checkout.ok(&["push", &world.url("shop"), "main"]).await;
    check_lines(
        &text,
        &["remote: env MINE", "remote: =====> Application deployed"],
    );
    world.told(|told| {
        assert_eq!(
            (told.releases[1]["env"]["MINE"].as_str(), told.scaled),
            (Some("1"), 1)
        )
    });
    // Rewritten history, and the way back out.
    checkout.ok(&["commit", "-q", "--amend", "-m", "rewritten"]).await;
    checkout.refused(&["push", &world.url("shop"), "main"]).await;
    checkout.ok(&["push", "-f", &world.url("shop"), "main"]).await;
    let clone = world.checkout("clone");
    clone.ok(&["clone", "-q", &world.url("shop"), "."]).await;
    assert_eq!(
        std::fs::read_to_string(clone.path.join("server")).unwrap(),
        "two\n"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_main_and_master_are_deployed() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout.init(APP).await;
    checkout.ok(&["branch", "fix"]).await;
    let url = world.url("shop");
    let text = checkout.refused(&["push", &url, "fix"]).await;
    check_lines(
        &text,
        &[
            "remote:  !     Only pushes to main or master are deployed.",
            "git push flynn fix:main",
            "hook declined",
        ],
    );
    assert_eq!(refs(&world.state, world.fake.app), "");
    checkout.ok(&["push", &url, "fix:main"]).await;
    checkout.commit(&[("server", "two\n")]).await;
    let text = checkout.ok(&["push", &url, "main", "main:master", "fix"]).await;
    check_lines(&text, &["Deploying main; what else was pushed is kept"]);
    assert!(
        checkout
            .refused(&["push", &url, ":main"])
            .await
            .contains("cannot be deleted")
    );
    checkout.ok(&["push", &url, ":fix"]).await;
    world.told(|told| assert_eq!(told.deployed.len(), 2));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_leaves_everything_as_it_was_and_says_why() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    let url = world.url("shop");
    checkout.init(APP).await;
    checkout.ok(&["push", &url, "main"]).await;
    let before = refs(&world.state, world.fake.app);
    for (behave, expected) in [
        ("fail", " !     Push rejected, failed to compile Test app."),
        ("memory", " !     Build ran out of memory (limit 2 GB)"),
        ("disk", " !     Build ran out of disk space (limit 64 MB)"),
        // A cache that leaves no room is given up, or the app could never be built again.
        ("hoard", " !     Build ran out of disk space (limit 64 MB)"),
    ] {
        checkout.commit(&[("behave", behave)]).await;
        let text = checkout.refused(&["push", &url, "main"]).await;
        check_lines(&text, &[expected, "hook declined"]);
        assert!(!text.contains("flynn: killed"), "{text}");
        assert_eq!(refs(&world.state, world.fake.app), before);
    }
    // A source that is larger than the disk.
    checkout
        .commit(&[("behave", ""), ("large", &"x".repeat(70 << 20))])
        .await;
    assert!(
        checkout
            .refused(&["push", &url, "main"])
            .await
            .contains("out of disk space")
    );
    checkout.commit(&[("behave", ""), ("large", "")]).await;
    checkout.ok(&["push", &url, "main"]).await;
    world.told(|told| assert_eq!(told.deployed.len(), 2));
    assert!(!exists_below(
        &world
            .state
            .repos()
            .join(format!("{}.git/objects", world.fake.app)),
        "tmp_objdir"
    ));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_fails_refuses_the_push_with_its_reason_and_log() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout.init(APP).await;
    world.told(|told| told.deployment_fails = true);
    let text = checkout.refused(&["push", &world.url("shop"), "main"]).await;
    check_lines(
        &text,
        &[
            "Error: no such module",
            " !     Deploy failed: web job exited with status 1 (3 times).",
            "keeps running",
        ],
    );
    assert_eq!(refs(&world.state, world.fake.app), "");
    checkout
        .commit(&[("Procfile", "web: x\nrelease: ./migrate\n")])
        .await;
    let text = checkout.refused(&["push", &world.url("shop"), "main"]).await;
    check_lines(
        &text,
        &[
            "-----> Running release command...",
            "migrating",
            "Release command failed: exited with status 1",
        ],
    );
    world.told(|told| assert_eq!(told.deployed.len(), 1));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_push_is_refused_and_another_app_waits_for_its_place() {
    let world = World::new().await;
    let (first, second, other) = (
        world.checkout("first"),
        world.checkout("second"),
        world.checkout("other"),
    );
    first.init(&[("Procfile", "web: x\n"), ("behave", "wait")]).await;
    second.init(APP).await;
    other.init(APP).await;
    let url = world.url("shop");
    let waiting = first
        .command(&["push", &url, "main"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    world
        .cage
        .running
        .subscribe()
        .wait_for(|count| *count == 1)
        .await
        .unwrap();
    let text = second.refused(&["push", &url, "main"]).await;
    check_lines(
        &text,
        &[" !     Another push to shop is being built", "push again"],
    );
    let url = world.url("other");
    let queued = async {
        let mut child = other
            .command(&["push", &url, "main"])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().unwrap()));
        // Told while it waits, not in the end.
        while !lines
            .next_line()
            .await
            .unwrap()
            .unwrap()
            .contains("Waiting for a place to build")
        {}
        world.cage.may_end.send_replace(true);
        while lines.next_line().await.unwrap().is_some() {}
        child.wait().await.unwrap()
    };
    assert!(queued.await.success());
    assert!(waiting.wait_with_output().await.unwrap().status.success());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pusher_who_leaves_takes_the_build_along() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout
        .init(&[("Procfile", "web: x\n"), ("behave", "wait")])
        .await;
    let url = world.url("shop");
    let mut push = checkout
        .command(&["push", &url, "main"])
        .process_group(0)
        .spawn()
        .unwrap();
    world
        .cage
        .running
        .subscribe()
        .wait_for(|count| *count == 1)
        .await
        .unwrap();
    // Ctrl-c reaches git and its helpers.
    let group = format!("-{}", push.id().unwrap());
    std::process::Command::new("kill")
        .args(["-KILL", "--", &group])
        .status()
        .unwrap();
    let stopped = async {
        world
            .cage
            .stopped
            .subscribe()
            .wait_for(|count| *count == 1)
            .await
            .map(|_| ())
    };
    tokio::time::timeout(Duration::from_secs(10), stopped)
        .await
        .expect("the build is stopped")
        .unwrap();
    push.wait().await.unwrap();
    // And the next one has its turn at once, apart from the moment that ending takes.
    checkout.commit(&[("behave", "")]).await;
    let again = async {
        while !checkout.git(&["push", &url, "main"]).await.status.success() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("the next push is taken");
    let objects = world
        .state
        .repos()
        .join(format!("{}.git/objects", world.fake.app));
    let swept = async {
        while exists_below(&objects, "tmp_objdir") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), swept)
        .await
        .expect("what was half received is removed");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_apps_are_checked_with_words_that_git_shows() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout.init(APP).await;
    let port = world.port;
    for url in [
        format!("http://127.0.0.1:{port}/shop.git"),
        format!("http://user:wrong@127.0.0.1:{port}/shop.git"),
    ] {
        let text = checkout.refused(&["push", &url, "main"]).await;
        assert!(
            text.contains("could not read Username") || text.contains("Authentication failed"),
            "{text}"
        );
    }
    let text = checkout.refused(&["push", &world.url("nothing"), "main"]).await;
    check_lines(
        &text,
        &[
            "remote: There is no app \"nothing\".",
            "remote: hint: `flynn apps`",
            "not found",
        ],
    );
    checkout
        .ok(&["push", world.url("shop").trim_end_matches(".git"), "main"])
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_are_listed_for_the_build() {
    let world = World::new().await;
    let (library, checkout) = (world.checkout("library"), world.checkout("app"));
    library.init(&[("code", "x")]).await;
    checkout.init(APP).await;
    let path = library.path.display().to_string();
    checkout
        .ok(&["submodule", "add", "-q", &path, "vendor/library"])
        .await;
    checkout.commit(&[]).await;
    let text = checkout.ok(&["push", &world.url("shop"), "main"]).await;
    let commit = library.ok(&["rev-parse", "HEAD"]).await;
    check_lines(
        &text,
        &[&format!("remote: submodule {} vendor/library", commit.trim())],
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_shallow_pushes_and_left_out_files_arrive() {
    let world = World::new().await;
    let (checkout, shallow) = (world.checkout("app"), world.checkout("shallow"));
    checkout.init(APP).await;
    // What does not compress goes in chunks, after a probing request.
    let mut state = 1u64;
    let noise: Vec<u8> = (0..20 << 20)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(checkout.path.join("noise"), &noise).unwrap();
    checkout
        .commit(&[(".gitattributes", "Procfile export-ignore\n")])
        .await;
    checkout.ok(&["push", &world.url("shop"), "main"]).await;
    world.told(|told| assert_eq!(told.releases[0]["processes"]["worker"]["args"][2], "worker"));
    let source = format!("file://{}", checkout.path.display());
    shallow.ok(&["clone", "-q", "--depth", "1", &source, "."]).await;
    shallow.ok(&["push", &world.url("other"), "main"]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_of_this_platforms_packs_are_added_and_no_others() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout
        .init(&[("Procfile", "web: x\n"), ("behave", "needs ruby")])
        .await;
    let text = checkout.ok(&["push", &world.url("shop"), "main"]).await;
    let once = "remote: -----> Building shop...";
    check_lines(
        &text,
        &[
            once,
            "remote: -----> Adding packages",
            "remote:        adding ruby",
            "Application deployed",
        ],
    );
    assert_eq!(text.matches(once).count(), 1, "{text}");
    let uris: Vec<_> = world.told(|told| {
        told.artifacts
            .iter()
            .map(|artifact| {
                artifact["uri"]
                    .as_str()
                    .unwrap()
                    .split('/')
                    .nth(4)
                    .map(str::to_owned)
            })
            .collect()
    });
    assert_eq!(uris[..2], [Some("build".into()), Some("build".into())]);
    let first = world.told(|told| {
        told.artifacts
            .iter()
            .map(|artifact| artifact["uri"].to_string().len())
            .collect::<Vec<_>>()
    });
    assert!(first[1] > first[0] + 60, "the second build has a layer more");
    let other = world.checkout("other");
    other
        .init(&[("Procfile", "web: x\n"), ("behave", "needs nmap")])
        .await;
    let text = other.refused(&["push", &world.url("other"), "main"]).await;
    check_lines(
        &text,
        &[r#"needs the Debian package "nmap", which no pack of this platform lists"#],
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_release_that_does_not_come_up_is_as_if_never_scaled() {
    let world = World::new().await;
    let checkout = world.checkout("app");
    checkout.init(APP).await;
    world.told(|told| told.web_fails = true);
    let text = checkout.refused(&["push", &world.url("shop"), "main"]).await;
    check_lines(
        &text,
        &[
            "Scaling initial release",
            "Error: no such module",
            "did not come up: it exited with status 1",
            "flynn env set",
        ],
    );
    world.told(|told| told.web_fails = false);
    let text = checkout.ok(&["push", &world.url("shop"), "main"]).await;
    check_lines(&text, &["Scaling initial release to web=1", "https://shop.test/"]);
    builder::forget(&world.state, world.fake.app).await.unwrap();
    assert!(!exists_below(&world.state.repos(), &world.fake.app.to_string()));
    assert!(!exists_below(&world.state.builds(), &world.fake.app.to_string()));
    world.end().await;
}
