//! Worlds drawn in a line, plans read as text, and the store's part: what each action does to rows.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use scheduler::{Action, Cluster, META_HOST, META_MOVES, META_REPLACES, Plan, plan};
use types::*;
use uuid::Uuid;

pub const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// The same name always gives the same id.
pub fn id_of(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

pub fn app_id() -> AppId {
    AppId(id_of("shop"))
}

pub fn release_id(name: &str) -> ReleaseId {
    ReleaseId(id_of(name))
}

/// Types of every release: `web` has a port, `worker` none, `agent` is omni, `strict` is killed when
/// unhealthy, `store` has a volume at /data and one that goes with it, `local` is omni with the same.
pub fn release(name: &str) -> Release {
    let with_port = |check: HealthCheck| ProcessType {
        ports: vec![Port {
            port: 8080,
            proto: "tcp".into(),
            service: Some(PortService {
                name: "shop-web".into(),
                create: true,
                check: Some(check),
            }),
        }],
        ..ProcessType::default()
    };
    let with_volumes = |omni: bool| ProcessType {
        volumes: [("/data", false), ("/tmp/x", true)]
            .map(|(path, delete_on_stop)| VolumeRequest {
                path: path.into(),
                delete_on_stop,
            })
            .to_vec(),
        omni,
        ..ProcessType::default()
    };
    let tcp = HealthCheck {
        kind: "tcp".into(),
        ..HealthCheck::default()
    };
    let strict = HealthCheck {
        kind: "http".into(),
        path: "/ok".into(),
        kill_down: true,
        ..HealthCheck::default()
    };
    Release {
        id: release_id(name),
        app_id: app_id(),
        artifacts: vec![],
        env: BTreeMap::new(),
        meta: BTreeMap::new(),
        processes: [
            ("web".to_owned(), with_port(tcp)),
            ("worker".to_owned(), ProcessType::default()),
            (
                "agent".to_owned(),
                ProcessType {
                    omni: true,
                    ..ProcessType::default()
                },
            ),
            ("strict".to_owned(), with_port(strict)),
            ("store".to_owned(), with_volumes(false)),
            ("local".to_owned(), with_volumes(true)),
        ]
        .into(),
        created_at: NOW - Duration::from_secs(10_000),
    }
}

pub fn app() -> App {
    App {
        id: app_id(),
        name: "shop".into(),
        meta: BTreeMap::new(),
        strategy: Strategy::AllAtOnce,
        release: Some(release_id("v1")),
        deploy_timeout: 120,
        created_at: NOW - Duration::from_secs(20_000),
        updated_at: NOW - Duration::from_secs(20_000),
    }
}

pub fn host(name: &str) -> Host {
    Host {
        id: name.parse().unwrap(),
        addr: String::new(),
        tags: BTreeMap::new(),
        is_draining: false,
        state: HostState::Up,
        memory_bytes: 4 << 30,
        cpu_milli: 2000,
        gateway: None,
        subnet: None,
        underlay: None,
        public_key: None,
        public_addresses: vec![],
        node: None,
        peer_addr: None,
        version: String::new(),
        created_at: NOW - Duration::from_secs(20_000),
        started_at: NOW - Duration::from_secs(20_000),
        up_since: NOW,
        relapses: 0,
    }
}

pub fn job(name: &str, release: &str, process_type: &str) -> Job {
    Job {
        id: JobId(id_of(name)),
        app: app_id(),
        release: Some(release_id(release)),
        process_type: process_type.into(),
        state: JobState::Pending,
        host: None,
        one_off: None,
        meta: BTreeMap::new(),
        volumes: vec![],
        run_at: None,
        restarts: 0,
        waiting: String::new(),
        stop_reason: None,
        is_drained: false,
        ipv6: None,
        address: None,
        is_unhealthy: false,
        exit: None,
        created_at: NOW - Duration::from_secs(1000),
        updated_at: NOW - Duration::from_secs(1000),
        started_at: None,
        up_at: None,
        ended_at: None,
    }
}

pub fn formation(release: &str) -> Formation {
    Formation {
        app: app_id(),
        release: release_id(release),
        processes: Processes::new(),
        tags: Tags::new(),
        created_at: NOW - Duration::from_secs(10_000),
        updated_at: NOW - Duration::from_secs(10_000),
    }
}

/// A cluster of its drawing, with the names that stand for ids in it.
pub struct World {
    pub cluster: Cluster,
    names: Vec<(String, String)>,
}

fn seconds(text: &str) -> Duration {
    Duration::from_millis((text.trim_end_matches('s').parse::<f64>().expect("seconds") * 1000.0) as u64)
}

fn counts<'a>(words: impl Iterator<Item = &'a str>) -> Processes {
    words
        .map(|word| word.split_once('=').expect("TYPE=COUNT"))
        .map(|(t, n)| (t.into(), n.parse().unwrap()))
        .collect()
}

