//! The release that a build becomes: what it found, on top of what the app had. Pure.

use std::collections::BTreeMap;

use api::wire::NewRelease;
use types::{App, ArtifactId, HealthCheck, Port, PortService, ProcessType, Release};

use crate::workspace::Outcome;

/// The Procfile's type that runs once before a deployment and is no process.
pub const RELEASE_PHASE: &str = "release";
/// The type by which an app's owner limits builds (`flynn limit set slugbuilder ...`), as the original had it.
pub const BUILD_TYPE: &str = "slugbuilder";
/// Where web processes listen, as the original had it.
const WEB_PORT: u16 = 8080;

/// What a push brought.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub commit: &'a str,
    pub branch: &'a str,
}

pub fn make(
    app: &App,
    previous: Option<&Release>,
    outcome: &Outcome,
    artifacts: Vec<ArtifactId>,
    source: &Source,
) -> NewRelease {
    let known = previous.map(|release| &release.processes);
    let known = |name: &str| known.and_then(|processes| processes.get(name)).cloned();
    let names = outcome.process_types.keys().filter(|name| *name != RELEASE_PHASE);
    let mut processes: BTreeMap<String, ProcessType> = names
        .map(|name| (name.clone(), process(app, name, known(name).unwrap_or_default())))
        .collect();
    processes.extend(known(BUILD_TYPE).map(|limits| (BUILD_TYPE.to_owned(), limits)));

    let mut env = outcome.config_vars.clone();
    let mut meta = BTreeMap::new();
    if let Some(previous) = previous {
        env.extend(previous.env.clone());
        meta.extend(previous.meta.clone());
    }
    for (name, value) in [
        ("git", "true"),
        ("git.commit", source.commit),
        ("git.branch", source.branch),
        ("buildpack", &outcome.buildpack),
    ] {
        meta.insert(name.to_owned(), value.to_owned());
    }
    NewRelease {
        app_id: Some(app.id),
        artifacts: Some(artifacts),
        env: Some(env),
        meta: Some(meta),
        processes: Some(processes),
    }
}

/// Limits and whatever else the owner has set stay.
fn process(app: &App, name: &str, known: ProcessType) -> ProcessType {
    let mut process = known;
    process.args = vec!["/runner/init".into(), "start".into(), name.into()];
    let is_web = name == "web" || name.ends_with("-web");
    if is_web && process.service.is_empty() {
        let service = format!("{}-{name}", app.name);
        let check = HealthCheck {
            kind: "tcp".into(),
            ..HealthCheck::default()
        };
        process.ports = vec![Port {
            port: WEB_PORT,
            proto: "tcp".into(),
            service: Some(PortService {
                name: service.clone(),
                create: true,
                check: Some(check),
            }),
        }];
        process.service = service;
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{AppId, ReleaseId, ResourceLimit, Strategy, Timestamp};

    fn app() -> App {
        let at = Timestamp::from_system(std::time::SystemTime::UNIX_EPOCH);
        App {
            id: AppId(uuid::Uuid::nil()),
            name: "shop".into(),
            meta: BTreeMap::new(),
            strategy: Strategy::default(),
            release: None,
            deploy_timeout: 120,
            created_at: at,
            updated_at: at,
        }
    }

    fn outcome(types: &[&str]) -> Outcome {
        Outcome {
            buildpack: "Node.js".into(),
            process_types: types
                .iter()
                .map(|name| ((*name).to_owned(), "run".to_owned()))
                .collect(),
            config_vars: [
                ("A".to_owned(), "suggested".to_owned()),
                ("B".to_owned(), "suggested".to_owned()),
            ]
            .into(),
            ..Outcome::default()
        }
    }

    fn release_of(new: NewRelease) -> Release {
        Release {
            id: ReleaseId(uuid::Uuid::nil()),
            app_id: app().id,
            artifacts: vec![],
            env: new.env.unwrap(),
            meta: new.meta.unwrap(),
            processes: new.processes.unwrap(),
            created_at: app().created_at,
        }
    }

    const SOURCE: Source = Source {
        commit: "abc",
        branch: "main",
    };

    #[test]
    fn web_types_listen_and_others_do_not() {
        let new = release_of(make(
            &app(),
            None,
            &outcome(&["web", "admin-web", "worker", "release"]),
            vec![],
            &SOURCE,
        ));
        let told: Vec<_> = new
            .processes
            .iter()
            .map(|(name, process)| format!("{name} {:?} {}", process.service, process.ports.len()))
            .collect();
        assert_eq!(
            told,
            [
                r#"admin-web "shop-admin-web" 1"#,
                r#"web "shop-web" 1"#,
                r#"worker "" 0"#
            ]
        );
        assert_eq!(new.processes["web"].args, ["/runner/init", "start", "web"]);
        assert_eq!(new.meta["git.commit"], "abc");
    }

    #[test]
    fn what_the_owner_has_set_stays() {
        let mut previous = release_of(make(&app(), None, &outcome(&["web", "old"]), vec![], &SOURCE));
        previous.env = [("A".to_owned(), "mine".to_owned())].into();
        previous.meta.insert("note".into(), "kept".into());
        let limit = ResourceLimit {
            request: None,
            limit: Some(5),
        };
        previous
            .processes
            .get_mut("web")
            .unwrap()
            .resources
            .0
            .insert("memory".into(), limit);
        previous.processes.get_mut("web").unwrap().ports[0].port = 3000;
        previous
            .processes
            .insert(BUILD_TYPE.into(), ProcessType::default());
        let new = release_of(make(&app(), Some(&previous), &outcome(&["web"]), vec![], &SOURCE));
        assert_eq!(new.env["A"], "mine");
        assert_eq!(new.env["B"], "suggested");
        assert_eq!(new.meta["note"], "kept");
        assert_eq!(new.processes["web"].resources.0["memory"].limit, Some(5));
        assert_eq!(new.processes["web"].ports[0].port, 3000);
        assert_eq!(new.processes.keys().collect::<Vec<_>>(), ["slugbuilder", "web"]);
    }
}
