use api::wire::{NewArtifact, NewRelease, ReleaseRef, ReleaseView};
use serde_json::json;
use types::{Artifact, Deployment};

use crate::{
    example,
    operation::{Operation, delete, get, post, put},
};

pub fn operations() -> Vec<Operation> {
    let mut new_artifact = example::artifact();
    new_artifact.as_object_mut().expect("an object").remove("id");
    vec![
        get("/artifacts", "Lists all images").gives_list::<Artifact>(example::artifact()),
        post("/artifacts", "Makes an image known")
            .about(
                "An image is immutable and known by its type and `uri`: for a `uri` that is known already the \
                 stored image is the answer. Without `manifest` it is fetched from `uri`, of which `size` and \
                 `hashes` have to be known.",
            )
            .takes::<NewArtifact>(new_artifact)
            .gives::<Artifact>(example::artifact()),
        get("/artifacts/{artifact}", "Shows an image").gives::<Artifact>(example::artifact()),
        get("/releases", "Lists all releases of all apps").gives_list::<ReleaseView>(example::release()),
        post("/releases", "Creates a release")
            .about("It runs only once it is deployed. Limits that `resources` leaves out get their defaults.")
            .takes::<NewRelease>(json!({
                "app_id": example::APP, "artifacts": [example::ARTIFACT],
                "env": {"DATABASE_URL": "postgres://db/shop"},
                "processes": {"web": {"args": ["bin/web"], "ports": [{"port": 8080, "proto": "tcp"}]}},
            }))
            .gives::<ReleaseView>(example::release()),
        get("/releases/{release}", "Shows a release").gives::<ReleaseView>(example::release()),
        get("/apps/{app}/releases", "Lists an app's releases").gives_list::<ReleaseView>(example::release()),
        get("/apps/{app}/releases/{release}", "Shows a release of an app").gives::<ReleaseView>(example::release()),
        delete("/apps/{app}/releases/{release}", "Deletes a release")
            .about(
                "Images that no release uses any more go with it. An event `release_deletion` tells the end. The \
                 current release of an app cannot be deleted.",
            )
            .may_fail(400, "The release is the app's current one.")
            .may_fail(409, "A deployment of the release is in progress."),
        get("/apps/{app}/release", "Shows an app's current release")
            .about("404 where it has none yet.")
            .gives::<ReleaseView>(example::release()),
        put("/apps/{app}/release", "Makes a release current without deploying it")
            .about("Jobs of the former release run on; `POST /apps/{app}/deploy` replaces them.")
            .takes::<ReleaseRef>(json!({"id": example::RELEASE}))
            .gives::<ReleaseView>(example::release()),
        post("/apps/{app}/deploy", "Deploys a release")
            .about(
                "Complete at once where nothing of the app runs. Otherwise jobs are replaced by the app's \
                 strategy, and events of the type `deployment` tell each step and the end. A deployment that \
                 fails leaves the former release running. One at a time for each app.",
            )
            .takes::<ReleaseRef>(json!({"id": example::RELEASE}))
            .gives::<Deployment>(example::deployment()),
        get("/apps/{app}/deployments", "Lists an app's deployments")
            .gives_list::<Deployment>(example::deployment()),
        get("/deployments/{deployment}", "Shows a deployment").gives::<Deployment>(example::deployment()),
    ]
}
