//! In the order of the specification: pull, push, content discovery, content management.

use http::Method;
use serde_json::json;

use super::world::{INTERNAL_KEY, KEY, World, app_id};
use crate::{
    manifest::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST},
    name::{Algorithm, BlobDigest},
};

#[tokio::test]
async fn end_1_the_version_is_told_to_those_who_have_a_key() {
    let world = World::new().await;
    let answer = world.get("/v2/").await;
    assert_eq!(
        (answer.status, answer.header("docker-distribution-api-version")),
        (200, "registry/2.0")
    );
    assert_eq!(world.get("/v2").await.status, 200);
    let answer = world
        .send(Method::GET, "/v2/", &[("authorization", "Bearer wrong")], "")
        .await;
    assert!(answer.refused(401, "UNAUTHORIZED").contains("docker login"));
    assert_eq!(answer.header("www-authenticate"), "Basic realm=\"flynn\"");
    use base64::{Engine, prelude::BASE64_STANDARD};
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("somebody:{KEY}")));
    assert_eq!(
        world
            .send(Method::GET, "/v2/", &[("authorization", &basic)], "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn end_2_blobs_are_read_whole_and_in_part() {
    let world = World::new().await;
    let digest = world.push_blob("shop", b"0123456789").await;
    let path = format!("/v2/shop/blobs/{digest}");
    let answer = world.get(&path).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "0123456789"));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    let answer = world.head(&path).await;
    assert_eq!(
        (answer.status, answer.header("content-length"), answer.body.len()),
        (200, "10", 0)
    );
    let part = async |range: &str| {
        let answer = world.send(Method::GET, &path, &[("range", range)], "").await;
        format!(
            "{} {} {}",
            answer.status,
            answer.header("content-range"),
            answer.text()
        )
    };
    assert_eq!(part("bytes=2-4").await, "206 bytes 2-4/10 234");
    assert_eq!(part("bytes=7-").await, "206 bytes 7-9/10 789");
    assert_eq!(part("bytes=-2").await, "206 bytes 8-9/10 89");
    assert_eq!(part("bytes=8-99").await, "206 bytes 8-9/10 89");
    assert_eq!(part("lines=1-2").await, "200  0123456789");
    assert!(part("bytes=10-").await.starts_with("416 bytes */10"));
    let other = BlobDigest::of(b"other");
    world
        .get(&format!("/v2/shop/blobs/{other}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    assert_eq!(world.head(&format!("/v2/shop/blobs/{other}")).await.status, 404);
    world
        .get("/v2/shop/blobs/sha256:abc")
        .await
        .refused(400, "DIGEST_INVALID");
    // A blob belongs to the repositories that it was pushed to.
    world
        .get(&format!("/v2/blog/blobs/{digest}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn end_3_manifests_are_read_by_tag_and_by_digest() {
    let world = World::new().await;
    let manifest = world.artifact("shop/charts", "x").await;
    let (answer, digest) = world.push_manifest("shop/charts", "v1", &manifest).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    for reference in ["v1", &digest.to_string()] {
        let path = format!("/v2/shop/charts/manifests/{reference}");
        let answer = world.get(&path).await;
        assert_eq!((answer.status, answer.text()), (200, manifest.to_string()));
        assert_eq!(answer.header("content-type"), OCI_MANIFEST);
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        let answer = world.head(&path).await;
        assert_eq!(
            answer.header("content-length"),
            manifest.to_string().len().to_string()
        );
        assert!(answer.body.is_empty());
    }
    world
        .get("/v2/shop/charts/manifests/v2")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(world.head("/v2/shop/charts/manifests/v2").await.status, 404);
    world
        .get("/v2/shop/manifests/v1")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let told = world
        .get("/v2/nobody/manifests/v1")
        .await
        .refused(404, "NAME_UNKNOWN");
    assert!(told.contains("flynn create nobody"), "{told}");
    world
        .get("/v2/shop/manifests/.x")
        .await
        .refused(400, "MANIFEST_INVALID");
    world
        .get("/v2/Shop/manifests/v1")
        .await
        .refused(400, "NAME_INVALID");
}

#[tokio::test]
async fn end_4b_a_blob_comes_in_one_request() {
    let world = World::new().await;
    let digest = BlobDigest::of(b"all at once");
    let path = format!("/v2/shop/blobs/uploads/?digest={digest}");
    let answer = world.send(Method::POST, &path, &[], "all at once").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (201, format!("/v2/shop/blobs/{digest}").as_str())
    );
    let answer = world.send(Method::POST, &path, &[], "something else").await;
    assert!(answer.refused(400, "DIGEST_INVALID").contains("not of"));
    assert!(world.files("registry/uploads").is_empty());
    // The other algorithm that the specification names.
    let digest = BlobDigest::of_as(Algorithm::Sha512, b"long");
    let path = format!("/v2/shop/blobs/uploads/?digest={digest}");
    assert_eq!(world.send(Method::POST, &path, &[], "long").await.status, 201);
    assert_eq!(
        world.get(&format!("/v2/shop/blobs/{digest}")).await.text(),
        "long"
    );
}

#[tokio::test]
async fn end_5_and_6_a_blob_comes_in_chunks_in_order() {
    let world = World::new().await;
    let begun = world
        .send(
            Method::POST,
            "/v2/shop/blobs/uploads/",
            &[("content-length", "0")],
            "",
        )
        .await;
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let place = begun.header("location").to_owned();
    assert_eq!(
        begun.header("docker-upload-uuid"),
        place.rsplit('/').next().unwrap()
    );
    let chunk = async |range: &str, bytes: &'static str| {
        world
            .send(
                Method::PATCH,
                &place,
                &[
                    ("content-range", range),
                    ("content-length", &bytes.len().to_string()),
                ],
                bytes,
            )
            .await
    };
    let answer = chunk("0-4", "hello").await;
    assert_eq!(
        (answer.status, answer.header("range"), answer.header("location")),
        (202, "0-4", place.as_str())
    );
    // Out of order, twice the same, and one that lies about its length.
    for (range, bytes) in [("9-10", "xx"), ("0-4", "hello"), ("5-99", "xx"), ("a-b", "xx")] {
        let answer = chunk(range, bytes).await;
        answer.refused(416, "BLOB_UPLOAD_INVALID");
    }
    let answer = chunk("9-10", "xx").await;
    assert_eq!(
        (answer.header("range"), answer.header("location")),
        ("0-4", place.as_str())
    );
    // As Docker sends it: without saying where.
    let answer = world.send(Method::PATCH, &place, &[], ", wor").await;
    assert_eq!((answer.status, answer.header("range")), (202, "0-9"));
    let digest = BlobDigest::of(b"hello, world");
    let finish = format!("{place}?digest={digest}");
    let answer = world
        .send(
            Method::PUT,
            &finish,
            &[("content-range", "10-11"), ("content-length", "2")],
            "ld",
        )
        .await;
    assert_eq!(
        (answer.status, answer.header("docker-content-digest")),
        (201, digest.to_string().as_str())
    );
    assert_eq!(
        world.get(&format!("/v2/shop/blobs/{digest}")).await.text(),
        "hello, world"
    );
    world
        .send(Method::PATCH, &place, &[], "more")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(world.files("registry/uploads").is_empty());
}

#[tokio::test]
async fn end_6_an_upload_ends_with_the_digest_that_it_names_or_is_gone() {
    let world = World::new().await;
    let begin = async || {
        let begun = world.send(Method::POST, "/v2/shop/blobs/uploads", &[], "").await;
        begun.header("location").to_owned()
    };
    let place = begin().await;
    world
        .send(Method::PUT, &place, &[], "x")
        .await
        .refused(400, "DIGEST_INVALID");
    world
        .send(Method::PUT, &format!("{place}?digest=sha256:12"), &[], "x")
        .await
        .refused(400, "DIGEST_INVALID");
    let digest = BlobDigest::of(b"something else");
    let answer = world
        .send(Method::PUT, &format!("{place}?digest={digest}"), &[], "x")
        .await;
    assert!(
        answer
            .refused(400, "DIGEST_INVALID")
            .contains(&BlobDigest::of(b"x").to_string())
    );
    world.get(&place).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    // Nobody else's upload can be gone on with.
    let place = begin().await.replace("/shop/", "/blog/");
    world
        .send(Method::PATCH, &place, &[], "x")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    let place = begin().await;
    assert_eq!(world.delete(&place).await.status, 204);
    world.get(&place).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    world
        .get("/v2/shop/blobs/uploads/not-one")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn end_7_manifests_are_taken_when_what_they_name_is_there() {
    let world = World::new().await;
    let manifest = world.artifact("shop/x", "config").await;
    let mut lying = manifest.clone();
    lying["config"]["size"] = json!(7);
    world
        .push_manifest("shop/x", "v1", &lying)
        .await
        .0
        .refused(400, "SIZE_INVALID");
    let mut missing = manifest.clone();
    missing["layers"][0]["digest"] = json!(BlobDigest::of(b"not there"));
    world
        .push_manifest("shop/x", "v1", &missing)
        .await
        .0
        .refused(400, "MANIFEST_BLOB_UNKNOWN");
    world
        .push_manifest("blog/x", "v1", &manifest)
        .await
        .0
        .refused(400, "MANIFEST_BLOB_UNKNOWN");
    world
        .push_manifest("shop/x", "v1", &json!({"schemaVersion": 1}))
        .await
        .0
        .refused(400, "MANIFEST_INVALID");
    let other = BlobDigest::of(b"other").to_string();
    world
        .push_manifest("shop/x", &other, &manifest)
        .await
        .0
        .refused(400, "DIGEST_INVALID");
    let long = json!({"schemaVersion": 2, "annotations": {"x": "y".repeat(5 << 20)}});
    world
        .push_manifest("shop/x", "v1", &long)
        .await
        .0
        .refused(413, "MANIFEST_INVALID");
    let (answer, digest) = world.push_manifest("shop/x", "v1", &manifest).await;
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.header("location"),
        format!("/v2/shop/x/manifests/{digest}")
    );
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());

    let index = |digest: &BlobDigest| {
        json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.to_string().len()}],
        })
    };
    let (answer, _) = world.push_manifest("shop/x", "all", &index(&digest)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(
        world.get("/v2/shop/x/manifests/all").await.header("content-type"),
        OCI_INDEX
    );
    let unknown = index(&BlobDigest::of(b"unknown"));
    world
        .push_manifest("shop/x", "all", &unknown)
        .await
        .0
        .refused(400, "MANIFEST_BLOB_UNKNOWN");
    let mut docker = index(&digest);
    docker["mediaType"] = json!(DOCKER_LIST);
    assert_eq!(
        world.push_manifest("shop/x", "docker", &docker).await.0.status,
        201
    );
}

