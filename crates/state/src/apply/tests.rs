use std::collections::BTreeMap;

use types::*;

use crate::*;

pub(super) fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub(super) fn app(n: u128, name: &str) -> App {
    App {
        id: AppId(id(n)),
        name: name.into(),
        meta: BTreeMap::new(),
        strategy: Strategy::AllAtOnce,
        release: None,
        deploy_timeout: 120,
        created_at: at(0),
        updated_at: at(0),
    }
}

pub(super) fn release(n: u128, app: u128, types: &[&str]) -> Release {
    Release {
        id: ReleaseId(id(n)),
        app_id: AppId(id(app)),
        artifacts: vec![ArtifactId(id(900))],
        env: BTreeMap::new(),
        meta: BTreeMap::new(),
        processes: types
            .iter()
            .map(|name| ((*name).to_owned(), ProcessType::default()))
            .collect(),
        created_at: at(0),
    }
}

pub(super) fn route(n: u128, app: u128, domain: &str, path: &str) -> Route {
    Route {
        kind: RouteKind::Http,
        id: RouteId(id(n)),
        parent_ref: parent_ref(AppId(id(app))),
        service: format!("{app}-web"),
        port: 0,
        leader: false,
        created_at: at(0),
        updated_at: at(0),
        domain: domain.into(),
        certificate_id: None,
        sticky: false,
        path: path.into(),
        drain_backends: true,
        disable_keep_alives: false,
    }
}

pub(super) fn job(n: u128, app: u128, release: u128, process_type: &str) -> Job {
    Job {
        id: JobId(id(n)),
        app: AppId(id(app)),
        release: Some(ReleaseId(id(release))),
        process_type: process_type.into(),
        state: JobState::Pending,
        host: None,
        volumes: vec![],
        one_off: None,
        meta: BTreeMap::new(),
        run_at: None,
        restarts: 0,
        waiting: String::new(),
        stop_reason: None,
        is_drained: false,
        ipv6: None,
        address: None,
        is_unhealthy: false,
        exit: None,
        created_at: at(0),
        updated_at: at(0),
        started_at: None,
        up_at: None,
        ended_at: None,
    }
}

pub(super) fn deployment(n: u128, app: u128, new: u128) -> Deployment {
    Deployment {
        id: DeploymentId(id(n)),
        app: AppId(id(app)),
        old_release: None,
        new_release: ReleaseId(id(new)),
        strategy: Strategy::AllAtOnce,
        status: DeploymentStatus::Pending,
        processes: Processes::new(),
        tags: Tags::new(),
        deploy_timeout: 120,
        deploy_batch_size: None,
        error: String::new(),
        created_at: at(0),
        finished_at: None,
    }
}

pub(super) struct World(pub(super) State, u64);

impl World {
    /// An app `shop` (1) with a release (10) of web and worker.
    /// Puts a job on host0.
    fn place(&mut self, job: u128) {
        let change = JobChange::Place {
            host: "host0".parse().unwrap(),
            volumes: vec![],
            new_volumes: vec![],
        };
        self.job(job, change);
    }

    pub(super) fn with_app() -> World {
        let mut world = World(State::default(), 0);
        let artifact = Artifact {
            id: ArtifactId(id(900)),
            kind: ArtifactType::Flynn,
            uri: "flynn://image".into(),
            meta: [("blobstore".to_owned(), "true".to_owned())].into(),
            manifest: None,
            hashes: BTreeMap::new(),
            size: None,
            layer_url_template: String::new(),
            created_at: at(0),
        };
        let domain = "shop.flynn.localhost";
        world.ok(Change::CreateApp {
            app: app(1, "shop"),
            route: Some(route(100, 1, domain, "/")),
        });
        world.ok(Change::CreateArtifact { artifact });
        world.ok(Change::CreateRelease {
            release: release(10, 1, &["web", "worker"]),
        });
        world
    }

