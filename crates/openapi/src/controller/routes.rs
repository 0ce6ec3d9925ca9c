use api::wire::{NewRoute, RouteView};
use serde_json::json;

use crate::{
    example,
    operation::{Operation, delete, get, post, put},
};

pub fn operations() -> Vec<Operation> {
    let new = json!({
        "type": "http", "domain": "www.example.com", "service": "shop-web", "drain_backends": true,
    });
    vec![
        get("/routes", "Lists the routes of all apps").gives_list::<RouteView>(example::route()),
        get("/apps/{app}/routes", "Lists an app's routes").gives_list::<RouteView>(example::route()),
        post("/apps/{app}/routes", "Creates a route")
            .about(
                "HTTP routes are unique by domain, port and path; a path other than `/` needs the route of `/` on \
                 its domain. All routes of a service have the same `drain_backends`. A TCP route without a port \
                 gets a free one of 3000 to 3500.",
            )
            .takes::<NewRoute>(new.clone())
            .gives::<RouteView>(example::route())
            .may_fail(409, "There is such a route, or the port is taken."),
        get("/apps/{app}/routes/{kind}/{route}", "Shows a route").gives::<RouteView>(example::route()),
        put("/apps/{app}/routes/{kind}/{route}", "Changes where a route leads")
            .about("What it listens to (kind, domain, path, port) stays. Without a certificate it keeps its own.")
            .takes::<NewRoute>(new)
            .gives::<RouteView>(example::route()),
        delete("/apps/{app}/routes/{kind}/{route}", "Deletes a route")
            .may_fail(409, "Routes of other paths depend on it."),
    ]
}
