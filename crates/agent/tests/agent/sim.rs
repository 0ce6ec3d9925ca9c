//! The agent on a machine made of values.

use std::sync::Arc;

use api::host::{HostJob, NetworkChange, NetworkHost, ReportedState};
use container::Outcome;
use daemon::StateDir;
use futures::StreamExt;
use types::{Exit, JobId};

use crate::{
    controller::Controller,
    life::{HOST, Life, PATIENCE, Setup, app_of, directories, id_of, job, until},
    machine::{Fuse, Machine},
};

pub struct World {
    pub controller: Controller,
    machine: Machine,
    setup: Setup,
    layer: String,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new(fuse: Fuse) -> World {
        let dir = tempfile::tempdir().unwrap();
        let layer = "ab".repeat(32);
        let state = StateDir::new(dir.path());
        std::fs::create_dir_all(state.layers()).unwrap();
        std::fs::write(state.layers().join(format!("{layer}.erofs")), "").unwrap();
        let controller = Controller::new(fuse.clone());
        let network = overlay::Config::new("t0", "flynn_t0", "100.100.0.0/24".parse().unwrap());
        let setup = Setup {
            state: dir.path().to_owned(),
            controller: controller.serve().await,
            network,
            cgroup_parent: "flynn-test".into(),
            shim: "/nowhere".into(),
        };
        World {
            controller,
            machine: Machine::new(fuse),
            setup,
            layer,
            _dir: dir,
        }
    }

    pub fn life(&self) -> Life {
        Life::begin(
            &self.setup,
            Some((Arc::new(self.machine.clone()), Arc::new(self.machine.clone()))),
        )
    }

    pub fn job(&self) -> HostJob {
        job(&self.layer, &["serve"])
    }

    fn dir(&self, id: JobId) -> std::path::PathBuf {
        StateDir::new(&self.setup.state).job(id)
    }

    pub async fn up(&self, id: JobId) {
        until("the job is up", || self.controller.state().is_up(id)).await;
    }

    async fn down(&self, id: JobId) -> ReportedState {
        until("the job is down", || self.controller.state().is_down(id)).await;
        until("its directory is gone", || {
            !directories(&self.setup.state).contains(&id.to_string())
        })
        .await;
        self.controller.state().last(id).unwrap().clone()
    }
}

fn down(exit: Exit) -> ReportedState {
    ReportedState::Down { exit }
}

#[tokio::test]
async fn a_job_is_started_reported_stopped_and_forgotten() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let job = world.job();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    assert_eq!(world.machine.running(), [id_of(&job).to_string()]);
    let state = world.controller.state().host.clone().unwrap();
    assert_eq!(
        (state.addr.as_str(), state.gateway.unwrap().to_string().as_str()),
        (&life.url[7..], "100.100.0.1")
    );

    world.controller.stop(id_of(&job));
    assert_eq!(world.down(id_of(&job)).await, down(Exit::Signal(15)));
    until("its address is free", || world.machine.leased() == 0).await;
    let states: Vec<_> = world.controller.state().reports[&id_of(&job)]
        .iter()
        .map(|report| report.state.clone())
        .collect();
    assert_eq!(states.last(), Some(&down(Exit::Signal(15))));
    let sidecar = StateDir::new(&world.setup.state)
        .app_logs(app_of(&job))
        .join(format!("{}.json", id_of(&job)));
    let about: serde_json::Value = serde_json::from_slice(&std::fs::read(sidecar).unwrap()).unwrap();
    assert_eq!(
        (about["process_type"].as_str(), about["host_id"].as_str()),
        (Some("web"), Some(HOST))
    );
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let world = World::new(Fuse::endless()).await;
    let _life = world.life();
    let mut job = world.job();
    job.mountspecs[0].id = "cd".repeat(32);
    world.controller.run(&job);
    let why = format!("layer {} of its image is on no host that is up", "cd".repeat(32));
    assert_eq!(world.down(id_of(&job)).await, down(Exit::NotStarted(why)));

    let mut job = world.job();
    job.mountspecs[0].id = "../../etc/passwd".into();
    world.controller.run(&job);
    let ReportedState::Down {
        exit: Exit::NotStarted(why),
    } = world.down(id_of(&job)).await
    else {
        panic!()
    };
    assert!(why.contains("64 lower-case hexadecimal"), "{why}");
}