impl World {
    /// Statements end with `;`. See the tests for what can be said.
    pub fn draw(text: &str) -> World {
        let mut world = World {
            cluster: Cluster {
                revision: 7,
                ..Cluster::default()
            },
            names: vec![],
        };
        world.cluster.apps.insert(app_id(), Arc::new(app()));
        world.name("shop", app_id().0);
        for name in ["v1", "v2"] {
            world
                .cluster
                .releases
                .insert(release_id(name), Arc::new(release(name)));
            world.name(name, release_id(name).0);
        }
        for statement in text
            .split(';')
            .map(str::trim)
            .filter(|statement| !statement.is_empty())
        {
            let words: Vec<&str> = statement.split_whitespace().collect();
            world.say(words[0], &words[1..]);
        }
        world
    }

    fn name(&mut self, name: &str, id: Uuid) {
        self.names.push((id.to_string(), name.to_owned()));
    }

    fn say(&mut self, verb: &str, words: &[&str]) {
        match verb {
            "host" => {
                let mut row = host(words[0]);
                for word in &words[1..] {
                    let (key, value) = word.split_once('=').unwrap_or((word, ""));
                    match key {
                        "draining" => row.is_draining = true,
                        "up" => row.up_since = NOW - seconds(value),
                        "relapses" => row.relapses = value.parse().unwrap(),
                        "mem" => row.memory_bytes = value.parse::<i64>().unwrap() << 20,
                        "silent" => {
                            row.state = HostState::Silent {
                                since: NOW - seconds(value),
                            }
                        }
                        _ => drop(row.tags.insert(key.into(), value.into())),
                    }
                }
                self.cluster.hosts.insert(row.id.clone(), Arc::new(row));
            }
            "want" => {
                let mut row = formation(words[0]);
                row.processes = counts(words[1..].iter().copied());
                self.cluster
                    .formations
                    .insert((row.app, row.release), Arc::new(row));
            }
            "tags" => {
                let row = self
                    .cluster
                    .formations
                    .get_mut(&(app_id(), release_id(words[0])))
                    .unwrap();
                let (key, value) = words[2].split_once('=').unwrap();
                Arc::make_mut(row)
                    .tags
                    .entry(words[1].into())
                    .or_default()
                    .insert(key.into(), value.into());
            }
            "memory" => {
                let row = self.cluster.releases.get_mut(&release_id(words[0])).unwrap();
                let process = Arc::make_mut(row).processes.get_mut(words[1]).unwrap();
                let limit = ResourceLimit {
                    request: Some(words[2].parse::<i64>().unwrap() << 20),
                    limit: None,
                };
                process.resources.0.insert("memory".into(), limit);
            }
            "drop" => {
                let row = self.cluster.releases.get_mut(&release_id(words[0])).unwrap();
                Arc::make_mut(row).processes.remove(words[1]);
            }
            "volume" => self.say_volume(words),
            "deleted" => drop(self.cluster.apps.remove(&app_id())),
            "job" => self.say_job(words),
            "deploy" => self.say_deploy(words),
            "scale" => {
                let at = words.iter().position(|word| *word == "to").unwrap();
                let row = ScaleRequest {
                    id: ScaleRequestId(id_of("scale")),
                    app: app_id(),
                    release: release_id(words[0]),
                    state: ScaleRequestState::Pending,
                    old_processes: counts(words[1..at].iter().copied()),
                    new_processes: Some(counts(words[at + 1..].iter().copied())),
                    old_tags: Tags::new(),
                    new_tags: None,
                    created_at: NOW,
                    updated_at: NOW,
                };
                self.name("scale", row.id.0);
                self.cluster.scale_requests.insert(row.id, Arc::new(row));
            }
            _ => panic!("what is {verb}?"),
        }
    }

