//! The registry's API, on port 1111 of each host.

use api::discoverd::{Event, ServiceConfig};
use serde_json::json;
use types::{Instance, ServiceMeta};

use crate::{
    document::Api,
    example,
    operation::{Access, Operation, delete, get, put},
};

pub fn api() -> Api {
    Api {
        title: "Flynn discoverd",
        about: "Who offers a service, who leads it, and what it keeps about itself. Jobs reach it at the address in \
            their variable `DISCOVERD`, which holds a key of their own: with it they see and change the services of \
            their own app, which are those named like the app or with a dash after its name. Every answer has the \
            header `Discoverd-Index`, which grows with every change.",
        server: "http://100.100.0.1:1111",
        not_found_is_empty: false,
        groups: vec![
            (
                "Services",
                "Names under which instances are found.",
                for_own_app(services()),
            ),
            (
                "Instances",
                "Places where a service answers.",
                for_own_app(instances()),
            ),
        ],
    }
}

fn for_own_app(operations: Vec<Operation>) -> Vec<Operation> {
    let when = "The key of another app's job.";
    let explained = operations.into_iter().map(|operation| match operation.access {
        Access::Open => operation,
        _ => operation.may_fail(403, when),
    });
    explained.collect()
}

fn services() -> Vec<Operation> {
    let meta = json!({"data": {"primary": "a"}, "index": 17});
    let event = json!({"service": "shop-web", "kind": "up", "instance": example::instance()});
    vec![
        get("/ping", "Answers").open(),
        put("/services/{service}", "Makes a service known")
            .about("Also before it has instances. The body may be left out.")
            .takes::<ServiceConfig>(json!({"leader_type": "oldest"}))
            .may_fail(409, "The app has too many services."),
        get("/services/{service}", "Follows a service")
            .about("What there is, `current`, then every change of instances, leader and metadata.")
            .streams::<Event>(event),
        delete(
            "/services/{service}",
            "Forgets a service and who registered with it",
        ),
        get(
            "/services/{service}/meta",
            "Shows what a service keeps about itself",
        )
        .gives::<ServiceMeta>(meta.clone()),
        put(
            "/services/{service}/meta",
            "Replaces what a service keeps about itself",
        )
        .about("`index` is the one of the value to be replaced, or 0 for the first.")
        .takes::<ServiceMeta>(json!({"data": {"primary": "a"}, "index": 0}))
        .gives::<ServiceMeta>(meta)
        .may_fail(
            409,
            "There is a value already and `index` is 0 (`object_exists`).",
        )
        .may_fail(412, "The value is another by now (`precondition_failed`)."),
        get(
            "/services/{service}/leader",
            "Shows or follows a service's leader",
        )
        .gives_or_streams::<Instance, Event>(
            example::instance(),
            json!({"service": "shop-web", "kind": "leader", "instance": example::instance()}),
        ),
        put("/services/{service}/leader", "Makes an instance leader")
            .about("Of those that registered themselves.")
            .takes::<Instance>(example::instance()),
    ]
}

fn instances() -> Vec<Operation> {
    vec![
        get(
            "/services/{service}/instances",
            "Lists a service's instances, or follows them",
        )
        .about("Oldest first.")
        .gives_or_streams::<Vec<Instance>, Event>(
            json!([example::instance()]),
            json!({"service": "shop-web", "kind": "up", "instance": example::instance()}),
        ),
        put(
            "/services/{service}/instances/{instance}",
            "Registers an instance, or keeps it",
        )
        .about("To be repeated every 5 s: an instance that is silent for 10 s is forgotten.")
        .takes::<Instance>(json!({
            "id": "0a3ac5d4f9b3a6c2d24ce0d8c6b0fdb2", "addr": "100.100.0.2:5432", "proto": "tcp",
            "meta": {"role": "primary"},
        })),
        delete(
            "/services/{service}/instances/{instance}",
            "Takes an instance out",
        ),
    ]
}