    pub(super) fn apply(&mut self, change: Change) -> Outcome {
        self.1 += 1;
        let before = self.image();
        let outcome = self.0.apply(
            self.1,
            Command {
                at: at(self.1 as i64),
                change,
            },
        );
        if outcome.is_err() {
            self.0.revision = self.1 - 1;
            assert_eq!(self.image(), before, "a refused command changed the state");
            self.0.revision = self.1;
        }
        // What is derived must be what a snapshot would rebuild.
        let image = self.image();
        let again = State::read_image(&mut image.as_slice()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{:?}", self.0));
        outcome
    }

    pub(super) fn ok(&mut self, change: Change) {
        self.apply(change).unwrap();
    }

    pub(super) fn refused(&mut self, change: Change) -> String {
        self.apply(change).unwrap_err().to_string()
    }

    fn scale(&mut self, counts: &[(&str, u32)]) -> Outcome {
        let processes = counts
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        let request = ScaleRequestId(id(500 + u128::from(self.1)));
        let (app, release) = (AppId(id(1)), ReleaseId(id(10)));
        self.apply(Change::Scale {
            request,
            app,
            release,
            processes: Some(processes),
            tags: None,
        })
    }

    fn job(&mut self, job: u128, change: JobChange) {
        self.ok(Change::Job {
            job: JobId(id(job)),
            change,
        });
    }

    fn image(&self) -> Vec<u8> {
        let mut bytes = vec![];
        self.0.write_image(&mut bytes).unwrap();
        bytes
    }

    pub(super) fn events(&self, since: u64) -> Vec<String> {
        self.0
            .events_since(since)
            .map(|event| format!("{:?}", event.subject.object_type()))
            .collect()
    }
}

#[test]
fn a_name_is_taken_once_and_free_again_after_deletion() {
    let mut world = World::with_app();
    let again = Change::CreateApp {
        app: app(2, "shop"),
        route: None,
    };
    assert_eq!(
        world.refused(again.clone()),
        r#"application "shop" already exists"#
    );
    world.ok(Change::DeleteApp { app: AppId(id(1)) });
    world.ok(again);
    assert_eq!(world.0.find_app("shop").unwrap().id, AppId(id(2)));
}

#[test]
fn deletion_waits_for_the_jobs_and_takes_everything_along() {
    let mut world = World::with_app();
    world.scale(&[("web", 1)]).unwrap();
    world.ok(Change::CreateJob {
        job: job(50, 1, 10, "web"),
    });
    world.place(50);
    world.job(
        50,
        JobChange::Up {
            address: None,
            ipv6: None,
        },
    );
    world.ok(Change::DeleteApp { app: AppId(id(1)) });
    assert_eq!(world.0.jobs[&JobId(id(50))].state, JobState::Stopping);
    let finish = Change::FinishAppDeletion { app: AppId(id(1)) };
    assert!(world.refused(finish.clone()).contains("not ended"));
    world.job(
        50,
        JobChange::Down {
            exit: Exit::Signal(15),
        },
    );
    world.ok(finish.clone());
    world.ok(finish);
    let state = &world.0;
    let left = state.jobs.len() + state.releases.len() + state.routes.len() + state.formations.len();
    assert_eq!((left, state.artifacts.len(), state.deleted_apps.len()), (0, 0, 0));
    assert_eq!(world.events(0).last().unwrap(), "AppDeletion");
}

#[test]
fn a_scale_names_types_that_exist_and_supersedes_the_one_before() {
    let mut world = World::with_app();
    let refused = world.scale(&[("wroker", 1)]).unwrap_err().to_string();
    assert!(refused.ends_with(": wroker"), "{refused}");
    world.scale(&[("web", 2)]).unwrap();
    world.scale(&[("worker", 1)]).unwrap();
    let formation = &world.0.formations[&(AppId(id(1)), ReleaseId(id(10)))];
    assert_eq!(
        formation.processes,
        [("web".to_owned(), 2), ("worker".to_owned(), 1)].into()
    );
    let states: Vec<_> = world
        .0
        .scale_requests
        .values()
        .map(|request| request.state)
        .collect();
    assert_eq!(states, [ScaleRequestState::Cancelled, ScaleRequestState::Pending]);
}

#[test]
fn a_first_deployment_is_complete_at_once_and_a_second_one_waits_for_jobs() {
    let mut world = World::with_app();
    world.ok(Change::CreateDeployment {
        deployment: deployment(60, 1, 10),
    });
    assert_eq!(
        world.0.deployments[&DeploymentId(id(60))].status,
        DeploymentStatus::Complete
    );
    assert_eq!(world.0.apps[&AppId(id(1))].release, Some(ReleaseId(id(10))));
    world.scale(&[("web", 2)]).unwrap();
    world.ok(Change::CreateRelease {
        release: release(11, 1, &["web"]),
    });
    world.ok(Change::CreateDeployment {
        deployment: deployment(61, 1, 11),
    });
    let begun = &world.0.deployments[&DeploymentId(id(61))];
    assert_eq!(begun.status, DeploymentStatus::Pending);
    assert_eq!(begun.processes, [("web".to_owned(), 2)].into());
    assert_eq!(begun.old_release, Some(ReleaseId(id(10))));
    let second = world.refused(Change::CreateDeployment {
        deployment: deployment(62, 1, 10),
    });
    assert!(second.contains("already one in progress"));
}

#[test]
fn a_jobs_other_address_is_what_its_host_said_last() {
    let mut world = World::with_app();
    world.ok(Change::CreateJob {
        job: job(50, 1, 10, "web"),
    });
    world.place(50);
    let other = Some("fd00::6464:2".parse().unwrap());
    // Up; found out later; said again; by somebody who knows no addresses; no longer so.
    for (address, ipv6, expected) in [
        (Some([100, 100, 0, 2].into()), None, None),
        (Some([100, 100, 0, 2].into()), other, other),
        (Some([100, 100, 0, 2].into()), other, other),
        (None, None, other),
        (Some([100, 100, 0, 2].into()), None, None),
    ] {
        world.job(50, JobChange::Up { address, ipv6 });
        assert_eq!(world.0.jobs[&JobId(id(50))].ipv6, expected);
    }
}

#[test]
fn a_job_only_moves_towards_its_end() {
    let mut world = World::with_app();
    world.ok(Change::CreateJob {
        job: job(50, 1, 10, "web"),
    });
    let state = |world: &World| world.0.jobs[&JobId(id(50))].state;
    world.job(
        50,
        JobChange::Up {
            address: None,
            ipv6: None,
        },
    );
    assert_eq!(
        state(&world),
        JobState::Pending,
        "nothing runs before it is placed"
    );
    world.place(50);
    world.job(
        50,
        JobChange::Up {
            address: Some([100, 100, 0, 2].into()),
            ipv6: None,
        },
    );
    world.job(50, JobChange::Unhealthy);
    assert!(world.0.jobs[&JobId(id(50))].is_unhealthy);
    world.job(
        50,
        JobChange::Stop {
            reason: StopReason::Unwanted,
        },
    );
    world.job(
        50,
        JobChange::Up {
            address: None,
            ipv6: None,
        },
    );
    assert_eq!(state(&world), JobState::Stopping);
    assert!(!world.0.jobs[&JobId(id(50))].is_drained);
    world.job(50, JobChange::Down { exit: Exit::Code(0) });
    world.job(
        50,
        JobChange::Stop {
            reason: StopReason::Killed,
        },
    );
    assert_eq!(state(&world), JobState::Down);
    assert_eq!(
        world.0.jobs[&JobId(id(50))].stop_reason,
        Some(StopReason::Unwanted)
    );
}

#[test]
fn ended_jobs_are_kept_for_a_while_only() {
    let mut world = World::with_app();
    for n in 0..15 {
        world.ok(Change::CreateJob {
            job: job(1000 + n, 1, 10, "web"),
        });
        world.job(
            1000 + n,
            JobChange::Stop {
                reason: StopReason::Unwanted,
            },
        );
    }
    let kept: Vec<_> = world.0.jobs.keys().map(|job| job.0.as_u128()).collect();
    assert_eq!(kept, (1005..1015).collect::<Vec<_>>());
}

#[test]
fn routes_stand_beside_each_other_by_the_originals_rules() {
    let mut world = World::with_app();
    let create = |route| Change::CreateRoute {
        route,
        certificate: None,
    };
    world.ok(create(route(101, 1, "example.com", "/")));
    assert_eq!(
        world.refused(create(route(102, 1, "example.com", "/"))),
        "Duplicate route"
    );
    world.ok(create(route(103, 1, "example.com", "/path/")));
    assert_eq!(
        world.refused(create(route(104, 1, "nodefault.com", "/sub/"))),
        "Invalid route"
    );
    let delete = |n| Change::DeleteRoute {
        app: AppId(id(1)),
        route: RouteId(id(n)),
    };
    assert!(world.refused(delete(101)).contains("dependent routes"));
    world.ok(delete(103));
    world.ok(delete(101));
    let mut undrained = route(105, 1, "other.com", "/");
    undrained.drain_backends = false;
    assert!(world.refused(create(undrained)).starts_with("Invalid route"));
    let mut tcp = route(106, 1, "", "");
    tcp.kind = RouteKind::Tcp;
    world.ok(create(tcp.clone()));
    assert_eq!(world.0.routes[&RouteId(id(106))].port, 3000);
    (tcp.id, tcp.port) = (RouteId(id(107)), 443);
    assert_eq!(world.refused(create(tcp)), "Port reserved for HTTP/HTTPS traffic");
}

#[test]
fn a_route_update_that_is_refused_leaves_no_certificate_behind() {
    let mut world = World::with_app();
    for (n, domain) in [(101, "shop.com"), (102, "other.com")] {
        let route = route(n, 1, domain, "/");
        world.ok(Change::CreateRoute {
            route,
            certificate: None,
        });
    }
    let mut undrained = route(101, 1, "shop.com", "/");
    undrained.drain_backends = false;
    let certificate = Certificate {
        id: CertificateId(id(200)),
        cert: "cert".into(),
        key: "key".into(),
        created_at: at(0),
        updated_at: at(0),
    };
    let update = Change::UpdateRoute {
        route: undrained,
        certificate: Some(certificate),
    };
    assert!(world.refused(update).starts_with("Invalid route"));
    assert!(world.0.certificates.is_empty());
}

#[test]
fn a_certificate_lives_as_long_as_a_route_names_it() {
    let mut world = World::with_app();
    let certificate = Certificate {
        id: CertificateId(id(700)),
        cert: "PEM".into(),
        key: "KEY".into(),
        created_at: at(0),
        updated_at: at(0),
    };
    let tls = |n| Change::CreateRoute {
        route: route(n, 1, &format!("tls{n}.com"), "/"),
        certificate: Some(certificate.clone()),
    };
    world.ok(tls(101));
    world.ok(tls(102));
    world.ok(Change::DeleteRoute {
        app: AppId(id(1)),
        route: RouteId(id(101)),
    });
    assert_eq!(world.0.certificates.len(), 1);
    world.ok(Change::UpdateRoute {
        route: route(102, 1, "tls102.com", "/"),
        certificate: None,
    });
    assert_eq!(
        world.0.routes[&RouteId(id(102))].certificate_id,
        Some(CertificateId(id(700)))
    );
    world.ok(Change::DeleteRoute {
        app: AppId(id(1)),
        route: RouteId(id(102)),
    });
    assert_eq!(world.0.certificates.len(), 0);
}

#[test]
fn a_watcher_that_comes_back_gets_what_it_missed() {
    let mut world = World::with_app();
    let seen = world.0.last_event;
    world.ok(Change::CreateRelease {
        release: release(11, 1, &["web"]),
    });
    world.ok(Change::SetAppRelease {
        app: AppId(id(1)),
        release: ReleaseId(id(11)),
    });
    assert_eq!(world.events(seen), ["Release", "AppRelease"]);
    assert_eq!(world.events(world.0.last_event), Vec::<String>::new());
}