    /// `job NAME RELEASE/TYPE STATE [HOST] [age=… up=… ended=… exit=… …]`; times are seconds ago.
    fn say_job(&mut self, words: &[&str]) {
        let (release, process_type) = words[1].split_once('/').unwrap();
        let mut row = job(words[0], release, process_type);
        row.state = serde_json_state(words[2]);
        if matches!(row.state, JobState::Up | JobState::Stopping) {
            row.up_at = Some(row.created_at);
        }
        if row.state >= JobState::Starting {
            row.started_at = Some(row.created_at);
        }
        for word in &words[3..] {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "age" => {
                    row.created_at = NOW - seconds(value);
                    row.updated_at = row.created_at;
                    row.started_at = row.started_at.map(|_| row.created_at);
                    row.up_at = row.up_at.map(|_| row.created_at);
                }
                "up" => row.up_at = Some(NOW - seconds(value)),
                "ended" => row.ended_at = Some(NOW - seconds(value)),
                "exit" if value == "lost" => row.exit = Some(Exit::Lost("host a was silent".into())),
                "exit" if value == "notstarted" => {
                    row.exit = Some(Exit::NotStarted("no such file: ./run".into()))
                }
                "exit" => row.exit = Some(Exit::Code(value.parse().unwrap())),
                "restarts" => row.restarts = value.parse().unwrap(),
                "run_in" => row.run_at = Some(NOW + seconds(value)),
                "replaces" => drop(row.meta.insert(META_REPLACES.into(), id_of(value).to_string())),
                "moves" => drop(row.meta.insert(META_MOVES.into(), id_of(value).to_string())),
                "for" => drop(row.meta.insert(META_HOST.into(), value.into())),
                "oneoff" => row.one_off = Some(OneOff::default()),
                "unhealthy" => row.is_unhealthy = true,
                "killed" => row.stop_reason = Some(StopReason::Killed),
                "unwanted" => row.stop_reason = Some(StopReason::Unwanted),
                "sick" => row.stop_reason = Some(StopReason::Unhealthy),
                host => row.host = Some(host.parse().unwrap()),
            }
        }
        self.name(words[0], row.id.0);
        self.cluster.jobs.insert(row.id, Arc::new(row));
    }

    /// `volume NAME TYPE HOST [job=NAME age=… decommissioned]`, at /data.
    fn say_volume(&mut self, words: &[&str]) {
        let mut row = Volume {
            path: "/data".into(),
            delete_on_stop: false,
            id: VolumeId(id_of(words[0])),
            host_id: words[2].parse().unwrap(),
            kind: VolumeType::Data,
            state: VolumeState::Created,
            app: Some(app_id()),
            release: None,
            job: None,
            job_type: words[1].into(),
            meta: BTreeMap::new(),
            created_at: NOW - Duration::from_secs(1000),
            updated_at: NOW,
            decommissioned_at: None,
        };
        for word in &words[3..] {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "job" => {
                    row.job = Some(JobId(id_of(value)));
                    let job = self.cluster.jobs.get_mut(&JobId(id_of(value))).unwrap();
                    Arc::make_mut(job).volumes.push(row.id);
                }
                "age" => row.created_at = NOW - seconds(value),
                "decommissioned" => row.decommissioned_at = Some(NOW),
                _ => panic!("what is {key}?"),
            }
        }
        self.name(words[0], row.id.0);
        self.cluster.volumes.insert(row.id, Arc::new(row));
    }

    /// `deploy STRATEGY pending|running [age=… batch=… from=none] TYPE=COUNT…`, from v1 to v2.
    fn say_deploy(&mut self, words: &[&str]) {
        let mut row = Deployment {
            id: DeploymentId(id_of("deployment")),
            app: app_id(),
            old_release: Some(release_id("v1")),
            new_release: release_id("v2"),
            strategy: strategy(words[0]),
            status: if words[1] == "pending" {
                DeploymentStatus::Pending
            } else {
                DeploymentStatus::Running
            },
            processes: Processes::new(),
            tags: Tags::new(),
            deploy_timeout: 120,
            deploy_batch_size: None,
            error: String::new(),
            created_at: NOW - Duration::from_secs(10),
            finished_at: None,
        };
        for (key, value) in words[2..].iter().map(|word| word.split_once('=').unwrap()) {
            match key {
                "age" => row.created_at = NOW - seconds(value),
                "batch" => row.deploy_batch_size = Some(value.parse().unwrap()),
                "from" => row.old_release = None,
                _ => drop(row.processes.insert(key.into(), value.parse().unwrap())),
            }
        }
        self.name("deployment", row.id.0);
        self.cluster.deployments.insert(row.id, Arc::new(row));
    }

    /// A plan's lines with names in the place of ids; new jobs are `new1`, `new2` and so on.
    pub fn read(&self, plan: &Plan) -> String {
        let mut text = plan.to_string();
        let created = plan.actions.iter().filter_map(|action| match action {
            Action::CreateJob { job, .. } => Some(job.id.to_string()),
            _ => None,
        });
        let new: Vec<(String, String)> = created.zip((1..).map(|n| format!("new{n}"))).collect();
        for (id, name) in self.names.iter().chain(&new) {
            text = text.replace(id, name);
        }
        text.replace("shop/", "")
    }
}

