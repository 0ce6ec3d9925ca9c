use api::provision::{NewProvider, ResourceRequest, ResourceUpdate};
use serde_json::{Value, json};
use types::{Provider, Resource};

use crate::{
    example,
    operation::{Operation, delete, get, post, put},
};

const PROVIDER: &str = "f37ebe08-2c1b-4126-9b5b-a07fedcfd4f9";
const RESOURCE: &str = "431b3ffb-3b53-465a-b724-f31f1bedf6bb";

fn provider() -> Value {
    json!({
        "id": PROVIDER, "url": "http://postgres-api.discoverd/databases", "name": "postgres",
        "created_at": example::TIME, "updated_at": example::TIME,
    })
}

fn resource() -> Value {
    json!({
        "id": RESOURCE, "provider": PROVIDER, "external_id": "/databases/user:shop",
        "env": {"DATABASE_URL": "postgres://user:secret@leader.postgres.discoverd/shop"},
        "apps": [example::APP], "created_at": example::TIME,
    })
}

pub fn operations() -> Vec<Operation> {
    vec![
        get("/providers", "Lists all providers").gives_list::<Provider>(provider()),
        post("/providers", "Makes a provider known")
            .about(
                "Any HTTP server can be one: `POST url` with a configuration makes something and answers `{id, \
                 env}`, `DELETE url?id=ID` removes it. A host below `.discoverd` is a service of the cluster. A \
                 name and a password may stand in the URL; they are sent by HTTP Basic.",
            )
            .takes::<NewProvider>(json!({"name": "postgres", "url": "http://postgres-api.discoverd/databases"}))
            .gives::<Provider>(provider())
            .may_fail(409, "The name is taken."),
        get("/providers/{provider}", "Shows a provider")
            .about("By its id or its name.")
            .gives::<Provider>(provider()),
        get("/providers/{provider}/resources", "Lists what a provider made")
            .gives_list::<Resource>(resource()),
        post("/providers/{provider}/resources", "Has the provider make something")
            .about(
                "The provider gets `config` as it is. What it made is kept though the client may leave; what \
                 cannot be kept is given back. The environment is in no release yet: that is the client's part.",
            )
            .takes::<ResourceRequest>(json!({"apps": ["shop"], "config": {}}))
            .gives::<Resource>(resource())
            .may_fail(503, "The provider cannot be reached, does not answer, or is broken."),
        get("/providers/{provider}/resources/{resource}", "Shows a resource").gives::<Resource>(resource()),
        put(
            "/providers/{provider}/resources/{resource}",
            "Makes a resource known that exists already",
        )
        .about("Or replaces what is known of it. The provider is not asked.")
        .takes::<ResourceUpdate>(json!({"external_id": "/databases/user:shop", "env": {}, "apps": ["shop"]}))
        .gives::<Resource>(resource())
        .may_fail(409, "It belongs to another provider, or another request is changing it."),
        delete(
            "/providers/{provider}/resources/{resource}",
            "Gives a resource back to its provider",
        )
        .about("The answer is what it was.")
        .query(
            "force",
            "`true` forgets it whatever the provider says (an addition).",
            json!({"type": "string", "enum": ["true", "false"]}),
            json!("false"),
        )
        .gives::<Resource>(resource())
        .may_fail(409, "Another request is changing it.")
        .may_fail(503, "The provider cannot be reached, does not answer, or is broken."),
        put(
            "/providers/{provider}/resources/{resource}/apps/{app}",
            "Lets an app use a resource",
        )
        .gives::<Resource>(resource())
        .may_fail(409, "Another request is changing it."),
        delete(
            "/providers/{provider}/resources/{resource}/apps/{app}",
            "Ends an app's use of a resource",
        )
        .about("Of this one only. The resource stays, even without users.")
        .gives::<Resource>(resource())
        .may_fail(409, "Another request is changing it."),
        get("/resources", "Lists all resources").gives_list::<Resource>(resource()),
        get("/apps/{app}/resources", "Lists the resources that an app uses").gives_list::<Resource>(resource()),
    ]
}
