//! Laws of deletion and collection, over drawn sequences of everything that may happen to a release.

use std::collections::BTreeMap;

use types::*;

use super::tests::{World, app, at, deployment, id, job, release};
use crate::*;

/// Numbers that look random and are the same in every run (xorshift).
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        (!list.is_empty()).then(|| list[self.below(list.len() as u64) as usize])
    }
}

fn artifact(n: u128, layer: u64) -> Artifact {
    let layer = Layer {
        id: format!("{layer:064x}"),
        media_type: Layer::EROFS.into(),
        length: 1,
        hashes: BTreeMap::new(),
        meta: BTreeMap::new(),
    };
    Artifact {
        id: ArtifactId(id(n)),
        kind: ArtifactType::Flynn,
        uri: format!("flynn://slug/{}", layer.id),
        meta: [("blobstore".to_owned(), "true".to_owned())].into(),
        manifest: Some(ImageManifest {
            rootfs: vec![Rootfs {
                platform: None,
                layers: vec![layer],
            }],
            ..Default::default()
        }),
        hashes: BTreeMap::new(),
        size: None,
        layer_url_template: String::new(),
        created_at: at(0),
    }
}

fn git_release(n: u128, app: u128, artifacts: Vec<ArtifactId>, seconds: i64) -> Release {
    Release {
        artifacts,
        meta: [("git".to_owned(), "true".to_owned())].into(),
        created_at: at(seconds),
        ..release(n, app, &["web"])
    }
}

/// What everything that is wanted, running or under way refers to.
fn assert_nothing_is_missing(state: &State, step: &str) {
    let has_release = |id: &ReleaseId| state.releases.contains_key(id);
    let mut artifacts: Vec<ArtifactId> = vec![];
    for row in state.releases.values() {
        artifacts.extend(&row.artifacts);
    }
    for formation in state.formations.values() {
        assert!(has_release(&formation.release), "{step}: a formation's release");
    }
    for app in state.apps.values() {
        assert!(app.release.iter().all(has_release), "{step}: an app's release");
    }
    for found in state
        .deployments
        .values()
        .filter(|found| !found.status.is_finished())
    {
        let both = found.old_release.iter().chain([&found.new_release]);
        assert!(
            both.into_iter().all(has_release),
            "{step}: a deployment's releases"
        );
    }
    for job in state.jobs.values().filter(|job| job.state != JobState::Down) {
        assert!(job.release.iter().all(has_release), "{step}: a job's release");
        artifacts.extend(job.one_off.iter().flat_map(|one_off| &one_off.artifacts));
    }
    for artifact in artifacts {
        assert!(
            state.artifacts.contains_key(&artifact),
            "{step}: an artifact in use"
        );
    }
}

struct Drawn {
    world: World,
    draw: Draw,
    next: u128,
    step: i64,
}