fn serde_json_state(name: &str) -> JobState {
    match name {
        "pending" => JobState::Pending,
        "starting" => JobState::Starting,
        "up" => JobState::Up,
        "stopping" => JobState::Stopping,
        "down" => JobState::Down,
        _ => panic!("{name} is no state"),
    }
}

pub fn strategy(name: &str) -> Strategy {
    match name {
        "all-at-once" => Strategy::AllAtOnce,
        "one-by-one" => Strategy::OneByOne,
        "one-down-one-up" => Strategy::OneDownOneUp,
        "in-batches" => Strategy::InBatches,
        "sirenia" => Strategy::Sirenia,
        _ => panic!("{name} is no strategy"),
    }
}

/// Does to the rows what an action says, as the store does. Panics where the store would refuse.
pub fn apply(cluster: &mut Cluster, action: &Action, now: Timestamp) {
    cluster.revision += 1;
    match action {
        Action::CreateJob { job, .. } => {
            assert_eq!(job.state, JobState::Pending);
            assert!(
                cluster.jobs.insert(job.id, Arc::new(job.clone())).is_none(),
                "{} made twice",
                job.id
            );
        }
        Action::PlaceJob {
            job,
            host,
            volumes,
            new_volumes,
            ..
        } => attach(cluster, *job, host, volumes, new_volumes, now),
        Action::ExplainJob { job, waiting, .. } => change(cluster, *job, now, |job| {
            assert_eq!(job.state, JobState::Pending);
            assert_ne!(&job.waiting, waiting, "an explanation that changes nothing");
            job.waiting = waiting.clone();
        }),
        Action::StopJob { job, reason, .. } => change(cluster, *job, now, |job| {
            assert!(job.is_active(), "{} stopped while {}", job.id, job.state);
            job.stop_reason = Some(*reason);
            if job.state == JobState::Pending {
                job.state = JobState::Down;
                job.ended_at = Some(now);
            } else {
                job.state = JobState::Stopping;
            }
        }),
        Action::LoseJob { job, why, .. } => change(cluster, *job, now, |job| {
            assert!(!matches!(job.state, JobState::Pending | JobState::Down));
            job.state = JobState::Down;
            job.exit = Some(Exit::Lost(why.clone()));
            job.ended_at = Some(now);
        }),
        Action::SetFormation { formation } => {
            cluster
                .formations
                .insert((formation.app, formation.release), Arc::new(formation.clone()));
        }
        Action::DeleteFormation { app, release } => {
            assert!(cluster.formations.remove(&(*app, *release)).is_some());
        }
        Action::StartDeployment { deployment } => {
            let row = Arc::make_mut(cluster.deployments.get_mut(deployment).unwrap());
            assert_eq!(row.status, DeploymentStatus::Pending);
            row.status = DeploymentStatus::Running;
        }
        Action::RetargetDeployment {
            deployment,
            processes,
        } => {
            let row = Arc::make_mut(cluster.deployments.get_mut(deployment).unwrap());
            assert_ne!(&row.processes, processes);
            row.processes = processes.clone();
        }
        Action::CompleteDeployment { deployment } | Action::FailDeployment { deployment, .. } => {
            assert!(cluster.deployments.remove(deployment).is_some());
        }
        Action::SetAppRelease { app, release } => {
            Arc::make_mut(cluster.apps.get_mut(app).unwrap()).release = Some(*release);
        }
        Action::CompleteScaleRequest { request } => {
            assert!(cluster.scale_requests.remove(request).is_some());
        }
    }
}

