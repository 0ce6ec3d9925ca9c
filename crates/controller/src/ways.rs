//! Which apps may connect to the jobs of which others: what `flynn link` says, and what resources need.
//!
//! A resource whose settings name services of the cluster (`leader.postgres.discoverd`) opens the way from the apps
//! that use it to those that own these services, for as long as they use it. What a reader would get wrong: who may
//! give an app a resource may deploy here, and so could link the app as well; nothing is opened that was closed to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use state::State;
use types::AppId;

use crate::host_job;

/// (from, to), and what it was made from: it is taken over where nothing of that has changed.
#[derive(Debug, Default)]
pub struct Ways {
    all: BTreeSet<(AppId, AppId)>,
    of: Tables,
}

impl Ways {
    pub fn new(state: &State, before: Option<&Arc<Ways>>) -> Arc<Ways> {
        let of = Tables::of(state);
        match before {
            Some(before) if before.of.are(&of) => before.clone(),
            _ => Arc::new(Ways { all: ways(state), of }),
        }
    }

    pub fn all(&self) -> &BTreeSet<(AppId, AppId)> {
        &self.all
    }
}

#[derive(Debug, Default)]
struct Tables {
    apps: types::Table<AppId, types::App>,
    releases: types::Table<types::ReleaseId, types::Release>,
    formations: types::Table<(AppId, types::ReleaseId), types::Formation>,
    services: types::Table<String, types::ServiceRow>,
    resources: types::Table<types::ResourceId, types::Resource>,
}

impl Tables {
    /// Copies of tables cost nothing.
    fn of(state: &State) -> Tables {
        Tables {
            apps: state.apps.clone(),
            releases: state.releases.clone(),
            formations: state.formations.clone(),
            services: state.services.clone(),
            resources: state.resources.clone(),
        }
    }

    fn are(&self, other: &Tables) -> bool {
        self.apps.ptr_eq(&other.apps)
            && self.releases.ptr_eq(&other.releases)
            && self.formations.ptr_eq(&other.formations)
            && self.services.ptr_eq(&other.services)
            && self.resources.ptr_eq(&other.resources)
    }
}

fn ways(state: &State) -> BTreeSet<(AppId, AppId)> {
    let apps = state.apps.values();
    let mut ways: BTreeSet<_> = apps.flat_map(|app| app.links().map(|to| (app.id, to))).collect();
    let mut users: BTreeMap<String, BTreeSet<AppId>> = BTreeMap::new();
    for resource in state.resources.values() {
        for service in resource
            .env
            .values()
            .flat_map(|value| discovery::services_in(value))
        {
            users.entry(service).or_default().extend(&resource.apps);
        }
    }
    if users.is_empty() {
        return ways;
    }
    for (service, owner) in owners(state) {
        let users = users.get(&service).into_iter().flatten();
        ways.extend(users.filter(|user| **user != owner).map(|user| (*user, owner)));
    }
    ways
}