#[tokio::test]
async fn end_8_tags_are_listed_in_order_and_by_pages() {
    let world = World::new().await;
    world.get("/v2/shop/tags/list").await.refused(404, "NAME_UNKNOWN");
    let manifest = world.artifact("shop/x", "x").await;
    for tag in ["b", "a", "C", "d"] {
        assert_eq!(world.push_manifest("shop/x", tag, &manifest).await.0.status, 201);
    }
    let answer = world.get("/v2/shop/x/tags/list").await;
    assert_eq!(
        answer.json(),
        json!({"name": "shop/x", "tags": ["C", "a", "b", "d"]})
    );
    assert_eq!(answer.header("link"), "");
    let answer = world.get("/v2/shop/x/tags/list?n=2").await;
    assert_eq!(answer.json()["tags"], json!(["C", "a"]));
    assert_eq!(
        answer.header("link"),
        "</v2/shop/x/tags/list?n=2&last=a>; rel=\"next\""
    );
    let answer = world.get("/v2/shop/x/tags/list?n=2&last=a").await;
    assert_eq!(
        (answer.json()["tags"].clone(), answer.header("link")),
        (json!(["b", "d"]), "")
    );
    assert_eq!(
        world.get("/v2/shop/x/tags/list?n=0").await.json()["tags"],
        json!([])
    );
    assert_eq!(
        world.get("/v2/shop/x/tags/list?last=zzz").await.json()["tags"],
        json!([])
    );
    assert_eq!(
        world.get("/v2/_catalog").await.json(),
        json!({"repositories": ["shop/x"]})
    );
}