/// A job gets its host and its volumes: each is there, or is made, and nobody else has it.
fn attach(
    cluster: &mut Cluster,
    id: JobId,
    host: &HostId,
    volumes: &[VolumeId],
    new: &[Volume],
    now: Timestamp,
) {
    let row = cluster.jobs[&id].clone();
    assert_eq!(row.state, JobState::Pending, "{id} placed twice");
    for volume in new {
        assert_eq!((volume.job, volume.state), (None, VolumeState::Pending));
        let before = cluster.volumes.insert(volume.id, Arc::new(volume.clone()));
        assert!(before.is_none(), "volume {} made twice", volume.id);
    }
    for volume in volumes {
        let found = Arc::make_mut(cluster.volumes.get_mut(volume).expect("a volume that exists"));
        let holder = found.job.and_then(|job| cluster.jobs.get(&job));
        assert!(
            holder.is_none_or(|job| job.state == JobState::Down),
            "volume {volume} has two jobs"
        );
        assert!(found.is_usable(), "volume {volume} is attached again");
        assert_eq!(&found.host_id, host, "{id} is not where its volume is");
        assert_eq!(found.app, Some(row.app));
        found.job = Some(id);
    }
    change(cluster, id, now, |job| {
        job.state = JobState::Starting;
        job.host = Some(host.clone());
        job.volumes = volumes.to_vec();
        job.waiting.clear();
    });
}

pub fn change(cluster: &mut Cluster, job: JobId, now: Timestamp, with: impl FnOnce(&mut Job)) {
    let row = Arc::make_mut(cluster.jobs.get_mut(&job).expect("a job that exists"));
    with(row);
    row.updated_at = now;
}

/// Plans for a drawn world. Expects these lines, that planning again afterwards has nothing to do,
/// and that nothing happens before the plan's own next time.
#[track_caller]
pub fn check(world: &str, expected: &str) {
    let (found, _) = plan_of(world);
    assert_eq!(
        found,
        expected
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect::<String>(),
        "\nin: {world}"
    );
}

/// Expects when the plan is to be made again, in milliseconds from now.
#[track_caller]
pub fn check_wake(world: &str, expected_ms: Option<u64>) {
    let (_, plan) = plan_of(world);
    assert_eq!(
        plan.wake_at.map(|at| at.since(NOW).as_millis() as u64),
        expected_ms,
        "in: {world}"
    );
}

#[track_caller]
fn plan_of(world: &str) -> (String, Plan) {
    let mut world = World::draw(world);
    let made = plan(&world.cluster, NOW);
    let text = world.read(&made);
    for action in &made.actions {
        apply(&mut world.cluster, action, NOW);
    }
    let again = plan(&world.cluster, NOW);
    assert!(again.is_empty(), "after\n{text}again\n{}", world.read(&again));
    let before_wake = again.wake_at.map_or(NOW + Duration::from_secs(86_400), |at| {
        at - Duration::from_micros(1)
    });
    let later = plan(&world.cluster, before_wake);
    assert!(
        later.is_empty(),
        "after\n{text}with time alone\n{}",
        world.read(&later)
    );
    (text, made)
}