impl Drawn {
    fn new_id(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    fn releases(&self) -> Vec<(AppId, ReleaseId)> {
        let rows = self.world.0.releases.values();
        rows.map(|release| (release.app_id, release.id)).collect()
    }

    fn act(&mut self) -> String {
        let apps: Vec<_> = self.world.0.apps.keys().copied().collect();
        let releases = self.releases();
        let artifacts: Vec<_> = self.world.0.artifacts.keys().copied().collect();
        let active: Vec<_> = {
            let jobs = self.world.0.jobs.values();
            jobs.filter(|job| job.state != JobState::Down)
                .map(|job| job.id)
                .collect()
        };
        let n = self.new_id();
        let change = match self.draw.below(16) {
            0 => {
                let mut new = app(n, &format!("app{n}"));
                let kept = self.draw.below(3);
                new.meta = [(META_GC_RELEASES_MAX.to_owned(), kept.to_string())].into();
                Change::CreateApp {
                    app: new,
                    route: None,
                }
            }
            1 | 2 => Change::CreateArtifact {
                artifact: artifact(n, self.draw.below(12)),
            },
            3 | 4 => {
                let (Some(app), Some(image)) = (self.draw.of(&apps), self.draw.of(&artifacts)) else {
                    return "nothing".into();
                };
                Change::CreateRelease {
                    release: git_release(n, app.0.as_u128(), vec![image], self.step),
                }
            }
            5 | 6 => {
                let Some((app, release)) = self.draw.of(&releases) else {
                    return "nothing".into();
                };
                Change::CreateDeployment {
                    deployment: deployment(n, app.0.as_u128(), release.0.as_u128()),
                }
            }
            7 => {
                let Some((app, release)) = self.draw.of(&releases) else {
                    return "nothing".into();
                };
                let processes = [("web".to_owned(), self.draw.below(3) as u32)].into();
                Change::Scale {
                    request: ScaleRequestId(id(n)),
                    app,
                    release,
                    processes: Some(processes),
                    tags: None,
                }
            }
            8 | 9 => {
                let (Some((app, release)), Some(user)) = (self.draw.of(&releases), self.draw.of(&apps))
                else {
                    return "nothing".into();
                };
                // A formation's job, or a one-off of any app, perhaps with an image of its own.
                let mut new = job(n, app.0.as_u128(), release.0.as_u128(), "web");
                if self.draw.below(2) == 0 {
                    new.app = user;
                    new.one_off = Some(OneOff {
                        artifacts: self.draw.of(&artifacts).into_iter().collect(),
                        ..Default::default()
                    });
                }
                Change::CreateJob { job: new }
            }
            10 | 11 => {
                let Some(job) = self.draw.of(&active) else {
                    return "nothing".into();
                };
                let change = JobChange::Down { exit: Exit::Code(0) };
                Change::Job { job, change }
            }
            12 => {
                let Some((app, release)) = self.draw.of(&releases) else {
                    return "nothing".into();
                };
                Change::DeleteRelease { app, release }
            }
            13 => {
                let Some(app) = self.draw.of(&apps) else {
                    return "nothing".into();
                };
                Change::CollectReleases { app }
            }
            14 => {
                let open = self
                    .world
                    .0
                    .deployments
                    .values()
                    .find(|found| !found.status.is_finished());
                let Some(open) = open.cloned() else {
                    return "nothing".into();
                };
                let set = Change::SetAppRelease {
                    app: open.app,
                    release: open.new_release,
                };
                let _ = self.world.apply(set);
                Change::SetDeploymentStatus {
                    deployment: open.id,
                    status: DeploymentStatus::Complete,
                    error: String::new(),
                }
            }
            _ => match self.draw.below(6) {
                0 => {
                    let Some(app) = self.draw.of(&apps) else {
                        return "nothing".into();
                    };
                    Change::DeleteApp { app }
                }
                1 => Change::CollectArtifacts {
                    before: at(self.step * 2),
                },
                _ => {
                    let deleted: Vec<_> = self.world.0.deleted_apps.keys().copied().collect();
                    let Some(app) = self.draw.of(&deleted) else {
                        return "nothing".into();
                    };
                    Change::FinishAppDeletion { app }
                }
            },
        };
        let step = format!("{change:?}");
        let _ = self.world.apply(change);
        step
    }
}

#[test]
fn what_is_in_use_is_never_collected_and_what_is_not_is_gone_in_the_end() {
    for seed in 1..=12 {
        let mut drawn = Drawn {
            world: World::with_app(),
            draw: Draw(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15)),
            next: 10_000,
            step: 0,
        };
        for step in 0..250 {
            drawn.step = step;
            let done = drawn.act();
            assert_nothing_is_missing(&drawn.world.0, &format!("seed {seed}, step {step}, {done}"));
        }
        let world = &mut drawn.world;
        let apps: Vec<_> = world.0.apps.keys().copied().collect();
        for app in apps {
            world.ok(Change::DeleteApp { app });
        }
        let jobs: Vec<_> = world.0.jobs.keys().copied().collect();
        for job in jobs {
            let change = JobChange::Down { exit: Exit::Code(0) };
            let _ = world.apply(Change::Job { job, change });
        }
        let deleted: Vec<_> = world.0.deleted_apps.keys().copied().collect();
        for app in deleted {
            world.ok(Change::FinishAppDeletion { app });
        }
        world.ok(Change::CollectArtifacts { before: at(1 << 40) });
        let state = &world.0;
        let left = (
            state.releases.len(),
            state.artifacts.len(),
            state.deleted_releases.len(),
        );
        assert_eq!(left, (0, 0, 0), "seed {seed}");
    }
}