#[tokio::test]
async fn an_absent_controller_stops_nothing_and_hears_everything_later() {
    let world = World::new(Fuse::endless()).await;
    let _life = world.life();
    let (one, two) = (world.job(), world.job());
    world.controller.run(&one);
    world.controller.run(&two);
    world.up(id_of(&one)).await;
    world.up(id_of(&two)).await;

    world.controller.go_away();
    world
        .machine
        .exit(&world.dir(id_of(&one)), Outcome::Exited { code: 3 });
    until("one runs", || {
        world.machine.running() == [id_of(&two).to_string()]
    })
    .await;
    assert!(
        directories(&world.setup.state).contains(&id_of(&one).to_string()),
        "not before it is acknowledged"
    );
    let beats = world.controller.state().heartbeats;
    world.controller.come_back();
    assert_eq!(world.down(id_of(&one)).await, down(Exit::Code(3)));
    until("the heart beats", || world.controller.state().heartbeats > beats).await;
    assert_eq!(world.machine.running(), [id_of(&two).to_string()]);
    assert_eq!(world.machine.starts_max(), 1);
}

#[tokio::test]
async fn what_the_controller_does_not_name_is_stopped_and_what_never_came_is_reported() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let (kept, surplus, never) = (world.job(), world.job(), world.job());
    world.controller.run(&kept);
    world.controller.run(&surplus);
    world.up(id_of(&kept)).await;
    world.up(id_of(&surplus)).await;
    life.kill();

    world.controller.forget(id_of(&surplus));
    world.controller.drain(id_of(&kept));
    world.controller.stop(id_of(&never));
    let _life = world.life();
    assert_eq!(world.down(id_of(&surplus)).await, down(Exit::Signal(15)));
    let why = "it was stopped before it started".to_string();
    assert_eq!(world.down(id_of(&never)).await, down(Exit::NotStarted(why)));
    assert_eq!(world.machine.running(), [id_of(&kept).to_string()]);
}

#[tokio::test]
async fn after_a_power_cut_every_job_is_reported_lost_and_new_ones_run() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let jobs: Vec<HostJob> = (0..20).map(|_| world.job()).collect();
    jobs.iter().for_each(|job| world.controller.run(job));
    for job in &jobs {
        world.up(id_of(job)).await;
    }
    life.kill();
    world.machine.power_cut();
    let _life = world.life();
    for job in &jobs {
        let exit = Exit::Lost("its container was gone when the host started again".into());
        assert_eq!(world.down(id_of(job)).await, down(exit));
    }
    let next = world.job();
    world.controller.run(&next);
    world.up(id_of(&next)).await;
    assert_eq!((world.machine.running().len(), world.machine.leased()), (1, 1));
}

#[tokio::test]
async fn the_network_is_as_it_was_told_until_it_is_told_otherwise() {
    let world = World::new(Fuse::endless()).await;
    let map = StateDir::new(&world.setup.state).network_map();
    let host = |number: u8| {
        NetworkChange::Host(NetworkHost {
            id: format!("other{number}").parse().unwrap(),
            subnet: format!("100.100.{number}.0/24"),
            underlay: [10, 0, 0, number].into(),
            public_key: None,
        })
    };
    let ids = [world.job(), world.job()].map(|job| id_of(&job));
    let life = world.life();
    world.controller.tell_network(ids[0], host(2));
    world.controller.tell_network(ids[1], host(3));
    until("both are known", || world.machine.hosts() == ["other2", "other3"]).await;
    until("both are kept", || {
        std::fs::read_to_string(&map).is_ok_and(|text| text.contains("other3"))
    })
    .await;

    world.controller.go_away();
    life.shut_down().await;
    world.controller.forget(ids[0]);
    world.machine.forget_hosts();
    let _life = world.life();
    until("the next agent has begun", || {
        world.machine.hosts() == ["other2", "other3"]
    })
    .await;
    world.controller.come_back();
    until("it hears the rest", || world.machine.hosts() == ["other3"]).await;
}

#[tokio::test]
async fn a_shut_down_leaves_the_jobs_and_the_next_agent_has_them() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let job = world.job();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    life.shut_down().await;
    assert_eq!(world.machine.running(), [id_of(&job).to_string()]);
    let _life = world.life();
    world.controller.stop(id_of(&job));
    assert_eq!(world.down(id_of(&job)).await, down(Exit::Signal(15)));
}

#[tokio::test]
async fn unused_layers_go_and_used_ones_stay() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let layers = StateDir::new(&world.setup.state).layers();
    let [named, unused] = ["cd", "ef"].map(|digits| digits.repeat(32));
    for digest in [&named, &unused] {
        std::fs::write(layers.join(format!("{digest}.erofs")), "").unwrap();
    }
    world.controller.state().layers = vec![named.clone()];
    let job = world.job();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    let removed: Vec<String> = life.client().post("/host/gc", &()).await.unwrap();
    assert_eq!(removed, [""; 0], "all are younger than the grace");
    let removed: Vec<String> = life.client().post("/host/gc?grace=0", &()).await.unwrap();
    assert_eq!(removed, [format!("{unused}.erofs")]);
}

