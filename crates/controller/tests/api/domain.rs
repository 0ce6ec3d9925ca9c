//! The change of the cluster's domain.

use serde_json::{Value, json};

use crate::world::{World, text};

async fn domains(world: &World) -> Vec<String> {
    let routes = world.get("/routes").await.json();
    let routes = routes.as_array().unwrap();
    let mut domains: Vec<_> = routes
        .iter()
        .map(|route| text(&route["domain"]).to_owned())
        .collect();
    domains.sort();
    domains
}

#[tokio::test]
async fn names_below_the_old_domain_get_siblings_below_the_new_one() {
    let world = World::start().await;
    world.app("shop").await;
    let refused = world
        .put("/domain", json!({ "old_domain": "x", "domain": "y" }))
        .await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.json()["message"],
        "Can't migrate from \"x\" when currently using \"flynn.test\""
    );
    for bad in ["", "localhost", "-a.b", "a..b", "flynn.test", "a b.c"] {
        let answer = world
            .put("/domain", json!({ "old_domain": "flynn.test", "domain": bad }))
            .await;
        assert_eq!(
            (answer.status, &answer.json()["detail"]["field"]),
            (400, &json!("domain")),
            "{bad}"
        );
    }
    let body = json!({ "old_domain": "flynn.test", "domain": "apps.example.org" });
    let begun = world.put("/domain", body).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let begun = begun.json();
    assert_eq!(
        begun["old_tls_cert"]["key"], "",
        "no private key leaves the store"
    );
    let finished = world
        .event("domain_migration", |event| {
            event["data"]["domain_migration"].get("finished_at").is_some()
        })
        .await;
    let migration = &finished["data"]["domain_migration"];
    assert_eq!(
        (&finished["object_id"], &migration["id"]),
        (&begun["id"], &begun["id"])
    );
    let cert = &migration["tls_cert"];
    assert!(text(&cert["cert"]).contains("BEGIN CERTIFICATE"));
    assert_eq!((text(&cert["pin"]).len(), text(&cert["key"])), (44, ""));
    assert_eq!(
        domains(&world).await,
        ["shop.apps.example.org", "shop.flynn.test"]
    );
    // From now on apps are below the new domain.
    world.app("later").await;
    assert!(
        domains(&world)
            .await
            .contains(&"later.apps.example.org".to_owned())
    );
    let old = json!({ "old_domain": "flynn.test", "domain": "other.example.org" });
    assert_eq!(world.put("/domain", old).await.status, 400);
}

#[tokio::test]
async fn routers_serve_both_domains_each_with_its_certificate() {
    let world = World::start().await;
    world.app("shop").await;
    let mut table = Table::follow(&world).await;
    assert_eq!(table.names(), ["controller.flynn.test", "shop.flynn.test"]);
    let body = json!({ "old_domain": "flynn.test", "domain": "apps.example.org" });
    world.put("/domain", body).await;
    while table.domain() != "apps.example.org" {
        table.next().await;
    }
    assert_eq!(
        table.names(),
        [
            "controller.apps.example.org",
            "controller.flynn.test",
            "shop.apps.example.org",
            "shop.flynn.test",
        ]
    );
    let certificates = table.0["certificates"].as_array().unwrap();
    let mut served: Vec<_> = certificates
        .iter()
        .map(|found| text(&found["domains"][0]))
        .collect();
    served.sort();
    assert_eq!(served, ["apps.example.org", "flynn.test"]);
    assert_ne!(certificates[0]["cert"], certificates[1]["cert"]);
    assert!(
        certificates
            .iter()
            .all(|found| text(&found["key"]).contains("PRIVATE KEY"))
    );
}

/// The newest whole table that a router was sent.
struct Table(
    Value,
    futures::stream::BoxStream<'static, Result<Value, api::ClientError>>,
);

impl Table {
    async fn follow(world: &World) -> Table {
        let internal = world.internal();
        let stream = internal.client().events("/internal/routing").await.unwrap();
        let mut table = Table(Value::Null, stream);
        table.next().await;
        table
    }

    async fn next(&mut self) {
        use futures::StreamExt;
        let message = tokio::time::timeout(crate::world::PATIENCE, self.1.next()).await;
        let message = message.expect("waited in vain").unwrap().unwrap();
        if message.get("certificates").is_some() || message.get("snapshot").is_some() {
            self.0 = message.get("snapshot").cloned().unwrap_or(message);
        }
    }

    fn domain(&self) -> &str {
        self.0["domain"].as_str().unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        let routes = self.0["routes"].as_array().unwrap();
        let mut names: Vec<_> = routes
            .iter()
            .map(|route| text(&route["domain"]).to_owned())
            .collect();
        names.sort();
        names
    }
}