#[tokio::test]
async fn end_9_a_tag_or_a_manifest_with_all_its_tags_is_deleted() {
    let world = World::new().await;
    let manifest = world.artifact("shop/x", "x").await;
    let mut digest = BlobDigest::of(b"");
    for tag in ["a", "b", "c"] {
        digest = world.push_manifest("shop/x", tag, &manifest).await.1;
    }
    assert_eq!(world.delete("/v2/shop/x/manifests/a").await.status, 202);
    world
        .get("/v2/shop/x/manifests/a")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(
        world.get(&format!("/v2/shop/x/manifests/{digest}")).await.status,
        200
    );
    assert_eq!(
        world
            .delete(&format!("/v2/shop/x/manifests/{digest}"))
            .await
            .status,
        202
    );
    world
        .get("/v2/shop/x/manifests/b")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(world.get("/v2/shop/x/tags/list").await.json()["tags"], json!([]));
    world
        .delete(&format!("/v2/shop/x/manifests/{digest}"))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    world
        .delete("/v2/shop/x/manifests/c")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn end_10_a_blob_is_deleted_from_one_repository() {
    let world = World::new().await;
    let digest = world.push_blob("shop", b"x").await;
    world.push_blob("blog", b"x").await;
    assert_eq!(
        world.delete(&format!("/v2/shop/blobs/{digest}")).await.status,
        202
    );
    world
        .get(&format!("/v2/shop/blobs/{digest}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    world
        .delete(&format!("/v2/shop/blobs/{digest}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    assert_eq!(world.get(&format!("/v2/blog/blobs/{digest}")).await.text(), "x");
}

#[tokio::test]
async fn end_11_blobs_are_mounted_from_other_repositories() {
    let world = World::new().await;
    let digest = world.push_blob("shop", b"x").await;
    let mount = async |query: &str| {
        let path = format!("/v2/blog/blobs/uploads/?mount={digest}{query}");
        world.send(Method::POST, &path, &[], "").await
    };
    // Not there: an upload is begun instead.
    assert_eq!(mount("&from=blog").await.status, 202);
    assert_eq!(mount("&from=nobody").await.status, 202);
    world
        .get(&format!("/v2/blog/blobs/{digest}"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    let answer = mount("&from=shop").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (201, format!("/v2/blog/blobs/{digest}").as_str())
    );
    assert_eq!(world.get(&format!("/v2/blog/blobs/{digest}")).await.text(), "x");
    world.delete(&format!("/v2/blog/blobs/{digest}")).await;
    assert_eq!(mount("").await.status, 201);
    let path = format!("/v2/blog/blobs/uploads/?mount={}", BlobDigest::of(b"y"));
    assert_eq!(world.send(Method::POST, &path, &[], "").await.status, 202);
}

#[tokio::test]
async fn end_12_referrers_are_listed_filtered_and_forgotten() {
    let world = World::new().await;
    let base = world.artifact("shop/x", "base").await;
    let (_, subject) = world.push_manifest("shop/x", "base", &base).await;
    let path = format!("/v2/shop/x/referrers/{subject}");
    let none = world.get(&path).await;
    assert_eq!(
        (
            none.status,
            none.header("content-type"),
            none.json()["manifests"].clone()
        ),
        (200, OCI_INDEX, json!([]))
    );
    let mut digests = vec![];
    for (kind, note) in [("application/x.sbom", "one"), ("application/x.signature", "two")] {
        let mut referrer = world.artifact("shop/x", note).await;
        referrer["artifactType"] = json!(kind);
        referrer["annotations"] = json!({"note": note});
        referrer["subject"] =
            json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": base.to_string().len()});
        let digest = BlobDigest::of(referrer.to_string().as_bytes());
        let (answer, _) = world
            .push_manifest("shop/x", &digest.to_string(), &referrer)
            .await;
        assert_eq!(
            (answer.status, answer.header("oci-subject")),
            (201, subject.to_string().as_str())
        );
        digests.push(digest);
    }
    let all = world.get(&path).await;
    assert_eq!(
        (
            all.json()["manifests"].as_array().unwrap().len(),
            all.header("oci-filters-applied")
        ),
        (2, "")
    );
    let some = world
        .get(&format!("{path}?artifactType=application/x.sbom"))
        .await;
    assert_eq!(some.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        some.json()["manifests"],
        json!([{
            "mediaType": OCI_MANIFEST, "digest": digests[0], "size": some.json()["manifests"][0]["size"],
            "artifactType": "application/x.sbom", "annotations": {"note": "one"},
        }])
    );
    let some = world
        .get(&format!("{path}?artifactType=application%2Fx.signature"))
        .await;
    assert_eq!(some.json()["manifests"][0]["digest"], json!(digests[1]));
    // The subject need not be there, and lists of clients that keep one themselves count, too.
    let other = BlobDigest::of(b"elsewhere");
    let list = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digests[0], "size": 1, "artifactType": "a/b"}],
    });
    assert_eq!(
        world
            .push_manifest("shop/x", &other.file_name(), &list)
            .await
            .0
            .status,
        201
    );
    let listed = world.get(&format!("/v2/shop/x/referrers/{other}")).await;
    assert_eq!(listed.json()["manifests"][0]["artifactType"], "a/b");
    assert_eq!(
        world
            .delete(&format!("/v2/shop/x/manifests/{}", digests[0]))
            .await
            .status,
        202
    );
    assert_eq!(
        world.get(&path).await.json()["manifests"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    world
        .get("/v2/shop/x/referrers/sha256:1")
        .await
        .refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn end_13_an_upload_tells_where_it_is_also_after_a_restart() {
    let mut world = World::new().await;
    let begun = world.send(Method::POST, "/v2/shop/blobs/uploads/", &[], "").await;
    let place = begun.header("location").to_owned();
    world.send(Method::PATCH, &place, &[], "first ").await;
    let answer = world.get(&place).await;
    assert_eq!(
        (answer.status, answer.header("range"), answer.header("location")),
        (204, "0-5", place.as_str())
    );
    world.restart();
    let answer = world.get(&place).await;
    assert_eq!((answer.status, answer.header("range")), (204, "0-5"));
    let answer = world
        .send(
            Method::PATCH,
            &place,
            &[("content-range", "6-11"), ("content-length", "6")],
            "second",
        )
        .await;
    assert_eq!((answer.status, answer.header("range")), (202, "0-11"));
    world.restart();
    let digest = BlobDigest::of(b"first second");
    let answer = world
        .send(Method::PUT, &format!("{place}?digest={digest}"), &[], "")
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(
        world.get(&format!("/v2/shop/blobs/{digest}")).await.text(),
        "first second"
    );
}

#[tokio::test]
async fn what_is_not_in_the_specification_is_refused_in_its_words() {
    let world = World::new().await;
    world
        .send(Method::POST, "/v2/shop/tags/list", &[], "")
        .await
        .refused(405, "UNSUPPORTED");
    world.get("/v2/shop/nothing").await.refused(404, "UNSUPPORTED");
    world.get("/").await.refused(404, "UNSUPPORTED");
    world
        .get("/v2/../etc/manifests/x")
        .await
        .refused(400, "NAME_INVALID");
}

#[tokio::test]
async fn an_apps_key_is_for_that_app() {
    let world = World::new().await;
    let token = daemon::AppTokens::new(INTERNAL_KEY).issue(app_id("shop"), "shop");
    use base64::{Engine, prelude::BASE64_STANDARD};
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("x:{token}")));
    let digest = world.push_blob("shop", b"x").await;
    world.push_blob("blog", b"secret").await;
    let own = world
        .send(
            Method::GET,
            &format!("/v2/shop/blobs/{digest}"),
            &[("authorization", &basic)],
            "",
        )
        .await;
    assert_eq!(own.text(), "x");
    let other = world
        .send(
            Method::GET,
            "/v2/blog/tags/list",
            &[("authorization", &basic)],
            "",
        )
        .await;
    other.refused(403, "DENIED");
    // Nor can it take what it knows the digest of.
    let path = format!("/v2/shop/blobs/uploads/?mount={}", BlobDigest::of(b"secret"));
    assert_eq!(
        world
            .send(Method::POST, &path, &[("authorization", &basic)], "")
            .await
            .status,
        202
    );
    let path = format!("{path}&from=blog");
    assert_eq!(
        world
            .send(Method::POST, &path, &[("authorization", &basic)], "")
            .await
            .status,
        202
    );
}