/// Three releases of one app with an image each, none of them current, and what is kept of them.
fn three_releases(kept_max: &str) -> World {
    let mut world = World::with_app();
    let meta = [(META_GC_RELEASES_MAX.to_owned(), kept_max.to_owned())].into();
    world.ok(Change::UpdateApp {
        app: AppId(id(1)),
        meta: Some(meta),
        strategy: None,
        deploy_timeout: None,
    });
    for n in 1..=3 {
        world.ok(Change::CreateArtifact {
            artifact: artifact(900 + n, n as u64),
        });
        let release = git_release(20 + n, 1, vec![ArtifactId(id(900 + n))], n as i64);
        world.ok(Change::CreateRelease { release });
    }
    world
}

fn collected(world: &mut World) -> Vec<u128> {
    world.ok(Change::CollectReleases { app: AppId(id(1)) });
    let left: Vec<_> = world.0.releases.keys().map(|id| id.0.as_u128()).collect();
    (21..=23).filter(|n| !left.contains(n)).collect()
}

#[test]
fn collection_keeps_the_newest_images_as_many_as_the_app_says() {
    assert_eq!(collected(&mut three_releases("2")), [21]);
    assert_eq!(collected(&mut three_releases("0")), [21, 22, 23]);
    assert_eq!(collected(&mut three_releases("10")), [0; 0]);
    assert_eq!(collected(&mut three_releases("false")), [0; 0]);
}

#[test]
fn releases_of_one_image_count_once() {
    let mut world = three_releases("2");
    // A change of configuration: another release of the newest image.
    let release = git_release(24, 1, vec![ArtifactId(id(903))], 9);
    world.ok(Change::CreateRelease { release });
    assert_eq!(collected(&mut world), [21]);
}

#[test]
fn a_release_that_runs_is_not_collected() {
    let mut world = three_releases("0");
    world.ok(Change::CreateJob {
        job: job(50, 1, 21, "web"),
    });
    world.ok(Change::SetAppRelease {
        app: AppId(id(1)),
        release: ReleaseId(id(22)),
    });
    assert_eq!(collected(&mut world), [23]);
}

#[test]
fn a_deleted_release_is_gone_at_once_and_kept_for_its_last_job() {
    let mut world = three_releases("false");
    world.ok(Change::CreateJob {
        job: job(50, 1, 21, "web"),
    });
    let delete = Change::DeleteRelease {
        app: AppId(id(1)),
        release: ReleaseId(id(21)),
    };
    let seen = world.0.last_event;
    world.ok(delete.clone());
    world.ok(delete);
    assert_eq!(world.events(seen), ["ReleaseDeletion"]);
    let last = world.0.events.last().unwrap().subject.clone();
    let Subject::ReleaseDeletion { deleted_files, .. } = &*last else {
        panic!("{last:?}");
    };
    let layer = format!("{:064x}", 1);
    let expected = [format!("flynn://slug/{layer}"), format!("flynn://layer/{layer}")];
    assert_eq!(*deleted_files, expected);
    let again = world.refused(Change::CreateJob {
        job: job(51, 1, 21, "web"),
    });
    assert!(again.starts_with("could not find release"), "{again}");
    let (release, image) = (ReleaseId(id(21)), ArtifactId(id(901)));
    assert!(world.0.release(release).is_none());
    assert!(world.0.releases.contains_key(&release) && world.0.artifacts.contains_key(&image));
    world.ok(Change::Job {
        job: JobId(id(50)),
        change: JobChange::Down { exit: Exit::Code(0) },
    });
    assert!(!world.0.releases.contains_key(&release) && !world.0.artifacts.contains_key(&image));
}

#[test]
fn an_image_that_a_push_just_asked_for_stays_when_its_last_release_goes() {
    let mut world = three_releases("false");
    let again = artifact(999, 1);
    let applied = world.apply(Change::CreateArtifact { artifact: again }).unwrap();
    assert_eq!(applied.artifact, Some(ArtifactId(id(901))));
    world.ok(Change::DeleteRelease {
        app: AppId(id(1)),
        release: ReleaseId(id(21)),
    });
    let release = git_release(25, 1, vec![ArtifactId(id(901))], 30);
    world.ok(Change::CreateRelease { release });
}
