//! Providers, resources and the domain, command by command.

use types::*;

use super::tests::{World, app, at, id, route};
use crate::*;

fn with_provider() -> World {
    let mut world = World::with_app();
    world.ok(Change::CreateApp {
        app: app(2, "other"),
        route: None,
    });
    world.ok(Change::CreateProvider {
        provider: provider(300, "pg"),
    });
    world
}

fn provider(n: u128, name: &str) -> Provider {
    Provider {
        id: ProviderId(id(n)),
        url: "http://pg.discoverd/databases".into(),
        name: name.into(),
        created_at: at(0),
        updated_at: at(0),
    }
}

fn resource(n: u128, apps: &[u128]) -> Change {
    Change::PutResource {
        resource: Resource {
            id: ResourceId(id(n)),
            provider: ProviderId(id(300)),
            external_id: "/databases/u:d".into(),
            env: [("DATABASE_URL".to_owned(), "pg://u@h/d".to_owned())].into(),
            apps: apps.iter().map(|app| AppId(id(*app))).collect(),
            created_at: at(0),
        },
    }
}

fn users(world: &World, n: u128) -> Vec<u128> {
    let resource = &world.0.resources[&ResourceId(id(n))];
    resource.apps.iter().map(|app| app.0.as_u128()).collect()
}

#[test]
fn a_provider_has_a_name_of_its_own_and_is_found_by_it() {
    let mut world = with_provider();
    let again = Change::CreateProvider {
        provider: provider(301, "pg"),
    };
    assert_eq!(world.refused(again), r#"provider "pg" already exists"#);
    assert_eq!(world.0.find_provider("pg").unwrap().id, ProviderId(id(300)));
    let by_id = ProviderId(id(300)).to_string();
    assert_eq!(world.0.find_provider(&by_id).unwrap().name, "pg");
}

#[test]
fn taking_one_app_from_a_resource_leaves_its_other_resources_alone() {
    let mut world = with_provider();
    world.ok(resource(310, &[1, 2]));
    world.ok(resource(311, &[1]));
    let seen = world.0.last_event;
    let remove = Change::RemoveResourceApp {
        resource: ResourceId(id(310)),
        app: AppId(id(1)),
    };
    world.ok(remove.clone());
    world.ok(remove);
    assert_eq!((users(&world, 310), users(&world, 311)), (vec![2], vec![1]));
    assert_eq!(world.events(seen), ["ResourceAppDeletion"]);
    world.ok(Change::AddResourceApp {
        resource: ResourceId(id(310)),
        app: AppId(id(1)),
    });
    assert_eq!(users(&world, 310), [2, 1]);
}

#[test]
fn a_resource_that_is_put_again_changes_and_says_so_only_once() {
    let mut world = with_provider();
    let seen = world.0.last_event;
    world.ok(resource(310, &[1]));
    world.ok(resource(310, &[1]));
    assert_eq!(world.events(seen), ["Resource"]);
    world.ok(resource(310, &[2]));
    assert_eq!(
        world.events(seen),
        ["Resource", "ResourceAppDeletion", "Resource"]
    );
    assert!(
        world
            .refused(resource(312, &[9]))
            .starts_with("could not find app")
    );
}

#[test]
fn an_app_goes_only_after_its_own_resources_and_leaves_shared_ones_to_others() {
    let mut world = with_provider();
    world.ok(resource(310, &[1, 2]));
    world.ok(resource(311, &[1]));
    world.ok(Change::DeleteApp { app: AppId(id(1)) });
    let finish = Change::FinishAppDeletion { app: AppId(id(1)) };
    assert!(world.refused(finish.clone()).contains("resources"));
    let fail = Change::FailAppDeletion {
        app: AppId(id(1)),
        error: "provider pg does not answer".into(),
    };
    let seen = world.0.last_event;
    world.ok(fail.clone());
    world.ok(fail);
    assert_eq!(world.events(seen), ["AppDeletion"]);
    world.ok(Change::DeleteResource {
        resource: ResourceId(id(311)),
    });
    world.ok(finish);
    assert_eq!(
        world.events(seen),
        [
            "AppDeletion",
            "ResourceDeletion",
            "ResourceAppDeletion",
            "AppDeletion"
        ]
    );
    assert_eq!(users(&world, 310), [2]);
    let last = world.0.events.last().unwrap().subject.clone();
    let Subject::AppDeletion { app, error, .. } = &*last else {
        panic!("{last:?}");
    };
    let gone: Vec<_> = app.resources.iter().map(|resource| resource.id).collect();
    assert_eq!((gone, error.as_str()), (vec![ResourceId(id(311))], ""));
}

#[test]
fn a_migration_gives_names_below_the_old_domain_siblings_and_keeps_the_old() {
    let mut world = World::with_app();
    let create = |route| Change::CreateRoute {
        route,
        certificate: None,
    };
    world.ok(create(route(101, 1, "shop.flynn.localhost", "/api/")));
    world.ok(create(route(102, 1, "www.example.com", "/")));
    world.ok(create(route(103, 1, "notflynn.localhost", "/")));
    let migration = |n: u128, domain: &str| Change::CreateDomainMigration {
        migration: DomainMigration {
            id: DomainMigrationId(id(n)),
            old_tls_cert: None,
            tls_cert: None,
            old_domain: "flynn.localhost".into(),
            domain: domain.into(),
            created_at: at(0),
            finished_at: None,
        },
    };
    world.ok(migration(400, "example.org"));
    assert!(world.refused(migration(401, "example.net")).contains("under way"));
    assert!(world.0.domain_in_force().is_none());
    let finish = Change::FinishDomainMigration {
        migration: DomainMigrationId(id(400)),
        tls_cert: TlsCert::default(),
    };
    world.ok(finish.clone());
    world.ok(finish);
    let mut names: Vec<_> = world
        .0
        .routes
        .values()
        .map(|route| format!("{}{}", route.domain, route.path))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "notflynn.localhost/",
            "shop.example.org/",
            "shop.example.org/api/",
            "shop.flynn.localhost/",
            "shop.flynn.localhost/api/",
            "www.example.com/",
        ]
    );
    assert_eq!(world.0.domain_in_force().unwrap().domain, "example.org");
}