#[tokio::test]
async fn the_host_api_lists_jobs_and_asks_for_a_key() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let (one, two) = (world.job(), world.job());
    world.controller.run(&one);
    world.controller.run(&two);
    world.up(id_of(&one)).await;
    world.up(id_of(&two)).await;
    let client = life.client();
    client.delete(&format!("/host/jobs/{}", one.id)).await.unwrap();
    world.down(id_of(&one)).await;
    until("it is settled", || directories(&world.setup.state).len() == 1).await;
    let all: serde_json::Value = client.get("/host/jobs").await.unwrap();
    assert_eq!(
        (&all[&two.id]["status"], &all[&two.id]["internal_ip"].is_string()),
        (&1.into(), &true)
    );
    let active: serde_json::Value = client.get("/host/jobs?active=true").await.unwrap();
    assert_eq!(active.as_object().unwrap().keys().collect::<Vec<_>>(), [&two.id]);
    let ended: api::host::ActiveJob = client.get(&format!("/host/jobs/{}", id_of(&one))).await.unwrap();
    assert_eq!(ended.exit_status, Some(143));
    assert!(
        client
            .get::<serde_json::Value>("/host/jobs/nonsense")
            .await
            .is_err()
    );
    let status: api::host::HostStatus = client.get("/host/status").await.unwrap();
    assert_eq!(status.id.as_str(), HOST);

    let stranger = api::Client::new(&api::Endpoint {
        url: life.url.clone(),
        key: "wrong".into(),
        trust: api::Trust::System,
    });
    let refused = stranger
        .unwrap()
        .get::<serde_json::Value>("/host/jobs")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(api::Code::Unauthorized));
}

#[tokio::test]
async fn who_follows_the_events_of_a_job_hears_its_life() {
    let world = World::new(Fuse::endless()).await;
    let life = world.life();
    let job = world.job();
    let client = life.client();
    let mut events = client.events::<serde_json::Value>("/host/jobs").await.unwrap();
    world.controller.run(&job);
    world.up(id_of(&job)).await;
    world.controller.stop(id_of(&job));
    let mut heard = Vec::new();
    while heard.last().is_none_or(|event| event != "cleanup") {
        let event = tokio::time::timeout(PATIENCE, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(
            (&event["job_id"], &event["job"]["host_id"]),
            (&job.id.clone().into(), &HOST.into())
        );
        heard.push(event["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(heard, ["create", "start", "stop", "cleanup"]);
}

/// Kills the agent at its first, second, third … step of a job's whole life, and expects of the next
/// agent that everything ends as it should.
#[tokio::test]
async fn a_kill_at_any_step_is_made_good_by_the_next_agent() {
    for steps in 1.. {
        let fuse = Fuse::of(steps);
        let world = World::new(fuse.clone()).await;
        let (short, long) = (world.job(), world.job());
        let (short_id, long_id) = (id_of(&short), id_of(&long));
        let life = world.life();
        let settled = |id: JobId| {
            let state = world.controller.state();
            state.is_up(id) || state.is_down(id)
        };
        world.controller.run(&short);
        world.controller.run(&long);
        until("both run, or the kill", || {
            fuse.is_blown() || (settled(short_id) && settled(long_id))
        })
        .await;
        if !fuse.is_blown() {
            world.controller.stop(short_id);
        }
        let is_over =
            || world.controller.state().is_down(short_id) && directories(&world.setup.state).len() == 1;
        until("one has ended, or the kill", || fuse.is_blown() || is_over()).await;
        if !fuse.is_blown() {
            assert!(steps > 20, "the fuse is in the way of the agent: {steps}");
            return;
        }
        life.kill();
        fuse.renew();

        let _life = world.life();
        until("both are settled", || settled(short_id) && settled(long_id)).await;
        if !world.controller.state().is_down(short_id) {
            world.controller.stop(short_id);
        }
        world.down(short_id).await;
        let is_up = world.controller.state().is_up(long_id);
        let expected: Vec<String> = is_up.then(|| long_id.to_string()).into_iter().collect();
        if !is_up {
            world.down(long_id).await;
        }
        assert_eq!(
            directories(&world.setup.state),
            expected,
            "after a kill at step {steps}"
        );
        assert_eq!(world.machine.running(), expected, "after a kill at step {steps}");
        until("addresses are free", || world.machine.leased() == expected.len()).await;
        assert!(
            world.machine.starts_max() <= 1,
            "a process ran twice after a kill at step {steps}"
        );
    }
}