/// Services with the apps that they are of: those that processes of the app's release offer, and of releases that
/// run beside it while it is deployed, and those that a job of it made known.
fn owners(state: &State) -> impl Iterator<Item = (String, AppId)> {
    let current = state.apps.values().filter_map(|app| Some((app, app.release?)));
    let running = state.formations.values().filter_map(|formation| {
        let app = state.apps.get(&formation.app)?;
        Some((app, formation.release))
    });
    let offered = current.chain(running).flat_map(|(app, release)| {
        let processes = state.releases.get(&release).into_iter();
        let processes = processes.flat_map(|release| &release.processes);
        processes.flat_map(|(name, process)| {
            host_job::services(&app.name, name, process).map(|(service, _)| (service, app.id))
        })
    });
    let named = state.services.values();
    let named = named.filter_map(|row| Some((row.name.clone(), row.app?)));
    offered.chain(named)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use types::{App, Provider, Release, Resource, ServiceRow, Uuid};

    use super::*;

    const NOW: &str = "2026-11-23T00:00:00Z";

    fn id(name: &str) -> Uuid {
        Uuid::from_bytes([name.as_bytes()[0]; 16])
    }

    fn row<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// `pg offers postgres` is app pg with a process that offers it, `pg offers` one with a process `db` that says
    /// nothing; `a uses URL` is a resource; `a to b` a link; `a registers x` a service that a job made known.
    fn state(text: &str) -> State {
        let mut state = State::default();
        let app = |state: &mut State, name: &str| -> AppId {
            let app = AppId(id(name));
            if !state.apps.contains_key(&app) {
                let row: Arc<App> = row(json!({
                    "id": app, "name": name, "meta": {}, "release": id(name), "strategy": "all-at-once", "deploy_timeout": 1,
                    "created_at": NOW, "updated_at": NOW,
                }));
                state.apps.insert(app, row);
            }
            app
        };
        for (number, line) in text.split(", ").enumerate() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [name, "offers", ref service @ ..] => {
                    let app = app(&mut state, name);
                    let release: Arc<Release> = row(json!({
                        "id": id(name), "app_id": app, "created_at": NOW, "artifacts": [],
                        "processes": { "db": { "ports": [{ "port": 1 }], "service": service.concat() } },
                    }));
                    state.releases.insert(release.id, release);
                }
                [name, "registers", service] => {
                    let app = app(&mut state, name);
                    let known = ServiceRow {
                        name: service.into(),
                        app: Some(app),
                        ..Default::default()
                    };
                    state.services.insert(service.into(), Arc::new(known));
                }
                [from, "to", to] => {
                    let (from, to) = (app(&mut state, from), app(&mut state, to));
                    let mut linked = App::clone(&state.apps[&from]);
                    linked.meta.insert(types::META_LINKS.into(), to.to_string());
                    state.apps.insert(from, Arc::new(linked));
                }
                [names, "uses", value] => {
                    let apps: Vec<_> = names.split('+').map(|name| app(&mut state, name)).collect();
                    let provider: Arc<Provider> = row(json!({
                        "id": Uuid::nil(), "name": "p", "url": "http://p", "created_at": NOW, "updated_at": NOW,
                    }));
                    let resource: Arc<Resource> = row(json!({
                        "id": Uuid::from_u128(number as u128), "provider": provider.id, "apps": apps,
                        "env": { "URL": value, "OTHER": "1" }, "created_at": NOW,
                    }));
                    state.resources.insert(resource.id, resource);
                }
                _ => panic!("{line}"),
            }
        }
        state
    }

    fn check(text: &str, expected: &str) {
        let state = state(text);
        let ways = Ways::new(&state, None);
        let name = |app: &AppId| app.0.as_bytes()[0] as char;
        let lines = ways
            .all()
            .iter()
            .map(|(from, to)| format!("{}>{}", name(from), name(to)));
        assert_eq!(lines.collect::<Vec<_>>().join(" "), expected, "{text}");
        assert!(Arc::ptr_eq(&ways, &Ways::new(&state, Some(&ways))));
    }

    #[test]
    fn a_resource_opens_the_way_to_the_app_whose_service_it_names() {
        check(
            "d offers postgres, a+b uses postgres://u:p@leader.postgres.discoverd:5432/x",
            "a>d b>d",
        );
        check("d offers, a uses http://d-db.discoverd", "a>d");
        check("d registers mongo, a uses mongo.discoverd", "a>d");
    }

    #[test]
    fn what_names_no_service_of_an_app_opens_nothing() {
        check("d offers postgres, a uses postgres://postgres.example.com/x", "");
        check("d offers postgres, a uses other.discoverd", "");
        check("d offers postgres, d uses postgres.discoverd", "");
    }

    #[test]
    fn links_and_resources_add_up() {
        check("a to b, d offers postgres, a uses postgres.discoverd", "a>b a>d");
    }

    #[test]
    fn a_way_goes_with_the_resource() {
        let mut state = state("d offers postgres, a uses postgres.discoverd");
        let before = Ways::new(&state, None);
        assert_eq!(before.all().len(), 1);
        state.resources = Default::default();
        assert!(Ways::new(&state, Some(&before)).all().is_empty());
    }
}
